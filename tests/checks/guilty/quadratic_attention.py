"""Softmax attention: right in every way but its cost."""

# guilty: growth
from typing import Any

import jax.numpy as jnp
from flax import linen as nn


class Mixer(nn.Module):
  width: int
  heads: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x_BTD):
    _, T, D = x_BTD.shape
    q_BTD, k_BTD, v_BTD = (nn.Dense(D, use_bias=False, dtype=self.dtype)(x_BTD) for _ in range(3))

    score_BTS = jnp.where(jnp.tril(jnp.ones((T, T), bool)), q_BTD @ k_BTD.swapaxes(1, 2) / D**0.5, -1e9)
    return nn.softmax(score_BTS) @ v_BTD
