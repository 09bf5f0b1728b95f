"""A gated recurrence, token by token."""

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

    decay_BTD = nn.sigmoid(nn.Dense(self.width, dtype=self.dtype)(x_BTD))

    def step(h_BD, at):
      decay_BD, v_BD = at
      h_BD = decay_BD * h_BD + (1 - decay_BD) * v_BD
      return h_BD, h_BD

    start_BD = jnp.zeros_like(v_BTD[:, 0])
    _, y_TBD = jax.lax.scan(step, start_BD, (decay_BTD.swapaxes(0, 1), v_BTD.swapaxes(0, 1)))
    return y_TBD.swapaxes(0, 1)
