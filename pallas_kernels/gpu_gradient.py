"""The last kernel of the delta rule for Hopper GPUs: the gradients of its operands, chunk by chunk.

With S and dS' the state before a chunk and the cotangent of the state after it, u and dr of the two sweeps, and the
terms of `tpu_adjoints`, where these equations are derived:

    E = -tril(dr u^T, -1) e^(G_i - G_j)       F = scale tril(do u^T) e^(G_i - G_j)
    x = E k - e^G (dr S^T)                    y = F k + scale e^G (do S^T)
    z = E^T (beta k) + F^T q + e^(G_C - G) (u dS'^T)
    dq = y    dk = beta x + z    dv = beta dr    dbeta = <k, x> + <v, dr>    dG = <q, y> + <beta k, x> - <k, z>

and for the last row of a chunk dG also has sum_i <k_i, e^(G_C - G_i) (u dS'^T)_i> + e^(G_C) <S, dS'>.

Each block of the grid takes one chunk of one value head; where K or V is 256, only a slice of x, y and z by channels of
K and a slice of dv, and it makes E and F anew. Its three warpgroups make y, x and z; that of z waits for E and F, and
adds beta x. What enters a product is rounded before it, and the sums in dG, which nearly cancel, take the rounded
factors. A token's inner products leave the kernel as rows, those of each slice, and are added up here.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.gpu_layout import CHUNK, NEVER, Gates, Kept, Layout, Operands
from pallas_kernels.gpu_math import (
  COLUMNS,
  LANES,
  ROWS,
  across,
  added_product,
  down,
  kernel,
  load,
  load_turned,
  matrix,
  product,
  summed_products,
)

Array = jax.Array
RISE, FALL, READ, BETA, TOTAL, RUN = range(6)  # rows of the gates here
Q_Y, BETA_K_X, K_Z, K_Z_OUT, STATES, DBETA = range(6)  # rows of inner products
# Of 504 a lane, which three warpgroups begin with: more together and they wait for each other for ever.
QUERY_REGISTERS, WRITE_REGISTERS, KEY_REGISTERS = 128, 192, 184


@dataclasses.dataclass(frozen=True)
class Slices:
  """How the work on a chunk is cut: into `count` blocks of `keys` channels of K, and of `values` of V for dv."""

  count: int
  keys: int
  values: int

  @classmethod
  def of(cls, layout: Layout) -> Slices:
    """Returns the widest slices whose S and dS' shared memory holds."""
    keys = min(layout.K, 128 if layout.V <= 128 else 64)
    return cls(layout.K // keys, keys, layout.V * keys // layout.K)


class Reversed(NamedTuple):
  """What the reverse sweep gives: dS'^T after each chunk [B, HV, N, V, K], dr^T [B, HV, N, V, C], and dS^T before the
  first token [B, HV, V, K] in float32."""

  after: Array
  dr: Array
  dstate: Array


class Found(NamedTuple):
  """What the kernel writes: dq, dk [B, T, HV, K] of each value head, dv [B, T, HV, V], and the inner products of each
  token [B, HV, N, 6, C] in float32, of which STATES has only a sum."""

  q: Array
  k: Array
  v: Array
  sums: Array


def gradients(layout: Layout, operands: Operands, gates: Gates, kept: Kept, back: Reversed, do: Array) -> Operands:
  """Returns the cotangents of `operands` (None of `run`)."""
  return collected(layout, operands, gates, back, found(layout, operands, gates, kept, back, do))


def collected(layout: Layout, operands: Operands, gates: Gates, back: Reversed, got: Found) -> Operands:
  """Returns the cotangents of the operands: of key heads summed over those that read them, of decays over tokens."""
  B, T, HV = layout.B, layout.tokens, layout.HV
  sums, dlog_decay = got.sums, None
  if operands.log_decay is not None:
    keep = gates.factors[..., RISE, -1]
    dtotal = sums[..., Q_Y, :] + sums[..., BETA_K_X, :] - sums[..., K_Z, :]
    ends = sums[..., K_Z_OUT, :].sum(-1) + keep * sums[..., STATES, :].sum(-1)
    dlog_decay = later_sums(layout, dtotal.at[..., -1].add(ends), operands.run)
  dbeta = sums[..., DBETA, :].reshape(B, HV, T)
  return Operands(grouped(layout, got.q), grouped(layout, got.k), got.v, dbeta, dlog_decay, back.dstate, None)


def grouped(layout: Layout, x_BTHK: Array) -> Array:
  """Returns what value heads give a key head, summed: [B, T, H, K] of [B, T, HV, K]."""
  B, T, H, HV = layout.B, layout.tokens, layout.H, layout.HV
  return x_BTHK if H == HV else x_BTHK.reshape(B, T, H, HV // H, layout.K).sum(3)


def later_sums(layout: Layout, x_BHNC: Array, run_BT: Any) -> Array:
  """Returns for each token, [B, HV, T], the sum over itself and the later tokens of its chunk and run."""
  i, j = (lax.broadcasted_iota(jnp.int32, (CHUNK, CHUNK), axis) for axis in (0, 1))
  later = i <= j
  if run_BT is None:
    # In full precision: by default a matrix product of float32 is one of 10 bits here.
    later_BHNC = jnp.einsum('bhnj,ij->bhni', x_BHNC, later.astype(x_BHNC.dtype), precision=lax.Precision.HIGHEST)
  else:
    run = run_BT.reshape(layout.B, 1, layout.N, CHUNK)
    later = later & (run[..., :, None] == run[..., None, :])
    later_BHNC = jnp.sum(jnp.where(later, x_BHNC[..., None, :], 0.0), -1)
  return later_BHNC.reshape(layout.B, layout.HV, layout.tokens)


class Blocks(NamedTuple):
  """What a block reads, in the memory of the device and in shared memory."""

  gates: Any
  do: Any
  update: Any
  dr: Any
  k: Any
  q: Any
  states: Any
  after: Any
  v: Any


class Shared(NamedTuple):
  """What warpgroups hand to each other: E, F, beta k, beta x; and what is on its way out."""

  E: Any
  F: Any
  beta_k: Any
  beta_x: Any
  dq: Any
  sums: Any


class Barriers(NamedTuple):
  """Complete when the operands are here that Gram matrices, states and the rest are made of; and E, F, beta x are."""

  grams: Any
  reads: Any
  rest: Any
  E: Any
  F: Any
  beta_x: Any


def found(layout: Layout, operands: Operands, gates: Gates, kept: Kept, back: Reversed, do: Array) -> Found:
  """Returns what the kernel makes of all chunks."""
  B, N, HV, K, V, T = layout.B, layout.N, layout.HV, layout.K, layout.V, layout.tokens
  q, k, v = operands[:3]
  slices = Slices.of(layout)
  rows = _rows(layout, operands, gates)
  given = Blocks(rows, do, kept.update, back.dr, k, q, kept.states, back.after, v)
  result = jax.ShapeDtypeStruct

  def body(*refs):
    given, out = Blocks(*refs[: len(Blocks._fields)]), Found(*refs[len(Blocks._fields) :][: len(Found._fields)])
    _block(layout, slices, given, out, *refs[len(Blocks._fields) + len(Found._fields) :])

  keys, square, states = matrix((CHUNK, slices.keys)), matrix((CHUNK, CHUNK)), matrix((V, slices.keys))
  shared_rows = plgpu.SMEM((6, CHUNK), jnp.float32)
  columns = V if slices.count == 1 else slices.keys  # of a tile of do, which dq replaces
  parts = () if slices.count == 1 else (slices.count,)
  made = kernel(
    body,
    out_type=[
      result((B, T, HV, K), jnp.bfloat16),
      result((B, T, HV, K), jnp.bfloat16),
      result((B, T, HV, V), jnp.bfloat16),
      result((B, HV, N, *parts, 6, CHUNK), jnp.float32),
    ],
    # The slices of a head are neighbours, for what they all read to be in the second level cache.
    grid=(HV * slices.count, N, B),
    grid_names=('head', 'chunk', 'row'),
    num_threads=3,
    thread_name='warpgroup',
    scratch_types=[
      Blocks(
        gates=shared_rows,
        do=matrix((V // columns, CHUNK, columns)),
        update=matrix((V, CHUNK)),
        dr=matrix((slices.count, slices.values, CHUNK)),
        k=keys,
        q=keys,
        states=states,
        after=states,
        v=matrix((CHUNK, slices.values)),
      ),
      # At K = V = 128 there is no room for dq but that of do, at V = 256 none for beta x but that of dr.
      Shared(
        square, square, keys, None if V > 128 else keys, None if K == V or slices.count > 1 else keys, shared_rows
      ),
      Barriers(
        plgpu.Barrier(num_arrivals=2 + V // columns + slices.count),
        plgpu.Barrier(num_arrivals=4),
        *[plgpu.Barrier()] * 4,
      ),
    ],
    compiler_params=plgpu.CompilerParams(approx_math=True, lowering_semantics=LANES, unsafe_no_auto_barriers=True),
    kernel_name='delta_rule_gradient',
  )(*given)
  dq, dk, dv, sums = made
  return Found(dq, dk, dv, sums.sum(3) if parts else sums)


def _rows(layout: Layout, operands: Operands, gates: Gates) -> Array:
  """Returns the gates of each chunk as the kernel reads them, [B, HV, N, 6, C] in float32."""
  shape = (layout.B, layout.HV, layout.N, 1, CHUNK)
  zero = jnp.zeros(shape, jnp.float32)
  total = zero if gates.total is None else gates.total.reshape(shape)
  run = zero
  if operands.run is not None:  # no run is beyond what float32 counts
    run = jnp.broadcast_to(operands.run.reshape(layout.B, 1, layout.N, 1, CHUNK), shape).astype(jnp.float32)
  return jnp.concatenate([gates.factors, operands.beta.reshape(shape), total, run], 3)


def _block(
  layout: Layout, slices: Slices, given: Blocks, out: Found, here: Blocks, shared: Shared, barriers: Barriers
) -> None:
  b, h, n = (lax.axis_index(axis) for axis in ('row', 'head', 'chunk'))
  group, tokens = lax.axis_index('warpgroup'), pl.ds(n * CHUNK, CHUNK)
  part: Any = 0
  if slices.count > 1:
    h, part = lax.div(h, jnp.int32(slices.count)), lax.rem(h, jnp.int32(slices.count))
  key_head = layout.key_head(h)
  keys, values = (pl.ds(part * size, size) for size in (slices.keys, slices.values))

  def copies(name):
    """Yields (what of an array belongs to this block, its place in shared memory)."""
    source, target = getattr(given, name), getattr(here, name)
    if name in 'qk':
      yield source.at[b, tokens, key_head, keys], target
    elif name == 'v':
      yield source.at[b, tokens, h, values], target
    elif name == 'do':
      wide = target.shape[2]
      for tile in range(target.shape[0]):
        yield source.at[b, tokens, h, pl.ds(tile * wide, wide)], target.at[tile]
    elif name in ('states', 'after'):
      yield source.at[b, h, n, :, keys], target
    elif name == 'dr':
      for tile in range(slices.count):
        yield source.at[b, h, n, pl.ds(tile * slices.values, slices.values)], target.at[tile]
    else:
      yield source.at[b, h, n], target

  q, k, v, sums = cast(Any, out)
  if slices.count > 1 and layout.H != layout.HV:  # or registers would hold the place of sums from the start
    b, h, n = lax.optimization_barrier((b, h, n))
  sums = sums.at[b, h, n] if slices.count == 1 else sums.at[b, h, n, part]
  outs = Found(q.at[b, tokens, h, keys], k.at[b, tokens, h, keys], v.at[b, tokens, h, values], sums)

  @pl.when(group == 0)
  def _():
    plgpu.set_max_registers(QUERY_REGISTERS, action='decrease')
    waited = dict.fromkeys(('gates', 'do', 'update', 'dr'), barriers.grams)
    waited |= dict.fromkeys(('k', 'v', 'q', 'states'), barriers.reads) | {'after': barriers.rest}
    for name, barrier in waited.items():
      for source, target in copies(name):
        plgpu.copy_gmem_to_smem(source, target, barrier)
    _queries(layout, slices, here, shared, barriers, outs)

  @pl.when(group == 1)
  def _():
    plgpu.set_max_registers(WRITE_REGISTERS, action='increase')
    _writes(layout, slices, part, here, shared, barriers, outs)

  @pl.when(group == 2)
  def _():
    plgpu.set_max_registers(KEY_REGISTERS, action='increase')
    _keys(layout, slices, here, shared, barriers, outs)


def _decay(layout: Layout, gates: Any, strictly: bool) -> Array:
  """Returns e^(G_i - G_j) where token i sees token j (and is another, if `strictly`), zero elsewhere."""
  shape = (CHUNK, CHUNK)
  i, j = (plgpu.broadcasted_iota(jnp.int32, shape, axis, layout=plgpu.Layout.WGMMA) for axis in (0, 1))
  seen = i > j if strictly else i >= j

  def spread(row):
    return down(load(gates.at[row], ROWS), shape), across(load(gates.at[row], COLUMNS), shape)

  if layout.segments:
    row, column = spread(RUN)
    seen = seen & (row == column)
  if layout.decay == 'none':
    return jnp.where(seen, 1.0, 0.0)
  row, column = spread(TOTAL)
  return jnp.exp2(jnp.where(seen, row - column, NEVER))


def _operand(ref: Any) -> Array:
  """Returns a matrix of shared memory in float32 registers, in the layout of products."""
  return load(ref, plgpu.Layout.WGMMA).astype(jnp.float32)


def _handed_out(source: Any, target: Any, x: Array) -> None:
  source[...] = x.astype(source.dtype)
  plgpu.commit_smem()
  plgpu.copy_smem_to_gmem(source, target)


def _sum_out(shared: Shared, outs: Any, row: int, x_C: Array) -> None:
  shared.sums.at[row][...] = x_C
  plgpu.commit_smem()
  plgpu.copy_smem_to_gmem(shared.sums.at[row], outs.sums.at[row])


def _product_over_values(tiles: list[Any], ref: Any) -> Array:
  """Returns the product of a matrix of columns of V, given by tiles of them, and one of rows of V."""
  size = tiles[0].shape[1]
  return summed_products([(tile, ref.at[pl.ds(n * size, size)]) for n, tile in enumerate(tiles)])


def _beta_x(here: Blocks, shared: Shared) -> Any:
  """Returns where in shared memory beta x lies."""
  return here.dr.at[0, pl.ds(0, CHUNK)] if shared.beta_x is None else shared.beta_x


def _queries(layout: Layout, slices: Slices, here: Blocks, shared: Shared, barriers: Barriers, outs: Found) -> None:
  """Makes F and y: dq, and <q, y>."""
  shape = (CHUNK, slices.keys)
  plgpu.barrier_wait(barriers.grams)
  do = [here.do.at[tile] for tile in range(here.do.shape[0])]
  F = (_product_over_values(do, here.update) * (_decay(layout, here.gates, False) * layout.scale)).astype(jnp.bfloat16)
  shared.F[...] = F
  plgpu.commit_smem()
  plgpu.barrier_arrive(barriers.F)
  plgpu.barrier_wait(barriers.reads)
  y = _product_over_values(do, here.states) * down(load(here.gates.at[READ], ROWS), shape)
  y = added_product(y, F, here.k)
  _handed_out(here.do.at[0] if shared.dq is None else shared.dq, outs.q, y)
  if layout.decay != 'none':
    _sum_out(shared, outs, Q_Y, (_operand(here.q) * y).sum(1))
  plgpu.wait_smem_to_gmem(0)


def _writes(
  layout: Layout, slices: Slices, part: Any, here: Blocks, shared: Shared, barriers: Barriers, outs: Found
) -> None:
  """Makes E and x: dv, dbeta, <beta k, x>, and beta x for the keys."""
  shape = (CHUNK, slices.keys)
  plgpu.barrier_wait(barriers.grams)
  dr = [load_turned(here.dr.at[tile]) for tile in range(slices.count)]

  # The sign is in the decay: a fresh accumulator that is negated before it is multiplied came out as zeros on 0.11.2.
  E = (_product_over_values(dr, here.update) * -_decay(layout, here.gates, True)).astype(jnp.bfloat16)
  shared.E[...] = E
  plgpu.commit_smem()
  plgpu.barrier_arrive(barriers.E)
  plgpu.barrier_wait(barriers.reads)
  beta = load(here.gates.at[BETA], ROWS)
  wide = (dr[0] if slices.count == 1 else load_turned(here.dr.at[part])).astype(jnp.float32)
  v_dr = (_operand(here.v) * wide).sum(1)
  _handed_out(here.v, outs.v, wide * down(beta, (CHUNK, slices.values)))
  x = _product_over_values(dr, here.states) * down(-load(here.gates.at[RISE], ROWS), shape)
  x = added_product(x, E, here.k)
  # No warp reads dr any more: the last to do so has passed a barrier when dv was written.
  _beta_x(here, shared)[...] = (x * down(beta, shape)).astype(jnp.bfloat16)
  plgpu.commit_smem()
  plgpu.barrier_arrive(barriers.beta_x)
  k = _operand(here.k)
  _sum_out(shared, outs, DBETA, (k * x).sum(1) + v_dr)
  if layout.decay != 'none':
    beta_k = (k * down(beta, shape)).astype(jnp.bfloat16).astype(jnp.float32)
    _sum_out(shared, outs, BETA_K_X, (beta_k * x).sum(1))
  plgpu.wait_smem_to_gmem(0)


def _keys(layout: Layout, slices: Slices, here: Blocks, shared: Shared, barriers: Barriers, outs: Found) -> None:
  """Makes z: dk, and the inner products that a decay's gradient needs of it."""
  shape = (CHUNK, slices.keys)
  plgpu.barrier_wait(barriers.grams)
  plgpu.barrier_wait(barriers.reads)
  k = load(here.k, plgpu.Layout.WGMMA)
  shared.beta_k[...] = (k.astype(jnp.float32) * down(load(here.gates.at[BETA], ROWS), shape)).astype(jnp.bfloat16)
  plgpu.commit_smem()
  plgpu.barrier_wait(barriers.rest)
  if layout.decay != 'none':
    tiles = [pl.ds(start, CHUNK) for start in range(0, layout.V, CHUNK)]
    sums = [(_operand(here.states.at[tile]) * _operand(here.after.at[tile])).sum(1) for tile in tiles]
    _sum_out(shared, outs, STATES, sum(sums[1:], sums[0]))
  z = product(load_turned(here.update), here.after) * down(load(here.gates.at[FALL], ROWS), shape)
  if layout.decay != 'none':
    _sum_out(shared, outs, K_Z_OUT, (k.astype(jnp.float32) * z).sum(1))
  plgpu.barrier_wait(barriers.E)
  z = added_product(z, load_turned(shared.E), shared.beta_k)
  plgpu.barrier_wait(barriers.F)
  z = added_product(z, load_turned(shared.F), here.q)
  if layout.decay != 'none':
    _sum_out(shared, outs, K_Z, (k.astype(jnp.float32) * z).sum(1))
  plgpu.barrier_wait(barriers.beta_x)
  _handed_out(here.after.at[pl.ds(0, CHUNK)], outs.k, z + _operand(_beta_x(here, shared)))
  plgpu.wait_smem_to_gmem(0)
