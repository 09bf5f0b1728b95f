"""The delta rule by TPU kernels: their door. What they take, the layout they want, and how they are differentiated.

Operands are padded to whole chunks by tokens that change nothing (k = 0, beta = 0, log decay = 0) and to channel sizes
the kernels know by zeros, and heads are laid side by side, [B, T, H * K]: a head is then a slice of lanes. Gates become
rows, [B, HV, T].
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from pallas_kernels import target, tiling, tpu_backward, tpu_forward, xla
from pallas_kernels.tpu_forward import Layout, Operands

Array = jax.Array
RESIDUALS = xla.RESIDUALS


@dataclasses.dataclass(frozen=True)
class Plan:
  """What is static about a call: sizes, whether residuals are recomputed, and how a kernel is interpreted, if it is."""

  layout: Layout
  recompute: bool = False
  interpret: Any = False


def on_tpu() -> bool:
  """Returns whether what is being traced is for a TPU."""
  return target.device()[0] == 'tpu'


def refuses(call: Any) -> str | None:
  """Returns why the kernels do not take a call (`rows.Call`), or None where they do."""
  if not call.requested and not on_tpu():
    return 'there is no TPU; by interpretation it runs only where it is asked for by name'
  if call.dtype not in (jnp.bfloat16, jnp.float32):
    return f'it takes bfloat16 and float32, not {call.dtype}'
  if call.compute_dtype != jnp.float32:
    return f'its sums are float32, not {call.compute_dtype}'
  if max(call.K, call.V) > tiling.TPU_CHANNELS[-1]:
    return f'K = {call.K} and V = {call.V} must not exceed {tiling.TPU_CHANNELS[-1]}'
  if call.chunk_size not in (None, *tiling.TPU_CHUNKS):
    return f'its chunks have {" or ".join(map(str, tiling.TPU_CHUNKS))} tokens, not {call.chunk_size}'
  if (call.chunk_size or 0) > _most_tokens(call):
    return f'with a decay per channel, chunks of {call.chunk_size} tokens do not fit the VMEM of this TPU; 64 do'
  return None


def _most_tokens(call: Any) -> int:
  """Returns the longest chunk that the VMEM of the TPU that is traced for can hold."""
  small = call.decay == 'channel' and tpu_backward.vmem_capacity() <= tiling.TPU_SMALL_VMEM
  return tiling.TPU_CHUNKS[0] if small else tiling.TPU_CHUNKS[-1]


def plan(call: Any) -> Plan:
  """Returns the plan of a call that `refuses` does not refuse."""
  exact = lax.Precision(call.precision) != lax.Precision.DEFAULT
  most = tiling.tpu_most_heads(call.K, call.V, exact)
  chunk = call.chunk_size or tiling.tpu_chunk(call.T, _most_tokens(call))
  tiles = tiling.tpu_tiles(call.H, call.HV, call.K, call.V, chunk, most)
  layout = Layout(
    call.B, -(-call.T // tiles.chunk), tiles.chunk, call.H, call.HV, tiles.K, tiles.V, tiles.heads,
    call.decay, call.segments, call.scale, exact,
  )  # fmt: skip
  return Plan(layout, call.recompute, interpret=not on_tpu())


def delta_rule(
  plan: Plan,
  q_BTHK: Array,
  k_BTHK: Array,
  v_BTHV: Array,
  beta_BTH: Array,
  log_decay: Any,
  state_BHKV: Array,
  run_BT: Array | None,
) -> tuple[Array, Array]:
  """Returns (o_BTHV in the type of v, final state_BHKV in float32), as `xla.delta_rule` does."""
  layout = plan.layout
  T, V = v_BTHV.shape[1], v_BTHV.shape[3]
  operands = laid_out(layout, q_BTHK, k_BTHK, v_BTHV, beta_BTH, log_decay, state_BHKV, run_BT)
  o, last_BHKV = _swept(plan, operands)
  o_BTHV = o.reshape(layout.B, layout.tokens, layout.HV, layout.V)[:, :T, :, :V]
  return o_BTHV, last_BHKV[:, :, : k_BTHK.shape[3], :V]


def laid_out(
  layout: Layout, q_BTHK: Array, k_BTHK: Array, v_BTHV: Array, beta_BTH: Array, log_decay: Any, state_BHKV, run_BT
) -> Operands:
  """Returns the operands as the kernels take them."""
  T, V = v_BTHV.shape[1], v_BTHV.shape[3]
  K = k_BTHK.shape[3]

  def side_by_side(x_BTHD, D):
    x_BTHD = jnp.pad(x_BTHD, [(0, 0), (0, layout.tokens - T), (0, 0), (0, D - x_BTHD.shape[3])])
    return x_BTHD.reshape(layout.B, layout.tokens, -1)

  def rows(x_BTH):
    return jnp.pad(x_BTH, [(0, 0), (0, layout.tokens - T), (0, 0)]).astype(jnp.float32).swapaxes(1, 2)

  if layout.decay == 'scalar':
    log_decay = rows(log_decay)
  elif layout.decay == 'channel':
    log_decay = side_by_side(log_decay.astype(jnp.float32), layout.K)
  return Operands(
    side_by_side(q_BTHK, layout.K),
    side_by_side(k_BTHK, layout.K),
    side_by_side(v_BTHV, layout.V),
    rows(beta_BTH),
    log_decay,
    jnp.pad(state_BHKV.astype(jnp.float32), [(0, 0), (0, 0), (0, layout.K - K), (0, layout.V - V)]),
    None if run_BT is None else jnp.pad(run_BT, [(0, 0), (0, layout.tokens - T)], mode='edge'),
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _swept(plan: Plan, operands: Operands) -> tuple[Array, Array]:
  o, last_BHKV = tpu_forward.forward(plan.layout, operands, interpret=plan.interpret)
  return o, last_BHKV


def _swept_forward(plan: Plan, operands: Operands):
  if plan.recompute:
    return _swept(plan, operands), (operands, None)
  o, last_BHKV, *residuals = tpu_forward.forward(plan.layout, operands, residuals=True, interpret=plan.interpret)
  kept = tuple(checkpoint_name(x, name) for x, name in zip(residuals, RESIDUALS, strict=True))
  return (o, last_BHKV), (operands, kept)


def _swept_backward(plan: Plan, residuals, cotangents) -> tuple[Operands]:
  operands, kept = residuals
  return (_gradients(plan, operands, kept, *cotangents),)


_swept.defvjp(_swept_forward, _swept_backward)


def _gradients(plan: Plan, operands: Operands, kept, do: Array, dlast_BHKV: Array) -> Operands:
  """Returns the cotangents of `operands`; what was not kept for them is made again by the forward kernel."""
  if kept is None:
    kept = tpu_forward.forward(plan.layout, operands, residuals=True, interpret=plan.interpret)[2:]
  inverse, states = kept
  return tpu_backward.backward(plan.layout, operands, inverse, states, do, dlast_BHKV, interpret=plan.interpret)
