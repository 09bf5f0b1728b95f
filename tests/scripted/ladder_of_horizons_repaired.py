"""Fixed rungs of a ladder of time constants, one a head, nudged by the token; built with jax.numpy.

Freely learned decays tend to agree with each other, and the range that no head covers is lost to Gated DeltaNet. Rungs
on a geometric ladder from 8 to 1024 tokens cover it by construction, and a bounded factor between one half and two
leaves the token some say. Distant recall and agreement between seeds should improve; forgetting at once is given up.
The ladder was computed with numpy in the first version, which a mixer may not import.
"""

from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from pallas_kernels import causal_conv, delta_rule, l2_normalise

TAPS = 4
SHORTEST, LONGEST = 8.0, 1024.0  # time constants, in tokens


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

    # A ladder of horizons over the heads; the token moves its head's rung by a factor between 1/2 and 2.
    rate_H = 1 / jnp.geomspace(SHORTEST, LONGEST, self.heads)
    move_BTH = nn.tanh(nn.Dense(self.heads, dtype=jnp.float32, name='move')(x_BTD))
    log_decay_BTH = -rate_H * 2.0**move_BTH

    o_BTHV, _ = delta_rule(q_BTHK, k_BTHK, v_BTHV, beta_BTH, log_decay_BTH, scale=1.0)

    o_BTHV = nn.RMSNorm(epsilon=1e-5, dtype=self.dtype, name='norm')(o_BTHV)
    o_BTD = rearrange(o_BTHV, 'b t h v -> b t (h v)')
    return nn.Dense(self.width, use_bias=False, dtype=self.dtype, name='output')(o_BTD)
