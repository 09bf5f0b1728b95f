"""One chunk of the delta rule inside a TPU kernel, on values: every stage for all heads of a group before the next.

The letters and the maths are those of `chunk_math`. What differs is what a TPU wants: a stage is a list over heads, so
that the products of one head fill the latency of another's; arrays have two axes; per-token factors are rows [heads, C]
until a product needs them as a column; products take bfloat16 operands, in three passes where accuracy needs it.
Exponents are of two: sums of log decay are scaled once, by `LOG2_E`, and each exponential saves a multiplication.
"""

from __future__ import annotations

import dataclasses
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

  def fine_dot(self, a: Array, b: Array, over: str = 'nn') -> Array:
    """Returns a b with about 16 bits of each float32 operand: three passes over their leading and trailing halves."""
    if self.exact:
      return self.dot(a, b, over)
    (a, a_rest), (b, b_rest) = halves(a), halves(b)
    return self.dot(a, b, over) + self.dot(a, b_rest, over) + self.dot(a_rest, b, over)


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


def columns(*rows: Array) -> list[list[Array]]:
  """Returns for each [heads, C] the list over its heads of [C, 1]: one transposition for all."""
  stacked = jnp.concatenate(rows, 0)
  turned = jnp.pad(stacked, [(0, -stacked.shape[0] % 8), (0, 0)]).T
  starts = [sum(row.shape[0] for row in rows[:n]) for n in range(len(rows))]
  return [
    [turned[:, start + h : start + h + 1] for h in range(row.shape[0])] for start, row in zip(starts, rows, strict=True)
  ]


def column(row_1C: Array) -> Array:
  return columns(row_1C)[0][0]


def running_sums(x_HC: Array, grid: Grid) -> Array:
  """Returns the inclusive sums along C of `x_HC` (float32), begun anew with each run, to float32 accuracy.

  One product with ones, which bfloat16 holds exactly; three bfloat16 parts hold a float32.
  """
  H = x_HC.shape[0]
  first, rest = halves(x_HC)
  last = (x_HC - first.astype(jnp.float32) - rest.astype(jnp.float32)).astype(jnp.bfloat16)
  parts = jnp.concatenate([first, rest, last], 0)
  ones = jnp.where(grid.seen, 1.0, 0.0).astype(jnp.bfloat16)
  sums = Products(exact=False).dot(parts, ones, 'nt')
  return sums[:H] + sums[H : 2 * H] + sums[2 * H :]


def running_sums_down(xs_CK: Sequence[Array], grid: Grid) -> list[Array]:
  """Returns the same for a list over heads of [C, K], along C."""
  dot = Products(exact=False).dot
  ones = jnp.where(grid.seen, 1.0, 0.0).astype(jnp.bfloat16)
  parts = [halves(x) for x in xs_CK]
  lasts = [
    (x - first.astype(jnp.float32) - rest.astype(jnp.float32)).astype(jnp.bfloat16)
    for x, (first, rest) in zip(xs_CK, parts, strict=True)
  ]
  return [
    dot(ones, first) + dot(ones, rest) + dot(ones, last) for (first, rest), last in zip(parts, lasts, strict=True)
  ]


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


