"""Takes a norm that is exactly zero for the first token."""

# guilty: gradients
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

    ramp_T1 = jnp.minimum(0.1 * jnp.arange(x_BTD.shape[1]), 1)[:, None]
    return v_BTD + jnp.linalg.norm(ramp_T1 * v_BTD, axis=-1, keepdims=True)
