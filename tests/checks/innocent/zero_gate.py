"""A token shift behind a gate that starts at zero, so that its layer has no gradient at first."""

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

    shifted_BTD = jnp.pad(v_BTD[:, :-1], [(0, 0), (1, 0), (0, 0)])
    gate_D = self.param('gate', nn.initializers.zeros, (self.width,))
    return v_BTD + gate_D.astype(self.dtype) * nn.Dense(self.width, dtype=self.dtype)(shifted_BTD)
