"""Two writes a token: a product of two Householder steps.

One step of the delta rule changes the state along one direction, so a token cannot swap two stored items or rotate a
plane, however the rates are chosen. Here each token makes two keys, two values and two strengths in (0, 2), and the
memory takes both steps before it is read: their product is any rotation of a plane. State tracking should improve most,
recall a little, since a token can erase one pair and write another. The price is a sequence twice as long for the
memory, and keys that may collapse into one.
"""

from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from pallas_kernels import causal_conv, delta_rule, l2_normalise

TAPS = 4
STEPS = 2  # P: steps of the memory for each token


class Mixer(nn.Module):
  width: int
  heads: int
  dtype: Any = jnp.float32

  def project(self, x_BTD: jax.Array, name: str, steps: int) -> jax.Array:
    """Projections for each step of a token: [B, T, P, H, K]."""
    features = steps * self.width
    x_BTF = nn.Dense(features, use_bias=False, dtype=self.dtype, name=name)(x_BTD)
    taps_WF = self.param(
      f'{name}_taps', nn.initializers.variance_scaling(1.0, 'fan_in', 'uniform', 0, 1), (TAPS, features)
    )
    x_BTF, _ = causal_conv(x_BTF, taps_WF.astype(self.dtype))
    return rearrange(nn.silu(x_BTF), 'b t (p h k) -> b t p h k', p=steps, h=self.heads)

  @nn.compact
  def __call__(self, x_BTD: jax.Array) -> jax.Array:
    q_BTPHK = l2_normalise(self.project(x_BTD, 'query', 1))
    k_BTPHK = l2_normalise(self.project(x_BTD, 'key', STEPS))
    v_BTPHV = self.project(x_BTD, 'value', STEPS)
    beta_BTF = 2 * nn.sigmoid(nn.Dense(STEPS * self.heads, use_bias=False, dtype=self.dtype, name='beta')(x_BTD))

    # Reads between the steps of a token are thrown away: their queries are zero.
    q_BTPHK = jnp.pad(q_BTPHK, ((0, 0), (0, 0), (STEPS - 1, 0), (0, 0), (0, 0)))
    q, k, v = (rearrange(x_BTPHX, 'b t p h x -> b (t p) h x') for x_BTPHX in (q_BTPHK, k_BTPHK, v_BTPHV))
    o, _ = delta_rule(q, k, v, rearrange(beta_BTF, 'b t (p h) -> b (t p) h', p=STEPS), scale=1.0)
    o_BTHV = o[:, STEPS - 1 :: STEPS]

    o_BTHV = nn.RMSNorm(epsilon=1e-5, dtype=self.dtype, name='norm')(o_BTHV)
    o_BTD = rearrange(o_BTHV, 'b t h v -> b t (h v)')
    return nn.Dense(self.width, use_bias=False, dtype=self.dtype, name='output')(o_BTD)
