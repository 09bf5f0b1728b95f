"""How much of the task term of the fitness is noise.

The term is S((tasks - base) / (band base)) with tasks the mean accuracy (`search.fitness`): its gain of 6 over a band
of a tenth makes small differences large. At the scale at which the original explores, 12 tasks of 500 items measure the
mean accuracy .224 of its baseline to .0048: one standard error is worth .28 of a term whose whole range is 1.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from asiarch_jax import config
from asiarch_jax.evidence import distributions
from asiarch_jax.records import TaskScore, ZeroShot

ROUNDING = 1e-18  # of a variance: mean accuracies that agree to this are one number
GROUPS = 500  # of items that a jackknife leaves out, one after the other


@dataclasses.dataclass(frozen=True)
class MeanAccuracy:
  """The mean over tasks with its standard error: the tasks' own errors, taken as independent of each other."""

  value: float
  stderr: float
  tasks: int


@dataclasses.dataclass(frozen=True)
class TaskNoise:
  """The mean accuracies of candidates, and what their standard errors explain of how they differ.

  `stderr` is of one candidate's mean accuracy (root mean square over candidates), `spread` the standard deviation of
  the mean accuracies. `share` is stderr^2 / spread^2, at most 1, with the interval [`low`, `high`] that the number of
  candidates leaves to the spread. `moved` is the term of a candidate that equals the baseline and was measured one
  standard error too high, where it should be one half.
  """

  base: MeanAccuracy
  candidates: int
  stderr: float
  spread: float
  share: float
  low: float
  high: float
  moved: float


def mean_accuracy(scores: Sequence[TaskScore], names: Sequence[str] | None = None) -> MeanAccuracy | None:
  """Returns the mean of the accuracies, of those of `names` where given; None where one is missing or not finite."""
  found = {score.task: score for score in scores if score.unit == 'accuracy'}
  wanted = list(found if names is None else names)
  used = [found[name] for name in wanted if name in found]
  if not wanted or len(used) < len(wanted) or not all(math.isfinite(s.value) and math.isfinite(s.stderr) for s in used):
    return None
  error = math.sqrt(sum(score.stderr**2 for score in used)) / len(used)
  return MeanAccuracy(sum(score.value for score in used) / len(used), error, len(used))


def accuracies(result: ZeroShot) -> tuple[TaskScore, ...]:
  """Returns one accuracy a task, the first that it names, as the task term takes them."""
  first: dict[str, TaskScore] = {}
  for score in result.scores:
    if score.chance is not None and math.isfinite(score.stderr):
      first.setdefault(score.task, TaskScore(score.task, score.value, score.stderr, score.n))
  return tuple(first.values())


def moved(stderr: float, base: float, rule: config.FitnessRule, standard_errors: float = 1.0) -> float:
  """Returns the task term of a mean accuracy that lies so many standard errors above `base`: one half without noise.

  Twelve tasks of 500 items, at the baseline's accuracies of the paper:

  >>> round(moved(0.0048, 0.2237, config.FitnessRule()), 2)
  0.78
  """
  if not base:
    return 1.0 / (1.0 + math.exp(-rule.gain)) if stderr > 0 else 0.5
  change = standard_errors * stderr / (rule.band * abs(base))
  return 1.0 / (1.0 + math.exp(-rule.gain * min(max(change, -1.0), 1.0)))


def task_noise(
  candidates: Sequence[Sequence[TaskScore]],
  base: Sequence[TaskScore],
  rule: config.FitnessRule,
  level: float = 0.95,
) -> TaskNoise | None:
  """Returns how much of the spread of mean accuracies over `candidates` their standard errors explain.

  Over the baseline's tasks; candidates that miss one are left out, as in the fitness. None without a baseline's
  accuracy, with fewer than two candidates, or where all score alike and without error. An error counts the items as
  drawn anew for each candidate. All answer the same items, so a part of it is common to them and cancels in their
  differences: the share is told too high rather than too low, and so is what a standard error moves.
  """
  reference = mean_accuracy(base)
  if reference is None:
    return None
  names = [score.task for score in base if score.unit == 'accuracy']
  means = [mean for scores in candidates if (mean := mean_accuracy(scores, names)) is not None]
  if len(means) < 2:
    return None
  freedom = len(means) - 1
  variance = float(np.var([mean.value for mean in means], ddof=1))
  noise = float(np.mean([mean.stderr**2 for mean in means]))
  if noise == 0.0 and variance < ROUNDING:
    return None
  # (n - 1) variance / true variance is chi-square: the true share is noise over the true variance.
  bounds = [float(distributions.chi_square_quantile(p, freedom)) / freedom for p in ((1 - level) / 2, (1 + level) / 2)]
  share, low, high = (_share(noise, variance, factor) for factor in (1.0, *bounds))
  stderr = math.sqrt(noise)
  return TaskNoise(
    reference, len(means), stderr, math.sqrt(variance), share, low, high, moved(stderr, reference.value, rule)
  )


def _share(noise: float, variance: float, factor: float) -> float:
  if noise <= 0.0:
    return 0.0
  return min(1.0, factor * noise / variance) if variance > 0.0 else 1.0


def jackknife(statistic: Callable[[list[Any]], float], items: Sequence[Any], groups: int = GROUPS) -> float:
  """Returns the standard error of a smooth statistic of independent items; nan with fewer than two of them.

  Of a mean it is the ordinary one, s / sqrt(n). For a ratio, a perplexity or an F score it is the delta method's, to
  first order, without its formula (Efron 1982, The Jackknife, chapter 3). Of many items it leaves out `groups` parts,
  one after the other, instead of single ones.

  >>> round(jackknife(lambda items: sum(items) / len(items), [0, 1, 1, 1]), 4)
  0.25
  """
  parts = min(groups, len(items))
  if parts < 2:
    return math.nan
  without = [statistic([item for index, item in enumerate(items) if index % parts != part]) for part in range(parts)]
  return math.sqrt((parts - 1) / parts * float(np.sum((np.asarray(without) - np.mean(without)) ** 2)))
