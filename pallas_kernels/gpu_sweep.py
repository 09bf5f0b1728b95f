"""The second kernel of the delta rule for Hopper GPUs: the state, swept over the chunks of a sequence.

With W and P of `gpu_gram`, and the state S that a chunk receives,

    u = W (v - e^G k S)      o = scale e^G q S + P u      S' = e^(G_C) S + k^T (e^(G_C - G) u)

A block of the grid keeps `tiles` times 64 columns of V of one head for all chunks. Each of its first warpgroups holds
64 of them, transposed, in float32 registers: S^T [64, K] and what follows from it, r^T and u^T, are first factors of
the products they enter, which a warpgroup takes from registers, so that nothing on the way from S to S' waits for
shared memory. S^T of K = 256 is held in two parts, which are copied to bfloat16 one at a time. The last warpgroup reads
S^T and u^T from shared memory, makes o, and fetches the operands of chunks to come.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.gpu_gram import Grams
from pallas_kernels.gpu_layout import CHUNK, SHARED_BYTES, TILE, Layout
from pallas_kernels.gpu_math import (
  COLUMNS,
  LANES,
  ROWS,
  across,
  added_product,
  down,
  kernel,
  key_parts,
  load,
  load_turned,
  matrix,
  product,
)

Array = jax.Array
# Of three warpgroups, which begin with 168 a lane each and share those; two have enough without a division.
STATE_REGISTERS, OUTPUT_REGISTERS = 184, 136


class Swept(NamedTuple):
  """o [B, T, HV, V]; S^T after the last token [B, HV, V, K] in float32; and where they are asked for S^T before each
  chunk [B, HV, N, V, K] and u^T [B, HV, N, V, C]."""

  o: Array
  last: Array
  states: Array | None
  update: Array | None


def sweep(
  layout: Layout,
  q: Array,
  k: Array,
  v: Array,
  grams: Grams,
  state: Array,
  *,
  tiles: int,
  residuals: bool = False,
) -> Swept:
  """Returns what one sweep over the chunks gives.

  Args:
    q, k: [B, T, H, K] in bfloat16; with a decay a channel, those of `grams` are read instead.
    v: [B, T, HV, V] in bfloat16.
    grams: of `gpu_gram.gram`.
    state: S^T before the first token, [B, HV, V, K] in float32.
    tiles: how many 64 columns of V one block takes.
    residuals: also returns the states and updates that the backward pass needs.
  """
  B, N, HV, K, V = layout.B, layout.N, layout.HV, layout.K, layout.V
  result = jax.ShapeDtypeStruct
  outputs = [result(v.shape, jnp.bfloat16), result((B, HV, V, K), jnp.float32)]
  if residuals:
    outputs += [result((B, HV, N, V, K), jnp.bfloat16), result((B, HV, N, V, CHUNK), jnp.bfloat16)]
  channels = layout.decay == 'channel'
  given = Operands(
    *((grams.q_in, grams.k_in, grams.k_out) if channels else (q, k, None)),
    v, grams.written, grams.read, grams.keep if channels else grams.factors,
  )  # fmt: skip
  slots = min(_slots(layout, tiles), N)
  keys = matrix((slots, CHUNK, K))
  here = Operands(
    keys, keys, keys if channels else None,
    matrix((slots, tiles, CHUNK, TILE)), matrix((slots, CHUNK, CHUNK)), matrix((slots, CHUNK, CHUNK)),
    plgpu.SMEM((slots, K) if channels else (slots, 3, CHUNK), jnp.float32),
  )  # fmt: skip
  copies = sum(x is not None for x in given) + tiles - 1

  def body(*refs):
    rest = iter(refs)
    sources = Operands(*(None if x is None else next(rest) for x in given))
    state, o, last, *kept = (next(rest) for _ in range(1 + len(outputs)))
    _block(layout, tiles, slots, sources, state, o, last, kept, *rest)

  made = kernel(
    body,
    out_type=outputs,
    grid=(V // (TILE * tiles), HV, B),
    grid_names=('columns', 'head', 'row'),
    num_threads=tiles + 1,
    thread_name='warpgroup',
    scratch_types=[
      here,
      Handed(matrix((tiles, TILE, K)), matrix((tiles, TILE, CHUNK)), matrix((tiles, CHUNK, TILE))),
      Barriers(
        plgpu.Barrier(num_arrivals=copies, num_barriers=slots),
        plgpu.Barrier(num_arrivals=tiles, num_barriers=slots),
        *[plgpu.Barrier(num_arrivals=tiles)] * 2,
        *[plgpu.Barrier()] * 2,
      ),
    ],
    compiler_params=plgpu.CompilerParams(approx_math=True, lowering_semantics=LANES, unsafe_no_auto_barriers=True),
    kernel_name='delta_rule_sweep',
  )(*(x for x in given if x is not None), state)
  return Swept(*made, *[None] * (4 - len(outputs)))


class Operands(NamedTuple):
  """What the sweep reads chunk by chunk, in the memory of the device, and the slots of it in shared memory.

  `k_out` only with a decay a channel: then what u is written with differs from what is recalled with, `gates` is what
  is kept of each channel, [K], and other decay is in the operands. Else `gates` is [3, C].
  """

  q: Any
  k: Any
  k_out: Any
  v: Any
  written: Any
  read: Any
  gates: Any


class Handed(NamedTuple):
  """What the warpgroups of states hand to that of outputs: S^T and u^T a tile; and the outputs on their way out."""

  state: Any
  update: Any
  o: Any


class Barriers(NamedTuple):
  """Complete when: a slot is filled; is no longer read by states; S^T, u^T are written; are no longer read."""

  filled: Any
  passed: Any
  state: Any
  update: Any
  state_read: Any
  update_read: Any


def _slots(layout: Layout, tiles: int) -> int:
  """Returns how many chunks shared memory holds at once."""
  K, rows = layout.K, 3 if layout.decay == 'channel' else 2
  gates = K if layout.decay == 'channel' else 3 * CHUNK
  slot = 2 * CHUNK * (rows * K + tiles * TILE + 2 * CHUNK) + 4 * gates
  handed = 2 * tiles * TILE * (K + 2 * CHUNK)
  # Barriers and whole units of 1024 bytes take less than is left; 2048 would cost K = 256 its second slot.
  return min(4, (SHARED_BYTES - 1024 - handed) // slot)


def _block(layout: Layout, tiles: int, slots: int, given, state, o, last, kept, here, handed, barriers) -> None:
  b, h, c = (lax.axis_index(axis) for axis in ('row', 'head', 'columns'))
  group = lax.axis_index('warpgroup')
  key_head = layout.key_head(h)

  def fetch(n, slot):
    tokens = pl.ds(n * CHUNK, CHUNK)

    def copy(source, target):
      plgpu.copy_gmem_to_smem(source, target, barriers.filled.at[slot])

    # With a decay a channel, a head of values has keys and queries of its own.
    for name in ('k', 'q') if given.k_out is None else ('k', 'k_out', 'q'):
      head = key_head if given.k_out is None else h
      copy(getattr(given, name).at[b, tokens, head], getattr(here, name).at[slot])
    for name in ('written', 'gates', 'read'):
      copy(getattr(given, name).at[b, h, n], getattr(here, name).at[slot])
    for tile in range(tiles):
      columns = pl.ds((c * tiles + tile) * TILE, TILE)
      copy(given.v.at[b, tokens, h, columns], here.v.at[slot, tile])

  @pl.when(group < tiles)
  def _():
    if tiles > 1:
      plgpu.set_max_registers(STATE_REGISTERS, action='increase')
    columns = pl.ds((c * tiles + group) * TILE, TILE)
    _states(layout, slots, group, here, handed, barriers, state.at[b, h, columns], last.at[b, h, columns])

  @pl.when(group == tiles)
  def _():
    if tiles > 1:
      plgpu.set_max_registers(OUTPUT_REGISTERS, action='decrease')
    for n in range(slots):
      fetch(n, n)
    _outputs(layout, tiles, slots, here, handed, barriers, fetch, (b, h, c), o, kept)


def _states(layout: Layout, slots: int, tile, here: Operands, handed: Handed, barriers: Barriers, first, last) -> None:
  """Carries 64 columns of the state through all chunks."""
  shape, parts = (TILE, CHUNK), key_parts(layout.K)

  channels = here.k_out is not None
  full = channels and len(parts) > 1  # registers, of which v must then wait for some

  def step(n, state_VK):
    slot = lax.rem(n, slots)
    narrow_VK = state_VK[0].astype(jnp.bfloat16)

    def hand_on(part, narrow_VK):
      handed.state.at[tile, :, part][...] = narrow_VK
      if part is parts[-1]:
        plgpu.commit_smem()
        plgpu.barrier_arrive(barriers.state)

    def hand_on_first():
      @pl.when(n > 0)
      def _():
        plgpu.barrier_wait(barriers.state_read)

      hand_on(parts[0], narrow_VK)
      return None if full else load_turned(here.v.at[slot, tile])

    plgpu.barrier_wait(barriers.filled.at[slot])
    recalled_VC, v_VC = product(narrow_VK, here.k.at[slot, :, parts[0]].transpose((1, 0)), hand_on_first)
    for part, more_VK in zip(parts[1:], state_VK[1:], strict=True):
      narrow_VK = more_VK.astype(jnp.bfloat16)
      hand_on_more = functools.partial(hand_on, part, narrow_VK)
      recalled_VC = added_product(recalled_VC, narrow_VK, here.k.at[slot, :, part].transpose((1, 0)), hand_on_more)
    v_VC = load_turned(here.v.at[slot, tile]) if full else v_VC
    if not channels:
      recalled_VC = recalled_VC * across(load(here.gates.at[slot, 0], COLUMNS), shape)
    wrong_VC = (v_VC.astype(jnp.float32) - recalled_VC).astype(jnp.bfloat16)

    def decayed():
      if channels:
        keep = [load(here.gates.at[slot, part], COLUMNS) for part in parts]
        return [x * across(factor, x.shape) for factor, x in zip(keep, state_VK, strict=True)]
      return [x * here.gates[slot, 0, CHUNK - 1] for x in state_VK]

    update_VC, decayed_VK = product(wrong_VC, here.written.at[slot].transpose((1, 0)), decayed)

    def hand_on_update():
      @pl.when(n > 0)
      def _():
        plgpu.barrier_wait(barriers.update_read)

      handed.update.at[tile][...] = update_VC.astype(jnp.bfloat16)
      plgpu.commit_smem()
      plgpu.barrier_arrive(barriers.update)

    left_VC, keys = update_VC, here.k_out
    if not channels:
      left_VC, keys = update_VC * across(load(here.gates.at[slot, 1], COLUMNS), shape), here.k
    left_VC = left_VC.astype(jnp.bfloat16)
    state_VK = [
      added_product(x, left_VC, keys.at[slot, :, part], hand_on_update if part is parts[0] else None)
      for part, x in zip(parts, decayed_VK, strict=True)
    ]
    plgpu.barrier_arrive(barriers.passed.at[slot])
    return state_VK

  # Added zero, so that it loses the mesh axes it varies over inside `shard_map`: in a kernel nothing else has them.
  state_VK = [load(first.at[:, part], plgpu.Layout.WGMMA, optimized=False) + 0.0 for part in parts]
  for part, x in zip(parts, lax.fori_loop(0, layout.N, step, state_VK), strict=True):
    last.at[:, part][...] = x


def _outputs(layout: Layout, tiles: int, slots: int, here, handed, barriers, fetch, place, o, kept) -> None:
  """Makes the outputs of all chunks, and fetches what chunks to come need."""
  shape = (CHUNK, TILE)
  b, h, c = place

  @pl.loop(0, layout.N)
  def _(n):
    slot = lax.rem(n, slots)
    plgpu.barrier_wait(barriers.filled.at[slot])
    gate = None if here.k_out is not None else down(load(here.gates.at[slot, 2], ROWS), shape)
    plgpu.barrier_wait(barriers.state)
    o_CV = [product(here.q.at[slot], handed.state.at[tile].transpose((1, 0))) for tile in range(tiles)]
    if gate is not None:
      o_CV = [x * gate for x in o_CV]
    if kept:
      _copied_out(tiles, handed.state, kept[0].at[b, h, n], c)
    plgpu.barrier_arrive(barriers.state_read)
    plgpu.barrier_wait(barriers.update)
    if kept:
      _copied_out(tiles, handed.update, kept[1].at[b, h, n], c)
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)
    for tile, x in enumerate(o_CV):
      x = added_product(x, here.read.at[slot], handed.update.at[tile].transpose((1, 0)))
      handed.o.at[tile][...] = x.astype(jnp.bfloat16)
    plgpu.barrier_arrive(barriers.update_read)
    plgpu.commit_smem()
    for tile in range(tiles):
      columns = pl.ds((c * tiles + tile) * TILE, TILE)
      plgpu.copy_smem_to_gmem(handed.o.at[tile], o.at[b, pl.ds(n * CHUNK, CHUNK), h, columns])
    plgpu.barrier_wait(barriers.passed.at[slot])

    @pl.when(n + slots < layout.N)
    def _():
      fetch(n + slots, slot)

  plgpu.wait_smem_to_gmem(0)


def _copied_out(tiles: int, source, target, c) -> None:
  """Writes tiles of V from shared memory, and returns when they may be overwritten there."""
  for tile in range(tiles):
    plgpu.copy_smem_to_gmem(source.at[tile], target.at[pl.ds((c * tiles + tile) * TILE, TILE)])
  plgpu.wait_smem_to_gmem(0, wait_read_only=True)
