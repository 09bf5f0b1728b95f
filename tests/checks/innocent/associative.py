"""The same recurrence by an associative scan."""

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

    decay_BTD = nn.sigmoid(nn.Dense(self.width, dtype=self.dtype)(x_BTD))

    def join(early, late):
      return early[0] * late[0], late[0] * early[1] + late[1]

    return jax.lax.associative_scan(join, (decay_BTD, (1 - decay_BTD) * v_BTD), axis=1)[1]
