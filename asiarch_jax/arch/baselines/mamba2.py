"""Mamba-2: a selective state space whose scan is a few matrix products.

A selective mixer decides by the token what to keep. With one decay a head in place of one a channel, the recurrence is
masked linear attention (structured state space duality), so a chunk is done by matrix products and the state can be
large. Of the step size Delta_t = softplus(W_d x_t + b) both follow, how strongly a token is written and how fast the
past fades: S_t = exp(-Delta_t A_h) S_{t-1} + B_t (Delta_t u_t)^T, y_t = S_t^T C_t + d_h u_t. Here B is the key, C the
query, both shared by all heads, and u the value, twice as wide as the stream; u, B and C pass a short causal
convolution with SiLU. The output is RMSNorm(y * SiLU(z)) over all heads, then a linear map.

Inside a chunk, with G the running sum of -Delta A: Y = ((C B^T) * exp(G_i - G_j)) (Delta U) for i >= j, masked before
the exponential; between chunks S <- exp(G_C) S + sum_j exp(G_C - G_j) B_j (Delta_j u_j)^T. A starts uniform in 1 to 16
and Delta even on a log scale from 0.001 to 0.1, as in the paper; the state size is that of a head of the stream, 128 at
the paper's sizes. (Dao, Gu 2024, arXiv 2405.21060, sections 6 and 7.)
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from pallas_kernels import causal_conv, softplus_log_decay

CHUNK = 64  # tokens done by one matrix product
EXPANSION = 2  # width of the values over that of the stream
TAPS = 4  # of the short convolutions; the last one is the present token
FASTEST = 16.0  # largest rate exp(A) at the start
SHORTEST, LONGEST = 1e-3, 1e-1  # step sizes softplus(b) at the start


def initial_log_rate(key, shape):
  return jnp.log(jax.random.uniform(key, shape, minval=1.0, maxval=FASTEST))


def initial_step_bias(key, shape):
  """The inverse of softplus at step sizes that are even on a log scale."""
  step = jnp.exp(jax.random.uniform(key, shape, minval=math.log(SHORTEST), maxval=math.log(LONGEST)))
  return step + jnp.log(-jnp.expm1(-step))


def selective_sums(q_BTK: jax.Array, k_BTK: jax.Array, v_BTHV: jax.Array, log_decay_BTH: jax.Array) -> jax.Array:
  """The sum over s <= t of exp(g_{s+1} + ... + g_t) <q_t, k_s> v_s, by chunks."""
  T = q_BTK.shape[1]
  C = min(CHUNK, T)

  def chunks(x_BT):
    x_BT = jnp.pad(x_BT, ((0, 0), (0, -T % C)) + ((0, 0),) * (x_BT.ndim - 2))
    return rearrange(x_BT, 'b (n c) ... -> n b c ...', c=C)

  q_NBCK, k_NBCK, v_NBCHV = chunks(q_BTK), chunks(k_BTK), chunks(v_BTHV)
  total_NBHC = jnp.cumsum(chunks(log_decay_BTH), axis=2).mT
  last_NBH1 = total_NBHC[..., -1:]
  falls_NBHC = jnp.exp(last_NBH1 - total_NBHC)
  written_NBHKV = jnp.einsum('nbck,nbhc,nbchv->nbhkv', k_NBCK, falls_NBHC, v_NBCHV)
  keep_NBH11 = jnp.exp(last_NBH1)[..., None]

  def step(state_BHKV, chunk):
    keep_BH11, written_BHKV = chunk
    return keep_BH11 * state_BHKV + written_BHKV, state_BHKV

  _, before_NBHKV = jax.lax.scan(step, jnp.zeros_like(written_NBHKV[0]), (keep_NBH11, written_NBHKV))
  carried_NBCHV = jnp.einsum('nbck,nbhc,nbhkv->nbchv', q_NBCK, jnp.exp(total_NBHC), before_NBHKV)

  gap_NBHCC = total_NBHC[..., :, None] - total_NBHC[..., None, :]
  decay_NBHCC = jnp.exp(jnp.where(jnp.tril(jnp.ones((C, C), bool)), gap_NBHCC, -jnp.inf))
  scores_NBHCC = jnp.einsum('nbck,nbsk->nbcs', q_NBCK, k_NBCK)[:, :, None] * decay_NBHCC
  inside_NBCHV = jnp.einsum('nbhcs,nbshv->nbchv', scores_NBHCC, v_NBCHV)
  return rearrange(carried_NBCHV + inside_NBCHV, 'n b c h v -> b (n c) h v')[:, :T]


class Mixer(nn.Module):
  width: int
  heads: int
  dtype: Any = jnp.float32

  def project(self, x_BTD: jax.Array, name: str, width: int) -> jax.Array:
    """A linear map, a short causal convolution along time, and SiLU; sums over time are made in float32."""
    y_BTD = nn.Dense(width, use_bias=False, dtype=self.dtype, name=name)(x_BTD)
    taps_WD = self.param(
      f'{name}_taps', nn.initializers.variance_scaling(1.0, 'fan_in', 'uniform', 0, 1), (TAPS, width)
    )
    bias_D = self.param(f'{name}_bias', nn.initializers.zeros, (width,))
    y_BTD, _ = causal_conv(y_BTD, taps_WD.astype(self.dtype))
    return nn.silu(y_BTD + bias_D.astype(self.dtype)).astype(jnp.float32)

  @nn.compact
  def __call__(self, x_BTD: jax.Array) -> jax.Array:
    inner, K = EXPANSION * self.width, self.width // self.heads
    u_BTHV = rearrange(self.project(x_BTD, 'value', inner), 'b t (h v) -> b t h v', h=self.heads)
    q_BTK, k_BTK = self.project(x_BTD, 'query', K), self.project(x_BTD, 'key', K)

    raw_BTH = nn.Dense(self.heads, use_bias=False, dtype=jnp.float32, name='step')(x_BTD)
    bias_H = self.param('step_bias', initial_step_bias, (self.heads,))
    log_rate_H = self.param('log_rate', initial_log_rate, (self.heads,))
    step_BTH = nn.softplus(raw_BTH + bias_H)

    y_BTHV = selective_sums(q_BTK, k_BTK, step_BTH[..., None] * u_BTHV, softplus_log_decay(raw_BTH, log_rate_H, bias_H))

    skip_H1 = self.param('skip', nn.initializers.ones, (self.heads,))[:, None]
    y_BTV = rearrange(y_BTHV + skip_H1 * u_BTHV, 'b t h v -> b t (h v)')
    gate_BTV = nn.silu(nn.Dense(inner, use_bias=False, dtype=self.dtype, name='gate')(x_BTD))
    y_BTV = nn.RMSNorm(epsilon=1e-5, dtype=self.dtype, name='norm')(y_BTV.astype(self.dtype) * gate_BTV)
    return nn.Dense(self.width, use_bias=False, dtype=self.dtype, name='output')(y_BTV)
