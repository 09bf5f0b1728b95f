"""Remembers how often it was traced."""

# guilty: determinism batch prefix
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

CALLS = []


class Mixer(nn.Module):
  width: int
  heads: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x_BTD):
    v_BTD = nn.Dense(self.width, dtype=self.dtype)(x_BTD)
    CALLS.append(1)
    return v_BTD * len(CALLS)
