"""The confirmatory test: what may be said of an entry after fresh seeds and windows that were never read.

A claim belongs to a family that is registered before anything is trained: which entries, against what, matched how.
Within a family Holm's step-down holds the chance of any false "shown"; families of one workdir share its error, the
k-th gets 6 / (pi k)^2 of it, so that asking again and again, one family after the other, buys nothing.

Sources: Holm 1979 (Scand. J. Stat. 6); Foster and Stine 2008 (J. R. Stat. Soc. B 70) on spending.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from asiarch_jax.evidence import distributions

MATCHED = ('parameters', 'flops', 'seconds')
Matched = Literal['parameters', 'flops', 'seconds']


@dataclasses.dataclass(frozen=True)
class Family:
  """What is going to be tested, written down before. `first_seed` begins seeds that nothing else has used.

  `rung` is '' for the fidelity of the search itself. `error` is this family's part of the workdir's.
  """

  number: int
  entries: tuple[int, ...]
  against: int
  rung: str
  matched: tuple[Matched, ...]
  replicas: int
  windows: int
  first_seed: int
  error: float


@dataclasses.dataclass(frozen=True)
class Verdict:
  """One test of a family: entry against baseline at matched size, in bits per byte, positive is better.

  `low` and `high` bound the effect at 95 % by itself, `adjusted` is Holm's p value over the family. `reason` says why
  nothing could be tested. `multiplier` is how many times the FLOPs of the entry's training the baseline needs for the
  entry's loss, with its interval, as text, since outside the measured budgets it is only a bound.
  """

  id: int
  name: str
  matched: Matched
  shown: bool
  effect: float
  low: float
  high: float
  p: float
  adjusted: float
  pairs: int
  parameters: int
  baseline_parameters: int
  flops_ratio: float
  seconds_ratio: float
  steps_ratio: float
  multiplier: str = ''
  reason: str = ''


def family_error(number: int, total: float) -> float:
  """Returns the error that family `number`, counted from 1, may spend of `total`; over all families they sum to it.

  >>> round(family_error(1, 0.05), 4), round(family_error(2, 0.05), 4)
  (0.0304, 0.0076)

  Raises:
    ValueError: the number is below 1, or the total is no chance.
  """
  if number < 1 or not 0.0 < total <= 1.0:
    raise ValueError(f'family {number} of a total error of {total}; count families from 1 and give a chance')
  return total * 6.0 / (math.pi * number) ** 2


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
  """Returns Holm's adjusted p values, in the order given.

  >>> [round(p, 2) for p in holm([0.01, 0.04, 0.03])]
  [0.03, 0.06, 0.06]
  """
  order = sorted(range(len(p_values)), key=lambda at: p_values[at])
  adjusted, highest = [1.0] * len(p_values), 0.0
  for rank, at in enumerate(order):
    highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[at]))
    adjusted[at] = highest
  return tuple(adjusted)


def paired_test(differences: Sequence[float], *, level: float = 0.95) -> tuple[float, float, float, float]:
  """Returns (mean, low, high, p) of paired differences: t interval and two-sided p value of the mean being zero.

  Differences that are all the same number are no sample of noise: p is 1 then, unless nothing can be said at all.

  Raises:
    ValueError: fewer than two differences, or one that is not finite.
  """
  sample_N = np.asarray(differences, np.float64)
  if len(sample_N) < 2 or not np.isfinite(sample_N).all():
    raise ValueError(f'{len(sample_N)} differences, finite: {bool(np.isfinite(sample_N).all())}; a test needs two')
  mean, deviation = float(sample_N.mean()), float(sample_N.std(ddof=1))
  if deviation <= 1e-12 * max(1.0, abs(mean)):
    return mean, mean, mean, 1.0
  error = deviation / math.sqrt(len(sample_N))
  margin = distributions.t_quantile((1 + level) / 2, len(sample_N) - 1) * error
  return mean, mean - margin, mean + margin, 2 * distributions.t_below(-abs(mean) / error, len(sample_N) - 1)


def judged(verdicts: Sequence[Verdict], family: Family) -> tuple[Verdict, ...]:
  """Returns the verdicts of a whole family with adjusted p values: shown is what is better and survives Holm.

  A test that could not be made counts in the family with p = 1.

  Raises:
    ValueError: the verdicts are not those that were registered.
  """
  registered = sorted((id, matched) for id in family.entries for matched in family.matched)
  if sorted((one.id, one.matched) for one in verdicts) != registered:
    raise ValueError(f'family {family.number} registered {registered}; test these and nothing else')
  adjusted = holm([1.0 if one.reason else one.p for one in verdicts])
  return tuple(
    dataclasses.replace(one, adjusted=p, shown=not one.reason and one.effect > 0 and p <= family.error)
    for one, p in zip(verdicts, adjusted, strict=True)
  )


def power(effect: float, sd: float, pairs: int, error: float) -> float:
  """Returns the chance that `pairs` paired differences of standard deviation `sd` show a true `effect` at `error`.

  Two-sided t test, exact by the non-central t distribution; only the better side counts as shown.

  Raises:
    ValueError: fewer than two pairs or a deviation that is not positive.
  """
  if pairs < 2 or sd <= 0:
    raise ValueError(f'pairs = {pairs}, sd = {sd}; give at least two pairs and a positive deviation')
  critical = distributions.t_quantile(1 - error / 2, pairs - 1)
  return distributions.noncentral_t_above(critical, pairs - 1, effect / sd * math.sqrt(pairs))


def pairs_needed(effect: float, sd: float, error: float, *, wanted: float = 0.8, most: int = 100_000) -> int:
  """Returns the fewest pairs that show a true `effect` with chance `wanted`; see `power`.

  Raises:
    ValueError: the effect is not positive, or not even `most` pairs are enough.
  """
  if effect <= 0:
    raise ValueError(f'effect = {effect}; only a positive one can be shown')
  low, high = 1, 2
  while power(effect, sd, high, error) < wanted:
    low, high = high, 2 * high
    if high > most:
      raise ValueError(f'more than {most} pairs would be needed for {effect} at a deviation of {sd}')
  while high - low > 1:
    middle = (low + high) // 2
    low, high = (middle, high) if power(effect, sd, middle, error) < wanted else (low, middle)
  return high
