"""Gated linear attention as two cumulative sums, without any loop.

The chunked delta rule is a chain of small products, and short sequences leave the hardware idle. Without erasing, a
decayed memory has a closed form: divide each key by the product of all decays up to it, sum the outer products along
time, and multiply each query by its own product of decays. Everything is a cumulative sum over tokens and one einsum.
Decays are data-dependent a channel as in gated linear attention, with rates started as in Mamba 2. Steps should be
faster at equal loss. What is lost against DeltaNet is the correction of collisions.
"""

from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

FASTEST = 16.0  # largest rate at the start


def initial_log_rate(key, shape):
  return jnp.log(jax.random.uniform(key, shape, minval=1.0, maxval=FASTEST))


class Mixer(nn.Module):
  width: int
  heads: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x_BTD: jax.Array) -> jax.Array:
    def project(name: str) -> jax.Array:
      y_BTD = nn.Dense(self.width, use_bias=False, dtype=self.dtype, name=name)(x_BTD)
      return rearrange(y_BTD, 'b t (h k) -> b t h k', h=self.heads).astype(jnp.float32)

    K = self.width // self.heads
    rate_HK = jnp.exp(self.param('log_rate', initial_log_rate, (self.heads, K)))
    total_BTHK = jnp.cumsum(-rate_HK * nn.softplus(project('step')), axis=1)

    q_BTHK = project('query') * jnp.exp(total_BTHK) * K**-0.5
    k_BTHK = project('key') * jnp.exp(-total_BTHK)
    state_BTHKV = jnp.cumsum(jnp.einsum('bthk,bthv->bthkv', k_BTHK, project('value')), axis=1)
    o_BTHV = jnp.einsum('bthk,bthkv->bthv', q_BTHK, state_BTHKV)

    o_BTHV = nn.RMSNorm(epsilon=1e-5, dtype=self.dtype, name='norm')(o_BTHV.astype(self.dtype))
    gate_BTD = nn.silu(nn.Dense(self.width, use_bias=False, dtype=self.dtype, name='gate')(x_BTD))
    o_BTD = rearrange(o_BTHV, 'b t h v -> b t (h v)') * gate_BTD
    return nn.Dense(self.width, use_bias=False, dtype=self.dtype, name='output')(o_BTD)
