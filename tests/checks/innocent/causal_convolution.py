"""A convolution padded on the left."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn


class Mixer(nn.Module):
  width: int
  heads: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x_BTD):
    x_BTD = jnp.pad(x_BTD, [(0, 0), (3, 0), (0, 0)])
    return nn.silu(nn.Conv(self.width, (4,), padding='VALID', feature_group_count=self.width, dtype=self.dtype)(x_BTD))
