"""Strengths that are relative: the most interesting token is written in full, the others by comparison.

The strength of DeltaNet's writes is a sigmoid of the token alone, and where a head finds every token a little
interesting it writes all of them weakly and keeps none. Here a head gives each token an unbounded interest, and the
strength is that interest over the largest one of the text, so that the scale of the scores drops out and the best token
is always written with strength one. Recall should rise where few tokens matter, with the same parameters and cost. A
single outlier could silence all other writes.
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

    # Interest is positive and has no upper end; its size against the largest one is the strength of the write.
    interest_BTH = nn.softplus(nn.Dense(self.heads, dtype=jnp.float32, name='interest')(x_BTD)) + 1e-3
    largest_BTH = interest_BTH.max(axis=1, keepdims=True)
    beta_BTH = (interest_BTH / largest_BTH).astype(self.dtype)

    o_BTHV, _ = delta_rule(q_BTHK, k_BTHK, v_BTHV, beta_BTH, scale=1.0)

    o_BTHV = nn.RMSNorm(epsilon=1e-5, dtype=self.dtype, name='norm')(o_BTHV)
    o_BTD = rearrange(o_BTHV, 'b t h v -> b t (h v)')
    return nn.Dense(self.width, use_bias=False, dtype=self.dtype, name='output')(o_BTD)
