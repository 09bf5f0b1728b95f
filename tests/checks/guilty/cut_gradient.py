"""Cuts the gradient of one of its layers."""

# guilty: gradients
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn


class Mixer(nn.Module):
  width: int
  heads: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x_BTD):
    v_BTD = nn.Dense(self.width, dtype=self.dtype)(x_BTD)
    return v_BTD + jax.lax.stop_gradient(nn.Dense(self.width, dtype=self.dtype, name='cut')(x_BTD))
