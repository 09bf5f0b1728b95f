"""One chunk of the delta rule inside a TPU kernel, on values: every stage for all heads of a group before the next.

The letters and the maths are those of `chunk_math`. What differs is what a TPU wants: a stage is a list over heads, so
that the products of one head fill the latency of another's; arrays have two axes; per-token factors are rows [heads, C]
until a product needs them as a column; products take bfloat16 operands, in three passes where accuracy needs it.
Exponents are of two: sums of log decay are scaled once, by `LOG2_E`, and each exponential saves a multiplication.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

Array = jax.Array
LOG2_E = math.log2(math.e)
LANES = 128
BLOCK = 16  # rows of a diagonal block that is inverted on vectors
NEVER = -1e30  # an exponent whose power is zero; minus infinity would make NaN of its differences


@dataclasses.dataclass(frozen=True)
class Products:
  """How matrix products are made: of float32 operands at HIGHEST where `exact`, else of bfloat16 ones in one pass.

  Operands are rounded here and by name: interpretation on CPU would keep float32 and hide the error.
  """

  exact: bool

  @property
  def dtype(self):
    return jnp.float32 if self.exact else jnp.bfloat16

  def dot(self, a: Array, b: Array, over: str = 'nn') -> Array:
    """Returns a b in float32; 't' in `over` transposes a factor, as in `chunk_math.dot`."""
    dimensions = (((1 if over[0] == 'n' else 0,), (0 if over[1] == 'n' else 1,)), ((), ()))
    precision = lax.Precision.HIGHEST if self.exact else lax.Precision.DEFAULT
    return lax.dot_general(
      a.astype(self.dtype), b.astype(self.dtype), dimensions, precision, preferred_element_type=jnp.float32
    )

  def fine_dot(self, a: Array, b: Array) -> Array:
    """Returns a b with 16 bits of float32 `a`: two passes over one `b`."""
    if self.exact:
      return self.dot(a, b)
    both = self.dot(jnp.concatenate(halves(a), 0), b)
    return both[: a.shape[0]] + both[a.shape[0] :]


def halves(x: Array) -> tuple[Array, Array]:
  """Returns (x, what of x that leaves out), both bfloat16: together 16 bits of a float32 `x`."""
  if x.dtype == jnp.bfloat16:
    return x, jnp.zeros_like(x)
  leading = x.astype(jnp.bfloat16)
  return leading, (x - leading.astype(jnp.float32)).astype(jnp.bfloat16)


class Grid(NamedTuple):
  """Token numbers of a chunk along both axes of C x C, made once for all heads; and the runs that see each other."""

  i: Array
  j: Array
  seen: Array  # j is not after i, and of the same run
  below: Array  # the same without the diagonal

  def same_block(self, size: int) -> Array:
    return self.i // size == self.j // size

  def identity(self) -> Array:
    return jnp.where(self.i == self.j, 1.0, 0.0)


def grid(C: int, run_1C: Array | None) -> Grid:
  """Returns the grid of a chunk whose runs are numbered by `run_1C` (float32), or None where it is one run."""
  i, j = (lax.broadcasted_iota(jnp.int32, (C, C), axis) for axis in (0, 1))
  seen = i >= j
  if run_1C is not None:
    seen = seen & (column(run_1C) == run_1C)
  return Grid(i, j, seen, seen & (i > j))


def column(row_1C: Array) -> Array:
  return jnp.pad(row_1C, [(0, 7), (0, 0)]).T[:, :1]


def parts(x: Array) -> list[Array]:
  """Returns three bfloat16 arrays whose sum is `x`, all 24 bits of a float32."""
  first = x.astype(jnp.bfloat16)
  rest = x - first.astype(jnp.float32)
  second = rest.astype(jnp.bfloat16)
  return [first, second, (rest - second.astype(jnp.float32)).astype(jnp.bfloat16)]


def spread(rows_HC: Sequence[Array]) -> list[list[Array]]:
  """Returns for each [heads, C] the list over heads of [C, 128] whose every lane is that head's row, turned.

  A product with ones, exact to float32: broadcasts over lanes would go through one slow unit, which transposes too.
  """
  H, C = rows_HC[0].shape
  split = jnp.concatenate([jnp.concatenate(parts(row), 0) for row in rows_HC], 1)
  head = lax.broadcasted_iota(jnp.int32, (3 * H, LANES), 0) % H
  dot = Products(exact=False).dot
  wide = [dot(split, jnp.where(head == h, 1.0, 0.0), 'tn') for h in range(H)]
  return [[x[n * C : (n + 1) * C] for x in wide] for n in range(len(rows_HC))]


def across(x_CL: Array, lanes: int) -> Array:
  """Returns what `spread` gives with as many lanes as are wanted."""
  repeats = -(-lanes // x_CL.shape[1])
  return (x_CL if repeats == 1 else jnp.concatenate([x_CL] * repeats, 1))[:, :lanes]


def running_sums(x_HC: Array, grid: Grid) -> Array:
  """Returns the inclusive sums along C of `x_HC` (float32), begun anew with each run, to float32 accuracy.

  One product with ones, which bfloat16 holds exactly; three bfloat16 parts hold a float32.
  """
  H = x_HC.shape[0]
  ones = jnp.where(grid.seen, 1.0, 0.0).astype(jnp.bfloat16)
  sums = Products(exact=False).dot(jnp.concatenate(parts(x_HC), 0), ones, 'nt')
  return sums[:H] + sums[H : 2 * H] + sums[2 * H :]


def running_sums_down(xs_CK: Sequence[Array], grid: Grid) -> list[Array]:
  """Returns the same for a list over heads of [C, K], along C."""
  dot = Products(exact=False).dot
  ones = jnp.where(grid.seen, 1.0, 0.0).astype(jnp.bfloat16)
  return [dot(ones, first) + dot(ones, rest) + dot(ones, last) for first, rest, last in map(parts, xs_CK)]


class Gates(NamedTuple):
  """What each token multiplies by, a list over heads; None where it is one throughout.

  `rise` is e^G where the state that the chunk receives is seen, `fall` is e^(G_C - G) where the chunk's last run is,
  `keep` is what is kept of the state. Sizes: C x 1, C x 1 and 1 x 1; for a decay a channel C x K, C x K and K x 1.
  `decay` holds e^(G_i - G_j) where i sees j, C x C; None without decay and for a decay a channel.
  """

  rise: list[Array] | None
  fall: list[Array] | None
  keep: list[Array] | None
  decay: list[Array] | None


def scalar_gates(
  beta_HC: Array, log_decay_HC: Array | None, run_1C: Array | None, grid: Grid
) -> tuple[list[Array], Gates]:
  """Returns (beta, gates) of a decay a head, or of none; what is a column is spread over 128 lanes."""
  H, C = beta_HC.shape
  if log_decay_HC is None and run_1C is None:
    return spread([beta_HC])[0], Gates(None, None, None, None)
  rows = [beta_HC]
  rise_HC = fall_HC = jnp.ones((H, C), jnp.float32)
  if log_decay_HC is not None:
    total_HC = running_sums(log_decay_HC * LOG2_E, grid)
    rise_HC, fall_HC = jnp.exp2(total_HC), jnp.exp2(jnp.minimum(total_HC[:, -1:] - total_HC, 0.0))
    rows.append(total_HC)
  if run_1C is not None:
    rise_HC = jnp.where(run_1C == 0, rise_HC, 0.0)
    fall_HC = jnp.where(run_1C == run_1C[:, -1:], fall_HC, 0.0)
  beta, *total, rise, fall = spread([*rows, rise_HC, fall_HC])
  decay = None
  if log_decay_HC is not None:
    decay = [jnp.exp2(jnp.where(grid.seen, across(total[0][h], C) - total_HC[h : h + 1], NEVER)) for h in range(H)]
  keep = [rise_HC[h : h + 1, -1:] for h in range(H)]
  return beta, Gates(rise, fall, keep, decay)


def channel_gates(totals_CK: Sequence[Array], run_1C: Array | None) -> Gates:
  """Returns the gates of a decay a channel; `totals_CK` are its running sums, in powers of two."""
  rise = [jnp.exp2(total) for total in totals_CK]
  fall = [jnp.exp2(jnp.minimum(total[-1:] - total, 0.0)) for total in totals_CK]
  if run_1C is not None:
    run_C1 = column(run_1C)
    rise = [jnp.where(run_C1 == 0, x, 0.0) for x in rise]
    fall = [jnp.where(run_C1 == run_C1[-1:], x, 0.0) for x in fall]
  return Gates(rise, fall, [column(x[-1:]) for x in rise], None)


def grams(products: Products, qs_CK: Sequence[Array], ks_CK: Sequence[Array]) -> tuple[list[Array], list[Array]]:
  """Returns (<k_i, k_j>, <q_i, k_j>) of each head, C x C without any mask."""
  C = ks_CK[0].shape[0]
  both = [products.dot(jnp.concatenate([k, q], 0), k, 'nt') for q, k in zip(qs_CK, ks_CK, strict=True)]
  return [x[:C] for x in both], [x[C:] for x in both]


def decayed_grams(
  kks_CC: Sequence[Array], qks_CC: Sequence[Array], decays_CC: Sequence[Array] | None, grid: Grid, groups: int
) -> tuple[list[Array], list[Array]]:
  """Returns the Gram matrices of every value head, decayed; zero where not seen, kk on the diagonal too.

  Value head h reads key head h // groups.
  """
  if decays_CC is None:
    kks = [x for x in kks_CC for _ in range(groups)]
    return kks, [jnp.where(grid.seen, x, 0.0) for x in qks_CC for _ in range(groups)]
  kks = [kks_CC[h // groups] * decay for h, decay in enumerate(decays_CC)]
  return kks, [qks_CC[h // groups] * decay for h, decay in enumerate(decays_CC)]


def anchored_grams(
  products: Products, qs_CK: Sequence[Array], ks_CK: Sequence[Array], totals_CK: Sequence[Array], grid: Grid
) -> tuple[list[Array], list[Array]]:
  """Returns the same for a decay a channel, by the dyadic anchors of `chunk_math`: a product for each size of block."""
  C = ks_CK[0].shape[0]
  kks: list[Array] = [jnp.zeros((C, C), jnp.float32)] * len(ks_CK)
  qks = [jnp.where(grid.i == grid.j, (q * k).sum(-1, keepdims=True), 0.0) for q, k in zip(qs_CK, ks_CK, strict=True)]
  half = 1
  while half < C:
    # Where halves are whole registers, only the later ones are multiplied and kept: nothing else is met.
    later, woven = (_later, _woven) if half % 8 == 0 else (lambda x, _: x, lambda _, x, __: x)
    met = later(
      grid.seen & grid.same_block(2 * half) & (grid.i % (2 * half) >= half) & (grid.j % (2 * half) < half), half
    )
    rows = met.shape[0]
    falls = [jnp.exp2(-jnp.abs(total - _anchor(total, 2 * half))) for total in totals_CK]
    ks = [k * fall for k, fall in zip(ks_CK, falls, strict=True)]
    lates = [
      jnp.concatenate([later(k, half), later(q, half) * later(fall, half)], 0)
      for k, q, fall in zip(ks, qs_CK, falls, strict=True)
    ]
    both = [products.dot(late, k, 'nt') for late, k in zip(lates, ks, strict=True)]
    kks = [woven(old, jnp.where(met, x[:rows], later(old, half)), half) for x, old in zip(both, kks, strict=True)]
    qks = [woven(old, jnp.where(met, x[rows:], later(old, half)), half) for x, old in zip(both, qks, strict=True)]
    half *= 2
  return kks, qks


def _later(x: Array, half: int) -> Array:
  """Returns the later half of each block of 2 `half` rows, one below the other."""
  return jnp.concatenate([x[start : start + half] for start in range(half, x.shape[0], 2 * half)], 0)


def _woven(x: Array, later: Array, half: int) -> Array:
  """Returns `x` with the rows that `_later` takes replaced."""
  pieces = []
  for n, start in enumerate(range(0, x.shape[0], 2 * half)):
    pieces += [x[start : start + half], later[n * half : (n + 1) * half]]
  return jnp.concatenate(pieces, 0)


def _anchor(total_CK: Array, block: int) -> Array:
  """Returns for each token the total at the last row of the first half of its block."""
  C, K = total_CK.shape
  at = [total_CK[start + block // 2 - 1 : start + block // 2] for start in range(0, C, block)]
  return jnp.concatenate([jnp.broadcast_to(x, (block, K)) for x in at], 0)


def unit_lower_inverses(products: Products, units_CC: Sequence[Array], grid: Grid, scratch: Any) -> list[Array]:
  """Returns the inverse of each unit lower triangular I + L [C, C], in float32.

  Blocks of 16 rows by substitution; pairs are merged, X <- X (I - L X) with L what lies between the two. Powers
  of L are never formed: they grow like binomials where keys repeat. Of bfloat16 products one Newton step takes the
  rounding back, T <- X (2 I - (I + L) X): of I + L both halves are met, and X is what bfloat16 holds.

  Args:
    products: how to multiply.
    units_CC: float32.
    grid: of the chunk.
    scratch: VMEM of [128, 128] in float32.
  """
  dot, dtype = products.dot, products.dtype
  C = grid.i.shape[0]
  identity = grid.identity()
  inverses = [x.astype(dtype) for x in _diagonal_inverses(units_CC, scratch)]
  leading = [x.astype(dtype) for x in units_CC]
  block = BLOCK
  while block < (C if products.exact else C // 2):
    inverses = _merged(products, leading, inverses, grid, block)
    block *= 2
  if products.exact:
    return inverses
  residuals = [
    identity - (products.fine_dot(x, inverse) - identity) for x, inverse in zip(units_CC, inverses, strict=True)
  ]
  return [dot(inverse, residual) for inverse, residual in zip(inverses, residuals, strict=True)]


def _merged(
  products: Products, lowers_CC: Sequence[Array], inverses_CC: Sequence[Array], grid: Grid, block: int
) -> list[Array]:
  """Returns inverses of diagonal blocks twice as large as `block`: the later rows of a pair are all that changes."""
  identity = grid.identity().astype(products.dtype)
  between = _later(grid.same_block(2 * block) & (grid.j % (2 * block) < block), block)
  steps = [
    products.dot(jnp.where(between, _later(x, block), 0.0), y) for x, y in zip(lowers_CC, inverses_CC, strict=True)
  ]
  steps = [_woven(identity, (_later(grid.identity(), block) - x).astype(products.dtype), block) for x in steps]
  lates = [products.dot(_later(x, block), step).astype(x.dtype) for x, step in zip(inverses_CC, steps, strict=True)]
  return [_woven(x, late, block) for x, late in zip(inverses_CC, lates, strict=True)]


def _diagonal_inverses(units_CC: Sequence[Array], scratch: Any) -> list[Array]:
  """Returns the inverses of the diagonal blocks of 16 rows, zero elsewhere.

  All blocks of up to eight heads go through one substitution on vectors: row i of block n of head h becomes row
  8 i + n of `stacked`, its column c lane 16 h + c. `scratch` turns the one order of rows into the other.
  """
  C = units_CC[0].shape[0]
  starts = range(0, C, BLOCK)
  lane = lax.broadcasted_iota(jnp.int32, (BLOCK, LANES), 1)
  for start in starts:
    packed = jnp.zeros((BLOCK, LANES), jnp.float32)
    for h, unit in enumerate(units_CC):
      rows = _moved(unit[start : start + BLOCK], start, h * BLOCK)
      packed = jnp.where(lane // BLOCK == h, rows, packed)
    scratch[start : start + BLOCK] = packed
  stacked = jnp.concatenate([scratch[pl.ds(i, 8, stride=BLOCK)] for i in range(BLOCK)], 0)
  for i, row in enumerate(_substituted(stacked)):
    scratch[pl.ds(i, 8, stride=BLOCK)] = row

  def block(start, h):
    rows = _moved(scratch[start : start + BLOCK], h * BLOCK, start)
    return jnp.where(lane // BLOCK == start // BLOCK, rows, 0.0)[:, :C]

  return [jnp.concatenate([block(start, h) for start in starts], 0) for h in range(len(units_CC))]


def _substituted(stacked: Array) -> list[Array]:
  """Returns the rows [8, 128] of the inverses of unit lower blocks, in the order of `_diagonal_inverses`."""
  lane = lax.broadcasted_iota(jnp.int32, (8 * BLOCK, LANES), 1)
  row = lax.broadcasted_iota(jnp.int32, (8 * BLOCK, LANES), 0) // 8
  rest = jnp.where(lane % BLOCK == row, 1.0, 0.0)
  done = []
  for j in range(BLOCK):
    done.append(rest[:8])
    rest, left = rest[8:], BLOCK - 1 - j
    if left:
      column = (lane // BLOCK * BLOCK + j)[: 8 * left]
      entry = jnp.take_along_axis(stacked[8 * (j + 1) :], column, 1, mode='promise_in_bounds')
      rest = rest - entry * jnp.concatenate([done[j]] * left, 0)
  return done


def _moved(x: Array, origin: int, target: int) -> Array:
  """Returns [rows, 128] whose lane `target` holds lane `origin` of `x`, and so on around."""
  if x.shape[1] < LANES:
    x = jnp.pad(x, [(0, 0), (0, LANES - x.shape[1])])
  return x if origin == target else pltpu.roll(x, (target - origin) % LANES, 1)


class Applied(NamedTuple):
  """What a chunk gives, a list over value heads: o [C, V] before the read scale, and the state after it [K, V]."""

  o: list[Array]
  states: list[Array]


def applied(
  products: Products,
  qs_CK: Sequence[Array],
  ks_CK: Sequence[Array],
  vs_CV: Sequence[Array],
  betas_C1: Sequence[Array],
  gates: Gates,
  inverses_CC: Sequence[Array],
  reads_CC: Sequence[Array],
  states_KV: Sequence[Array],
  channel: bool,
) -> Applied:
  """Returns what the chunk reads and leaves; q and k are given for every value head.

  With one decay a head, its factors meet the products of q and k rather than q and k: fewer numbers, and both stay as
  exact as they came.
  """
  C, V = vs_CV[0].shape
  heads = range(len(ks_CK))
  inside, outside = (gates, Gates(None, None, None, None)) if channel else (Gates(None, None, None, None), gates)
  k_in, q_in, k_out = scaled(ks_CK, inside.rise), scaled(qs_CK, inside.rise), scaled(ks_CK, inside.fall)
  products_S = [products.dot(jnp.concatenate([k_in[h], q_in[h]], 0), states_KV[h]) for h in heads]
  recalled = scaled([x[:C] for x in products_S], outside.rise)
  seen = scaled([x[C:] for x in products_S], outside.rise)
  wrong = [(vs_CV[h].astype(jnp.float32) - recalled[h]) * across(betas_C1[h], V) for h in heads]
  writes = [products.dot(inverse, x) for inverse, x in zip(inverses_CC, wrong, strict=True)]
  reads = [x + products.fine_dot(read, write) for x, read, write in zip(seen, reads_CC, writes, strict=True)]
  lasting = scaled(writes, outside.fall)
  added = [products.dot(k, x, 'tn') for k, x in zip(k_out, lasting, strict=True)]
  return Applied(reads, [x + y for x, y in zip(scaled(states_KV, gates.keep), added, strict=True)])


def scaled(xs: Sequence[Array], factors: Sequence[Array] | None) -> list[Array]:
  """Returns each of `xs` times its factor; None is one throughout."""
  return (
    list(xs)
    if factors is None
    else [x * (across(f, x.shape[1]) if f.shape[1] == LANES else f) for x, f in zip(xs, factors, strict=True)]
  )


def each(function: Any, *lists: Any) -> list[Any]:
  """Returns `function` of the first entries, of the second entries ...: one stage over all heads."""
  return [function(*values) for values in zip(*lists, strict=True)]


def wide(xs: list[Array]) -> list[Array]:
  return [x.astype(jnp.float32) for x in xs]


def times(x_CX: Array, factor: Array | None) -> Array:
  """Returns the rows of `x_CX` times their factors: [C, X] or wider, None for one."""
  return x_CX if factor is None else x_CX * factor[:, : x_CX.shape[1]]


def turned_across(rows_HC: Array, lanes: int) -> list[Array]:
  """Returns each row of [heads, C] as a column [C, lanes].

  To turn a repeated row takes half the work that it takes to repeat a turned one.
  """
  C = rows_HC.shape[1]
  return [jnp.broadcast_to(rows_HC[h : h + 1], (lanes, C)).T for h in range(rows_HC.shape[0])]


def sums_as_row(*xs_CX: Array) -> Array:
  """Returns [1, C], the sums along the rows of all of `xs_CX`: turned before they are summed, which is less work."""
  if len({x.shape for x in xs_CX}) == 1:
    xs_CX = (functools.reduce(jnp.add, xs_CX),)
  return functools.reduce(jnp.add, [column_sums(x.T) for x in xs_CX])


def column_sums(x: Array) -> Array:
  return jnp.sum(x, 0, keepdims=True)


def sums_by(products: Products, chosen_CC: list[Array], xs_CK: list[Array]) -> Array:
  """Returns the sum of m @ x over the matrices m of zeros and ones and their x: one product, as long as needed."""
  ones, pieces = [], []
  for mask_CC, x_CK in zip(chosen_CC, xs_CK, strict=True):
    mine = parts(x_CK) if products.exact else list(halves(x_CK))
    ones += [jnp.where(mask_CC, 1.0, 0.0).astype(jnp.bfloat16)] * len(mine)
    pieces += mine
  return Products(exact=False).dot(jnp.concatenate(ones, 1), jnp.concatenate(pieces, 0))


def later_sums(x_HC: Array, grid: Grid) -> Array:
  """Returns for each token of [heads, C] the sum from it to the end of its run in the chunk, in float32 throughout."""
  pieces = parts(x_HC)
  ones_CC = jnp.where(grid.seen, 1.0, 0.0).astype(jnp.bfloat16)
  sums = Products(exact=False).dot(jnp.concatenate(pieces, 0), ones_CC)
  return functools.reduce(jnp.add, jnp.split(sums, len(pieces)))
