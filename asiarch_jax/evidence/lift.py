"""What one way of searching brings over another: the difference of what both found, on fresh replicas.

The yield of a run is the mean improvement over the baseline of its best entries, chosen by their posterior and trained
anew: fresh seeds know nothing of the choice, so the best of many is not too good any more.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from asiarch_jax.evidence import distributions

DRAWS = 2000


@dataclasses.dataclass(frozen=True)
class Lift:
  """Yield of `arm` less that of `against`, bits per byte. `runs` counts the pairs of runs behind it.

  With one pair of runs the interval is a bootstrap over the chosen entries and their seeds: it says how well these two
  yields are known, not what another run would yield. With more it is a t interval over pairs of runs.
  """

  arm: str
  against: str
  lift: float
  low: float
  high: float
  runs: int


def of_one_run(
  arm: str,
  against: str,
  ours: Sequence[Mapping[int, float]],
  theirs: Sequence[Mapping[int, float]],
  *,
  seed: int = 0,
  level: float = 0.95,
) -> Lift:
  """Returns the lift of one run over another. Each entry is a mapping from fresh seed to its paired improvement.

  The bootstrap draws entries, and seeds that are the same for all entries of both runs, since all are compared with the
  same replicas of the baseline.

  Raises:
    ValueError: an arm chose no entry, or no seed is common to all entries.
  """
  if not ours or not theirs:
    raise ValueError(f'{arm} has {len(ours)} entries and {against} {len(theirs)}; a lift needs one of each')
  seeds = sorted(set.intersection(*(set(entry) for entry in (*ours, *theirs))))
  if not seeds:
    raise ValueError(f'no fresh seed is common to all entries of {arm} and {against}')
  ours_NS, theirs_NS = (np.array([[entry[s] for s in seeds] for entry in one]) for one in (ours, theirs))
  rng = np.random.default_rng(seed)
  at_RS = rng.integers(len(seeds), size=(DRAWS, len(seeds)))
  drawn = []
  for one_NS in (ours_NS, theirs_NS):
    rows_RN = rng.integers(len(one_NS), size=(DRAWS, len(one_NS)))
    drawn.append(one_NS[rows_RN[:, :, None], at_RS[:, None, :]].mean((1, 2)))
  lifts = drawn[0] - drawn[1]
  # The spread of a bootstrap is too small by sqrt((n - 1) / n) in each factor; entries are the scarcer one.
  fewest = min(len(ours_NS), len(theirs_NS), len(seeds))
  widen = math.sqrt(fewest / (fewest - 1)) if fewest > 1 else math.inf
  lift = float(ours_NS.mean() - theirs_NS.mean())
  low, high = np.quantile(lifts, [(1 - level) / 2, (1 + level) / 2])
  if math.isinf(widen):
    return Lift(arm, against, lift, -math.inf, math.inf, 1)
  return Lift(arm, against, lift, lift + widen * (float(low) - lift), lift + widen * (float(high) - lift), 1)


def of_runs(arm: str, against: str, yields: Sequence[float], others: Sequence[float], *, level: float = 0.95) -> Lift:
  """Returns the lift over runs that are paired by their seed.

  Raises:
    ValueError: fewer than two pairs, or numbers of runs that differ.
  """
  if len(yields) != len(others) or len(yields) < 2:
    raise ValueError(f'{len(yields)} runs of {arm} and {len(others)} of {against}; give the same number, at least 2')
  apart = np.asarray(yields) - np.asarray(others)
  mean, error = float(apart.mean()), float(apart.std(ddof=1)) / math.sqrt(len(apart))
  margin = distributions.t_quantile((1 + level) / 2, len(apart) - 1) * error
  return Lift(arm, against, mean, mean - margin, mean + margin, len(apart))
