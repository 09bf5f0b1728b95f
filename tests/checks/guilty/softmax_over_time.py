"""Weights the tokens by a softmax over the whole sequence, then sums only the past."""

# guilty: causality prefix
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

    weight_BTD = nn.softmax(nn.Dense(self.width, dtype=self.dtype)(x_BTD), axis=1)
    return jnp.cumsum(weight_BTD * v_BTD, 1)
