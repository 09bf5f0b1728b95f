"""The third kernel of the delta rule for Hopper GPUs: the cotangent of the state, swept from the last chunk back.

With (I + A)^-1 and P of `gpu_gram`, and the cotangent dS' of the state after a chunk,

    du = P^T do + e^(G_C - G) k dS'      dr = (I + A)^-T du
    dS = e^(G_C) dS' + (scale e^G do)^T q - (beta e^G dr)^T k      (of S^T, as all here)

where with a decay a channel e^G and e^(G_C - G) are in q and k already, as `gpu_gram` wrote them.

A block of the grid keeps `tiles` times 64 columns of V of one head for all chunks. Each of its first warpgroups holds
64 of them, transposed, in float32 registers, as the forward sweep does: dS'^T, du^T, dr^T and do^T are first factors of
the products they enter and come from registers. The last warpgroup fetches the operands of chunks to come.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.gpu_gradient import Reversed
from pallas_kernels.gpu_layout import CHUNK, SHARED_BYTES, TILE, Channels, Gates, Kept, Layout
from pallas_kernels.gpu_layout import Operands as Tokens
from pallas_kernels.gpu_math import (
  COLUMNS,
  LANES,
  across,
  added_product,
  kernel,
  key_parts,
  load,
  load_turned,
  matrix,
  product,
)

Array = jax.Array
# Of three warpgroups, which together have 504 a lane; two have enough without a division.
STATE_REGISTERS, FETCH_REGISTERS = 232, 40
MINUS_WRITE, FALL, READ, RISE = range(4)  # rows of the gates here; with a decay a channel the first alone


class Operands(NamedTuple):
  """What the sweep reads chunk by chunk, in the memory of the device, and the slots of it in shared memory.

  `k_out` and `keep`, [K], only with a decay a channel: the keys that u is written with, and what is kept of the state.
  """

  do: Any
  read: Any
  gates: Any
  k: Any
  k_out: Any
  inverse: Any
  q: Any
  keep: Any


class Barriers(NamedTuple):
  """Complete when a slot is filled, and when no warpgroup reads it any more."""

  filled: Any
  passed: Any


def reverse(
  layout: Layout,
  operands: Tokens,
  gates: Gates | Channels,
  kept: Kept,
  do: Array,
  dlast: Array,
  *,
  tiles: int,
) -> Reversed:
  """Returns what one sweep from the last chunk to the first gives.

  Args:
    operands: as `gpu_sweep.sweep` takes them.
    gates: of the operands, by the kind of decay.
    kept: what the forward kernels kept.
    do: the cotangent of the output, [B, T, HV, V] in bfloat16.
    dlast: that of the final state, transposed, [B, HV, V, K] in float32.
    tiles: how many 64 columns of V one block takes.
  """
  B, N, HV, K, V = layout.B, layout.N, layout.HV, layout.K, layout.V
  # Negated here: a fresh accumulator that is negated before it is multiplied came out as zeros on JAX 0.11.2.
  minus_beta = -operands.beta.reshape(B, HV, N, CHUNK)
  if isinstance(gates, Channels):
    given = Operands(
      do, kept.read, minus_beta[..., None, :], gates.k_in, gates.k_out, kept.inverse, gates.q_in, gates.keep
    )
  else:
    rise, fall, read = (gates.factors[..., row, :] for row in range(3))
    rows = jnp.stack([minus_beta * rise, fall, read, rise], 3)
    given = Operands(do, kept.read, rows, operands.k, None, kept.inverse, operands.q, None)
  slots = min(_slots(given, tiles, K), N)
  keys, square = matrix((slots, CHUNK, K)), matrix((slots, CHUNK, CHUNK))
  here = Operands(
    do=matrix((slots, tiles, CHUNK, TILE)),
    read=square,
    gates=plgpu.SMEM((slots, given.gates.shape[3], CHUNK), jnp.float32),
    k=keys,
    k_out=None if given.k_out is None else keys,
    inverse=square,
    q=keys,
    keep=None if given.keep is None else plgpu.SMEM((slots, K), jnp.float32),
  )
  present = [x for x in given if x is not None]

  def body(*refs):
    rest = iter(refs)
    sources = Operands(*(None if x is None else next(rest) for x in given))
    _block(layout, tiles, slots, sources, *rest)

  result = jax.ShapeDtypeStruct
  made = kernel(
    body,
    out_type=[
      result((B, HV, N, V, K), jnp.bfloat16),
      result((B, HV, N, V, CHUNK), jnp.bfloat16),
      result((B, HV, V, K), jnp.float32),
    ],
    grid=(V // (TILE * tiles), HV, B),
    grid_names=('columns', 'head', 'row'),
    num_threads=tiles + 1,
    thread_name='warpgroup',
    scratch_types=[
      here,
      matrix((tiles, TILE, K)),
      matrix((tiles, TILE, CHUNK)),
      Barriers(
        plgpu.Barrier(num_arrivals=len(present) + tiles - 1, num_barriers=slots),
        plgpu.Barrier(num_arrivals=tiles, num_barriers=slots),
      ),
    ],
    compiler_params=plgpu.CompilerParams(approx_math=True, lowering_semantics=LANES, unsafe_no_auto_barriers=True),
    kernel_name='delta_rule_reverse',
  )(*present, dlast)
  return Reversed(*made)


def _slots(given: Operands, tiles: int, K: int) -> int:
  """Returns how many chunks shared memory holds at once."""
  keys = 2 if given.k_out is None else 3
  gates = 4 * CHUNK if given.keep is None else CHUNK + K
  slot = 2 * CHUNK * (keys * K + tiles * TILE + 2 * CHUNK) + 4 * gates
  handed = 2 * tiles * TILE * (K + CHUNK)
  return min(4, (SHARED_BYTES - 2048 - handed) // slot)


def _block(
  layout: Layout, tiles: int, slots: int, given: Operands, dlast, after, dr, dstate, here, after_here, dr_here, barriers
) -> None:
  b, h, c = (lax.axis_index(axis) for axis in ('row', 'head', 'columns'))
  group, N = lax.axis_index('warpgroup'), layout.N

  def fetch(turn, slot):
    n = N - 1 - turn
    tokens = pl.ds(n * CHUNK, CHUNK)

    key_head = layout.key_head(h) if given.k_out is None else h
    for name in Operands._fields:
      source, target = getattr(given, name), getattr(here, name)
      if name == 'do':
        for tile in range(tiles):
          columns = pl.ds((c * tiles + tile) * TILE, TILE)
          part = source.at[b, tokens, h, columns]
          plgpu.copy_gmem_to_smem(part, target.at[slot, tile], barriers.filled.at[slot])
      elif source is not None:
        part = source.at[b, tokens, key_head] if name in ('q', 'k', 'k_out') else source.at[b, h, n]
        plgpu.copy_gmem_to_smem(part, target.at[slot], barriers.filled.at[slot])

  @pl.when(group < tiles)
  def _():
    if tiles > 1:
      plgpu.set_max_registers(STATE_REGISTERS, action='increase')
    columns = pl.ds((c * tiles + group) * TILE, TILE)
    first, last = dlast.at[b, h, columns], dstate.at[b, h, columns]
    handed = after_here.at[group], dr_here.at[group]
    out = after.at[b, h], dr.at[b, h]
    _cotangents(layout, slots, group, columns, here, handed, barriers, first, last, out)

  @pl.when(group == tiles)
  def _():
    if tiles > 1:
      plgpu.set_max_registers(FETCH_REGISTERS, action='decrease')
    for turn in range(slots):
      fetch(turn, turn)

    @pl.loop(0, N - slots)
    def _(turn):
      slot = lax.rem(turn, slots)
      plgpu.barrier_wait(barriers.passed.at[slot])
      fetch(turn + slots, slot)


def _cotangents(
  layout: Layout, slots: int, tile, columns, here: Operands, handed, barriers: Barriers, first, last, out
):
  """Carries 64 columns of the cotangent of the state through all chunks, the last first."""
  shape, parts = (TILE, CHUNK), key_parts(layout.K)
  after_here, dr_here = handed
  after_out, dr_out = out
  full = here.k_out is not None and len(parts) > 1  # registers, of which do must then wait for some

  def step(turn, after_VK):
    slot, n = lax.rem(turn, slots), layout.N - 1 - turn
    narrow_VK = after_VK[0].astype(jnp.bfloat16)

    def write(part, narrow_VK):
      after_here.at[:, part][...] = narrow_VK
      if part is parts[-1]:
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(after_here, after_out.at[n, columns])

    # What the last turn wrote is on its way out of these.
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)
    write(parts[0], narrow_VK)
    plgpu.barrier_wait(barriers.filled.at[slot])

    def gate(row):
      return across(load(here.gates.at[slot, row], COLUMNS), shape)

    do_VC: Any = None if full else load_turned(here.do.at[slot, tile])
    keys = here.k if here.k_out is None else here.k_out
    du_VC = product(narrow_VK, keys.at[slot, :, parts[0]].transpose((1, 0)))
    for part, more_VK in zip(parts[1:], after_VK[1:], strict=True):
      narrow_VK = more_VK.astype(jnp.bfloat16)
      write_more = functools.partial(write, part, narrow_VK)
      du_VC = added_product(du_VC, narrow_VK, keys.at[slot, :, part].transpose((1, 0)), write_more)
    do_VC = load_turned(here.do.at[slot, tile]) if full else do_VC
    if here.k_out is None:
      du_VC = du_VC * gate(FALL)
    du_VC = added_product(du_VC, do_VC, here.read.at[slot])
    dr_VC = product(du_VC.astype(jnp.bfloat16), here.inverse.at[slot])
    dr_here[...] = dr_VC.astype(jnp.bfloat16)
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(dr_here, dr_out.at[n, columns])
    if here.keep is None:
      kept_VK = [x * here.gates[slot, RISE, CHUNK - 1] for x in after_VK]
      do_VC = (do_VC.astype(jnp.float32) * gate(READ)).astype(jnp.bfloat16)
    else:
      keep = [load(here.keep.at[slot, part], COLUMNS) for part in parts]
      kept_VK = [x * across(factor, x.shape) for factor, x in zip(keep, after_VK, strict=True)]
    before_VK = [added_product(x, do_VC, here.q.at[slot, :, part]) for part, x in zip(parts, kept_VK, strict=True)]
    write_VC = (dr_VC * gate(MINUS_WRITE)).astype(jnp.bfloat16)
    before_VK = [added_product(x, write_VC, here.k.at[slot, :, part]) for part, x in zip(parts, before_VK, strict=True)]
    plgpu.barrier_arrive(barriers.passed.at[slot])
    return before_VK

  # Added zero, as in the sweep forward.
  after_VK = [load(first.at[:, part], plgpu.Layout.WGMMA, optimized=False) + 0.0 for part in parts]
  for part, x in zip(parts, lax.fori_loop(0, layout.N, step, after_VK), strict=True):
    last.at[:, part][...] = x
  plgpu.wait_smem_to_gmem(0)
