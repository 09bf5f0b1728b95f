"""The backward pass of the chunked delta rule as one Mosaic TPU kernel: a sweep from the last chunk to the first.

A grid step takes one chunk of a group of heads and carries dS, the cotangent of the state, in VMEM. The maths stands in
`tpu_adjoints`; here is which block of which operand a step sees, and how many heads it takes.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import tiling, tpu_adjoints, tpu_forward, tpu_math, variance
from pallas_kernels.tpu_forward import Layout, Operands

Array = jax.Array


def backward(
  layout: Layout,
  operands: Operands,
  inverse: Array,
  states: Array,
  do: Array,
  dlast: Array,
  *,
  interpret: Any = False,
) -> Operands:
  """Returns the cotangents of `operands` (None of `run`), by one kernel that sweeps from the last chunk to the first.

  dq, dk and dv come in the type of their operands, the rest in float32; dq and dk are summed over the value heads that
  read a key head.

  Args:
    layout: the sizes that the forward kernel was called with.
    operands: as the forward kernel takes them.
    inverse: [B, HV, N, C, C], (I + A)^-1 of each chunk, in the type of the products.
    states: [B, HV, N, K, V], the state that each chunk receives, likewise.
    do: [B, T, HV * V], the cotangent of the output.
    dlast: [B, HV, K, V], the cotangent of the final state, float32.
    interpret: what `pl.pallas_call` takes, to run on CPU.
  """
  capacity = vmem_capacity()
  if not interpret:
    layout = dataclasses.replace(layout, heads=step_heads(layout, capacity))
  B, N, C, HV, K = layout.B, layout.N, layout.C, layout.HV, layout.K

  def chunk(n):
    return N - 1 - n

  given = tpu_forward.blocks(layout, operands, chunk)
  inputs = dict(zip(Operands._fields, zip(given.arrays, given.specs, strict=True), strict=True))
  del inputs['state']
  inverse_spec, states_spec = tpu_forward.residual_specs(layout, chunk)
  inputs |= {
    'inverse': (inverse, inverse_spec),
    'states': (states, states_spec),
    'do': (do, given.specs.v),
    'dlast': (dlast, tpu_forward.state_spec(layout)),
  }
  inputs = {name: pair for name, pair in inputs.items() if pair[0] is not None}

  result = functools.partial(variance.varying_like, operands.v)
  # Where a group of value heads takes several steps, each step writes its own share of dq and dk.
  shares = HV // layout.heads * layout.key_heads // layout.H
  keys = result((B, shares, N * C, layout.H * K), operands.q.dtype if shares == 1 else jnp.float32)
  keys_spec = pl.BlockSpec((1, 1, C, layout.key_heads * K), lambda b, h, n: (b, h % shares, chunk(n), h // shares))
  outputs = {
    'q': (keys, keys_spec),
    'k': (keys, keys_spec),
    'v': (result(operands.v.shape, operands.v.dtype), given.specs.v),
    'beta': (result(given.arrays.beta.shape, jnp.float32), given.specs.beta),
    'log_decay': (None, None),
    'state': (result(dlast.shape, jnp.float32), tpu_forward.state_spec(layout)),
  }
  if operands.log_decay is not None:
    outputs['log_decay'] = (result(given.arrays.log_decay.shape, jnp.float32), given.specs.log_decay)
  outputs = {name: pair for name, pair in outputs.items() if pair[0] is not None}

  kinds = [layout.decay] + ['packed'] * layout.segments + ['grouped'] * (layout.HV > layout.H)
  found = pl.pallas_call(
    functools.partial(_kernel, layout, tuple(inputs), tuple(outputs)),
    grid=(B, HV // layout.heads, N),
    in_specs=[spec for _, spec in inputs.values()],
    out_specs=[spec for _, spec in outputs.values()],
    out_shape=[shape for shape, _ in outputs.values()],
    scratch_shapes=[pltpu.VMEM((layout.heads, K, layout.V), jnp.float32)],
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=('parallel', 'parallel', 'arbitrary'),
      vmem_limit_bytes=_vmem_limit(layout, capacity),
    ),
    interpret=interpret,
    name='delta_rule_backward_' + '_'.join(kinds),
  )(*(array for array, _ in inputs.values()))
  got = dict(zip(outputs, found, strict=True))

  def added(x):
    return x.sum(1) if shares > 1 else x[:, 0]

  def unrowed(x):
    return x.swapaxes(2, 3).reshape(B, HV, N * C)

  log_decay = unrowed(got['log_decay']) if layout.decay == 'scalar' else got.get('log_decay')
  return Operands(
    added(got['q']).astype(operands.q.dtype),
    added(got['k']).astype(operands.k.dtype),
    got['v'],
    unrowed(got['beta']),
    log_decay,
    got['state'],
    None,
  )


def step_heads(layout: Layout, capacity: int) -> int:
  """Returns how many value heads a step takes, at most `layout.heads`, so that they fit `capacity` bytes of VMEM.

  Heads are given up only where VMEM is small: a step costs some 400 bundles whatever it holds.
  """
  allowed = capacity // _head_bytes(layout)
  for most in range(max(1, min(allowed, layout.heads)), layout.heads):
    tiles = tiling.tpu_tiles(layout.H, layout.HV, layout.K, layout.V, layout.C, most)
    if (tiles.K, tiles.V) == (layout.K, layout.V):
      return tiles.heads
  return layout.heads


def vmem_capacity() -> int:
  """Returns the bytes of VMEM of the TPU that is traced for; of the smallest since v5 where no TPU is known."""
  try:
    return pltpu.get_tpu_info().vmem_capacity_bytes
  except ValueError:
    return 64 * 2**20


def _head_bytes(layout: Layout) -> int:
  """Returns the bytes of VMEM that a head of a step holds: its blocks twice, and registers that were spilled.

  Counted in float32 arrays of C x max(K, V, 128), from what the compiler of libtpu 0.0.42 asked for, rounded up.
  """
  wider = 4 if not layout.exact else 8 if layout.segments else 7
  arrays = {'none': 40, 'scalar': 40, 'channel': 72}[layout.decay] * wider // 4
  return 4 * arrays * layout.C * max(layout.K, layout.V, tiling.TPU_LANES)


def _vmem_limit(layout: Layout, capacity: int) -> int | None:
  """Returns how much VMEM the compiler may use, None where its default of at least 16 MiB is enough."""
  needed = layout.vmem_bytes or layout.heads * _head_bytes(layout)
  return min(needed, capacity) if needed > 16 * 2**20 else None


def _kernel(layout: Layout, names_in: tuple[str, ...], names_out: tuple[str, ...], *refs) -> None:
  """One grid step: from blocks to blocks; the scratch holds the cotangent of the state after the chunk."""
  ins = dict(zip(names_in, refs, strict=False))
  outs = dict(zip(names_out, refs[len(names_in) : -1], strict=True))
  after, n = refs[-1], pl.program_id(2)

  @pl.when(n == 0)
  def _():
    after[...] = ins['dlast'][0]

  K, V, heads, groups = layout.K, layout.V, range(layout.heads), layout.groups
  dtype = layout.products.dtype

  def slices(name, count):
    return tpu_forward.head_slices(ins[name][0], count)

  q, k = ([x.astype(dtype) for x in slices(name, layout.key_heads) for _ in range(groups)] for name in 'qk')
  log_decay = None
  if layout.decay == 'scalar':
    log_decay = ins['log_decay'][0, 0, 0]
  elif layout.decay == 'channel':
    log_decay = slices('log_decay', layout.heads)
  got = tpu_adjoints.adjoints(
    layout,
    tpu_adjoints.Chunk(
      q,
      k,
      tpu_math.wide(slices('v', layout.heads)),
      [x.astype(dtype) for x in slices('do', layout.heads)],
      tpu_math.turned_across(ins['beta'][0, 0, 0], max(layout.C, K, V)),
      [ins['inverse'][0, h, 0] for h in heads],
      [ins['states'][0, h, 0] for h in heads],
      [after[h] for h in heads],
    ),
    log_decay,
    ins['run'][0, 0] if 'run' in ins else None,
  )
  for h in heads:
    after[h] = got.state[h]
    outs['v'][0, :, h * V : (h + 1) * V] = got.v[h].astype(outs['v'].dtype)
  for name, parts in (('q', got.q), ('k', got.k)):
    for h in range(layout.key_heads):
      shared = functools.reduce(jnp.add, parts[h * groups : (h + 1) * groups])
      outs[name][0, 0, :, h * K : (h + 1) * K] = shared.astype(outs[name].dtype)
  outs['beta'][0, 0, 0] = jnp.concatenate(got.beta, 0)
  if layout.decay == 'scalar':
    run_1C = ins['run'][0, 0] if 'run' in ins else None
    outs['log_decay'][0, 0, 0] = tpu_math.later_sums(jnp.concatenate(got.log_decay, 0), tpu_math.grid(layout.C, run_1C))
  elif layout.decay == 'channel':
    for h in heads:
      outs['log_decay'][0, :, h * K : (h + 1) * K] = got.log_decay[h]

  @pl.when(n == layout.N - 1)
  def _():
    outs['state'][0] = after[...]
