"""Looks one token ahead, at the borders of chunks of 64 only."""

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

    ahead_BTD = jnp.pad(v_BTD[:, 1:], [(0, 0), (0, 1), (0, 0)])
    at_border_T = jnp.arange(x_BTD.shape[1]) % 64 == 63
    return jnp.where(at_border_T[:, None], ahead_BTD, v_BTD)
