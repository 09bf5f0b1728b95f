"""Gated linear attention by a Python loop over chunks of 128: there is one at T = 128, so little is carried."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

CHUNK = 128


class Mixer(nn.Module):
  width: int
  heads: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x_BTD):
    B, T, D = x_BTD.shape
    q, k, v = (nn.Dense(D, use_bias=False, dtype=self.dtype)(x_BTD).reshape(B, T, self.heads, -1) for _ in range(3))
    log_gate = nn.log_sigmoid(nn.Dense(self.heads, use_bias=False, dtype=jnp.float32)(x_BTD))
    parts, state = [], jnp.zeros((B, self.heads, D // self.heads, D // self.heads), jnp.float32)
    for start in range(0, T, CHUNK):
      qc, kc, vc, gc = (array[:, start : start + CHUNK] for array in (q, k, v, log_gate))
      total = jnp.cumsum(gc, 1)
      i = jnp.arange(qc.shape[1])
      decay = jnp.exp(jnp.where((i[:, None] >= i)[None, :, :, None], total[:, :, None] - total[:, None], -1e9))
      inside = jnp.einsum('btsh,bshv->bthv', jnp.einsum('bthk,bshk->btsh', qc, kc) * decay, vc)
      parts.append(inside + jnp.einsum('bthk,bhkv->bthv', qc * jnp.exp(total)[..., None], state))
      last = total[:, -1:]
      added = jnp.einsum('bthk,bthv->bhkv', kc * jnp.exp(last - total)[..., None], vc)
      state = state * jnp.exp(last[:, 0])[..., None, None] + added
    return nn.Dense(D, use_bias=False)(jnp.concatenate(parts, 1).reshape(B, T, D)).astype(x_BTD.dtype)
