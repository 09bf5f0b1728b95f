"""The layout of the kernels for Hopper GPUs: sizes, operands, and the gates that chunks multiply by."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array
CHUNK = 64  # rows of a warpgroup's matrix product
NEVER = -1e30  # an exponent whose power of two is zero
LOG2_E = 1.4426950408889634


@dataclasses.dataclass(frozen=True)
class Layout:
  """The static sizes of a call to the kernels: T is N chunks of 64 tokens; K and V are 64 or 128."""

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


def gates(layout: Layout, log_decay: Array | None, run_BT: Array | None) -> Gates:
  """Returns the gates of all chunks."""
  B, N, HV = layout.B, layout.N, layout.HV
  rise = fall = jnp.ones((B, HV, N, CHUNK), jnp.float32)
  run_BNC, before_BN1, total = None, None, None
  if run_BT is not None:
    run_BNC = run_BT.reshape(B, 1, N, CHUNK)
    before_BN1 = jnp.pad(run_BNC[:, :, :-1, -1:], [(0, 0), (0, 0), (1, 0), (0, 0)])
  if log_decay is not None and layout.decay == 'scalar':
    i, j = (lax.broadcasted_iota(jnp.int32, (CHUNK, CHUNK), axis) for axis in (0, 1))
    counted = i >= j
    if run_BNC is not None:
      counted = counted & (run_BNC[..., :, None] == run_BNC[..., None, :])
    steps = (log_decay * LOG2_E).reshape(B, HV, N, CHUNK)
    # As products and sums of its own, in full precision: a matrix product of float32 would be one of 10 bits here.
    total = jnp.sum(jnp.where(counted, steps[..., None, :], 0.0), -1)
    rise, fall = jnp.exp2(total), jnp.exp2(jnp.minimum(total[..., -1:] - total, 0.0))
    total = total.reshape(B, HV, layout.tokens)
  if run_BNC is not None:
    rise = jnp.where(run_BNC == before_BN1, rise, 0.0)
    fall = jnp.where(run_BNC == run_BNC[..., -1:], fall, 0.0)
  return Gates(total, jnp.stack([rise, fall, rise * layout.scale], 3))
