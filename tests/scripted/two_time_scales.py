"""One key addresses two memories: a slow one that keeps and a fast one that clears itself.

Gated DeltaNet gives each head one decay, and has to compromise between a topic that lasts for hundreds of tokens and a
phrase that lasts for ten; the lower the decay for the phrase, the sooner an old pair is lost. Here every head owns two
memories that are written with the same pairs: the decay of one starts near a time constant of 500 tokens, that of the
other near 8, both moved by the token. A softmax from the token weighs the two reads. Recall over long distances should
rise without loss in bits per byte; the cost is twice the state, and the scales may drift together.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from flax import linen as nn

from pallas_kernels import causal_conv, delta_rule, l2_normalise

TAPS = 4
CONSTANTS_P = (500.0, 8.0)  # tokens after which a memory has lost all but 1/e at the start


def initial_step_bias(key, shape):
  """The inverse of softplus at one over the time constants: [H, P]."""
  steps_P = [1 / constant for constant in CONSTANTS_P]
  return jnp.broadcast_to(jnp.asarray([math.log(math.expm1(step)) for step in steps_P]), shape)


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

  def per_scale(self, x_BTD: jax.Array, name: str) -> jax.Array:
    """A number for each head and scale: [B, T, H, P] in float32."""
    y_BTF = nn.Dense(self.heads * len(CONSTANTS_P), use_bias=False, dtype=jnp.float32, name=name)(x_BTD)
    return rearrange(y_BTF, 'b t (h p) -> b t h p', h=self.heads)

  @nn.compact
  def __call__(self, x_BTD: jax.Array) -> jax.Array:
    P = len(CONSTANTS_P)
    q_BTHK = l2_normalise(self.project(x_BTD, 'query'))
    k_BTHK = l2_normalise(self.project(x_BTD, 'key'))
    v_BTHV = self.project(x_BTD, 'value')
    beta_BTHP = nn.sigmoid(self.per_scale(x_BTD, 'beta'))

    bias_HP = self.param('step_bias', initial_step_bias, (self.heads, P))
    log_decay_BTHP = -nn.softplus(self.per_scale(x_BTD, 'step') + bias_HP)

    # Each scale is a head of its own to the delta rule, with the queries, keys and values of its twin: F = H P heads.
    q_BTFK, k_BTFK, v_BTFV = (repeat(x_BTHX, 'b t h x -> b t (h p) x', p=P) for x_BTHX in (q_BTHK, k_BTHK, v_BTHV))
    beta_BTF, log_decay_BTF = (rearrange(x_BTHP, 'b t h p -> b t (h p)') for x_BTHP in (beta_BTHP, log_decay_BTHP))
    o_BTFV, _ = delta_rule(q_BTFK, k_BTFK, v_BTFV, beta_BTF.astype(self.dtype), log_decay_BTF, scale=1.0)
    o_BTHPV = nn.RMSNorm(epsilon=1e-5, dtype=self.dtype, name='norm')(
      rearrange(o_BTFV, 'b t (h p) v -> b t h p v', p=P)
    )
    weight_BTHP = nn.softmax(self.per_scale(x_BTD, 'scales'), axis=-1).astype(self.dtype)
    o_BTHV = jnp.einsum('bthp,bthpv->bthv', weight_BTHP, o_BTHPV)

    o_BTD = rearrange(o_BTHV, 'b t h v -> b t (h v)')
    return nn.Dense(self.width, use_bias=False, dtype=self.dtype, name='output')(o_BTD)
