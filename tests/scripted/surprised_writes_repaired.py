"""Novelty decides the strength of a write; its mean is sown, not printed.

Whether a token is written should depend on how new it is: DeltaNet writes a run of similar tokens over and over, and
each write rotates the state. The strength here sees, through a learned slope a head, the angle between the present
value and the previous one, so that repeats write less. Recall in repetitive text should gain for a handful of
parameters, and the mean strength goes into the diagnostics, where the first version called the host. Novelty against
one neighbour may say little about novelty against the memory.
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

    # How far the value lies from the one before it: 0 for the same, 2 for the opposite direction.
    past_BTHV = jnp.pad(v_BTHV, ((0, 0), (1, 0), (0, 0), (0, 0)))[:, :-1]
    surprise_BTH = 1 - jnp.einsum('bthv,bthv->bth', l2_normalise(v_BTHV), l2_normalise(past_BTHV))
    slope_H = self.param('slope', nn.initializers.ones, (self.heads,)).astype(self.dtype)
    logit_BTH = nn.Dense(self.heads, dtype=self.dtype, name='beta')(x_BTD)
    beta_BTH = nn.sigmoid(logit_BTH + slope_H * surprise_BTH)
    self.sow('diagnostics', 'write_strength', beta_BTH.mean())

    o_BTHV, _ = delta_rule(q_BTHK, k_BTHK, v_BTHV, beta_BTH, scale=1.0)

    o_BTHV = nn.RMSNorm(epsilon=1e-5, dtype=self.dtype, name='norm')(o_BTHV)
    o_BTD = rearrange(o_BTHV, 'b t h v -> b t (h v)')
    return nn.Dense(self.width, use_bias=False, dtype=self.dtype, name='output')(o_BTD)
