"""The last kernel of the delta rule for Hopper GPUs: the gradients of its operands, chunk by chunk.

With S and dS' the state before a chunk and the cotangent of the state after it, u and dr of the two sweeps, and the
terms of `tpu_adjoints`, where these equations are derived:

    E = -tril(dr u^T, -1) e^(G_i - G_j)       F = scale tril(do u^T) e^(G_i - G_j)
    x = E k - e^G (dr S^T)                    y = F k + scale e^G (do S^T)
    z = E^T (beta k) + F^T q + e^(G_C - G) (u dS'^T)
    dq = y    dk = beta x + z    dv = beta dr    dbeta = <k, x> + <v, dr>    dG = <q, y> + <beta k, x> - <k, z>

and for the last row of a chunk dG also has sum_i <k_i, e^(G_C - G_i) (u dS'^T)_i> + e^(G_C) <S, dS'>.

Each block of the grid takes one chunk of one value head. Its three warpgroups make y, x and z; that of z waits for E
and F, and adds beta x. What enters a product is rounded before it, and the sums in dG, which nearly cancel, take the
rounded factors. A token's inner products leave the kernel as rows, and are added up here.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.gpu_layout import CHUNK, NEVER, Gates, Layout, Operands
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
)

Array = jax.Array
RISE, FALL, READ, BETA, TOTAL, RUN = range(6)  # rows of the gates here
Q_Y, BETA_K_X, K_Z, K_Z_OUT, STATES, DBETA = range(6)  # rows of inner products
# Of 504 a lane, which three warpgroups begin with: more together and they wait for each other for ever.
QUERY_REGISTERS, WRITE_REGISTERS, KEY_REGISTERS = 128, 192, 184


class Kept(NamedTuple):
  """What the forward kernels kept: (I + A)^-1 and P [B, HV, N, C, C], S^T [B, HV, N, V, K], u^T [B, HV, N, V, C]."""

  inverse: Array
  states: Array
  read: Array
  update: Array


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
  B, T, H, HV, K = layout.B, layout.tokens, layout.H, layout.HV, layout.K

  def grouped(x_BTHK):
    if H == HV:
      return x_BTHK
    return x_BTHK.reshape(B, T, H, HV // H, K).sum(3)

  sums, dlog_decay = got.sums, None
  if operands.log_decay is not None:
    keep = gates.factors[..., RISE, -1]
    dtotal = sums[..., Q_Y, :] + sums[..., BETA_K_X, :] - sums[..., K_Z, :]
    ends = sums[..., K_Z_OUT, :].sum(-1) + keep * sums[..., STATES, :].sum(-1)
    dlog_decay = later_sums(layout, dtotal.at[..., -1].add(ends), operands.run)
  dbeta = sums[..., DBETA, :].reshape(B, HV, T)
  return Operands(grouped(got.q), grouped(got.k), got.v, dbeta, dlog_decay, back.dstate, None)


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
  rows = _rows(layout, operands, gates)
  given = Blocks(rows, do, kept.update, back.dr, k, q, kept.states, back.after, v)
  result = jax.ShapeDtypeStruct

  def body(*refs):
    given, out = Blocks(*refs[: len(Blocks._fields)]), Found(*refs[len(Blocks._fields) :][: len(Found._fields)])
    _block(layout, given, out, *refs[len(Blocks._fields) + len(Found._fields) :])

  keys, values, square = (matrix((CHUNK, size)) for size in (K, V, CHUNK))
  shared_rows = plgpu.SMEM((6, CHUNK), jnp.float32)
  made = kernel(
    body,
    out_type=[
      result((B, T, HV, K), jnp.bfloat16),
      result((B, T, HV, K), jnp.bfloat16),
      result((B, T, HV, V), jnp.bfloat16),
      result((B, HV, N, 6, CHUNK), jnp.float32),
    ],
    grid=(HV, N, B),
    grid_names=('head', 'chunk', 'row'),
    num_threads=3,
    thread_name='warpgroup',
    scratch_types=[
      Blocks(
        shared_rows, values, matrix((V, CHUNK)), matrix((V, CHUNK)), keys, keys, matrix((V, K)), matrix((V, K)), values
      ),
      # At K = V = 128 there is no room but that of do.
      Shared(square, square, keys, keys, None if K == V else keys, shared_rows),
      Barriers(
        plgpu.Barrier(num_arrivals=4),
        plgpu.Barrier(num_arrivals=4),
        *[plgpu.Barrier()] * 4,
      ),
    ],
    compiler_params=plgpu.CompilerParams(approx_math=True, lowering_semantics=LANES, unsafe_no_auto_barriers=True),
    kernel_name='delta_rule_gradient',
  )(*given)
  return Found(*made)


def _rows(layout: Layout, operands: Operands, gates: Gates) -> Array:
  """Returns the gates of each chunk as the kernel reads them, [B, HV, N, 6, C] in float32."""
  shape = (layout.B, layout.HV, layout.N, 1, CHUNK)
  zero = jnp.zeros(shape, jnp.float32)
  total = zero if gates.total is None else gates.total.reshape(shape)
  run = zero
  if operands.run is not None:  # no run is beyond what float32 counts
    run = jnp.broadcast_to(operands.run.reshape(layout.B, 1, layout.N, 1, CHUNK), shape).astype(jnp.float32)
  return jnp.concatenate([gates.factors, operands.beta.reshape(shape), total, run], 3)


def _block(layout: Layout, given: Blocks, out: Found, here: Blocks, shared: Shared, barriers: Barriers) -> None:
  b, h, n = (lax.axis_index(axis) for axis in ('row', 'head', 'chunk'))
  group, tokens = lax.axis_index('warpgroup'), pl.ds(n * CHUNK, CHUNK)
  key_head = layout.key_head(h)

  def part(name):
    """Returns what of an array belongs to this chunk and head."""
    ref = getattr(given, name)
    if name in 'qk':
      return ref.at[b, tokens, key_head]
    return ref.at[b, tokens, h] if name in ('v', 'do') else ref.at[b, h, n]

  q, k, v, sums = cast(Any, out)
  outs = Found(q.at[b, tokens, h], k.at[b, tokens, h], v.at[b, tokens, h], sums.at[b, h, n])

  @pl.when(group == 0)
  def _():
    plgpu.set_max_registers(QUERY_REGISTERS, action='decrease')
    waited = dict.fromkeys(('gates', 'do', 'update', 'dr'), barriers.grams)
    waited |= dict.fromkeys(('k', 'v', 'q', 'states'), barriers.reads) | {'after': barriers.rest}
    for name, barrier in waited.items():
      plgpu.copy_gmem_to_smem(part(name), getattr(here, name), barrier)
    _queries(layout, here, shared, barriers, outs)

  @pl.when(group == 1)
  def _():
    plgpu.set_max_registers(WRITE_REGISTERS, action='increase')
    _writes(layout, here, shared, barriers, outs)

  @pl.when(group == 2)
  def _():
    plgpu.set_max_registers(KEY_REGISTERS, action='increase')
    _keys(layout, here, shared, barriers, outs)


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


def _queries(layout: Layout, here: Blocks, shared: Shared, barriers: Barriers, outs: Found) -> None:
  """Makes F and y: dq, and <q, y>."""
  shape = (CHUNK, layout.K)
  plgpu.barrier_wait(barriers.grams)
  F = (product(here.do, here.update) * (_decay(layout, here.gates, False) * layout.scale)).astype(jnp.bfloat16)
  shared.F[...] = F
  plgpu.commit_smem()
  plgpu.barrier_arrive(barriers.F)
  plgpu.barrier_wait(barriers.reads)
  y = product(here.do, here.states) * down(load(here.gates.at[READ], ROWS), shape)
  y = added_product(y, F, here.k)
  _handed_out(here.do if shared.dq is None else shared.dq, outs.q, y)
  if layout.decay != 'none':
    _sum_out(shared, outs, Q_Y, (_operand(here.q) * y).sum(1))
  plgpu.wait_smem_to_gmem(0)


def _writes(layout: Layout, here: Blocks, shared: Shared, barriers: Barriers, outs: Found) -> None:
  """Makes E and x: dv, dbeta, <beta k, x>, and beta x for the keys."""
  shape = (CHUNK, layout.K)
  plgpu.barrier_wait(barriers.grams)
  dr = load_turned(here.dr)
  # The sign is in the decay: a fresh accumulator that is negated before it is multiplied came out as zeros on 0.11.2.
  E = (product(dr, here.update) * -_decay(layout, here.gates, True)).astype(jnp.bfloat16)
  shared.E[...] = E
  plgpu.commit_smem()
  plgpu.barrier_arrive(barriers.E)
  plgpu.barrier_wait(barriers.reads)
  beta = load(here.gates.at[BETA], ROWS)
  wide = dr.astype(jnp.float32)
  v_dr = (_operand(here.v) * wide).sum(1)
  _handed_out(here.v, outs.v, wide * down(beta, (CHUNK, layout.V)))
  x = product(dr, here.states) * down(-load(here.gates.at[RISE], ROWS), shape)
  x = added_product(x, E, here.k)
  shared.beta_x[...] = (x * down(beta, shape)).astype(jnp.bfloat16)
  plgpu.commit_smem()
  plgpu.barrier_arrive(barriers.beta_x)
  k = _operand(here.k)
  _sum_out(shared, outs, DBETA, (k * x).sum(1) + v_dr)
  if layout.decay != 'none':
    beta_k = (k * down(beta, shape)).astype(jnp.bfloat16).astype(jnp.float32)
    _sum_out(shared, outs, BETA_K_X, (beta_k * x).sum(1))
  plgpu.wait_smem_to_gmem(0)


def _keys(layout: Layout, here: Blocks, shared: Shared, barriers: Barriers, outs: Found) -> None:
  """Makes z: dk, and the inner products that a decay's gradient needs of it."""
  shape = (CHUNK, layout.K)
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
  _handed_out(here.after.at[pl.ds(0, CHUNK)], outs.k, z + _operand(shared.beta_x))
  plgpu.wait_smem_to_gmem(0)
