"""Linear attention with learned squared features, which can be exactly zero.

The delta rule corrects collisions after they have happened; sharper features avoid them. Queries and keys are
normalised, moved by a learned scale and shift a channel, and squared, so that a product can vanish for keys that do not
match and grow for those that do; the state only adds, and a running sum of features normalises the read as in softmax
attention. In-context recall of a few pairs should come near attention's. Nothing is ever forgotten, so loss may rise
with position, and the token-by-token scan is slow where a chunked form would not be.
"""

from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

EPSILON = 1e-3  # added to the normaliser: a query that matches nothing reads nothing


class SquaredFeatures(nn.Module):
  """Layer norm, a learned scale and shift, the square: [B, T, H, K], not negative."""

  @nn.compact
  def __call__(self, x_BTHK: jax.Array) -> jax.Array:
    H, K = x_BTHK.shape[2:]
    scale_HK = self.param('scale', nn.initializers.ones, (H, K))
    shift_HK = self.param('shift', nn.initializers.normal(0.1), (H, K))
    x_BTHK = nn.LayerNorm(use_bias=False, use_scale=False, dtype=jnp.float32)(x_BTHK)
    return jnp.square(scale_HK * x_BTHK + shift_HK) / K


class Mixer(nn.Module):
  width: int
  heads: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x_BTD: jax.Array) -> jax.Array:
    def project(name: str) -> jax.Array:
      y_BTD = nn.Dense(self.width, use_bias=False, dtype=self.dtype, name=name)(x_BTD)
      return rearrange(y_BTD, 'b t (h k) -> b t h k', h=self.heads)

    q_BTHK = SquaredFeatures(name='query_features')(project('query'))
    k_BTHK = SquaredFeatures(name='key_features')(project('key'))
    v_BTHV = project('value').astype(jnp.float32)

    def step(carry, token):
      state_BHKV, sum_BHK = carry
      q_BHK, k_BHK, v_BHV = token
      state_BHKV = state_BHKV + jnp.einsum('bhk,bhv->bhkv', k_BHK, v_BHV)
      sum_BHK = sum_BHK + k_BHK
      read_BHV = jnp.einsum('bhk,bhkv->bhv', q_BHK, state_BHKV)
      size_BH = jnp.einsum('bhk,bhk->bh', q_BHK, sum_BHK)
      return (state_BHKV, sum_BHK), read_BHV / (size_BH + EPSILON)[..., None]

    B, _, H, K = k_BTHK.shape
    start = jnp.zeros((B, H, K, v_BTHV.shape[-1])), jnp.zeros((B, H, K))
    tokens = tuple(jnp.moveaxis(x_BTHX, 1, 0) for x_BTHX in (q_BTHK, k_BTHK, v_BTHV))
    _, o_TBHV = jax.lax.scan(step, start, tokens)

    o_BTD = rearrange(o_TBHV, 't b h v -> b t (h v)').astype(self.dtype)
    gate_BTD = nn.silu(nn.Dense(self.width, use_bias=False, dtype=self.dtype, name='gate')(x_BTD))
    return nn.Dense(self.width, use_bias=False, dtype=self.dtype, name='output')(gate_BTD * o_BTD)
