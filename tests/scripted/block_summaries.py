"""Attention to summaries of finished blocks, beside the delta memory.

A matrix memory answers with a blur of everything it holds; attention can point. Full attention is quadratic, so here
each token attends to the mean key and value of every finished block of 16 tokens, a sequence 16 times shorter, and a
gate a head adds the result to the read of the delta memory. The mask admits a block only once all of its tokens are
past, so nothing leaks. Recall over long distances should approach attention's. Means of 16 values may be too coarse to
find one pair.
"""

from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from pallas_kernels import causal_conv, delta_rule, l2_normalise

TAPS = 4
BLOCK = 16  # tokens of a summary


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
    memory_BTHV, _ = delta_rule(q_BTHK, k_BTHK, v_BTHV, beta_BTH, scale=1.0)

    T, K = x_BTD.shape[1], self.width // self.heads
    pad = ((0, 0), (0, -T % BLOCK), (0, 0), (0, 0))
    k_BNHK, v_BNHV = (
      rearrange(jnp.pad(y_BTHX, pad), 'b (n c) h x -> b n c h x', c=BLOCK).mean(axis=2) for y_BTHX in (k_BTHK, v_BTHV)
    )
    scale_H1 = jnp.exp(self.param('log_scale', nn.initializers.zeros, (self.heads, 1)))
    score_BTHN = jnp.einsum('bthk,bnhk->bthn', q_BTHK, k_BNHK, preferred_element_type=jnp.float32) * scale_H1 * K**0.5
    finished_T1N = (jnp.arange(T)[:, None] // BLOCK > jnp.arange(k_BNHK.shape[1]))[:, None]
    # A score of zero that belongs to no block, so that a token without finished blocks attends to nothing.
    nothing_BTH1 = jnp.zeros_like(score_BTHN[..., :1])
    scores = jnp.concatenate([jnp.where(finished_T1N, score_BTHN, -jnp.inf), nothing_BTH1], axis=-1)
    weight_BTHN = nn.softmax(scores, axis=-1)[..., :-1].astype(self.dtype)
    pointed_BTHV = jnp.einsum('bthn,bnhv->bthv', weight_BTHN, v_BNHV)

    gate_BTH = nn.sigmoid(nn.Dense(self.heads, dtype=self.dtype, name='gate')(x_BTD))
    o_BTHV = memory_BTHV + gate_BTH[..., None] * pointed_BTHV

    o_BTHV = nn.RMSNorm(epsilon=1e-5, dtype=self.dtype, name='norm')(o_BTHV)
    o_BTD = rearrange(o_BTHV, 'b t h v -> b t (h v)')
    return nn.Dense(self.width, use_bias=False, dtype=self.dtype, name='output')(o_BTD)
