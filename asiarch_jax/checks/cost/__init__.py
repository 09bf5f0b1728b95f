"""What a mixer costs, counted on its jaxpr: parameters, FLOPs, state and growth; and its fingerprint.

Counted and not measured, so the numbers are the same on every machine. Nothing runs and nothing is compiled.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax

from asiarch_jax import records
from asiarch_jax.checks.cost import flops, jaxprs, state
from asiarch_jax.checks.cost.fingerprint import fingerprint, same_function
from asiarch_jax.checks.cost.flops import OPEN_LOOP, UnboundedLoopError

__all__ = [
  'OPEN_LOOP',
  'STEEP',
  'UNROLLED_LENGTHS',
  'Growth',
  'Program',
  'UnboundedLoopError',
  'alike',
  'count',
  'fingerprint',
  'growth',
  'program',
  'same_function',
]

LENGTHS = (2560, 5120)  # long enough that what grows fastest is what shows; seldom the size of another axis
UNROLLED_LENGTHS = (128, 256)  # where a Python loop over tokens or chunks makes each trace as long as T
# Exponents, of all and of one part, that may come of few chunks: asked again at twice the lengths.
UNCLEAR = (1.15, 1.5)
SIMILAR = 0.25  # equations this close to the steepest exponent are alike; the dearest of them is named
ALIKE = 1.25  # factor of FLOPs a token up to which programs of the same equations are taken for one
STEEP = 1.75  # exponent of a single equation from which it is called quadratic, however small its share


@dataclasses.dataclass(frozen=True)
class Growth:
  """How FLOPs grow with T: `exponent` between the two lengths, and the steepest single equation.

  Where the number of equations depends on T, `steepest` is that of all equations of one primitive.
  """

  lengths: tuple[int, int]
  totals: tuple[float, float]
  exponent: float
  steepest: float
  culprit: str
  state: tuple[float, float]  # bytes kept, as (constant, for each token)


@jaxprs.remembering
def growth(module: Any, width: int) -> Growth:
  """Returns how the cost of a mixer grows with the length of the sequence.

  Raises:
    UnboundedLoopError: a loop's number of turns is unknown.
  """
  short = [sum(1 for _ in jaxprs.walk(jaxprs.trace(module, width, length, 1))) for length in UNROLLED_LENGTHS]
  if short[1] <= 1.5 * short[0]:
    return _growth(module, width, LENGTHS)
  first = _growth(module, width, UNROLLED_LENGTHS)
  if first.exponent <= UNCLEAR[0] and first.steepest <= UNCLEAR[1]:
    return first
  later = _growth(module, width, (UNROLLED_LENGTHS[1], 2 * UNROLLED_LENGTHS[1]))
  return later if later.exponent < first.exponent or later.steepest < first.steepest else first


def _growth(module: Any, width: int, lengths: tuple[int, int]) -> Growth:
  traces = [jaxprs.trace(module, width, length, 1) for length in lengths]
  tables = [list(flops.parts(trace)) for trace in traces]
  totals = (sum(part.flops for part in tables[0]), sum(part.flops for part in tables[1]))
  steepest, culprit = _steepest(tables[0], tables[1])
  kept = [state.kept_bytes(trace) for trace in traces]
  slope = max((kept[1] - kept[0]) / (lengths[1] - lengths[0]), 0.0)
  return Growth(lengths, totals, _exponent(*totals), steepest, culprit, (kept[1] - slope * lengths[1], slope))


def _exponent(before: float, after: float) -> float:
  return math.log2(after / before) if before > 0 and after > 0 else 0.0


def _steepest(before: list[flops.Part], after: list[flops.Part]) -> tuple[float, str]:
  """Returns the largest exponent of one equation's FLOPs, or of its output's size, and its description."""
  if [part.primitive for part in before] != [part.primitive for part in after]:
    names = sorted({part.primitive for part in before} & {part.primitive for part in after})
    before, after = ([_together(parts, name) for name in names] for parts in (before, after))
  exponents = [
    max(_exponent(a.flops, b.flops), _exponent(a.largest, b.largest)) for a, b in zip(before, after, strict=True)
  ]
  worst = max(exponents, default=0.0)
  steep = [part for part, exponent in zip(after, exponents, strict=True) if exponent > worst - SIMILAR]
  dearest = max(steep, key=lambda part: part.flops, default=None)
  return worst, f'{dearest.primitive} of {dearest.shapes}' if dearest else ''


def _together(parts: list[flops.Part], primitive: str) -> flops.Part:
  """Returns all equations of a primitive as one: their FLOPs in sum, and its largest output with its shapes."""
  mine = [part for part in parts if part.primitive == primitive]
  largest = max(mine, key=lambda part: (part.largest, part.flops))
  return dataclasses.replace(largest, flops=sum(part.flops for part in mine))


@dataclasses.dataclass(frozen=True)
class Program:
  """What a mixer does with x [B, T, D]: its equations in order, by primitive, and their FLOPs a token."""

  primitives: tuple[str, ...]
  flops_per_token: float


@jaxprs.remembering
def program(module: Any, width: int, length: int, batch: int) -> Program:
  """Returns the program of a mixer at `batch` rows of T = `length`.

  Raises:
    UnboundedLoopError: a loop's number of turns is unknown.
  """
  table = list(flops.parts(jaxprs.trace(module, width, length, batch)))
  return Program(tuple(part.primitive for part in table), sum(part.flops for part in table) / (batch * length))


def alike(one: Program, other: Program, *, cheaper: bool = False) -> bool:
  """Says whether two programs look like one at two sizes: the same equations at about the same FLOPs a token.

  With `cheaper` the first may take fewer: what rows share is less for each of many.
  """
  low, high = sorted((one.flops_per_token, other.flops_per_token))
  near = high <= ALIKE * low or (cheaper and one.flops_per_token <= other.flops_per_token)
  return one.primitives == other.primitives and near


def count(module: Any, width: int, length: int) -> records.Cost:
  """Returns the cost of a mixer: FLOPs of the forward pass a token at T = `length`, state after `length` tokens.

  Raises:
    UnboundedLoopError: a loop's number of turns is unknown.
  """
  parameters = jaxprs.parameter_shapes(module, width)
  total = sum(part.flops for part in flops.parts(jaxprs.trace(module, width, length, 1)))
  grown = growth(module, width)
  constant, slope = grown.state
  return records.Cost(
    mixer_parameters=sum(leaf.size for leaf in jax.tree.leaves(parameters)),
    flops_per_token=total / length,
    state_bytes=round(max(constant + slope * length, 0.0)),
    growth=round(grown.exponent, 4),
  )
