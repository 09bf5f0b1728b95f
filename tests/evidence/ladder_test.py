"""Who climbs, and how far rungs agree."""

import dataclasses
import math

import numpy as np
import pytest

from asiarch_jax import config
from asiarch_jax.evidence import ladder
from asiarch_jax.evidence.posterior import Posterior

RUNG = config.Rung(share=0.25, false_discoveries=0.2, audit=1)
ROWS = [Posterior(n, 0.1, 0.05, 0.0, 0.1, 0.95, 4) for n in range(12)]


def climb(rung=RUNG, belief=1.0, rows=ROWS, seed=0):
  return ladder.climbers(rows, rung, belief, np.random.default_rng(seed))


def test_agreement_is_the_correlation_with_fishers_interval():
  lower = {n: float(n) for n in range(10)}
  upper = {n: n + 3.0 * (-1) ** n for n in range(1, 12)}
  found = ladder.agreement(lower, upper)
  x, y = np.arange(1, 10.0), np.array([upper[n] for n in range(1, 10)])
  assert found.pairs == 9 and found.measured == pytest.approx(np.corrcoef(x, y)[0, 1])
  assert math.atanh(found.high) - math.atanh(found.measured) == pytest.approx(1.959964 / math.sqrt(6))
  assert 0.5 < found.believed < found.measured


def test_the_interval_of_the_agreement_covers():
  rng = np.random.default_rng(0)
  hits = 0
  for _ in range(600):
    x = rng.standard_normal(12)
    y = 0.6 * x + 0.8 * rng.standard_normal(12)
    found = ladder.agreement(dict(enumerate(x)), dict(enumerate(y)))
    hits += found.low <= 0.6 <= found.high
  assert 0.93 <= hits / 600 <= 0.97


@pytest.mark.parametrize('upper', [{}, {1: 2.0, 2: 3.0, 3: 1.0}, dict.fromkeys(range(9), 1.0), {1: math.nan}])
def test_too_little_to_correlate_is_said(upper):
  found = ladder.agreement({n: float(n) for n in range(9)}, upper)
  assert math.isnan(found.measured) and (found.low, found.high, found.believed) == (-1.0, 1.0, 0.5)


def test_rungs_that_agree_let_few_climb_and_others_let_all():
  assert len(climb(belief=1.0).promoted) == 3
  assert len(climb(belief=0.5).promoted) == 6
  assert len(climb(belief=0.0).promoted) == 12 and climb(belief=-0.4).share == 1.0
  assert len(climb(dataclasses.replace(RUNG, share=0.5)).promoted) == 6


def test_the_share_is_of_all_that_were_ever_candidates():
  """A share of those that are left let nearly everybody climb, a few at each `asiarch verify`."""
  left, climbed = list(ROWS), 0
  for _ in range(6):
    found = ladder.climbers(left, RUNG, 1.0, np.random.default_rng(0), climbed=climbed)
    climbed += len(found.promoted)
    left = [one for one in left if one not in found.promoted]
  assert climbed == 3
  more = [*left, *(dataclasses.replace(one, id=one.id + 100) for one in ROWS)]
  assert len(ladder.climbers(more, RUNG, 1.0, np.random.default_rng(0), climbed=climbed).promoted) == 3


def test_false_discoveries_bound_the_climb_too():
  doubtful = [dataclasses.replace(one, probability_better=0.7) for one in ROWS]
  assert climb(rows=doubtful, belief=0.0).promoted == ()
  assert len(climb(dataclasses.replace(RUNG, false_discoveries=0.4), 0.0, doubtful).promoted) == 12


def test_some_climb_by_lot_and_never_twice():
  drawn = {climb(seed=seed).audited[0].id for seed in range(30)}
  assert len(drawn) > 3 and not drawn & {one.id for one in climb().promoted}
  assert len(climb(dataclasses.replace(RUNG, audit=99)).audited) == 9
  assert climb(dataclasses.replace(RUNG, audit=0)).audited == () and climb(rows=[]).promoted == ()


def test_the_better_half_goes_on():
  rows = [dataclasses.replace(one, probability_better=0.5 + one.id / 30) for one in ROWS[:5]]
  assert ladder.promising(rows) == (4, 3, 2) and ladder.promising([]) == ()


def test_shrinkage_is_what_is_believed_of_what_was_measured():
  assert ladder.shrinkage(ROWS) == pytest.approx(0.5)
  assert ladder.shrinkage([]) is None
