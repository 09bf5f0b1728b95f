"""A convolution padded on both sides."""

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
    return nn.Conv(self.width, (3,), padding='SAME', dtype=self.dtype)(x_BTD)
