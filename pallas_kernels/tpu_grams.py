"""What the Gram matrices A and P of a chunk give back to keys, queries and decays, inside a TPU kernel.

The letters are those of `tpu_adjoints`. With one decay a head, or none, E and F are dA and dP entry by entry; with a
decay a channel they act level by level of the dyadic anchors of `chunk_math`.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.tpu_math import Grid, Products, each, sums_as_row, sums_by, times, wide

Array = jax.Array
SUBLANES = 8  # rows of a float32 register


class Turned(NamedTuple):
  """What the Gram matrices add to -x, y and z, and for a decay a channel to d log_decay."""

  minus_x: list[Array]
  y: list[Array]
  z: list[Array]
  log_decay: Any = None


@dataclasses.dataclass(frozen=True)
class HeadGrams:
  """The Gram matrices of one decay a head, or of none: E and F are dA and dP times e^(G_i - G_j), entry by entry."""

  products: Products
  scale: float
  grid: Grid
  later: Array  # where j sees i: what `grid.seen` is turned
  q: list[Array]
  k: list[Array]
  minus_beta_k: list[Array]
  decay: list[Array] | None  # e^(G_i - G_j) where seen

  def _read(self, xs: list[Array]) -> list[Array]:
    if self.decay is None:
      return [jnp.where(self.grid.seen, self.scale * x, 0.0) for x in xs]
    return [x * (self.scale * decay) for x, decay in zip(xs, self.decay, strict=True)]

  def _below(self, xs: list[Array]) -> list[Array]:
    if self.decay is None:
      return [jnp.where(self.grid.below, x, 0.0) for x in xs]
    return [jnp.where(self.grid.i > self.grid.j, x * decay, 0.0) for x, decay in zip(xs, self.decay, strict=True)]

  def reads_turned(self) -> list[Array]:
    """Returns P^T in the type of the products; to turn the decay costs less than to turn P."""
    turned = [self.products.dot(k, q, 'nt') for q, k in zip(self.q, self.k, strict=True)]
    if self.decay is None:
      turned = [jnp.where(self.later, self.scale * x, 0.0) for x in turned]
    else:
      turned = [x * (self.scale * decay.T) for x, decay in zip(turned, self.decay, strict=True)]
    return [x.astype(self.products.dtype) for x in turned]

  def turned(self, against_low: list[Array], against_read: list[Array]) -> Turned:
    """Returns the sums of E and F with keys and queries; given -dA and dP before any mask."""
    dot, C = self.products.dot, self.grid.i.shape[0]
    both = [
      jnp.concatenate([low, read], 0).astype(self.products.dtype)
      for low, read in zip(self._below(against_low), self._read(against_read), strict=True)
    ]
    rows = each(dot, both, self.k)
    columns = [
      dot(x, jnp.concatenate([b, q], 0), 'tn') for x, b, q in zip(both, self.minus_beta_k, self.q, strict=True)
    ]
    return Turned([x[:C] for x in rows], [x[C:] for x in rows], columns)


class _Level(NamedTuple):
  """One size of dyadic blocks: pairs of halves of `half` tokens, a list entry a value head.

  `falls` is e^-|G_i - G_m| with m the last token of the earlier half: at most one for any decay. `factors` is k in the
  earlier half and the scaled q in the later one, times it, in the type of the products; `writes` is -beta k times it,
  needed in the later half.
  """

  half: int
  falls: list[Array]
  factors: list[Array]
  writes: list[Array]


@dataclasses.dataclass(frozen=True)
class ChannelGrams:
  """The Gram matrices of a decay a channel, by the dyadic anchors of `chunk_math`, level by level.

  From halves of a register's rows up, earlier and later halves are taken apart, which moves nothing, so that no work
  is done on rows that a level leaves out. Below, d log_decay is summed inside blocks of `SUBLANES` only.
  """

  products: Products
  scale: float
  grid: Grid
  later: Array  # where j sees i: what `grid.seen` is turned
  q: list[Array]  # float32, scaled
  k: list[Array]  # float32
  minus_beta_k: list[Array]  # float32
  levels: list[_Level]

  @classmethod
  def made(cls, products, scale, grid, later, segments: bool, betas, q, k, log_decays, totals) -> ChannelGrams:
    """Returns the levels of a chunk; log decay and its running sums are in powers of two."""
    q = [scale * y for y in q]
    minus_beta_k = [-times(y, beta) for beta, y in zip(betas, k, strict=True)]
    levels = []
    for half in (1 << n for n in range(grid.i.shape[0].bit_length() - 1)):
      falls = [_falls(g, total, half, segments) for g, total in zip(log_decays, totals, strict=True)]
      factors = [_factor(a, b, fall, half).astype(products.dtype) for a, b, fall in zip(q, k, falls, strict=True)]
      writes = [_written(b, fall, half).astype(products.dtype) for b, fall in zip(minus_beta_k, falls, strict=True)]
      levels.append(_Level(half, falls, factors, writes))
    return cls(products, scale, grid, later, q, k, minus_beta_k, levels)

  def _apart(self, half: int) -> bool:
    """Returns whether halves are whole registers in the type of the products."""
    return half * jnp.dtype(self.products.dtype).itemsize >= 4 * SUBLANES

  def reads_turned(self) -> list[Array]:
    """Returns P^T in the type of the products: a factor times itself holds it where an earlier token meets a later."""
    dot, grid = self.products.dot, self.grid
    reads = [jnp.where(grid.i == grid.j, sums_as_row(q * k), 0.0) for q, k in zip(self.q, self.k, strict=True)]
    for half, _, factors, _ in self.levels:
      if self._apart(half):
        met = _met(grid, half, late=False)
        new = [dot(_early(x, half), x, 'nt') for x in factors]
        reads = [
          _whole(jnp.where(met, x, _early(old, half)), _late(old, half), half)
          for x, old in zip(new, reads, strict=True)
        ]
      else:
        met = _pairs(half, grid.j, grid.i)
        reads = [jnp.where(met, dot(x, x, 'nt'), old) for x, old in zip(factors, reads, strict=True)]
    return [jnp.where(self.later, x, 0.0).astype(self.products.dtype) for x in reads]

  def turned(self, against_low: list[Array], against_read: list[Array]) -> Turned:
    """Returns the sums of E and F with keys and queries; given -dA and dP before any mask.

    Its `log_decay` holds, a head, what is summed over the chunk and what over blocks of `SUBLANES` tokens.
    """
    grid, dtype = self.grid, self.products.dtype
    diagonals = [jnp.sum(jnp.where(grid.i == grid.j, x, 0.0), 1, keepdims=True) for x in against_read]
    below = [[jnp.where(grid.below, x, 0.0).astype(dtype) for x in xs] for xs in (against_low, against_read)]
    matrices = list(zip(*below, *([x.T for x in xs] for xs in below), strict=True))
    zeros = [jnp.zeros_like(x) for x in self.k]
    sums = Turned(zeros, zeros, zeros, None)
    for level in (level for level in self.levels if level.half < SUBLANES):
      sums = self._near(level, matrices, sums)
    near = [
      q * y + b * x - k * z
      for q, y, b, x, k, z in zip(self.q, sums.y, self.minus_beta_k, sums.minus_x, self.k, sums.z, strict=True)
    ]
    y = [y + d * k for y, d, k in zip(sums.y, diagonals, self.k, strict=True)]
    z = [z + d * q for z, d, q in zip(sums.z, diagonals, self.q, strict=True)]
    sums = Turned(sums.minus_x, y, z, zeros)
    for level in (level for level in self.levels if level.half >= SUBLANES):
      sums = self._far(level, matrices, sums)
    return Turned(sums.minus_x, [self.scale * y for y in sums.y], sums.z, list(zip(sums.log_decay, near, strict=True)))

  def _near(self, level: _Level, matrices, sums: Turned) -> Turned:
    half, falls, factors, writes = level
    dot, C = self.products.dot, self.grid.i.shape[0]
    met, turned = _pairs(half, self.grid.i, self.grid.j), _pairs(half, self.grid.j, self.grid.i)
    rows = [
      dot(jnp.concatenate([jnp.where(met, x, 0) for x in (low, read)], 0), factor)
      for (low, read, _, _), factor in zip(matrices, factors, strict=True)
    ]
    columns = [
      dot(jnp.concatenate([jnp.where(turned, x, 0) for x in (low, read)], 1), jnp.concatenate([b, factor], 0))
      for (_, _, low, read), b, factor in zip(matrices, writes, factors, strict=True)
    ]
    return Turned(
      [old + fall * x[:C] for old, fall, x in zip(sums.minus_x, falls, rows, strict=True)],
      [old + fall * x[C:] for old, fall, x in zip(sums.y, falls, rows, strict=True)],
      [old + fall * x for old, fall, x in zip(sums.z, falls, columns, strict=True)],
    )

  def _far(self, level: _Level, matrices, sums: Turned) -> Turned:
    half, falls, factors, writes = level
    grid, dot = self.grid, self.products.dot
    C = grid.i.shape[0]
    early, late, whole = (functools.partial(f, half=half) for f in (_early, _late, _whole))
    if self._apart(half):
      met_late, met_early = _met(grid, half, late=True), _met(grid, half, late=False)
      rows = [
        dot(jnp.concatenate([jnp.where(met_late, late(x), 0) for x in (low, read)], 0), factor)
        for (low, read, _, _), factor in zip(matrices, factors, strict=True)
      ]
      columns = [
        dot(jnp.concatenate([jnp.where(met_early, early(x), 0) for x in (low, read)], 1), jnp.concatenate([b, factor]))
        for (_, _, low, read), b, factor in zip(matrices, writes, factors, strict=True)
      ]
      from_low, from_read = [x[: C // 2] for x in rows], [x[C // 2 :] for x in rows]
    else:
      met, turned = _pairs(half, grid.i, grid.j), _pairs(half, grid.j, grid.i)
      rows = [
        dot(jnp.concatenate([jnp.where(met, x, 0) for x in (low, read)], 0), factor)
        for (low, read, _, _), factor in zip(matrices, factors, strict=True)
      ]
      columns = [
        dot(jnp.concatenate([jnp.where(turned, x, 0) for x in (low, read)], 1), jnp.concatenate([b, factor]))
        for (_, _, low, read), b, factor in zip(matrices, writes, factors, strict=True)
      ]
      columns = [early(x) for x in columns]
      from_low, from_read = [late(x[:C]) for x in rows], [late(x[C:]) for x in rows]
      factors, writes = wide(factors), wide(writes)
    factor_early, factor_late = wide([early(x) for x in factors]), wide([late(x) for x in factors])
    b_late = wide([late(x) for x in writes])

    def add_late(olds, news):
      return [whole(early(old), late(old) + late(fall) * x) for old, fall, x in zip(olds, falls, news, strict=True)]

    z = [whole(early(old) + early(fall) * x, late(old)) for old, fall, x in zip(sums.z, falls, columns, strict=True)]
    log_decay = [
      whole(early(old) - fe * c, late(old) + b * xl + fl * xr)
      for old, fe, fl, b, xl, xr, c in zip(
        sums.log_decay, factor_early, factor_late, b_late, from_low, from_read, columns, strict=True
      )
    ]
    return Turned(add_late(sums.minus_x, from_low), add_late(sums.y, from_read), z, log_decay)

  def summed(self, dtotals: list[Array], parts: list[tuple[Array, Array]]) -> list[Array]:
    """Returns d log_decay: sums over later tokens, of what the levels left near inside its blocks."""
    later, near = self.later, self.later & self.grid.same_block(SUBLANES)
    return [
      sums_by(self.products, [later, near], [a + far, close]) for a, (far, close) in zip(dtotals, parts, strict=True)
    ]


def later(grid: Grid, segments: bool) -> Array:
  if not segments:
    return grid.i <= grid.j
  return jnp.where(grid.seen, 1.0, 0.0).T > 0  # masks themselves cannot be transposed


def _falls(log_decay_CK: Array, total_CK: Array, half: int, segments: bool) -> Array:
  """Returns 2^-|G_i - G_m|, m the last token of the earlier half of i's pair of blocks."""
  C, K = total_CK.shape
  if half == 1:  # the earlier token is its own anchor; the later one is a single log decay away
    return jnp.where(_is_late(half, total_CK.shape), jnp.exp2(log_decay_CK), 1.0)
  if half < SUBLANES:
    tiles = total_CK.reshape(C // SUBLANES, SUBLANES, K)
    row = lax.broadcasted_iota(jnp.int32, (1, SUBLANES, K), 1)
    anchor = jnp.broadcast_to(tiles[:, half - 1 : half], tiles.shape)
    for start in range(2 * half, SUBLANES, 2 * half):
      anchor = jnp.where(row >= start, tiles[:, start + half - 1 : start + half], anchor)
    gap = (tiles - anchor) * jnp.where(row % (2 * half) >= half, 1.0, -1.0)
  else:
    tiles = total_CK.reshape(C // (2 * half), 2, half, K)
    anchor = tiles[:, :1, half - 1 :]
    gap = jnp.concatenate([anchor - tiles[:, :1], tiles[:, 1:] - anchor], 1)
  if segments:  # sums begin anew with a segment: only tokens of the anchor's own lie below it
    gap = jnp.minimum(gap, 0.0)
  return jnp.exp2(gap).reshape(C, K)


def _factor(q_CK: Array, k_CK: Array, fall_CK: Array, half: int) -> Array:
  """Returns k in earlier halves and q in later ones, times `fall_CK`."""
  if half < SUBLANES:
    return jnp.where(_is_late(half, q_CK.shape), q_CK, k_CK) * fall_CK
  return _whole(_early(k_CK, half) * _early(fall_CK, half), _late(q_CK, half) * _late(fall_CK, half), half)


def _written(b_CK: Array, fall_CK: Array, half: int) -> Array:
  """Returns b times `fall_CK` in later halves; what stands in the others is met by zeros."""
  if half < SUBLANES:
    return b_CK * fall_CK
  late = _late(b_CK, half) * _late(fall_CK, half)
  return _whole(late, late, half)


def _is_late(half: int, shape: tuple[int, ...]) -> Array:
  return lax.broadcasted_iota(jnp.int32, shape, 0) % (2 * half) >= half


def _pairs(half: int, i: Array, j: Array) -> Array:
  """Returns where token i lies in the later and token j in the earlier half of one pair of blocks."""
  return (i // (2 * half) == j // (2 * half)) & (i % (2 * half) >= half) & (j % (2 * half) < half)


def _met(grid: Grid, half: int, late: bool) -> Array:
  """Returns the same for the later (or earlier) halves' rows alone, with the tokens of the other half, [C / 2, C]."""
  C = grid.i.shape[0]
  row, j = (lax.broadcasted_iota(jnp.int32, (C // 2, C), axis) for axis in (0, 1))
  return (row // half == j // (2 * half)) & ((j % (2 * half) < half) == late)


def _early(x: Array, half: int) -> Array:
  """Returns the rows of the earlier half of each pair of blocks, [C / 2, ...] of [C, ...]."""
  return x.reshape(-1, 2, half, x.shape[1])[:, 0].reshape(-1, x.shape[1])


def _late(x: Array, half: int) -> Array:
  return x.reshape(-1, 2, half, x.shape[1])[:, 1].reshape(-1, x.shape[1])


def _whole(early: Array, late: Array, half: int) -> Array:
  """Returns [C, ...] of its earlier and its later halves."""
  halves = [x.reshape(-1, 1, half, x.shape[1]) for x in (early, late)]
  return jnp.concatenate(halves, 1).reshape(-1, early.shape[1])
