"""Eight triangular solves that do not wait for each other: their threads once did, for ever (jaxlib before 0.12)."""

from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

CHUNK, PARTS = 32, 8


class Mixer(nn.Module):
  width: int
  heads: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x_BTD):
    T, D = x_BTD.shape[1:]
    v_BTD, q_BTD, k_BTD = (nn.Dense(D, use_bias=False)(x_BTD) for _ in range(3))
    padded = (jnp.pad(array, ((0, 0), (0, -T % CHUNK), (0, 0))) for array in (v_BTD, q_BTD, k_BTD))
    v, q, k = (rearrange(array, 'b (n c) d -> n b c d', c=CHUNK) for array in padded)
    near = jnp.tril(nn.tanh(q @ k.mT), -1)
    size_P = self.param('size', nn.initializers.constant(0.1), (PARTS,))
    solved = [
      jax.scipy.linalg.solve_triangular(jnp.eye(CHUNK) + size * near, v[..., part::PARTS], lower=True)
      for part, size in enumerate(size_P)
    ]
    o_BTD = rearrange(jnp.concatenate(solved, -1), 'n b c d -> b (n c) d')[:, :T]
    return nn.Dense(D, use_bias=False)(o_BTD).astype(x_BTD.dtype)
