"""Iterates until it is content."""

# guilty: loops
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

    def unsettled(state):
      return jnp.abs(state[0]).max() > 1

    def halve(state):
      return state[0] / 2, state[1] + 1

    return jax.lax.while_loop(unsettled, halve, (v_BTD, 0))[0]
