"""Is it better, by how much, and how sure is that: the paired comparison with the baseline."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from asiarch_jax.evidence import distributions
from asiarch_jax.evidence.noise import Noise
from asiarch_jax.evidence.pairing import lost, pairs
from asiarch_jax.records import Evidence, TrainSummary

ROUNDING = 1e-9  # bits per byte: differences that agree to this are one number, not a sample of noise


def improvement(
  candidate: TrainSummary, baseline: TrainSummary, *, noise: Noise | None = None, level: float = 0.95
) -> Evidence | None:
  """Returns the mean improvement over the baseline in test bits per byte with its t interval, paired by seed.

  `probability_better` is the mass above zero of the t posterior (flat prior on the mean and on the log of the
  variance), so it stands in the same relation to the interval whatever the number of pairs. Pairs that lost a replica
  to divergence are dropped and counted (`pairing.pairs` names them); None comes back when none is left. What diverged
  on a seed is worth less than the pairs that are left say, by an unknown amount. Where it is the candidate, the
  interval has no lower end and the probability is one half at most; where it is the other side, it has no upper end and
  the probability is one half at least.

  One pair, or pairs that agree to rounding, carry no measure of noise. Then the rung's noise floor decides if it is
  given: sqrt(2) times the deviation of one replica, with its degrees of freedom, which takes no credit for pairing.
  Without it the interval is infinite and the probability one half: nothing is known. Differences that are all zero are
  the exception: the candidate reproduces the baseline, the interval is [0, 0]. The floor knows the
  baseline's noise alone: of one pair, the interval holds in 81 % where the candidate is twice as noisy.
  """
  paired = pairs(candidate, baseline)
  if not paired.differences:
    return None
  evidence = of_differences(np.asarray(paired.differences), noise=noise, level=level)
  evidence = dataclasses.replace(evidence, dropped=len(paired.dropped))
  if lost(candidate):
    evidence = dataclasses.replace(evidence, low=-math.inf, probability_better=min(evidence.probability_better, 0.5))
  if {*lost(baseline)} & {*paired.dropped}:  # its other replicas, of the noise floor, are not compared
    evidence = dataclasses.replace(evidence, high=math.inf, probability_better=max(evidence.probability_better, 0.5))
  return evidence


def of_differences(differences: np.ndarray, *, noise: Noise | None = None, level: float = 0.95) -> Evidence:
  """Returns the evidence of at least one finite difference, baseline minus candidate."""
  count, mean = len(differences), float(np.mean(differences))
  if not np.any(differences):
    return Evidence(0.0, 0.0, 0.0, 0.5, count)
  if np.ptp(differences) > ROUNDING:
    deviation, freedom = float(np.std(differences, ddof=1)), count - 1
  elif noise is not None and noise.sd > 0:
    deviation, freedom = math.sqrt(2.0) * noise.sd, noise.freedom
  else:
    return Evidence(mean, -math.inf, math.inf, 0.5, count)
  error = deviation / math.sqrt(count)
  margin = distributions.t_quantile((1 + level) / 2, freedom) * error
  return Evidence(mean, mean - margin, mean + margin, distributions.t_below(mean / error, freedom), count)
