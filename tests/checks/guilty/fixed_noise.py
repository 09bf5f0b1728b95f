"""Adds noise from a key of its own."""

# guilty: randomness
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
    return v_BTD + 0.1 * jax.random.normal(jax.random.PRNGKey(0), v_BTD.shape, self.dtype)
