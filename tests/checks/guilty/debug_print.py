"""Prints from the compiled program."""

# guilty: effects
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
    jax.debug.print('{}', v_BTD[0, 0, 0])
    return v_BTD
