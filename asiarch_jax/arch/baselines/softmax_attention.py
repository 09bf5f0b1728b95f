"""Softmax attention with rotary positions: the quadratic anchor.

Every token compares itself with every token before it and keeps all of them, so nothing is forgotten and the cost
grows with the square of the length. It is not a candidate, since a mixer must cost less; it shows how much of what
unlimited memory gives a candidate has reached. (Vaswani et al. 2017; rotary positions: Su et al. 2021, arXiv
2104.09864.)
"""

from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

BASE = 10_000.0  # wavelengths of the rotary positions lie between 2 pi and 2 pi times this


def rotate(x_BTHK: jax.Array) -> jax.Array:
  """Turns each pair of channels by an angle that grows with the position, so that products see distances only."""
  T, K = x_BTHK.shape[1], x_BTHK.shape[3]
  rates_K = BASE ** (-jnp.arange(K // 2) / (K // 2))
  angles_TK = jnp.arange(T)[:, None] * rates_K
  cos_T1K, sin_T1K = jnp.cos(angles_TK)[:, None], jnp.sin(angles_TK)[:, None]
  even, odd = jnp.split(x_BTHK.astype(jnp.float32), 2, axis=-1)
  turned = jnp.concatenate([even * cos_T1K - odd * sin_T1K, even * sin_T1K + odd * cos_T1K], axis=-1)
  return turned.astype(x_BTHK.dtype)


class Mixer(nn.Module):
  width: int
  heads: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x_BTD: jax.Array) -> jax.Array:
    def project(name):
      y_BTD = nn.Dense(self.width, use_bias=False, dtype=self.dtype, name=name)(x_BTD)
      return rearrange(y_BTD, 'b t (h k) -> b t h k', h=self.heads)

    q_BTHK, k_BTHK, v_BTHV = rotate(project('query')), rotate(project('key')), project('value')

    T, K = x_BTD.shape[1], self.width // self.heads
    scores_BHTS = jnp.einsum('bthk,bshk->bhts', q_BTHK, k_BTHK, preferred_element_type=jnp.float32) / K**0.5
    past_TS = jnp.tril(jnp.ones((T, T), bool))
    weights_BHTS = nn.softmax(jnp.where(past_TS, scores_BHTS, -jnp.inf)).astype(self.dtype)
    o_BTHV = jnp.einsum('bhts,bshv->bthv', weights_BHTS, v_BTHV)

    return nn.Dense(self.width, use_bias=False, dtype=self.dtype, name='output')(
      rearrange(o_BTHV, 'b t h v -> b t (h v)')
    )
