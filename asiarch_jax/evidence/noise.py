"""How far replicas of one and the same design lie apart: the floor below which nothing can be ranked."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from scipy import optimize

from asiarch_jax.evidence import distributions
from asiarch_jax.records import TrainSummary


@dataclasses.dataclass(frozen=True)
class Noise:
  """Standard deviation over seeds of one replica's test bits per byte, with its chi-square interval.

  `freedom` counts the degrees of freedom behind `sd`: replicas less the means that were estimated.
  """

  sd: float
  low: float
  high: float
  freedom: int


def floor(*summaries: TrainSummary, level: float = 0.95) -> Noise | None:
  """Returns the noise floor of a rung from the replicas of its baselines; None without two finite replicas of one.

  Each summary keeps its own mean, the variances are pooled by degrees of freedom. Replicas that diverged are left out:
  divergence is a failure and not noise. The interval assumes normal seeds: (n - 1) s^2 / sigma^2 is chi-square.
  """
  samples = [_finite(summary) for summary in summaries]
  samples = [sample for sample in samples if len(sample) >= 2]
  freedom = sum(len(sample) - 1 for sample in samples)
  if not freedom:
    return None
  squares = sum(float(np.sum((sample - sample.mean()) ** 2)) for sample in samples)
  low, high = (
    math.sqrt(squares / distributions.chi_square_quantile(q, freedom)) for q in ((1 + level) / 2, (1 - level) / 2)
  )
  return Noise(math.sqrt(squares / freedom), low, high, freedom)


def smallest_improvement(
  noise: Noise, seeds: int, *, level: float = 0.95, power: float = 0.8, correlation: float = 0.0
) -> float:
  """Returns the true improvement in bits per byte that `seeds` pairs show with chance `power`; inf for one seed.

  Shown means that the paired t interval at `level` excludes zero from above. A difference of two replicas has variance
  2 sd^2 (1 - correlation); what pairing by seed brings is not assumed, so `correlation` is 0 until it is measured.
  Exact by the non-central t distribution.

  Raises:
    ValueError: fewer than one seed, or a correlation outside [0, 1).
  """
  if seeds < 1 or not 0.0 <= correlation < 1.0:
    raise ValueError(f'seeds = {seeds}, correlation = {correlation}; give at least 1 and a number in [0, 1)')
  if seeds == 1:
    return math.inf
  critical = distributions.t_quantile((1 + level) / 2, seeds - 1)
  # An effect of critical + 10 standard errors is shown with certainty, so the root lies between.
  effect = optimize.brentq(
    lambda e: distributions.noncentral_t_above(critical, seeds - 1, e) - power, 0.0, 10.0 * critical + 10.0
  )
  return float(effect) * noise.sd * math.sqrt(2.0 * (1.0 - correlation) / seeds)


def _finite(summary: TrainSummary) -> np.ndarray:
  bits: Sequence[float] = [r.test_bits for r in summary.chosen if not r.diverged and math.isfinite(r.test_bits)]
  return np.asarray(bits, dtype=np.float64)
