"""Which replicas of two candidates may be compared one to one."""

from __future__ import annotations

import dataclasses
import math

from asiarch_jax.records import TrainSummary


@dataclasses.dataclass(frozen=True)
class Pairs:
  """Differences in test bits per byte, baseline minus candidate, so that positive is better, by seed.

  `dropped` are the seeds that both trained and that one of them lost to divergence.
  """

  seeds: tuple[int, ...]
  differences: tuple[float, ...]
  dropped: tuple[int, ...] = ()


def lost(summary: TrainSummary) -> tuple[int, ...]:
  """Returns the seeds on which a design diverged at its chosen learning rate, the best that it was given."""
  return tuple(r.seed for r in summary.chosen if r.diverged or not math.isfinite(r.test_bits))


def pairs(candidate: TrainSummary, baseline: TrainSummary) -> Pairs:
  """Returns the pairs of chosen replicas that share a seed, hence initial key and data order, in order of seed.

  Each side stands at its own chosen learning rate: both were tuned by the same rule on validation windows.
  """
  ours = {replica.seed: replica for replica in candidate.chosen}
  theirs = {replica.seed: replica for replica in baseline.chosen}
  differences, dropped = {}, []
  for seed in sorted(ours.keys() & theirs.keys()):
    difference = theirs[seed].test_bits - ours[seed].test_bits
    if ours[seed].diverged or theirs[seed].diverged or not math.isfinite(difference):
      dropped.append(seed)
    else:
      differences[seed] = difference
  return Pairs(tuple(differences), tuple(differences.values()), tuple(dropped))
