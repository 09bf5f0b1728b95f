"""Kimi Delta Attention: the delta rule, with a decay for every channel of the key.

Gated DeltaNet forgets by one number a head, so a head that must keep one thing keeps all its noise with it. Here each
key channel fades at its own rate, chosen by the token, while the delta rule edits what stays:
S_t = (I - beta_t k_t k_t^T) Diag(exp(g_t)) S_{t-1} + beta_t k_t v_t^T, o_t = S_t^T q_t, with
g_t = -exp(A_h) softplus(x_t W_1 W_2 + b). The map to the decays has the rank of a head. Queries, keys and values pass
short convolutions with SiLU, queries and keys have length one, beta = sigmoid(W_b x). The read is normalised a head and
gated by a sigmoid of low rank, which the paper found better than SiLU. Rates and step sizes start spread as in Mamba-2.
(Kimi Team 2025, Kimi Linear, arXiv 2510.26692, section 3 and equation 1.)
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from pallas_kernels import causal_conv, delta_rule, l2_normalise, softplus_log_decay

TAPS = 4  # of the short convolutions; the last one is the present token
FASTEST = 16.0  # largest rate exp(A) at the start
SHORTEST, LONGEST = 1e-3, 1e-1  # step sizes softplus(b) at the start


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

  def split(self, x_BTD: jax.Array) -> jax.Array:
    return rearrange(x_BTD, 'b t (h k) -> b t h k', h=self.heads)

  def project(self, x_BTD: jax.Array, name: str) -> jax.Array:
    """A linear map, a short causal convolution along time, and SiLU, split into heads."""
    x_BTD = nn.Dense(self.width, use_bias=False, dtype=self.dtype, name=name)(x_BTD)
    taps_WD = self.param(
      f'{name}_taps', nn.initializers.variance_scaling(1.0, 'fan_in', 'uniform', 0, 1), (TAPS, self.width)
    )
    x_BTD, _ = causal_conv(x_BTD, taps_WD.astype(self.dtype))
    return self.split(nn.silu(x_BTD))

  @nn.compact
  def __call__(self, x_BTD: jax.Array) -> jax.Array:
    rank = self.width // self.heads
    q_BTHK = l2_normalise(self.project(x_BTD, 'query'))
    k_BTHK = l2_normalise(self.project(x_BTD, 'key'))
    v_BTHV = self.project(x_BTD, 'value')
    beta_BTH = nn.sigmoid(nn.Dense(self.heads, use_bias=False, dtype=self.dtype, name='beta')(x_BTD))

    # The decay is a product over time, so it is kept in float32 whatever the compute type.
    low_BTR = nn.Dense(rank, use_bias=False, dtype=jnp.float32, name='decay_down')(x_BTD)
    raw_BTHK = self.split(nn.Dense(self.width, use_bias=False, dtype=jnp.float32, name='decay_up')(low_BTR))
    log_rate_H1 = self.param('log_rate', initial_log_rate, (self.heads,))[:, None]
    bias_HK = self.param('step_bias', initial_step_bias, (self.heads, self.width // self.heads))
    log_decay_BTHK = softplus_log_decay(raw_BTHK, log_rate_H1, bias_HK)

    o_BTHV, _ = delta_rule(q_BTHK, k_BTHK, v_BTHV, beta_BTH, log_decay_BTHK, scale=1.0)

    o_BTHV = nn.RMSNorm(epsilon=1e-5, dtype=self.dtype, name='norm')(o_BTHV)
    low_BTR = nn.Dense(rank, use_bias=False, dtype=self.dtype, name='gate_down')(x_BTD)
    gate_BTD = nn.sigmoid(nn.Dense(self.width, dtype=self.dtype, name='gate_up')(low_BTR))
    o_BTD = rearrange(o_BTHV, 'b t h v -> b t (h v)') * gate_BTD
    return nn.Dense(self.width, use_bias=False, dtype=self.dtype, name='output')(o_BTD)
