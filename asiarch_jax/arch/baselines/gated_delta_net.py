"""Gated DeltaNet: the delta rule with a decay that can clear the memory at once.

The delta rule changes one key's content at a time; a state that must forget a whole context needs as many steps as it
holds keys. A data-dependent scalar decay a head, as in Mamba2, forgets everything at once, and the delta rule edits
what stays: S_t = exp(g_t) (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T with g_t = -exp(A) softplus(W_a x_t + b).
A start from decays spread over slow and fast heads, and a SiLU gate on the normalised output, as in the paper.
(Yang, Kautz, Hatamizadeh 2024, arXiv 2412.06464.)
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from pallas_kernels import causal_conv, delta_rule, l2_normalise

TAPS = 4  # of the short convolutions; the last one is the present token
FASTEST = 16.0  # largest rate exp(A) at the start, as in Mamba2
SHORTEST, LONGEST = 1e-3, 1e-1  # step sizes softplus(b) at the start, as in Mamba2


def initial_log_rate(key, shape):
  return jnp.log(jax.random.uniform(key, shape, minval=1.0, maxval=FASTEST))


def initial_step_bias(key, shape):
  """The inverse of softplus at step sizes that are even on a log scale."""
  step = jnp.exp(jax.random.uniform(key, shape, minval=math.log(SHORTEST), maxval=math.log(LONGEST)))
  return step + jnp.log(-jnp.expm1(-step))


class Mixer(nn.Module):
  width: int
  heads: int
  dtype: Any = jnp.float32

  def project(self, x_BTD: jax.Array, name: str) -> jax.Array:
    """A linear map, a short causal convolution along time, and SiLU, split into heads."""
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

    # The decay is a product over time, so it is kept in float32 whatever the compute type.
    rate_H = jnp.exp(self.param('log_rate', initial_log_rate, (self.heads,)))
    bias_H = self.param('step_bias', initial_step_bias, (self.heads,))
    step_BTH = nn.Dense(self.heads, use_bias=False, dtype=jnp.float32, name='step')(x_BTD)
    log_decay_BTH = -rate_H * nn.softplus(step_BTH + bias_H)

    o_BTHV, _ = delta_rule(q_BTHK, k_BTHK, v_BTHV, beta_BTH, log_decay_BTH, scale=1.0)

    o_BTHV = nn.RMSNorm(epsilon=1e-5, dtype=self.dtype, name='norm')(o_BTHV)
    gate_BTD = nn.Dense(self.width, use_bias=False, dtype=self.dtype, name='gate')(x_BTD)
    o_BTD = rearrange(o_BTHV, 'b t h v -> b t (h v)') * nn.silu(gate_BTD)
    return nn.Dense(self.width, use_bias=False, dtype=self.dtype, name='output')(o_BTD)
