"""The delta rule in chunks whose inverse is a triangular solve: two such programs at once may wait for each other."""

from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

CHUNK = 32


class Mixer(nn.Module):
  width: int
  heads: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x_BTD):
    B, T, D = x_BTD.shape

    def chunks(array):
      padded = jnp.pad(array, ((0, 0), (0, -T % CHUNK), (0, 0), (0, 0)))
      return rearrange(padded, 'b (n c) h k -> n b h c k', c=CHUNK)

    def unit(array):
      return array / jnp.sqrt(jnp.sum(array**2, -1, keepdims=True) + 1e-6)

    q, k, v = (nn.Dense(D, use_bias=False)(x_BTD).reshape(B, T, self.heads, -1).astype(jnp.float32) for _ in range(3))
    beta = nn.sigmoid(nn.Dense(self.heads, dtype=jnp.float32)(x_BTD))[..., None]
    q, k = unit(q), unit(k)
    q, kb, vb, k = chunks(q), chunks(k * beta), chunks(v * beta), chunks(k)
    mixed = jnp.tril(kb @ k.mT, -1)
    one = jnp.eye(CHUNK)
    inverse = jax.scipy.linalg.solve_triangular(one + mixed, jnp.broadcast_to(one, mixed.shape), lower=True)

    def step(state, chunk):
      q, k, u, w, near = chunk
      new = u - w @ state
      return state + k.mT @ new, q @ state + near @ new

    start = jnp.zeros((B, self.heads, k.shape[-1], k.shape[-1]), jnp.float32)
    _, o = jax.lax.scan(step, start, (q, k, inverse @ vb, inverse @ kb, jnp.tril(q @ k.mT)))
    o_BTD = rearrange(o, 'n b h c v -> b (n c) (h v)')[:, :T]
    return nn.Dense(D, use_bias=False)(nn.RMSNorm()(o_BTD)).astype(x_BTD.dtype)
