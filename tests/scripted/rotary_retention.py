"""Retention: fixed decays on a ladder over the heads, and rotary queries and keys.

DeltaNet has no sense of distance inside its memory: a pair that was written 5 tokens ago and one written 500 tokens ago
answer alike, and everything must be learned through the strengths. Retention gives each head a fixed horizon and turns
queries and keys by their position, so that a read depends on the distance by construction, with nothing to learn that
could fail. It only adds, so it computes in plain products a chunk. Bits per byte at short horizons should profit and
steps should be fast; where keys collide it must lose recall against the delta rule.
"""

from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

CHUNK = 32
BASE = 10_000.0  # of the rotary wavelengths
NEAREST, FARTHEST = 3.0, 8.0  # decays are 1 - 2^-x, x evenly spread over the heads


def rotate(x_BTHK: jax.Array) -> jax.Array:
  T, half = x_BTHK.shape[1], x_BTHK.shape[3] // 2
  rates_F = BASE ** (-jnp.arange(half) / half)
  angle_T1F = (jnp.arange(T)[:, None] * rates_F)[:, None]
  first, second = x_BTHK[..., :half], x_BTHK[..., half : 2 * half]
  turned = [
    first * jnp.cos(angle_T1F) - second * jnp.sin(angle_T1F),
    first * jnp.sin(angle_T1F) + second * jnp.cos(angle_T1F),
    x_BTHK[..., 2 * half :],
  ]
  return jnp.concatenate(turned, axis=-1)


def retention(q_BTHK: jax.Array, k_BTHK: jax.Array, v_BTHV: jax.Array, log_decay_H: jax.Array) -> jax.Array:
  """o_t = sum over s <= t of exp((t - s) log_decay) (q_t . k_s) v_s, in chunks that hand on one state a head."""
  B, T, H, K = q_BTHK.shape
  V, C = v_BTHV.shape[-1], CHUNK
  pad = ((0, 0), (0, -T % C), (0, 0), (0, 0))
  q, k, v = (rearrange(jnp.pad(x, pad), 'b (n c) h x -> n b c h x', c=C) for x in (q_BTHK, k_BTHK, v_BTHV))

  place_C = jnp.arange(C)
  lag_CC = place_C[:, None] - place_C[None, :]
  fade_HCC = jnp.where(lag_CC >= 0, jnp.exp(log_decay_H[:, None, None] * jnp.maximum(lag_CC, 0)), 0.0)
  from_start_CH1 = jnp.exp(log_decay_H * (place_C + 1)[:, None])[..., None]
  to_end_CH1 = jnp.exp(log_decay_H * (C - 1 - place_C)[:, None])[..., None]
  whole_H11 = jnp.exp(C * log_decay_H)[:, None, None]

  def chunk(state_BHKV, operands):
    q_BCHK, k_BCHK, v_BCHV = operands
    score_BHCC = jnp.einsum('bchk,bshk->bhcs', q_BCHK, k_BCHK) * fade_HCC
    inside_BCHV = jnp.einsum('bhcs,bshv->bchv', score_BHCC, v_BCHV)
    before_BCHV = jnp.einsum('bchk,bhkv->bchv', q_BCHK * from_start_CH1, state_BHKV)
    added_BHKV = jnp.einsum('bchk,bchv->bhkv', k_BCHK * to_end_CH1, v_BCHV)
    return whole_H11 * state_BHKV + added_BHKV, inside_BCHV + before_BCHV

  _, o_NBCHV = jax.lax.scan(chunk, jnp.zeros((B, H, K, V)), (q, k, v))
  return rearrange(o_NBCHV, 'n b c h v -> b (n c) h v')[:, :T]


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
    log_decay_H = jnp.log1p(-(2.0 ** -jnp.linspace(NEAREST, FARTHEST, self.heads)))
    q_BTHK, k_BTHK = rotate(project('query')) * K**-0.5, rotate(project('key'))
    o_BTHV = retention(q_BTHK, k_BTHK, project('value'), log_decay_H)

    o_BTHV = nn.RMSNorm(epsilon=1e-5, dtype=self.dtype, name='norm')(o_BTHV)
    gate_BTD = nn.silu(nn.Dense(self.width, use_bias=False, dtype=self.dtype, name='gate')(x_BTD))
    o_BTD = rearrange(o_BTHV, 'b t h v -> b t (h v)') * gate_BTD
    return nn.Dense(self.width, use_bias=False, dtype=self.dtype, name='output')(o_BTD)
