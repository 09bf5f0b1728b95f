"""Keys with momentum: a pair is filed under where it stands, not under its token alone.

DeltaNet's key is made of at most four tokens, so a word that occurs in two contexts overwrites its own entry. Here the
key is an exponential average of the raw keys with a learned rate a head, then normalised, so that the recent past is
part of the address; queries take the same average, so that they still meet the keys. Heads start between almost no
momentum and an average over eight tokens. In-context recall of repeated words with different continuations should rise,
and isolated pairs may be harder to find, since their address now holds noise.
"""

from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from pallas_kernels import causal_conv, delta_rule, l2_normalise

TAPS = 4
SHORTEST, LONGEST = 1.25, 8.0  # tokens that the heads' averages reach over at the start


def initial_momentum(key, shape):
  """Logits of 1 - 1 / reach."""
  reach_H = jnp.geomspace(SHORTEST, LONGEST, shape[0])
  return jnp.log(reach_H - 1)


def averaged(x_BTHK: jax.Array, momentum_H: jax.Array) -> jax.Array:
  """m_t = momentum m_{t-1} + (1 - momentum) x_t, from zero, in float32."""
  momentum_H1 = momentum_H[:, None]
  decay_BTHK = jnp.broadcast_to(momentum_H1, x_BTHK.shape)
  drive_BTHK = (1 - momentum_H1) * x_BTHK.astype(jnp.float32)

  def joined(earlier, later):
    return earlier[0] * later[0], later[0] * earlier[1] + later[1]

  return jax.lax.associative_scan(joined, (decay_BTHK, drive_BTHK), axis=1)[1]


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
    momentum_H = nn.sigmoid(self.param('momentum', initial_momentum, (self.heads,)))
    q_BTHK = l2_normalise(averaged(self.project(x_BTD, 'query'), momentum_H)).astype(self.dtype)
    k_BTHK = l2_normalise(averaged(self.project(x_BTD, 'key'), momentum_H)).astype(self.dtype)
    v_BTHV = self.project(x_BTD, 'value')
    beta_BTH = nn.sigmoid(nn.Dense(self.heads, use_bias=False, dtype=self.dtype, name='beta')(x_BTD))

    o_BTHV, _ = delta_rule(q_BTHK, k_BTHK, v_BTHV, beta_BTH, scale=1.0)

    o_BTHV = nn.RMSNorm(epsilon=1e-5, dtype=self.dtype, name='norm')(o_BTHV)
    o_BTD = rearrange(o_BTHV, 'b t h v -> b t (h v)')
    return nn.Dense(self.width, use_bias=False, dtype=self.dtype, name='output')(o_BTD)