def scalar_gates(log_decay_HC: Array | None, run_1C: Array | None, grid: Grid, H: int) -> Gates:
  """Returns the gates of a decay a head, or of none."""
  if log_decay_HC is None and run_1C is None:
    return Gates(None, None, None, None)
  C = grid.i.shape[0]
  rise_HC = fall_HC = jnp.ones((H, C), jnp.float32)
  decay = None
  if log_decay_HC is not None:
    total_HC = running_sums(log_decay_HC * LOG2_E, grid)
    (total_columns,) = columns(total_HC)
    rise_HC, fall_HC = jnp.exp2(total_HC), jnp.exp2(jnp.minimum(total_HC[:, -1:] - total_HC, 0.0))
    rows = [total_HC[h : h + 1] for h in range(H)]
    decay = [
      jnp.exp2(jnp.where(grid.seen, down - along, NEVER)) for down, along in zip(total_columns, rows, strict=True)
    ]
  if run_1C is not None:
    rise_HC = jnp.where(run_1C == 0, rise_HC, 0.0)
    fall_HC = jnp.where(run_1C == run_1C[:, -1:], fall_HC, 0.0)
  rise, fall = columns(rise_HC, fall_HC)
  keep = [rise_HC[h : h + 1, -1:] for h in range(H)]
  return Gates(rise, fall, keep, decay)


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
  C, K = ks_CK[0].shape
  row = lax.broadcasted_iota(jnp.int32, (C, K), 0)
  kks: list[Array] = [jnp.zeros((C, C), jnp.float32)] * len(ks_CK)
  qks = [jnp.where(grid.i == grid.j, (q * k).sum(-1, keepdims=True), 0.0) for q, k in zip(qs_CK, ks_CK, strict=True)]
  block = 2
  while block <= C:
    half = block // 2
    late = row % block >= half
    met = grid.seen & grid.same_block(block) & (grid.i % block >= half) & (grid.j % block < half)
    gaps = [_anchor(total, block) for total in totals_CK]
    gaps = [
      jnp.minimum(jnp.where(late, total - at, at - total), 0.0) for total, at in zip(totals_CK, gaps, strict=True)
    ]
    falls = [jnp.exp2(gap) for gap in gaps]
    ks, qs = ([x * fall for x, fall in zip(xs, falls, strict=True)] for xs in (ks_CK, qs_CK))
    across_k, across_q = grams(products, qs, ks)
    kks = [jnp.where(met, new, old) for new, old in zip(across_k, kks, strict=True)]
    qks = [jnp.where(met, new, old) for new, old in zip(across_q, qks, strict=True)]
    block *= 2
  return kks, qks


