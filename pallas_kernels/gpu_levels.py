"""What chunks of a delta rule whose channels decay apart are made of, for Hopper GPUs: sums of decays, level by level.

Two tokens i > j of a chunk meet by e^(G_i - G_j), which is neither a product of factors that stay in range nor one
matrix for all channels. As in `chunk_math`, they meet at the level of the smallest dyadic block that holds both: its
later half meets the earlier one through the last token m of that, and e^(G_i - G_m), e^(G_m - G_j) are at most one.

Differences of G are not taken: each is a sum of steps of the same sign, and a product of ones with the steps. These
enter it as two parts of 8 bits: what is lost, 2^-17 of the sum, is less than what a factor is rounded by wherever that
is not zero.

Most gates are gentle, and pairs within a block of few tokens need no level of their own: they meet directly through the
last token m of its earlier half, whichever side of it they stand on, where all |G_i - G_m| are at most `REACH` powers
of two, which bfloat16 holds. The steepest step of a chunk says how large such blocks may be.

Pairs of tokens of different runs are masked where they meet; between two tokens of one run lie only tokens of that run.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.gpu_layout import CHUNK, LOG2_E
from pallas_kernels.gpu_math import COLUMNS, ROWS, across, down, load, matrix, summed_products

Array = jax.Array
SQUARE = (CHUNK, CHUNK)
PART = 32  # channels done at once, where registers have no room for more
PIECES = 3  # of 8 bits, that a float32 is split into
STEP_PIECES = 2
LEVELS = CHUNK.bit_length() - 1
REACH = 96.0  # powers of two; times 64 values, and keys, in float32


def spread(ref: Any) -> tuple[Array, Array]:
  """Returns an entry a token of a chunk twice, by rows and by columns."""
  return down(load(ref, ROWS, optimized=False), SQUARE), across(load(ref, COLUMNS, optimized=False), SQUARE)


class Ends(NamedTuple):
  """Which tokens of a chunk see the state that it receives, and which its end sees, as factors; and whether that state
  survives the chunk. None where all is seen."""

  sees: Any = None
  counts: Any = None
  survives: Any = None


class Place(NamedTuple):
  """A chunk's row of the batch, value head, number and tokens; their numbers within it, by rows and by columns; and,
  where there are segments, the runs of all tokens of the row, [T], and those of the chunk, [C], where they are read."""

  b: Any
  h: Any
  n: Any
  tokens: Any
  row: Array
  column: Array
  runs: Any = None
  run: Any = None

  @property
  def i(self) -> Array:
    """Of each pair i, j of tokens the number i."""
    return down(self.row, SQUARE)

  @property
  def j(self) -> Array:
    """Of each pair i, j of tokens the number j."""
    return across(self.column, SQUARE)

  def seen(self) -> Array:
    """Returns which pairs i, j there are of a token i that sees j."""
    return self.i >= self.j if self.runs is None else (self.i >= self.j) & self.same_run()

  def same_run(self) -> Array:
    """Returns which pairs are of one run."""
    if self.runs is None:
      return self.i >= 0
    row, column = spread(self.run)
    return row == column

  def ends(self) -> Ends:
    """Returns what the borders of runs hide, read anew."""
    if self.runs is None:
      return Ends()
    runs = load(self.run, ROWS, optimized=False)
    before = jnp.where(self.n > 0, self.runs[jnp.maximum(self.n * CHUNK - 1, 0)], 0)
    last = self.runs[self.n * CHUNK + CHUNK - 1]
    sees, counts = (jnp.where(runs == x, 1.0, 0.0) for x in (before, last))
    return Ends(sees, counts, jnp.where(last == before, 1.0, 0.0))

  def anew(self) -> Place:
    """Returns the same for the compiler to see as another: what it makes of places it would keep, and find no room."""
    row, column = lax.optimization_barrier((self.row, self.column))
    return self._replace(row=row, column=column)


def place(ins: dict) -> Place:
  """Returns the place of a block; `ins` may hold `run`, [B, T]."""
  b, h, n = (lax.axis_index(axis) for axis in ('row', 'head', 'chunk'))
  tokens = pl.ds(n * CHUNK, CHUNK)
  # Of one axis each: made of both, every entry's row is computed, and kept, apart.
  row, column = (plgpu.broadcasted_iota(jnp.int32, (CHUNK,), 0, layout=layout) for layout in (ROWS, COLUMNS))
  if 'run' not in ins:
    return Place(b, h, n, tokens, row, column)
  runs = ins['run'].at[b]
  return Place(b, h, n, tokens, row, column, runs, runs.at[tokens])


def parts(channels: int, rows: int = CHUNK, dtype: Any = jnp.bfloat16, width: int = PART) -> Any:
  """Returns the type of shared memory that holds [rows, channels], `width` channels after another."""
  return matrix((channels // width, rows, width), dtype, width=width)


def pieces(*lead: int, count: int = PIECES, width: int = PART) -> Any:
  """Returns the type of shared memory that `split` writes [C, width] to, in `count` pieces."""
  return matrix((*lead, count, CHUNK, width), width=width)


def split(x: Array, into: Any) -> None:
  """Writes [C, channels] in float32 to shared memory, as pieces whose sum it is."""
  count = into.shape[0]
  for piece in range(count):
    # The upper half of a float32 is a bfloat16; what is converted and widened again is converted one at a time.
    upper = lax.bitcast_convert_type(lax.bitcast_convert_type(x, jnp.int32) & -65536, jnp.float32)
    into.at[piece][...] = (upper if piece < count - 1 else x).astype(jnp.bfloat16)
    x = x - upper
  plgpu.commit_smem()


def ones(counted: Array, value: Any = 1.0) -> Array:
  """Returns `value` where `counted`, [C, C], else zero, as `summed` takes it."""
  return jnp.where(counted, value, 0.0).astype(jnp.bfloat16)


def summed(counted: Array, of: Any) -> Array:
  """Returns for each token, [C, channels], the sum over the tokens that its row of `ones` has, of what was `split`."""
  return summed_products([(counted, of.at[piece]) for piece in range(of.shape[0])])


def direct_level(steepest: Any) -> Any:
  """Returns the highest level whose blocks meet directly, all that are lower with them, or -1 where there is none.

  Args:
    steepest: the largest step of the chunk, in powers of two: a scalar.
  """
  return sum(jnp.where(steepest * 2**level <= REACH, 1, 0) for level in range(LEVELS)) - 1


def between(place: Place, log_half: Any, direct: Any = False) -> Array:
  """Returns `ones` of the tokens j that lie between i and its anchor, where halves have 2^log_half tokens.

  Their steps are negative both ways; those to the anchor from before it count as positive where tokens meet directly.
  """
  half = jnp.left_shift(jnp.int32(1), log_half)
  anchor = (place.row & -2 * half) + half - 1
  first, last = jnp.minimum(place.row, anchor), jnp.maximum(place.row, anchor)
  sign = jnp.where(jnp.where(direct, place.row, CHUNK) <= anchor, -1.0, 1.0)
  return ones((place.j > down(first, SQUARE)) & (place.j <= down(last, SQUARE)), down(sign, SQUARE))


def met(place: Place, log_half: Any, direct: Any = False) -> Array:
  """Returns which pairs i, j, whichever comes first, meet where halves have 2^log_half tokens; i, i where directly."""
  shift, other = log_half + jnp.where(direct, 1, 0), jnp.where(direct, 0, 1)
  row, column = jnp.right_shift(place.row, shift) ^ other, jnp.right_shift(place.column, shift)
  return down(row, SQUARE) == across(column, SQUARE)


def met_later(place: Place, log_half: Any) -> Array:
  """Returns which pairs i > j meet where halves have 2^log_half tokens."""
  row, column = (jnp.right_shift(x, log_half) for x in (place.row, place.column))
  return down(jnp.where((row & 1) == 1, row - 1, -1), SQUARE) == across(column, SQUARE)


def widened(x: Array) -> Array:
  """Returns x in float32, made anew, for the reason `Place.anew` has."""
  return lax.optimization_barrier(x).astype(jnp.float32)


def wide_steps(ref: Any) -> Array:
  """Returns the log decays of [C, channels] in the memory of the device, in powers of two."""
  return load(ref, plgpu.Layout.WGMMA, optimized=False) * LOG2_E
