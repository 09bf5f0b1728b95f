"""Gated linear attention: every key channel forgets at a rate of its own, chosen by the token.

A fixed decay cannot select, and one decay a head makes all its keys forget together. Here each channel of the key has
a gate of its own, alpha_t = sigmoid(x_t W_1 W_2 + b)^(1/16): a map of rank 16 keeps it cheap, and the sixteenth root
keeps it near one, so that memory is long from the start. S_t = diag(alpha_t) S_{t-1} + k_t v_t^T and
o_t = S_t^T q_t / sqrt(K). Keys are half as wide as values; the read is normalised a head and gated by SiLU.

Inside a chunk, token i sees token j through exp(G_i - G_j), G the running sum of log alpha. Split into exp(G_i) and
exp(-G_j) the second overflows once a gate closes. So a later half meets the earlier half beside it through the last row
m of that: exp(G_i - G_m) and exp(G_m - G_j) are at most one whatever the gates do, and each pair of halves, of 1, 2, 4
... tokens, is one matrix product (the paper's secondary chunking, carried down to single tokens).
(Yang et al. 2023, arXiv 2312.06635, equations 3 to 6 and section 4.)
"""

from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

CHUNK = 64  # most tokens of a chunk, a power of two
RANK = 16  # of the map to the gates
TEMPERATURE = 16.0  # the gate is this root of a sigmoid


def gated_sums(q_BTHK: jax.Array, k_BTHK: jax.Array, v_BTHV: jax.Array, log_decay_BTHK: jax.Array) -> jax.Array:
  """The sum over s <= t of <q_t, exp(g_{s+1} + ... + g_t) k_s> v_s, by chunks."""
  T, C = q_BTHK.shape[1], CHUNK
  while C >= 2 * T and C > 1:
    C //= 2

  def chunks(x_BTHK):
    x_BTHK = jnp.pad(x_BTHK, ((0, 0), (0, -T % C), (0, 0), (0, 0)))
    return rearrange(x_BTHK, 'b (n c) h k -> n b h c k', c=C)

  q_CK, k_CK, v_CV = chunks(q_BTHK), chunks(k_BTHK), chunks(v_BTHV)  # all with N, B, H in front
  total_CK = jnp.cumsum(chunks(log_decay_BTHK), axis=-2)
  last_1K = total_CK[..., -1:, :]
  written_KV = jnp.einsum('nbhck,nbhcv->nbhkv', k_CK * jnp.exp(last_1K - total_CK), v_CV)
  keep_K1 = jnp.exp(last_1K).mT

  def step(state_BHKV, chunk):
    keep_BHK1, written_BHKV = chunk
    return keep_BHK1 * state_BHKV + written_BHKV, state_BHKV

  _, before_KV = jax.lax.scan(step, jnp.zeros_like(written_KV[0]), (keep_K1, written_KV))
  o_CV = (q_CK * jnp.exp(total_CK)) @ before_KV + inside_chunks(q_CK, k_CK, v_CV, total_CK)
  return rearrange(o_CV, 'n b h c v -> b (n c) h v')[:, :T]


def inside_chunks(q_CK: jax.Array, k_CK: jax.Array, v_CV: jax.Array, total_CK: jax.Array) -> jax.Array:
  """What the tokens of a chunk read from each other: themselves, then ever larger halves."""
  o_CV = (q_CK * k_CK).sum(-1, keepdims=True) * v_CV
  half = 1
  while half < q_CK.shape[-2]:
    (_, q_late), (k_early, _), (v_early, _), (early, late) = (halves(x, half) for x in (q_CK, k_CK, v_CV, total_CK))
    anchor = early[..., -1:, :]
    scores = (q_late * jnp.exp(late - anchor)) @ (k_early * jnp.exp(anchor - early)).mT
    read = scores @ v_early
    o_CV += jnp.stack([jnp.zeros_like(read), read], -3).reshape(o_CV.shape)
    half *= 2
  return o_CV


def halves(x_CK: jax.Array, half: int) -> tuple[jax.Array, jax.Array]:
  """The earlier and the later half of each piece of twice `half` tokens."""
  pairs = x_CK.reshape(*x_CK.shape[:-2], -1, 2, half, x_CK.shape[-1])
  return pairs[..., 0, :, :], pairs[..., 1, :, :]


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
    K = max(1, self.width // (2 * self.heads))
    q_BTHK = self.project(x_BTD, 'query', self.heads * K) / K**0.5
    k_BTHK = self.project(x_BTD, 'key', self.heads * K)
    v_BTHV = self.project(x_BTD, 'value', self.width)

    # The decay is a product over time, so it is kept in float32 whatever the compute type.
    low_BTR = nn.Dense(RANK, use_bias=False, dtype=jnp.float32, name='decay_down')(x_BTD)
    raw_BTK = nn.Dense(self.heads * K, dtype=jnp.float32, name='decay_up')(low_BTR)
    log_decay_BTHK = rearrange(nn.log_sigmoid(raw_BTK) / TEMPERATURE, 'b t (h k) -> b t h k', h=self.heads)

    o_BTHV = gated_sums(q_BTHK, k_BTHK, v_BTHV, log_decay_BTHK)

    o_BTHV = nn.RMSNorm(epsilon=1e-5, dtype=self.dtype, name='norm')(o_BTHV)
    gate_BTD = nn.silu(nn.Dense(self.width, dtype=self.dtype, name='gate')(x_BTD))
    o_BTD = rearrange(o_BTHV, 'b t h v -> b t (h v)') * gate_BTD
    return nn.Dense(self.width, use_bias=False, dtype=self.dtype, name='output')(o_BTD)
