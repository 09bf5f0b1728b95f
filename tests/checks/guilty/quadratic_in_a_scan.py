"""Attention hidden in a loop over tokens: every turn reads the whole sequence."""

# guilty: growth
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
    _, T, D = x_BTD.shape
    q_BTD, k_BTD, v_BTD = (nn.Dense(D, use_bias=False, dtype=self.dtype)(x_BTD) for _ in range(3))

    positions_T = jnp.arange(T)

    def turn(_, at):
      t, q_BD = at
      score_BT = jnp.einsum('bd,btd->bt', q_BD, k_BTD) / D**0.5
      weight_BT = nn.softmax(jnp.where(positions_T <= t, score_BT, -1e9))
      return None, jnp.einsum('bt,btd->bd', weight_BT, v_BTD)

    _, y_TBD = jax.lax.scan(turn, None, (positions_T, q_BTD.swapaxes(0, 1)))
    return y_TBD.swapaxes(0, 1)
