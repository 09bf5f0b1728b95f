"""Leaky averages with learned leaks, gated: the smallest recurrence that could work.

Before a matrix memory is worth its cost, it should beat a handful of leaky averages. Each channel of the value is
averaged over the past with its own learned leak, whose logits start uniformly between 1 and 5 (time constants from 4 to
150 tokens), and a SiLU gate from the token multiplies the average. State and FLOPs are a small part of DeltaNet's; bits
per byte should be within reach. There is no content addressing at all, so recall will be poor.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

LEAKS = nn.initializers.uniform(minval=1.0, maxval=5.0)  # logits of what stays from token to token


class Mixer(nn.Module):
  width: int
  heads: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x_BTD: jax.Array) -> jax.Array:
    v_BTD = nn.Dense(self.width, use_bias=False, dtype=self.dtype, name='value')(x_BTD).astype(jnp.float32)
    keep_D = nn.sigmoid(self.param('keep', LEAKS, (self.width,)))

    def step(mean_BD, v_BD):
      mean_BD = keep_D * mean_BD + (1 - keep_D) * v_BD
      return mean_BD, mean_BD

    _, mean_TBD = jax.lax.scan(step, jnp.zeros_like(v_BTD[:, 0]), v_BTD.swapaxes(0, 1))
    gate_BTD = nn.silu(nn.Dense(self.width, use_bias=False, dtype=self.dtype, name='gate')(x_BTD))
    o_BTD = mean_TBD.swapaxes(0, 1).astype(self.dtype) * gate_BTD
    return nn.Dense(self.width, use_bias=False, dtype=self.dtype, name='output')(o_BTD)
