"""Who climbs from one rung to the next, and how far the rungs agree.

A rung is trusted as far as its measurements predict those of the next. Their correlation is measured on the entries
that stand on both; where it is low, ranking below says little about ranking above, so a larger share climbs (and the
rung above has to decide), where it is high, few do.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from asiarch_jax import config
from asiarch_jax.evidence import distributions
from asiarch_jax.evidence.posterior import Posterior
from asiarch_jax.evidence.promotion import false_discovery_rate, promoted

EXPECTED = (0.5, 0.5)  # of the correlation before anything is measured: Fisher's z is normal around atanh(0.5), sd 0.5


@dataclasses.dataclass(frozen=True)
class Agreement:
  """Pearson correlation of measured improvements on two rungs over `pairs` entries, with its interval.

  `measured` is nan and the interval (-1, 1) below four pairs. `believed` is what promotion goes by: the measured value
  drawn towards `EXPECTED` where pairs are few. Noise on either rung lowers the correlation, and so does it that mostly
  the best of the lower rung stand on the upper one: entries that climbed by lot are there against that.
  """

  measured: float
  low: float
  high: float
  believed: float
  pairs: int


@dataclasses.dataclass(frozen=True)
class Climb:
  """Who goes to the next rung. `share` is the limit that the agreement gave, `doubt` the expected share not better."""

  promoted: tuple[Posterior, ...]
  audited: tuple[Posterior, ...]
  share: float
  doubt: float


def agreement(lower: Mapping[int, float], upper: Mapping[int, float], *, level: float = 0.95) -> Agreement:
  """Returns how far improvements on two rungs agree, by entry id. Fisher's z: standard error 1 / sqrt(n - 3)."""
  both = sorted(id for id in lower.keys() & upper.keys() if math.isfinite(lower[id]) and math.isfinite(upper[id]))
  x_N, y_N = np.array([lower[id] for id in both]), np.array([upper[id] for id in both])
  centre, spread = math.atanh(EXPECTED[0]), EXPECTED[1]
  if len(both) < 4 or np.ptp(x_N) == 0 or np.ptp(y_N) == 0:
    return Agreement(math.nan, -1.0, 1.0, EXPECTED[0], len(both))
  r = float(np.clip(np.corrcoef(x_N, y_N)[0, 1], -1 + 1e-9, 1 - 1e-9))
  z, error = math.atanh(r), 1 / math.sqrt(len(both) - 3)
  margin = distributions.normal_quantile((1 + level) / 2) * error
  weight = spread**2 / (spread**2 + error**2)
  return Agreement(
    r, math.tanh(z - margin), math.tanh(z + margin), math.tanh(weight * z + (1 - weight) * centre), len(both)
  )


def climbers(
  posteriors: Sequence[Posterior], rung: config.Rung, belief: float, rng: np.random.Generator, *, climbed: int = 0
) -> Climb:
  """Returns who climbs to `rung`: the surest, within its limits on false discoveries and on the share.

  The limit is `rung.share` to the power of the believed correlation: the configured share where the rungs agree
  perfectly, everybody where they say nothing of each other. It is a share of all that were ever candidates: `climbed`
  are on the rung already. `rung.audit` more are drawn by lot from the others.
  """
  share = rung.share ** min(max(belief, 0.0), 1.0)
  chosen = promoted(
    posteriors, rate=rung.false_discoveries, most=max(0, math.ceil(share * (len(posteriors) + climbed)) - climbed)
  )
  taken = {one.id for one in chosen}
  others = sorted((one for one in posteriors if one.id not in taken), key=lambda one: one.id)
  drawn = rng.choice(len(others), min(rung.audit, len(others)), replace=False) if others else ()
  return Climb(chosen, tuple(others[int(place)] for place in sorted(drawn)), share, false_discovery_rate(chosen))


def promising(posteriors: Sequence[Posterior]) -> tuple[int, ...]:
  """Returns the ids of the better half, rounded up: who gets more replicas in the next round of a rung.

  Successive halving (Karnin et al. 2013; Jamieson and Talwalkar 2016, arXiv 1502.07943), by the probability of being
  better and then the believed improvement.
  """
  ordered = sorted(posteriors, key=lambda one: (-one.probability_better, -one.mean, one.id))
  return tuple(one.id for one in ordered[: math.ceil(len(ordered) / 2)])


def shrinkage(chosen: Sequence[Posterior]) -> float | None:
  """Returns the share of the measured improvement of a chosen set that is believed; None where that is no share.

  The best of many measurements are too good; this is by how much.
  """
  measured = sum(one.measured for one in chosen)
  return sum(one.mean for one in chosen) / measured if measured > 0 else None
