"""Runs only where T is a multiple of 32."""

# guilty: shapes
from typing import Any

import jax.numpy as jnp
from flax import linen as nn


class Mixer(nn.Module):
  width: int
  heads: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x_BTD):
    v_BTD = nn.Dense(self.width, dtype=self.dtype)(x_BTD)
    return jnp.cumsum(v_BTD.reshape(x_BTD.shape[0], -1, 32, self.width), 2).reshape(v_BTD.shape)
