"""Leaks through a gate that starts at zero: nothing shows at initialisation."""

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

    gate_D = self.param('gate', nn.initializers.zeros, (self.width,))
    return v_BTD + gate_D.astype(self.dtype) * v_BTD.mean(1, keepdims=True)
