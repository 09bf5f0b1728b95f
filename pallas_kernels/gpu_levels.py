"""What chunks of a delta rule whose channels decay apart are made of, for Hopper GPUs: sums of decays, level by level.

Two tokens i > j of a chunk meet by e^(G_i - G_j), which is neither a product of factors that stay in range nor one
matrix for all channels. As in `chunk_math`, they meet at the level of the smallest dyadic block that holds both: its
later half meets the earlier one through the last token m of that, and e^(G_i - G_m), e^(G_m - G_j) are at most one.

Differences of G are not taken: each is a sum of steps of the same sign, and a product of ones with the steps. These
enter it as three parts of 8 bits. Pairs of tokens of different runs are masked where they meet; between two tokens of
one run lie only tokens of that run.
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
PART = 32  # channels done at once
PIECES = 3  # of 8 bits, that a float32 is split into
LEVELS = CHUNK.bit_length() - 1


def spread(ref: Any) -> tuple[Array, Array]:
  """Returns an entry a token of a chunk twice, by rows and by columns."""
  return down(load(ref, ROWS, optimized=False), SQUARE), across(load(ref, COLUMNS, optimized=False), SQUARE)


class Place(NamedTuple):
  """A chunk's row of the batch, value head, number and tokens; of each pair of its tokens the numbers i and j.

  Where there are segments, also the runs of its tokens; which tokens see the state that the chunk receives, and its end
  them; and whether that state survives the chunk. None where all is seen.
  """

  b: Any
  h: Any
  n: Any
  tokens: Any
  i: Array
  j: Array
  run: Any = None
  sees: Any = None
  counts: Any = None
  survives: Any = None

  def seen(self) -> Array:
    """Returns which pairs i, j there are of a token i that sees j."""
    return self.i >= self.j if self.run is None else (self.i >= self.j) & self.same_run()

  def same_run(self) -> Array:
    """Returns which pairs are of one run."""
    if self.run is None:
      return self.i >= 0
    row, column = spread(self.run)
    return row == column

  def anew(self) -> Place:
    """Returns the same for the compiler to see as another: what it makes of places it would keep, and find no room."""
    i, j = lax.optimization_barrier((self.i, self.j))
    return self._replace(i=i, j=j)


def place(ins: dict) -> Place:
  """Returns the place of a block; `ins` may hold `run`, [B, T]."""
  b, h, n = (lax.axis_index(axis) for axis in ('row', 'head', 'chunk'))
  tokens = pl.ds(n * CHUNK, CHUNK)
  # Of one axis each: made of both, every entry's row is computed, and kept, apart.
  i, j = (plgpu.broadcasted_iota(jnp.int32, (CHUNK,), 0, layout=layout) for layout in (ROWS, COLUMNS))
  i, j = down(i, SQUARE), across(j, SQUARE)
  if 'run' not in ins:
    return Place(b, h, n, tokens, i, j)
  run = ins['run'].at[b]
  row = load(run.at[tokens], ROWS, optimized=False)
  before = jnp.where(n > 0, run[jnp.maximum(n * CHUNK - 1, 0)], 0)
  last = run[n * CHUNK + CHUNK - 1]
  sees, counts = (jnp.where(row == x, 1.0, 0.0) for x in (before, last))
  return Place(b, h, n, tokens, i, j, run.at[tokens], sees, counts, jnp.where(last == before, 1.0, 0.0))


def parts(channels: int, rows: int = CHUNK) -> Any:
  """Returns the type of shared memory that holds [rows, channels], `PART` channels after another."""
  return matrix((channels // PART, rows, PART), width=PART)


def pieces(*lead: int) -> Any:
  """Returns the type of shared memory that `split` writes [C, PART] to."""
  return matrix((*lead, PIECES, CHUNK, PART), width=PART)


def split(x: Array, into: Any) -> None:
  """Writes [C, PART] in float32 to shared memory, as pieces whose sum it is."""
  for piece in range(PIECES):
    narrow = x.astype(jnp.bfloat16)
    into.at[piece][...] = narrow
    x = x - narrow.astype(jnp.float32)
  plgpu.commit_smem()


def summed(counted: Array, of: Any) -> Array:
  """Returns for each token, [C, PART], the sum over the tokens that its row of `counted` has, of what was `split`."""
  ones = jnp.where(counted, 1.0, 0.0).astype(jnp.bfloat16)
  return summed_products([(ones, of.at[piece]) for piece in range(PIECES)])


def between(place: Place, log_half: Any) -> Array:
  """Returns which tokens j lie between i and its anchor, where halves have 2^log_half tokens."""
  half = jnp.left_shift(jnp.int32(1), log_half)
  anchor = (place.i & -2 * half) + half - 1
  return (place.j > jnp.minimum(place.i, anchor)) & (place.j <= jnp.maximum(place.i, anchor))


def met(place: Place, log_half: Any) -> Array:
  """Returns which pairs i, j, whichever comes first, meet where halves have 2^log_half tokens."""
  half, apart = jnp.left_shift(jnp.int32(1), log_half), place.i ^ place.j
  return (apart >= half) & (apart < 2 * half)


def widened(x: Array) -> Array:
  """Returns x in float32, made anew, for the reason `Place.anew` has."""
  return lax.optimization_barrier(x).astype(jnp.float32)


def wide_steps(ref: Any) -> Array:
  """Returns the log decays of [C, PART] in the memory of the device, in powers of two."""
  return load(ref, plgpu.Layout.WGMMA, optimized=False) * LOG2_E
