"""Reads the strongest token of the whole sequence: no derivative shows it."""

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
    v_BTD = nn.Dense(self.width, dtype=self.dtype)(x_BTD)

    best_B = jnp.argmax(v_BTD[..., 0], 1)
    index_BTD = jnp.broadcast_to(best_B[:, None, None], v_BTD.shape)
    return v_BTD + (index_BTD > 20).astype(self.dtype)
