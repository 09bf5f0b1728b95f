"""The backward pass of the chunked delta rule as one Mosaic TPU kernel: a sweep from the last chunk to the first.

A grid step takes one chunk of a group of heads and carries dS, the cotangent of the state, in VMEM. Every stage is
written over all heads of the group before the next stage begins, so that the products of one head hide the latency of
another's.

With G the inclusive sum of log decay inside the chunk, S the state it receives, and

    A_ij = beta_i <k_i, k_j e^(G_i - G_j)>, i > j      P_ij = scale <q_i, k_j e^(G_i - G_j)>, i >= j
    u = (I + A)^-1 r,   r = beta v - (beta e^G k) S    o = (scale e^G q) S + P u
    S' = e^(G_C) S + (e^(G_C - G) k)^T u

the adjoints of one chunk follow from do and dS' by reading these lines backwards:

    du = P^T do + (e^(G_C - G) k) dS'                  dr = (I + A)^-T du
    dA = -tril(dr u^T, -1)                             dP = tril(do u^T)
    dS = e^(G_C) dS' + (scale e^G q)^T do - (beta e^G k)^T dr
    dv = beta dr

since u = (I + A)^-1 r gives dA = -(I + A)^-T du u^T: the adjoint of the inverse is one outer product of vectors that
are needed anyway. With E = dA * e^(G_i - G_j) and F = scale dP * e^(G_i - G_j) (entry by entry, for one decay a
head), the keys meet three sums, by their role:

    x = E k - e^G (dr S^T)                  as the row of A and of beta e^G k, without its factor beta
    y = F k + scale e^G (do S^T)            dq
    z = E^T (beta k) + F^T q + e^(G_C - G) (u dS'^T)

    dk = beta x + z      dbeta = <k, x> + <v, dr>      dG = <q, y> + <beta k, x> - <k, z>, and for the last row
    of the chunk also sum_i <k_i, e^(G_C - G_i) (u dS'^T)_i> + e^(G_C) <S, dS'>

and d log_decay is the sum of dG from a token to the end of the chunk. For a decay a channel the inner products in dG
are left unsummed, and E, F act level by level of the dyadic anchors of `chunk_math`.

The sum of dG over later tokens cancels nearly all of what it adds: a pair i > j enters once with each sign. Rounding
that differs between <q, F k> and <k, F^T q> would remain, and grow once more where a caller sums over tokens, as the
gradient of a decay rate does. It does not differ here: the factors that multiply the products are the very ones,
already rounded, that went into them, so that both are the same sum in another order. One bfloat16 pass is then enough.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import tiling, tpu_forward, tpu_math
from pallas_kernels.tpu_forward import Layout, Operands
from pallas_kernels.tpu_math import Grid, Products

Array = jax.Array
SUBLANES = 8  # rows of a float32 register


class Chunk(NamedTuple):
  """A chunk of a group of heads, a list entry a value head; q and k repeat their key head.

  q, k, do, the inverse, S and dS' are in the type of the products, v and what sums are made of in float32.
  """

  q: list[Array]
  k: list[Array]
  v: list[Array]
  do: list[Array]
  beta: list[Array]  # by `across`
  inverse: list[Array]  # (I + A)^-1
  state: list[Array]  # S
  after: list[Array]  # dS', float32


class Adjoints(NamedTuple):
  """The cotangents of a chunk in float32, a list entry a value head.

  Of beta [1, C]; of one log decay a head [1, C] before it is summed over later tokens, of a log decay a channel [C, K];
  of the state K x V.
  """

  q: list[Array]
  k: list[Array]
  v: list[Array]
  beta: list[Array]
  log_decay: Any
  state: list[Array]


class Turned(NamedTuple):
  """What the Gram matrices add to -x, y and z, and for a decay a channel to d log_decay."""

  minus_x: list[Array]
  y: list[Array]
  z: list[Array]
  log_decay: Any = None


def _each(function: Any, *lists: Any) -> list[Any]:
  """Returns `function` of the first entries, of the second entries ...: one stage over all heads."""
  return [function(*values) for values in zip(*lists, strict=True)]


def _wide(xs: list[Array]) -> list[Array]:
  return [x.astype(jnp.float32) for x in xs]


def _times(x_CX: Array, factor: Array | None) -> Array:
  """Returns the rows of `x_CX` times their factors: [C, X] or wider, None for one."""
  return x_CX if factor is None else x_CX * factor[:, : x_CX.shape[1]]


def across(layout: Layout, rows_HC: Array) -> list[Array]:
  """Returns each row of [heads, C] as a column that is repeated over as many lanes as any operand has.

  To turn a repeated row takes half the work that it takes to repeat a turned one.
  """
  lanes = max(layout.C, layout.K, layout.V)
  return [jnp.broadcast_to(rows_HC[h : h + 1], (lanes, layout.C)).T for h in range(rows_HC.shape[0])]


def _sums_as_row(*xs_CX: Array) -> Array:
  """Returns [1, C], the sums along the rows of all of `xs_CX`: turned before they are summed, which is less work."""
  if len({x.shape for x in xs_CX}) == 1:
    xs_CX = (functools.reduce(jnp.add, xs_CX),)
  return functools.reduce(jnp.add, [_column_sums(x.T) for x in xs_CX])


def _column_sums(x: Array) -> Array:
  return jnp.sum(x, 0, keepdims=True)


def _parts(products: Products, x: Array) -> list[Array]:
  """Returns bfloat16 arrays whose sum is `x`: 16 bits of it in two, all in three where products are exact."""
  first, rest = tpu_math.halves(x)
  if not products.exact:
    return [first, rest]
  return [first, rest, (x - first.astype(x.dtype) - rest.astype(x.dtype)).astype(jnp.bfloat16)]


def _sums_by(products: Products, chosen_CC: list[Array], xs_CK: list[Array]) -> Array:
  """Returns the sum of m @ x over the matrices m of zeros and ones and their x: one product, as long as needed."""
  ones, parts = [], []
  for mask_CC, x_CK in zip(chosen_CC, xs_CK, strict=True):
    mine = _parts(products, x_CK)
    ones += [jnp.where(mask_CC, 1.0, 0.0).astype(jnp.bfloat16)] * len(mine)
    parts += mine
  return Products(exact=False).dot(jnp.concatenate(ones, 1), jnp.concatenate(parts, 0))


def _later_sums(x_HC: Array, grid: Grid) -> Array:
  """Returns for each token of [heads, C] the sum from it to the end of its run in the chunk, in float32 throughout."""
  parts = _parts(Products(exact=True), x_HC)
  ones_CC = jnp.where(grid.seen, 1.0, 0.0).astype(jnp.bfloat16)
  sums = Products(exact=False).dot(jnp.concatenate(parts, 0), ones_CC)
  return functools.reduce(jnp.add, jnp.split(sums, len(parts)))


def adjoints(layout: Layout, x: Chunk, log_decay: Any, run_1C: Array | None) -> Adjoints:
  """Returns the cotangents of one chunk of a group of heads, by the equations in the head of this module.

  `log_decay` is None, [heads, C] or a list of [C, K]; `run_1C` numbers the runs, 0 sees the state, None for one.
  """
  products, scale, C = layout.products, layout.scale, layout.C
  dot, narrow = products.dot, lambda x: x.astype(products.dtype)
  grid = tpu_math.grid(C, run_1C)
  later = _later(grid, layout.segments)
  q, k = _wide(x.q), _wide(x.k)
  # Rounded here, once: the product with it and the factor that meets that product must be the same number.
  minus_beta_k = [narrow(-_times(y, beta)) for beta, y in zip(x.beta, k, strict=True)]
  if layout.decay == 'channel':
    scaled = [y * tpu_math.LOG2_E for y in log_decay]
    totals = [_sums_by(products, [grid.seen], [y]) for y in scaled]
    gates = tpu_math.channel_gates(totals, run_1C)
    grams: Any = _ChannelGrams.made(products, scale, grid, later, layout.segments, x, q, k, scaled, totals)
  else:
    gates = _head_gates(layout, log_decay, run_1C, grid)
    grams = _HeadGrams(products, scale, grid, later, x.q, x.k, minus_beta_k, gates.decay)
  none = [None] * len(q)
  rise, fall, keep = (none if y is None else y for y in (gates.rise, gates.fall, gates.keep))

  q_in = [narrow(_times(y * scale, f)) for y, f in zip(q, rise, strict=True)]
  minus_k_in = [narrow(_times(y.astype(jnp.float32), f)) for y, f in zip(minus_beta_k, rise, strict=True)]
  k_out = [narrow(_times(y, f)) for y, f in zip(k, fall, strict=True)]
  after = _each(narrow, x.after)

  r = [_times(y, b) + dot(z, s) for b, y, z, s in zip(x.beta, x.v, minus_k_in, x.state, strict=True)]
  u = [narrow(dot(t, y)) for t, y in zip(x.inverse, r, strict=True)]
  du = [
    dot(jnp.concatenate([p, y], 1), jnp.concatenate([d, s], 0))
    for p, y, d, s in zip(grams.reads_turned(), k_out, x.do, after, strict=True)
  ]
  dr = [dot(t, y, 'tn') for t, y in zip(x.inverse, du, strict=True)]
  dr_do = [jnp.concatenate([narrow(y), d], 0) for y, d in zip(dr, x.do, strict=True)]
  # Against u they are the adjoints of A and P, against S those of the two reads of the state.
  against = [dot(y, jnp.concatenate([z, s], 0), 'nt') for y, z, s in zip(dr_do, u, x.state, strict=True)]
  inside: Turned = grams.turned([y[:C, :C] for y in against], [y[C:, :C] for y in against])
  outside = Turned(
    [_times(y[:C, C:], f) for y, f in zip(against, rise, strict=True)],
    [_times(y[C:, C:] * scale, f) for y, f in zip(against, rise, strict=True)],
    [_times(dot(y, s, 'nt'), f) for y, s, f in zip(u, after, fall, strict=True)],
  )
  minus_x, y, z = (_each(jnp.add, a, b) for a, b in zip(inside[:3], outside[:3], strict=True))

  added = [
    dot(jnp.concatenate([a, b], 0), jnp.concatenate([d[C:], d[:C]], 0), 'tn')
    for a, b, d in zip(q_in, minus_k_in, dr_do, strict=True)
  ]
  dstate = [a + (d if f is None else d * f) for a, d, f in zip(added, x.after, keep, strict=True)]
  dbeta = [_sums_as_row(a * d, -b * w) for a, d, b, w in zip(x.v, dr, k, minus_x, strict=True)]
  dk = [a - _times(b, beta) for a, beta, b in zip(z, x.beta, minus_x, strict=True)]
  dv = [_times(d, beta) for beta, d in zip(x.beta, dr, strict=True)]
  dlog_decay = None
  if layout.decay == 'channel':
    dtotal = _channel_totals(x, q, k, _wide(minus_beta_k), outside, keep)
    dlog_decay = grams.summed(dtotal, inside.log_decay)
  elif layout.decay == 'scalar':
    dlog_decay = _head_totals(x, q, k, _wide(minus_beta_k), Turned(minus_x, y, z), outside.z, keep)
  return Adjoints(y, dk, dv, dbeta, dlog_decay, dstate)


def _kept(x: Chunk) -> list[Array]:
  return [state.astype(jnp.float32) * after for state, after in zip(x.state, x.after, strict=True)]


def _channel_totals(x: Chunk, q, k, minus_beta_k, outside: Turned, keep: list[Any]) -> list[Array]:
  """Returns dG of a decay a channel, [C, K], but for what goes through the Gram matrices."""
  last_C1 = lax.broadcasted_iota(jnp.int32, (k[0].shape[0], 1), 0) == k[0].shape[0] - 1
  written = _each(jnp.multiply, k, outside.z)
  totals = [
    a * b + c * d - e for a, b, c, d, e in zip(q, outside.y, minus_beta_k, outside.minus_x, written, strict=True)
  ]
  whole = [
    _column_sums(a) + (jnp.sum(b, 1, keepdims=True) * f).T for a, b, f in zip(written, _kept(x), keep, strict=True)
  ]
  return [jnp.where(last_C1, a + b, a) for a, b in zip(totals, whole, strict=True)]


def _head_totals(x: Chunk, q, k, minus_beta_k, sums: Turned, z_out: list[Array], keep: list[Any]) -> list[Array]:
  """Returns dG of one decay a head, [1, C]; `sums` are -x, y and z in full, `z_out` the last term of z."""
  C = k[0].shape[0]
  last_1C = lax.broadcasted_iota(jnp.int32, (1, C), 1) == C - 1
  totals = [
    _sums_as_row(a * b + c * d - e * f)
    for a, b, c, d, e, f in zip(q, sums.y, minus_beta_k, sums.minus_x, k, sums.z, strict=True)
  ]
  whole = [
    jnp.sum(_column_sums(a * b), 1, keepdims=True) + jnp.sum(_column_sums(c), 1, keepdims=True) * f
    for a, b, c, f in zip(k, z_out, _kept(x), keep, strict=True)
  ]
  return [jnp.where(last_1C, a + b, a) for a, b in zip(totals, whole, strict=True)]


def _head_gates(layout: Layout, log_decay_HC: Array | None, run_1C: Array | None, grid: Grid) -> tpu_math.Gates:
  """Returns what `tpu_math.scalar_gates` does, its columns by `across`."""
  heads, total_HC, decay = layout.heads, None, None
  rise_HC = fall_HC = jnp.ones((1, layout.C), jnp.float32)
  if log_decay_HC is not None:
    total_HC = tpu_math.running_sums(log_decay_HC * tpu_math.LOG2_E, grid)
    rise_HC, fall_HC = jnp.exp2(total_HC), jnp.exp2(jnp.minimum(total_HC[:, -1:] - total_HC, 0.0))
    decay = [
      jnp.exp2(jnp.where(grid.seen, down[:, : layout.C] - total_HC[h : h + 1], tpu_math.NEVER))
      for h, down in enumerate(across(layout, total_HC))
    ]
  elif run_1C is None:
    return tpu_math.Gates(None, None, None, None)
  if run_1C is not None:
    rise_HC = jnp.where(run_1C == 0, rise_HC, 0.0)
    fall_HC = jnp.where(run_1C == run_1C[:, -1:], fall_HC, 0.0)
  repeats = heads // rise_HC.shape[0]
  keep = [rise_HC[h : h + 1, -1:] for h in range(rise_HC.shape[0])]
  return tpu_math.Gates(across(layout, rise_HC) * repeats, across(layout, fall_HC) * repeats, keep * repeats, decay)


@dataclasses.dataclass(frozen=True)
class _HeadGrams:
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
    rows = _each(dot, both, self.k)
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
class _ChannelGrams:
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
  def made(cls, products, scale, grid, later, segments: bool, x: Chunk, q, k, log_decays, totals) -> _ChannelGrams:
    """Returns the levels of a chunk; log decay and its running sums are in powers of two."""
    q = [scale * y for y in q]
    minus_beta_k = [-_times(y, beta) for beta, y in zip(x.beta, k, strict=True)]
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
    reads = [jnp.where(grid.i == grid.j, _sums_as_row(q * k), 0.0) for q, k in zip(self.q, self.k, strict=True)]
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
      factors, writes = _wide(factors), _wide(writes)
    factor_early, factor_late = _wide([early(x) for x in factors]), _wide([late(x) for x in factors])
    b_late = _wide([late(x) for x in writes])

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
      _sums_by(self.products, [later, near], [a + far, close]) for a, (far, close) in zip(dtotals, parts, strict=True)
    ]


def _later(grid: Grid, segments: bool) -> Array:
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
  capacity = _vmem_capacity()
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

  result = functools.partial(tpu_forward.varying_like, operands.v)
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
    tiles = tiling.tpu_tiles(layout.tokens, layout.H, layout.HV, layout.K, layout.V, layout.C, most)
    if (tiles.K, tiles.V) == (layout.K, layout.V):
      return tiles.heads
  return layout.heads


def _vmem_capacity() -> int:
  """Returns the bytes of VMEM of the TPU that is traced for; of the smallest since v5 where no TPU is known."""
  try:
    return pltpu.get_tpu_info().vmem_capacity_bytes
  except ValueError:
    return 64 * 2**20


def _head_bytes(layout: Layout) -> int:
  """Returns the bytes of VMEM that a head of a step holds: its blocks twice, and registers that were spilled.

  Counted in float32 arrays of C x max(K, V, 128), from what the compiler of libtpu 0.0.42 asked for, rounded up.
  """
  arrays = {'none': 40, 'scalar': 40, 'channel': 72}[layout.decay] * (7 if layout.exact else 4) // 4
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
  got = adjoints(
    layout,
    Chunk(
      q,
      k,
      _wide(slices('v', layout.heads)),
      [x.astype(dtype) for x in slices('do', layout.heads)],
      across(layout, ins['beta'][0, 0, 0]),
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
    outs['log_decay'][0, 0, 0] = _later_sums(jnp.concatenate(got.log_decay, 0), tpu_math.grid(layout.C, run_1C))
  elif layout.decay == 'channel':
    for h in heads:
      outs['log_decay'][0, :, h * K : (h + 1) * K] = got.log_decay[h]

  @pl.when(n == layout.N - 1)
  def _():
    outs['state'][0] = after[...]
