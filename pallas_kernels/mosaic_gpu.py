"""The delta rule by kernels for Hopper GPUs: their door. What they take, the layout they want, and the derivative.

Operands are padded to whole chunks by tokens that change nothing (k = 0, beta = 0, log decay = 0) and to channel sizes
the kernels know by zeros. Gates become rows, [B, HV, T]. States are transposed, [B, HV, V, K].
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from pallas_kernels import target, tiling
from pallas_kernels.gpu_layout import CHUNK, Channels, Gates, Kept, Layout, Operands

Array = jax.Array
RESIDUALS = tuple(f'delta_rule_{field}' for kind in (Kept, Gates, Channels) for field in kind._fields)


@dataclasses.dataclass(frozen=True)
class Plan:
  """What is static about a call: sizes, columns of V a block in units of 64, and whether residuals are made again."""

  layout: Layout
  tiles: int
  recompute: bool = False


def on_hopper() -> bool:
  """Returns whether what is being traced is for a Hopper GPU."""
  platform, kind = target.device()
  return platform == 'gpu' and any(name in kind for name in ('H100', 'H200', 'H800', 'H20', 'GH200'))


def not_run(call: Any) -> str | None:
  """Returns the kind of a call whose kernels are compiled and interpreted but have not run on a device, else None.

  Such are to be had by name alone. All others are compiled by JAX 0.11.2 to the same PTX as when they ran on one.
  """
  if call.decay == 'channel':
    return 'with a decay per channel'
  if call.H != call.HV and max(call.K, call.V) > 128:
    return 'with grouped heads of more than 128'
  return None


def refuses(call: Any) -> str | None:
  """Returns why the kernels do not take a call (`rows.Call`), or None where they do."""
  if not on_hopper():
    return 'there is no Hopper GPU, and its kernels cannot be interpreted elsewhere'
  if call.dtype != jnp.bfloat16:
    return f'it takes q, k and v in bfloat16, not {call.dtype}'
  if call.compute_dtype != jnp.float32:
    return f'its sums are float32, not {call.compute_dtype}'
  if lax.Precision(call.precision) != lax.Precision.DEFAULT:
    return f'its products are of 16 bits: precision {call.precision} is not to be had'
  if max(call.K, call.V) > tiling.GPU_CHANNELS[-1]:
    most = tiling.GPU_CHANNELS[-1]
    return f'K = {call.K} and V = {call.V} must not exceed {most}: a larger state does not fit registers'
  if call.chunk_size not in (None, CHUNK):
    return f'its chunks have {CHUNK} tokens, not {call.chunk_size}'
  if not call.requested and (kind := not_run(call)):
    return f"{kind} its kernels have not run on a device as they are: implementation='mosaic_gpu' has them nevertheless"
  return None


def plan(call: Any) -> Plan:
  """Returns the plan of a call that `refuses` does not refuse."""
  K, V = tiling.gpu_channels(call.K, call.V)
  layout = Layout(
    call.B, -(-call.T // CHUNK), call.H, call.HV, K, V, call.decay, call.segments, call.scale
  )  # fmt: skip
  # With a decay a channel two tiles would not fit the registers that three warpgroups share.
  tiles = 1 if call.decay == 'channel' else tiling.gpu_tiles(call.B * call.HV, K, V)
  return Plan(layout, tiles, call.recompute)


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
  """Returns (o_BTHV in bfloat16, final state_BHKV in float32), as `xla.delta_rule` does."""
  T, K, V = v_BTHV.shape[1], k_BTHK.shape[3], v_BTHV.shape[3]
  operands = laid_out(plan.layout, q_BTHK, k_BTHK, v_BTHV, beta_BTH, log_decay, state_BHKV, run_BT)
  o_BTHV, last_BHVK = _swept(plan, operands)
  return o_BTHV[:, :T, :, :V], last_BHVK[:, :, :V, :K].swapaxes(2, 3)


def laid_out(
  layout: Layout, q_BTHK: Array, k_BTHK: Array, v_BTHV: Array, beta_BTH: Array, log_decay: Any, state_BHKV, run_BT
) -> Operands:
  """Returns the operands as the kernels take them."""
  spare = layout.tokens - v_BTHV.shape[1]

  def padded(x_BTHD, D):
    return jnp.pad(x_BTHD, [(0, 0), (0, spare), (0, 0), (0, D - x_BTHD.shape[3])])

  def rows(x_BTH):
    return jnp.pad(x_BTH, [(0, 0), (0, spare), (0, 0)]).astype(jnp.float32).swapaxes(1, 2)

  state_BHVK = state_BHKV.astype(jnp.float32).swapaxes(2, 3)
  wanted = [layout.V - state_BHVK.shape[2], layout.K - state_BHVK.shape[3]]
  if layout.decay == 'channel':
    log_decay = padded(log_decay.astype(jnp.float32), layout.K)
  elif layout.decay == 'scalar':
    log_decay = rows(log_decay)
  return Operands(
    padded(q_BTHK, layout.K),
    padded(k_BTHK, layout.K),
    padded(v_BTHV, layout.V),
    rows(beta_BTH),
    log_decay,
    jnp.pad(state_BHVK, [(0, 0), (0, 0), *[(0, n) for n in wanted]]),
    None if run_BT is None else jnp.pad(run_BT, [(0, 0), (0, spare)], mode='edge'),
  )


def _forward(plan: Plan, operands: Operands, *, residuals: bool):
  """Returns (o, S^T after the last token, what the backward pass needs if `residuals`: what was kept, and gates)."""
  # Imported where a kernel is made: JAX's Mosaic GPU takes half a second, and a package that JAX itself does without.
  from pallas_kernels import gpu_gram, gpu_sweep

  layout = plan.layout
  grams: Any = gpu_gram.gram(
    layout, operands.q, operands.k, operands.beta, operands.log_decay, operands.run, residuals=residuals
  )
  swept: Any = gpu_sweep.sweep(
    layout, operands.q, operands.k, operands.v, grams, operands.state, tiles=plan.tiles, residuals=residuals
  )
  if not residuals:
    return swept.o, swept.last, None
  gates: Gates | Channels
  if layout.decay == 'channel':
    gates = Channels(grams.q_in, grams.k_in, grams.k_out, grams.keep, grams.steepest)
  else:
    gates = Gates(grams.total, grams.factors)
  return swept.o, swept.last, (Kept(grams.inverse, swept.states, grams.read, swept.update), gates)


def _named(values: Any) -> Any:
  return type(values)(
    *(
      None if x is None else checkpoint_name(x, f'delta_rule_{field}')
      for field, x in zip(values._fields, values, strict=True)
    )
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _swept(plan: Plan, operands: Operands) -> tuple[Array, Array]:
  o, last, _ = _forward(plan, operands, residuals=False)
  return o, last


def _swept_forward(plan: Plan, operands: Operands):
  if plan.recompute:
    return _swept(plan, operands), (operands, None)
  o, last, kept = _forward(plan, operands, residuals=True)
  return (o, last), (operands, tuple(map(_named, kept)))


def _swept_backward(plan: Plan, residuals, cotangents) -> tuple[Operands]:
  from pallas_kernels import gpu_backward

  operands, kept = residuals
  if kept is None:
    *_, kept = _forward(plan, operands, residuals=True)
  return (gpu_backward.backward(plan.layout, operands, *kept, *cotangents),)


_swept.defvjp(_swept_forward, _swept_backward)
