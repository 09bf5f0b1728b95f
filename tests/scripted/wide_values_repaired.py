"""Values twice as wide as keys, with an output map that knows it.

DeltaNet's state is K x K: what a pair can say is as narrow as the address under which it is filed. Values of twice the
channels double the state and leave the keys alone, and the output is one einsum from each head's wide read; its weight
now takes the width of the values, not that of the keys, which is where the first version failed. Bits per byte should
fall and recall stay. The added parameters must come from the feed-forward, and may be worth more there.
"""

from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from pallas_kernels import causal_conv, delta_rule, l2_normalise

TAPS = 4
EXPAND = 2  # V over K


class Mixer(nn.Module):
  width: int
  heads: int
  dtype: Any = jnp.float32

  def project(self, x_BTD: jax.Array, name: str, features: int) -> jax.Array:
    x_BTF = nn.Dense(features, use_bias=False, dtype=self.dtype, name=name)(x_BTD)
    taps_WF = self.param(
      f'{name}_taps', nn.initializers.variance_scaling(1.0, 'fan_in', 'uniform', 0, 1), (TAPS, features)
    )
    x_BTF, _ = causal_conv(x_BTF, taps_WF.astype(self.dtype))
    return rearrange(nn.silu(x_BTF), 'b t (h k) -> b t h k', h=self.heads)

  @nn.compact
  def __call__(self, x_BTD: jax.Array) -> jax.Array:
    q_BTHK = l2_normalise(self.project(x_BTD, 'query', self.width))
    k_BTHK = l2_normalise(self.project(x_BTD, 'key', self.width))
    v_BTHV = self.project(x_BTD, 'value', EXPAND * self.width)
    beta_BTH = nn.sigmoid(nn.Dense(self.heads, use_bias=False, dtype=self.dtype, name='beta')(x_BTD))
    o_BTHV, _ = delta_rule(q_BTHK, k_BTHK, v_BTHV, beta_BTH, scale=1.0)
    o_BTHV = nn.RMSNorm(epsilon=1e-5, dtype=self.dtype, name='norm')(o_BTHV)

    # One map a head, so that a head's scale can be read from its weights.
    shape_HVD = (self.heads, EXPAND * self.width // self.heads, self.width)
    out_HVD = self.param('output', nn.initializers.variance_scaling(1.0, 'fan_in', 'normal', (0, 1), 2), shape_HVD)
    return jnp.einsum('bthv,hvd->btd', o_BTHV, out_HVD.astype(self.dtype))
