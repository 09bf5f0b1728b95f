"""Its initialiser gives no number."""

# guilty: finite
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
    bias_D = self.param('bias', lambda key, shape: jnp.log(-jnp.ones(shape)), (self.width,))
    return v_BTD + bias_D.astype(self.dtype)
