"""RetNet: linear attention that forgets at a fixed rate, another one in each head.

Linear attention without decay drifts in scale with the length and lets the whole past blur the present. Learned gates
mend that and bring questions of their own: do they saturate, do they collapse? Retention has none to learn. Head h
forgets by gamma_h = 1 - 2^(-5-h), so heads remember for about 32, 64, 128, ... tokens:
S_t = gamma_h S_{t-1} + k_t v_t^T, o_t = S_t^T q_t / sqrt(K), with queries and keys turned by rotary angles, so that a
product sees how far apart two tokens are. In chunks of C this is ((Q K^T) * gamma^(i-j)) V + gamma^(i+1) Q S inside,
and S <- gamma^C S + sum_j gamma^(C-1-j) k_j v_j^T from chunk to chunk. As in the paper, values are twice as wide as
keys, each head is normalised without a learned scale, and a SiLU gate gives the magnitude back. The paper's divisions
by sums of decays are left out, since the normalisation undoes them.
(Sun et al. 2023, arXiv 2307.08621, equations 5 to 8.)
"""

from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

CHUNK = 64  # tokens done by one matrix product
EXPANSION = 2  # width of the values over that of keys and queries
SLOWEST_EXPONENT, BASE = 5, 10_000.0  # of the first decay, 1 - 2^-5, and of the rotary wavelengths


def rotate(x_BTHK: jax.Array) -> jax.Array:
  """Turns each pair of channels by an angle that grows with the position."""
  T, K = x_BTHK.shape[1], x_BTHK.shape[3]
  angles_T1K = (jnp.arange(T)[:, None] * BASE ** -jnp.linspace(0, 1, K // 2))[:, None]
  even, odd = jnp.split(x_BTHK, 2, axis=-1)
  turned = [even * jnp.cos(angles_T1K) - odd * jnp.sin(angles_T1K)]
  return jnp.concatenate([*turned, even * jnp.sin(angles_T1K) + odd * jnp.cos(angles_T1K)], axis=-1)


def retention(q_BTHK: jax.Array, k_BTHK: jax.Array, v_BTHV: jax.Array) -> jax.Array:
  """The sum over s <= t of gamma_h^(t-s) <q_t, k_s> v_s, by chunks."""
  B, T, H, K = q_BTHK.shape
  C, V = min(CHUNK, T), v_BTHV.shape[3]
  log_gamma_H = jnp.log1p(-(2.0 ** (-SLOWEST_EXPONENT - jnp.arange(H))))

  def chunks(x_BTHK):
    x_BTHK = jnp.pad(x_BTHK, ((0, 0), (0, -T % C), (0, 0), (0, 0)))
    return rearrange(x_BTHK, 'b (n c) h k -> n b h c k', c=C)

  q_NBHCK, k_NBHCK, v_NBHCV = chunks(q_BTHK), chunks(k_BTHK), chunks(v_BTHV)
  age_C = jnp.arange(C)
  gap_CC = age_C[:, None] - age_C
  inside_HCC = jnp.exp(log_gamma_H[:, None, None] * jnp.maximum(gap_CC, 0)) * (gap_CC >= 0)
  from_start_HC1 = jnp.exp(log_gamma_H[:, None] * (age_C + 1))[..., None]
  to_end_HC1 = jnp.exp(log_gamma_H[:, None] * (C - 1 - age_C))[..., None]
  keep_H11 = jnp.exp(log_gamma_H * C)[:, None, None]

  def step(state_BHKV, chunk):
    q_BHCK, k_BHCK, v_BHCV = chunk
    scores_BHCC = jnp.einsum('bhck,bhsk->bhcs', q_BHCK, k_BHCK) * inside_HCC
    o_BHCV = scores_BHCC @ v_BHCV + (q_BHCK * from_start_HC1) @ state_BHKV
    written_BHKV = jnp.einsum('bhck,bhcv->bhkv', k_BHCK * to_end_HC1, v_BHCV)
    return keep_H11 * state_BHKV + written_BHKV, o_BHCV

  start_BHKV = jnp.zeros((B, H, K, V), q_BTHK.dtype)
  _, o_NBHCV = jax.lax.scan(step, start_BHKV, (q_NBHCK, k_NBHCK, v_NBHCV))
  return rearrange(o_NBHCV, 'n b h c v -> b (n c) h v')[:, :T]


class Mixer(nn.Module):
  width: int
  heads: int
  dtype: Any = jnp.float32

  def project(self, x_BTD: jax.Array, name: str, width: int) -> jax.Array:
    """A linear map, split into heads; sums over time are made in float32."""
    y_BTD = nn.Dense(width, use_bias=False, dtype=self.dtype, name=name)(x_BTD)
    return rearrange(y_BTD, 'b t (h k) -> b t h k', h=self.heads).astype(jnp.float32)

  @nn.compact
  def __call__(self, x_BTD: jax.Array) -> jax.Array:
    inner, K = EXPANSION * self.width, self.width // self.heads
    q_BTHK = rotate(self.project(x_BTD, 'query', self.width))
    k_BTHK = rotate(self.project(x_BTD, 'key', self.width)) / K**0.5

    o_BTHV = retention(q_BTHK, k_BTHK, self.project(x_BTD, 'value', inner))

    o_BTHV = nn.RMSNorm(epsilon=1e-5, use_scale=False, dtype=self.dtype, name='norm')(o_BTHV)
    gate_BTV = nn.silu(nn.Dense(inner, use_bias=False, dtype=self.dtype, name='gate')(x_BTD))
    o_BTV = rearrange(o_BTHV, 'b t h v -> b t (h v)') * gate_BTV
    return nn.Dense(self.width, use_bias=False, dtype=self.dtype, name='output')(o_BTV)
