"""What a call of the delta rule or of the convolution is, and the implementations that run everywhere.

An implementation is a row of a table: `refuses` names why it cannot answer a call, or returns None; `run` answers it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels import convolution, reference, tiling, xla

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Call:
  """The static facts of a delta rule: what an implementation chooses by."""

  B: int
  T: int
  H: int
  HV: int
  K: int
  V: int
  decay: str  # 'none', 'scalar' or 'channel'
  segments: bool
  dtype: Any  # of q, k, v; the sums are made in `compute_dtype`
  compute_dtype: Any
  scale: float
  chunk_size: int | None
  precision: lax.PrecisionLike
  recompute: bool
  requested: bool  # by name: no other implementation will answer


@dataclasses.dataclass(frozen=True)
class Implementation:
  """One row of a table: why it refuses a call (None where it does not), and how it answers."""

  refuses: Callable[[Any], str | None]
  run: Callable[..., Any]


def wide(call: Call, *operands: Array | None) -> list[Any]:
  """Returns the operands in the type that sums are made in."""
  return [None if x is None else x.astype(call.compute_dtype) for x in operands]


def _run_xla(call: Call, q, k, v, beta, log_decay, state, run_BT):
  chunk = call.chunk_size or tiling.chunk_size(call.T, call.K, call.V)
  plan = xla.Plan(call.scale, chunk, call.precision, call.recompute)
  q, k, v, beta, log_decay, state = wide(call, q, k, v, beta, log_decay, state)
  return xla.delta_rule(plan, q, k, v, beta, log_decay, state, run_BT)


def _run_reference(call: Call, q, k, v, beta, log_decay, state, run_BT):
  starts_BT = None if run_BT is None else jnp.diff(run_BT, axis=1, prepend=0) > 0
  q, k, v, beta, log_decay, state = wide(call, q, k, v, beta, log_decay, state)
  return reference.delta_rule(q, k, v, beta, log_decay, state, starts_BT, scale=call.scale, precision=call.precision)


def _always(call: Any) -> None:
  return None


# Fastest first. `implementations` puts the kernels of single chips above them.
PORTABLE = {
  'xla': Implementation(_always, _run_xla),
  'reference': Implementation(
    lambda call: 'it has no chunks: leave chunk_size out' if call.chunk_size else None, _run_reference
  ),
}


@dataclasses.dataclass(frozen=True)
class ConvolutionCall:
  """The static facts of a causal convolution."""

  B: int
  T: int
  D: int
  W: int
  segments: bool


def _reference_convolution(x_BTD, weight_WD, state_BWD, run_BT):
  starts_BT = None if run_BT is None else jnp.diff(run_BT, axis=1, prepend=0) > 0
  return reference.causal_conv(x_BTD, weight_WD, state_BWD, starts_BT)[0]


CONVOLUTIONS = {
  'xla': Implementation(_always, convolution.shifted_products),
  'reference': Implementation(_always, _reference_convolution),
}
