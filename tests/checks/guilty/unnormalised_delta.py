"""Erases more than is there: without a norm on its keys the state grows with every token."""

# guilty: finite
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

import pallas_kernels


class Mixer(nn.Module):
  width: int
  heads: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x_BTD):
    B, T, _ = x_BTD.shape
    q, k, v = (nn.Dense(self.width, dtype=self.dtype, name=name)(x_BTD) for name in ('query', 'key', 'value'))
    q, k, v = (x.reshape(B, T, self.heads, -1) for x in (q, k, v))
    beta_BTH = nn.sigmoid(nn.Dense(self.heads, dtype=self.dtype, name='beta')(x_BTD))
    o_BTHV, _ = pallas_kernels.delta_rule(q, k, v, beta_BTH)
    return nn.Dense(self.width, dtype=self.dtype, name='output')(o_BTHV.reshape(B, T, -1))
