"""A forget gate for every key channel, bounded below.

Gated DeltaNet forgets all of a head's memory at one rate: to drop a finished sentence it must also drop the name that
the next one will ask for. Here each channel of the key has its own data-dependent decay, from a low-rank map of the
token, so that a head can keep some directions and clear others; the log decay is bounded at -5 a token, which keeps the
chunked products in range. A low-rank sigmoid gate acts on the normalised read. Recall beside long filler should rise
and bits per byte should not suffer. The risk is that the low rank ties the channels together again.
"""

from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from pallas_kernels import bounded_log_decay, causal_conv, delta_rule, l2_normalise

TAPS = 4
FASTEST, SLOWEST = -1.0, -6.0  # dt_bias over the channels of a head: log decays from about -1.3 to -0.01 at the start


def spread_bias(key, shape):
  return jnp.broadcast_to(jnp.linspace(FASTEST, SLOWEST, shape[-1]), shape)


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

  def low_rank(self, x_BTD: jax.Array, name: str, dtype: Any) -> jax.Array:
    """A map to the channels of all heads through as many features as one head has."""
    x_BTF = nn.Dense(self.width // self.heads, use_bias=False, dtype=dtype, name=f'{name}_down')(x_BTD)
    x_BTD = nn.Dense(self.width, use_bias=False, dtype=dtype, name=f'{name}_up')(x_BTF)
    return rearrange(x_BTD, 'b t (h k) -> b t h k', h=self.heads)

  @nn.compact
  def __call__(self, x_BTD: jax.Array) -> jax.Array:
    K = self.width // self.heads
    q_BTHK = l2_normalise(self.project(x_BTD, 'query'))
    k_BTHK = l2_normalise(self.project(x_BTD, 'key'))
    v_BTHV = self.project(x_BTD, 'value')
    beta_BTH = nn.sigmoid(nn.Dense(self.heads, use_bias=False, dtype=self.dtype, name='beta')(x_BTD))

    a_log_H1 = self.param('a_log', nn.initializers.zeros, (self.heads, 1))
    dt_bias_HK = self.param('dt_bias', spread_bias, (self.heads, K))
    log_decay_BTHK = bounded_log_decay(self.low_rank(x_BTD, 'decay', jnp.float32), a_log_H1, dt_bias_HK)

    o_BTHV, _ = delta_rule(q_BTHK, k_BTHK, v_BTHV, beta_BTH, log_decay_BTHK, scale=1.0)

    o_BTHV = nn.RMSNorm(epsilon=1e-5, dtype=self.dtype, name='norm')(o_BTHV)
    o_BTHV = o_BTHV * nn.sigmoid(self.low_rank(x_BTD, 'gate', self.dtype))
    o_BTD = rearrange(o_BTHV, 'b t h v -> b t (h v)')
    return nn.Dense(self.width, use_bias=False, dtype=self.dtype, name='output')(o_BTD)
