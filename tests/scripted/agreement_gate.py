"""An output gate that knows whether the memory agreed with the token.

The gates of Gated DeltaNet see the token and not what was read, so a head cannot be silenced when its memory returned
noise: at the start of a text, or after a change of topic. Here each head's read is normalised by itself, compared with
the present value by their cosine, and a sigmoid gate adds that agreement, scaled by a learned number a head, to what
the token says. Loss at early positions should fall, and recall on keys that were never written should stop costing. The
gate could learn to pass only what repeats the present value, which would turn the mixer into a copy of its input.
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
    beta_BTH = nn.sigmoid(nn.Dense(self.heads, use_bias=False, dtype=self.dtype, name='beta')(x_BTD))
    o_BTHV, _ = delta_rule(q_BTHK, k_BTHK, v_BTHV, beta_BTH, scale=1.0)

    agreement_BTH = jnp.einsum('bthv,bthv->bth', l2_normalise(o_BTHV), l2_normalise(v_BTHV))
    slope_H = self.param('slope', nn.initializers.ones, (self.heads,)).astype(self.dtype)
    gate_BTD = nn.Dense(self.width, dtype=self.dtype, name='gate')(x_BTD)
    gate_BTHV = rearrange(gate_BTD, 'b t (h v) -> b t h v', h=self.heads)
    gate_BTHV = nn.sigmoid(gate_BTHV + (slope_H * agreement_BTH)[..., None])

    o_BTHV = gate_BTHV * nn.RMSNorm(epsilon=1e-5, dtype=self.dtype, name='norm')(o_BTHV)
    o_BTD = rearrange(o_BTHV, 'b t h v -> b t (h v)')
    return nn.Dense(self.width, use_bias=False, dtype=self.dtype, name='output')(o_BTD)
