"""Has nothing to train."""

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
    return jnp.cumsum(x_BTD, 1)
