"""Token shift and a gated linear recurrence without any matrix memory.

How much of DeltaNet's loss on text does its K x V state buy? This design spends nothing on it: every projection sees a
learned blend of the present and the previous token, and one real-gated recurrence a channel carries the past, with
decays that start between 0.9 and 0.999 and an input scaled so that the variance of the state stays put. A GELU branch
gates the result. Bits per byte should come close to DeltaNet's with one number of state a channel instead of K, and
training should be steadier. Associative recall must suffer for the same reason.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

SHARPNESS = 8.0  # of the gate on the decay
SLOWEST, FASTEST = 0.999, 0.9  # decays at the start, with the gate half open


def initial_rate(key, shape):
  """The inverse of softplus at the rates that give decays even on a log scale."""
  low, high = -jnp.log(SLOWEST), -jnp.log(FASTEST)
  rate = jnp.exp(jax.random.uniform(key, shape, minval=jnp.log(low), maxval=jnp.log(high))) * 2 / SHARPNESS
  return rate + jnp.log(-jnp.expm1(-rate))


def joined(earlier, later):
  """Composes two steps h -> a h + b."""
  a_1, b_1 = earlier
  a_2, b_2 = later
  return a_1 * a_2, a_2 * b_1 + b_2


class Mixer(nn.Module):
  width: int
  heads: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x_BTD: jax.Array) -> jax.Array:
    previous_BTD = jnp.pad(x_BTD, ((0, 0), (1, 0), (0, 0)))[:, :-1]

    def project(name: str) -> jax.Array:
      share_D = self.param(f'{name}_shift', nn.initializers.constant(0.3), (self.width,)).astype(self.dtype)
      blend_BTD = x_BTD + share_D * (previous_BTD - x_BTD)
      return nn.Dense(self.width, dtype=self.dtype, name=name)(blend_BTD)

    rate_D = nn.softplus(self.param('rate', initial_rate, (self.width,)))
    gate_BTD = nn.sigmoid(project('decay_gate').astype(jnp.float32))
    log_a_BTD = -SHARPNESS * rate_D * gate_BTD
    # 1 - a^2 without cancellation; the floor keeps the root's derivative finite where a gate is shut.
    scale_BTD = jnp.sqrt(-jnp.expm1(2 * log_a_BTD) + 1e-6)
    drive_BTD = scale_BTD * nn.sigmoid(project('input_gate')) * project('input')

    _, h_BTD = jax.lax.associative_scan(joined, (jnp.exp(log_a_BTD), drive_BTD), axis=1)
    o_BTD = h_BTD.astype(self.dtype) * nn.gelu(project('branch'))
    return nn.Dense(self.width, use_bias=False, dtype=self.dtype, name='output')(o_BTD)
