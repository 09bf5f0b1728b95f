"""DeltaNet: a linear-attention memory that is corrected instead of only added to.

Linear attention writes every value into its state and never erases, so keys that collide blur each other. The delta
rule reads what the state holds for the present key, and writes the difference to the wanted value, scaled by a learned
rate beta: S_t = (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T, o_t = S_t^T q_t. With keys of length one and beta in
(0, 1) each step contracts, so the memory stays bounded. Short convolutions give queries, keys and values a view of
their last few neighbours. (Yang et al. 2024, arXiv 2406.06484; the baseline of ASI-ARCH, arXiv 2507.18074.)
"""

from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from pallas_kernels import causal_conv, delta_rule, l2_normalise

TAPS = 4  # of the short convolutions; the last one is the present token


class Mixer(nn.Module):
  width: int
  heads: int
  dtype: Any = jnp.float32

  def project(self, x_BTD: jax.Array, name: str) -> jax.Array:
    """A linear map, a short causal convolution along time, and SiLU, split into heads."""
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

    o_BTHV = nn.RMSNorm(epsilon=1e-5, dtype=self.dtype, name='norm')(o_BTHV)
    o_BTD = rearrange(o_BTHV, 'b t h v -> b t (h v)')
    return nn.Dense(self.width, use_bias=False, dtype=self.dtype, name='output')(o_BTD)
