"""Sows a loss a token instead of one number."""

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
    v_BTD = nn.Dense(self.width, dtype=self.dtype)(x_BTD)
    self.sow('losses', 'entropy', v_BTD.mean(-1))
    return v_BTD
