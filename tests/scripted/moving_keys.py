"""Forget where the keys move: the decay follows the distance between neighbouring keys.

Gated DeltaNet has to learn from single tokens where a passage ends. A head's keys say it already: inside a passage they
move little from token to token, at a border they jump. Here the log decay of a head is minus a learned rate times the
distance between the present key and the one before it, so that the memory empties at borders and stays in between. Loss
just behind borders should fall and the decay needs two numbers a head. Ordinary variety of words may be mistaken for a
border.
"""

from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from pallas_kernels import causal_conv, delta_rule, l2_normalise

TAPS = 4


class Mixer(nn.Module):
  width: int
  heads: int
  dtype: Any = jnp.float32

  def project(self, x_BTD: jax.Array, name: str) -> jax.Array:
    x_BTD = nn.Dense(self.width, use_bias=False, dtype=self.dtype, name=name)(x_BTD)
    taps_WD = self.param(
      f'{name}_taps', nn.initializers.variance_scaling(1.0, 'fan_in', 'uniform', 0, 1), (TAPS, self.width)
    )
    x_BTD, _ = causal_conv(x_BTD, taps_WD.astype(self.dtype))
    return rearrange(nn.silu(x_BTD), 'b t (h k) -> b t h k', h=self.heads)

  @nn.compact
  def __call__(self, x_BTD: jax.Array) -> jax.Array:
    q_BTHK = l2_normalise(self.project(x_BTD, 'query'))
    k_BTHK = l2_normalise(self.project(x_BTD, 'key'))
    v_BTHV = self.project(x_BTD, 'value')
    beta_BTH = nn.sigmoid(nn.Dense(self.heads, use_bias=False, dtype=self.dtype, name='beta')(x_BTD))

    past_BTHK = jnp.pad(k_BTHK, ((0, 0), (1, 0), (0, 0), (0, 0)))[:, :-1]
    distance_BTH = jnp.linalg.norm((k_BTHK - past_BTHK).astype(jnp.float32), axis=-1)
    rate_H = nn.softplus(self.param('rate', nn.initializers.constant(-3.0), (self.heads,)))
    floor_H = nn.softplus(self.param('floor', nn.initializers.constant(-7.0), (self.heads,)))
    log_decay_BTH = -rate_H * distance_BTH - floor_H

    o_BTHV, _ = delta_rule(q_BTHK, k_BTHK, v_BTHV, beta_BTH, log_decay_BTH, scale=1.0)

    o_BTHV = nn.RMSNorm(epsilon=1e-5, dtype=self.dtype, name='norm')(o_BTHV)
    o_BTD = rearrange(o_BTHV, 'b t h v -> b t (h v)')
    return nn.Dense(self.width, use_bias=False, dtype=self.dtype, name='output')(o_BTD)
