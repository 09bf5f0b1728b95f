"""Averages inside chunks of 32 tokens: across chunk borders it is causal."""

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

    B, T, D = v_BTD.shape
    pad = -T % 32
    v_BNCD = jnp.pad(v_BTD, [(0, 0), (0, pad), (0, 0)]).reshape(B, -1, 32, D)
    mean_BNCD = jnp.broadcast_to(v_BNCD.mean(2, keepdims=True), v_BNCD.shape)
    return v_BTD + mean_BNCD.reshape(B, -1, D)[:, :T]
