"""The layout of the kernels for Hopper GPUs: sizes, operands, and the gates that chunks multiply by."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array
CHUNK = 64  # rows of a warpgroup's matrix product
TILE = 64  # columns of V of a warpgroup in the sweeps
SHARED_BYTES = 227 * 2**10  # that a block can have
NEVER = -1e30  # an exponent whose power of two is zero
LOG2_E = 1.4426950408889634


@dataclasses.dataclass(frozen=True)
class Layout:
  """The static sizes of a call to the kernels: T is N chunks of 64 tokens; K and V are 64, 128 or 256."""

  B: int
  N: int
  H: int
  HV: int
  K: int
  V: int
  decay: str  # 'none', 'scalar' or 'channel'
  segments: bool
  scale: float

  @property
  def tokens(self) -> int:
    return self.N * CHUNK

  def key_head(self, h: Any) -> Any:
    """Returns the key head that value head `h` reads."""
    return h if self.H == self.HV else lax.div(h, jnp.int32(self.HV // self.H))


class Operands(NamedTuple):
  """Operands as the kernels take them: q, k [B, T, H, K] and v [B, T, HV, V] in bfloat16; beta and log_decay (or None)
  [B, HV, T] and the state [B, HV, V, K] in float32; run [B, T], as in `xla.delta_rule`, or None."""

  q: Any
  k: Any
  v: Any
  beta: Any
  log_decay: Any
  state: Any
  run: Any


class Gates(NamedTuple):
  """What the kernels multiply by, in float32: G in powers of two, [B, HV, T], or None; and [B, HV, N, 3, C] of
  e^G, e^(G_C - G), scale e^G, zero where a token does not see the state its chunk receives, or its end the token."""

  total: Array | None
  factors: Array


class Channels(NamedTuple):
  """What `gpu_gram` made of a decay a channel: scale e^G q, e^G k, e^(G_C - G) k, [B, T, HV, K], e^(G_C),
  [B, HV, N, K], and the steepest step of each chunk, [B, HV, N, C]."""

  q_in: Array
  k_in: Array
  k_out: Array
  keep: Array
  steepest: Array


class Kept(NamedTuple):
  """What the forward kernels kept: (I + A)^-1 and P [B, HV, N, C, C], S^T [B, HV, N, V, K], u^T [B, HV, N, V, C]."""

  inverse: Array
  states: Array
  read: Array
  update: Array
