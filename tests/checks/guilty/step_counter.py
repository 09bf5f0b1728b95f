"""Counts its calls in a variable of its own."""

# guilty: state
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

    step = self.variable('counters', 'step', lambda: jnp.zeros((), jnp.float32))
    return v_BTD * (1 + step.value)
