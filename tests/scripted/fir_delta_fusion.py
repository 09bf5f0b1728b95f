"""Short and long FIR paths beside the delta memory, mixed by a softmax gate a head and token.

DeltaNet asks one matrix memory for everything, so exact local statistics (the last few tokens) compete with recall for
the same K x V numbers, and the memory's read blurs what a filter would give exactly. Here the values also take a 5-tap
and a 31-tap causal filter and a direct path; each head weighs the four paths token by token, with a learned temperature
and a bias that first trusts the value and the memory. Bits per byte should fall through better local prediction while
recall stays with the memory. The risk is that the gates settle on the cheap local paths early and starve the memory.
"""

from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from pallas_kernels import causal_conv, delta_rule, l2_normalise

TAPS = 4  # of the convolutions in front of queries, keys and values
SHORT, LONG = 5, 31  # taps of the two paths
START_P = (0.0, -1.0, 1.0, 1.0)  # biases of short filter, long filter, value, memory


def identity_taps(key, shape):
  """A copy of the present token (the last tap), so that a path begins as the value itself."""
  return jnp.zeros(shape).at[-1].set(1.0)


def start_biases(key, shape):
  return jnp.broadcast_to(jnp.asarray(START_P), shape)


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
    return nn.silu(x_BTD)

  def split(self, x_BTD: jax.Array) -> jax.Array:
    return rearrange(x_BTD, 'b t (h k) -> b t h k', h=self.heads)

  @nn.compact
  def __call__(self, x_BTD: jax.Array) -> jax.Array:
    q_BTHK = l2_normalise(self.split(self.project(x_BTD, 'query')))
    k_BTHK = l2_normalise(self.split(self.project(x_BTD, 'key')))
    v_BTD = self.project(x_BTD, 'value')
    beta_BTH = nn.sigmoid(nn.Dense(self.heads, use_bias=False, dtype=self.dtype, name='beta')(x_BTD))
    memory_BTHV, _ = delta_rule(q_BTHK, k_BTHK, self.split(v_BTD), beta_BTH, scale=1.0)

    short_WD = self.param('short_path', identity_taps, (SHORT, self.width))
    long_WD = self.param('long_path', identity_taps, (LONG, self.width))
    short_BTD, _ = causal_conv(v_BTD, short_WD.astype(self.dtype))
    long_BTD, _ = causal_conv(v_BTD, long_WD.astype(self.dtype))
    paths = [self.split(short_BTD), self.split(long_BTD), self.split(v_BTD), memory_BTHV]
    paths_BTHVP = jnp.stack(paths, axis=-1)

    P = len(paths)
    bias_HP = self.param('router_bias', start_biases, (self.heads, P))
    log_temperature_H = self.param('log_temperature', nn.initializers.zeros, (self.heads,))
    logits_BTF = nn.Dense(self.heads * P, use_bias=False, dtype=jnp.float32, name='router')(x_BTD)
    logits_BTHP = rearrange(logits_BTF, 'b t (h p) -> b t h p', p=P) + bias_HP
    weight_BTHP = nn.softmax(logits_BTHP / jnp.exp(log_temperature_H)[:, None], axis=-1).astype(self.dtype)
    o_BTHV = jnp.einsum('bthp,bthvp->bthv', weight_BTHP, paths_BTHVP)

    o_BTHV = nn.RMSNorm(epsilon=1e-5, dtype=self.dtype, name='norm')(o_BTHV)
    o_BTD = rearrange(o_BTHV, 'b t h v -> b t (h v)')
    return nn.Dense(self.width, use_bias=False, dtype=self.dtype, name='output')(o_BTD)
