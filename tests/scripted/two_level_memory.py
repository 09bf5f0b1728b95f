"""A memory of everything and a memory of the present block, weighed by the token.

A state of fixed size treats the last sentence like the first, and DeltaNet has nothing in between its 4-tap
convolutions and all of the past. Log-linear attention keeps a state for each power of two of the distance; this is its
smallest member, with two levels: one delta memory over all tokens, and one that is emptied at every 32nd position and
so never holds more than 32 pairs. Each token decides by two softplus weights a head how much of either it takes. Near
recall should become nearly exact. The block's edge is arbitrary: just behind it the near memory is empty.
"""

from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from pallas_kernels import causal_conv, delta_rule, l2_normalise

TAPS = 4
BLOCK = 32  # tokens after which the near memory is emptied


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
    B, T, _ = x_BTD.shape
    q_BTHK = l2_normalise(self.project(x_BTD, 'query'))
    k_BTHK = l2_normalise(self.project(x_BTD, 'key'))
    v_BTHV = self.project(x_BTD, 'value')
    beta_BTH = nn.sigmoid(nn.Dense(self.heads, use_bias=False, dtype=self.dtype, name='beta')(x_BTD))

    block_BT = jnp.broadcast_to(jnp.arange(T) // BLOCK, (B, T))
    far_BTHV, _ = delta_rule(q_BTHK, k_BTHK, v_BTHV, beta_BTH, scale=1.0)
    near_BTHV, _ = delta_rule(q_BTHK, k_BTHK, v_BTHV, beta_BTH, scale=1.0, segment_ids=block_BT)

    levels_BTHPV = jnp.stack([far_BTHV, near_BTHV], axis=3)
    weight_BTF = nn.Dense(self.heads * 2, dtype=self.dtype, name='levels')(x_BTD)
    weight_BTHP = nn.softplus(rearrange(weight_BTF, 'b t (h p) -> b t h p', p=2))
    o_BTHV = jnp.einsum('bthp,bthpv->bthv', weight_BTHP, levels_BTHPV)

    o_BTHV = nn.RMSNorm(epsilon=1e-5, dtype=self.dtype, name='norm')(o_BTHV)
    o_BTD = rearrange(o_BTHV, 'b t h v -> b t (h v)')
    return nn.Dense(self.width, use_bias=False, dtype=self.dtype, name='output')(o_BTD)
