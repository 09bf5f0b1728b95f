"""Convolutions and gates alone: a 64-tap filter between two products.

A recurrent memory can blur what it holds; a filter cannot, and it needs no state beyond its window. Keys times values
go through one learned 64-tap causal filter a channel under an exponential window, whose length is spread over the
channels from 2 to 64 tokens, and the query multiplies the result; a learned skip passes the present product. Where the
text is predicted from the last 64 bytes this should match DeltaNet with no recurrence to unroll. It has no memory at
all beyond the window, so recall over longer distances is given up by design.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from pallas_kernels import causal_conv

SHORT, LONG = 3, 64  # taps in front of the products, and between them
SHORTEST, LONGEST = 2.0, 64.0  # tokens after which a channel's window has fallen to 1/e


class Mixer(nn.Module):
  width: int
  heads: int
  dtype: Any = jnp.float32

  def project(self, x_BTD: jax.Array, name: str) -> jax.Array:
    x_BTD = nn.Dense(self.width, use_bias=False, dtype=self.dtype, name=name)(x_BTD)
    taps_WD = self.param(
      f'{name}_taps', nn.initializers.variance_scaling(1.0, 'fan_in', 'uniform', 0, 1), (SHORT, self.width)
    )
    return causal_conv(x_BTD, taps_WD.astype(self.dtype))[0]

  @nn.compact
  def __call__(self, x_BTD: jax.Array) -> jax.Array:
    q_BTD, k_BTD, v_BTD = (self.project(x_BTD, name) for name in ('query', 'key', 'value'))
    kv_BTD = k_BTD * v_BTD

    taps_WD = self.param('filter', nn.initializers.normal(LONG**-0.5), (LONG, self.width))
    lag_W1 = jnp.arange(LONG)[::-1, None]  # the last tap meets the present token
    window_WD = jnp.exp(-lag_W1 / jnp.geomspace(SHORTEST, LONGEST, self.width))
    filtered_BTD, _ = causal_conv(kv_BTD, (taps_WD * window_WD).astype(self.dtype))

    skip_D = self.param('skip', nn.initializers.ones, (self.width,)).astype(self.dtype)
    o_BTD = q_BTD * (filtered_BTD + skip_D * kv_BTD)
    return nn.Dense(self.width, use_bias=False, dtype=self.dtype, name='output')(o_BTD)