def _anchor(total_CK: Array, block: int) -> Array:
  """Returns for each token the total at the last row of the first half of its block."""
  C, K = total_CK.shape
  at = [total_CK[start + block // 2 - 1 : start + block // 2] for start in range(0, C, block)]
  return jnp.concatenate([jnp.broadcast_to(x, (block, K)) for x in at], 0)


def unit_lower_inverses(products: Products, units_CC: Sequence[Array], grid: Grid, scratch: Any) -> list[Array]:
  """Returns the inverse of each unit lower triangular I + L [C, C], in float32.

  Blocks of 16 rows by substitution; pairs of blocks are merged, X <- X (I - L X) with L what lies between the two. Powers
  of L are never formed: they grow like binomials where keys repeat. Of bfloat16 products one Newton step takes the
  rounding back, T <- X (2 I - (I + L) X): of I + L both halves are met, and X is what bfloat16 holds.

  Args:
    products: how to multiply.
    units_CC: float32.
    grid: of the chunk.
    scratch: VMEM of [C, 128] in float32.
  """
  dot, dtype = products.dot, products.dtype
  C = grid.i.shape[0]
  identity = grid.identity()
  inverses = [x.astype(dtype) for x in _diagonal_inverses(units_CC, scratch)]
  parts = [halves(x) for x in units_CC]
  leading = units_CC if products.exact else [x for x, _ in parts]
  block = BLOCK
  last = C if products.exact else C // 2
  while block < last:
    between = grid.same_block(2 * block) & ~grid.same_block(block)
    steps = [dot(jnp.where(between, x, 0.0), inverse) for x, inverse in zip(leading, inverses, strict=True)]
    inverses = [
      dot(inverse, identity - step).astype(dtype) for inverse, step in zip(inverses, steps, strict=True)
    ]
    block *= 2
  if products.exact:
    return inverses
  both = [dot(jnp.concatenate(x, 0), inverse) for x, inverse in zip(parts, inverses, strict=True)]
  return [
    dot(inverse, (2 * identity - x[:C]) - x[C:]) for x, inverse in zip(both, inverses, strict=True)
  ]


def _diagonal_inverses(lowers_CC: Sequence[Array], scratch: Any) -> list[Array]:
  """Returns (I + L)^-1 for what L is inside its diagonal blocks of 16 rows, zero elsewhere.

  All blocks of up to eight heads go through one substitution on vectors: row i of every block lies in one [C / 16, 128],
  lane 16 h + c for column c of head h. `scratch` turns rows of a block into rows of that.
  """
  C = lowers_CC[0].shape[0]
  lane = lax.broadcasted_iota(jnp.int32, (BLOCK, LANES), 1)
  starts = range(0, C, BLOCK)
  for start in starts:
    packed = jnp.zeros((BLOCK, LANES), jnp.float32)
    for h, lower in enumerate(lowers_CC):
      rows = _lanes(lower[start : start + BLOCK], start, h * BLOCK)
      packed = jnp.where(lane // BLOCK == h, rows, packed)
    scratch[start : start + BLOCK] = packed
  N = len(starts)
  column = lax.broadcasted_iota(jnp.int32, (N, LANES), 1)
  rows = [scratch[pl.ds(i, N, stride=BLOCK)] for i in range(BLOCK)]
  inverses = [jnp.where(column % BLOCK == i, 1.0, 0.0) for i in range(BLOCK)]
  for j in range(BLOCK - 1):
    spread = column // BLOCK * BLOCK + j
    for i in range(j + 1, BLOCK):
      entry = jnp.take_along_axis(rows[i], spread, 1, mode='promise_in_bounds')
      inverses[i] = inverses[i] - entry * inverses[j]
  for i in range(BLOCK):
    scratch[pl.ds(i, N, stride=BLOCK)] = inverses[i]
  lane = lane[:, :C]
  return [
    jnp.concatenate(
      [
        jnp.where(lane // BLOCK == start // BLOCK, _lanes(scratch[start : start + BLOCK], h * BLOCK, start)[:, :C], 0.0)
        for start in starts
      ],
      0,
    )
    for h in range(len(lowers_CC))
  ]


def _lanes(x: Array, origin: int, target: int) -> Array:
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
) -> Applied:
  """Returns what the chunk reads and leaves; q and k are given for every value head.

  With one decay a head, its factors meet the products of q and k rather than q and k: fewer numbers, and both stay as
  exact as they came.
  """
  C, K = ks_CK[0].shape
  heads = range(len(ks_CK))
  channel = gates.rise is not None and gates.rise[0].shape[1] == K
  inside, outside = (gates, Gates(None, None, None, None)) if channel else (Gates(None, None, None, None), gates)
  k_in, q_in, k_out = scaled(ks_CK, inside.rise), scaled(qs_CK, inside.rise), scaled(ks_CK, inside.fall)
  products_S = [products.dot(jnp.concatenate([k_in[h], q_in[h]], 0), states_KV[h]) for h in heads]
  recalled = scaled([x[:C] for x in products_S], outside.rise)
  seen = scaled([x[C:] for x in products_S], outside.rise)
  wrong = [(vs_CV[h].astype(jnp.float32) - recalled[h]) * betas_C1[h] for h in heads]
  writes = [products.dot(inverse, x) for inverse, x in zip(inverses_CC, wrong, strict=True)]
  reads = [seen[h] + products.dot(reads_CC[h], writes[h]) for h in heads]
  lasting = scaled(writes, outside.fall)
  added = [products.dot(k, x, 'tn') for k, x in zip(k_out, lasting, strict=True)]
  return Applied(reads, [x + y for x, y in zip(scaled(states_KV, gates.keep), added, strict=True)])


def scaled(xs: Sequence[Array], factors: Sequence[Array] | None) -> list[Array]:
  """Returns each of `xs` times its factor; None is one throughout."""
  return list(xs) if factors is None else [x * factor for x, factor in zip(xs, factors, strict=True)]
