"""Let a write reflect: beta up to two, under a scalar decay.

With beta in (0, 1) the transition I - beta k k^T has eigenvalues between zero and one, so neither DeltaNet nor Gated
DeltaNet can flip the sign of what a key holds, and tasks that count or track a state are out of reach. Doubling the
sigmoid moves the eigenvalue along the key to (-1, 1) at no cost; the decay of Gated DeltaNet stays and keeps the
product of transitions contracting. State tracking and loss at depth should gain, plain recall should stay. The risk is
an oscillating memory where beta saturates near two and the decay is near one.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from pallas_kernels import causal_conv, delta_rule, l2_normalise, softplus_log_decay

TAPS = 4
SHORTEST, LONGEST = 1e-3, 1e-1  # step sizes softplus(dt_bias) at the start


def initial_step_bias(key, shape):
  step = jnp.exp(jax.random.uniform(key, shape, minval=math.log(SHORTEST), maxval=math.log(LONGEST)))
  return step + jnp.log(-jnp.expm1(-step))


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
    beta_BTH = 2 * nn.sigmoid(nn.Dense(self.heads, use_bias=False, dtype=self.dtype, name='beta')(x_BTD))

    a_log_H = self.param('a_log', nn.initializers.zeros, (self.heads,))
    dt_bias_H = self.param('dt_bias', initial_step_bias, (self.heads,))
    raw_BTH = nn.Dense(self.heads, use_bias=False, dtype=jnp.float32, name='step')(x_BTD)
    log_decay_BTH = softplus_log_decay(raw_BTH, a_log_H, dt_bias_H)

    o_BTHV, _ = delta_rule(q_BTHK, k_BTHK, v_BTHV, beta_BTH, log_decay_BTH, scale=1.0)

    o_BTHV = nn.RMSNorm(epsilon=1e-5, dtype=self.dtype, name='norm')(o_BTHV)
    o_BTD = rearrange(o_BTHV, 'b t h v -> b t (h v)')
    return nn.Dense(self.width, use_bias=False, dtype=self.dtype, name='output')(o_BTD)
