"""Raises for every input."""

# guilty: contract
from typing import Any

import jax.numpy as jnp
from flax import linen as nn


class Mixer(nn.Module):
  width: int
  heads: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x_BTD):
    if self.width > 8:
      raise ValueError(f'width {self.width} is not supported')
    return nn.Dense(self.width, dtype=self.dtype)(x_BTD)
