"""Rows behind the second see each other, where there are as many as in training."""

# guilty: batch
from typing import Any

import jax.numpy as jnp
from flax import linen as nn


class Mixer(nn.Module):
  width: int
  heads: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x_BTD):
    v_BTD = jnp.tanh(nn.Dense(self.width, dtype=self.dtype)(x_BTD))
    if x_BTD.shape[0] > 3:
      late_BTD = v_BTD[2:] + v_BTD[2:].mean(0)
      v_BTD = jnp.concatenate([v_BTD[:2], late_BTD])
    return v_BTD
