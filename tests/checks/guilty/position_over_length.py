"""Scales by position / T: causal, but another function for each length."""

# guilty: prefix
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

    length = x_BTD.shape[1]
    return v_BTD * (jnp.arange(length, dtype=self.dtype) / length)[:, None]
