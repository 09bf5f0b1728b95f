"""Claims: Holm over a family, error spent over families, the paired test, power."""

import dataclasses
import math

import numpy as np
import pytest
from scipy import stats

from asiarch_jax.evidence import claims

FAMILY = claims.Family(1, (3, 5), 0, '', ('parameters', 'flops'), 8, 64, 1_000_000, 0.03)


def verdict(id, matched, p, effect=0.02, **changes):
  row = claims.Verdict(id, f'mixer_{id}', matched, False, effect, 0.0, 0.1, p, 1.0, 8, 1000, 1000, 1.0, 1.0, 1.0)
  return dataclasses.replace(row, **changes)


def four(*p, **changes):
  cells = [(3, 'parameters'), (3, 'flops'), (5, 'parameters'), (5, 'flops')]
  return [verdict(id, matched, value, **changes) for (id, matched), value in zip(cells, p, strict=True)]


def test_holm_is_the_step_down():
  p = [0.01, 0.012, 0.04, 0.5]
  assert claims.holm(p) == pytest.approx((0.04, 0.04, 0.08, 0.5))
  assert claims.holm([0.5, 0.6, 0.9]) == pytest.approx((1.0, 1.0, 1.0)) and claims.holm([]) == ()


def test_a_family_is_shown_by_adjusted_p_only():
  shown = claims.judged(four(0.001, 0.009, 0.02, 0.5), FAMILY)
  assert [one.shown for one in shown] == [True, True, False, False]
  assert shown[2].p == 0.02 < FAMILY.error < shown[2].adjusted  # alone it would have passed


def test_what_is_worse_or_could_not_be_tested_is_never_shown_and_counts():
  worse = claims.judged(four(0.001, 0.001, 0.001, 0.001, effect=-0.02), FAMILY)
  assert not any(one.shown for one in worse)
  broken = four(0.001, 0.009, 0.001, 0.001)
  broken[0] = dataclasses.replace(broken[0], reason='diverged', p=0.0)
  found = claims.judged(broken, FAMILY)
  assert not found[0].shown and found[0].adjusted == 1.0 and found[2].adjusted == pytest.approx(0.004)


def test_another_family_than_registered_is_refused():
  with pytest.raises(ValueError, match='test these and nothing else'):
    claims.judged(four(0.1, 0.1, 0.1, 0.1)[:3], FAMILY)


def test_families_share_one_error():
  assert sum(claims.family_error(k, 0.05) for k in range(1, 20_000)) == pytest.approx(0.05, abs=1e-5)
  for number, total in ((0, 0.05), (1, 0.0), (1, 1.5)):
    with pytest.raises(ValueError, match='count families from 1'):
      claims.family_error(number, total)


def test_false_claims_stay_within_the_error_of_a_family():
  rng = np.random.default_rng(0)
  base_RS, false = rng.standard_normal((500, 8)), 0
  for base_S in base_RS:  # four tests that share one baseline, none with an effect
    p = [claims.paired_test(base_S - rng.standard_normal(8)) for _ in range(4)]
    rows = [verdict(id, m, row[3], row[0]) for (id, m), row in zip(
      [(3, 'parameters'), (3, 'flops'), (5, 'parameters'), (5, 'flops')], p, strict=True
    )]  # fmt: skip
    false += any(one.shown for one in claims.judged(rows, dataclasses.replace(FAMILY, error=0.1)))
  assert false / 500 <= 0.1


def test_the_paired_test_is_students():
  sample = [0.1, 0.3, 0.2, 0.25]
  mean, low, high, p = claims.paired_test(sample)
  assert p == pytest.approx(stats.ttest_1samp(sample, 0.0).pvalue)
  assert (low, high) == pytest.approx(stats.ttest_1samp(sample, 0.0).confidence_interval(0.95))
  assert mean == pytest.approx(0.2125)
  assert claims.paired_test([0.0, 0.0, 0.0])[3] == 1.0  # a copy on the same seeds shows nothing
  for bad in ([0.1], [0.1, math.nan]):
    with pytest.raises(ValueError, match='a test needs two'):
      claims.paired_test(bad)


def test_power_is_what_simulation_finds():
  rng = np.random.default_rng(1)
  rows = 1.0 + rng.standard_normal((1000, 8))
  found = np.mean([(r := claims.paired_test(row))[3] < 0.05 and r[0] > 0 for row in rows])
  assert claims.power(1.0, 1.0, 8, 0.05) == pytest.approx(found, abs=0.045)
  with pytest.raises(ValueError, match='pairs = 1'):
    claims.power(1.0, 1.0, 1, 0.05)


def test_the_pairs_that_are_needed_are_the_fewest():
  for effect, error in ((1.0, 0.05), (0.5, 0.03), (3.0, 0.05)):
    needed = claims.pairs_needed(effect, 1.0, error)
    assert claims.power(effect, 1.0, needed, error) >= 0.8
    assert needed == 2 or claims.power(effect, 1.0, needed - 1, error) < 0.8
  with pytest.raises(ValueError, match='more than 50 pairs'):
    claims.pairs_needed(0.1, 1.0, 0.05, most=50)
  with pytest.raises(ValueError, match='only a positive'):
    claims.pairs_needed(0.0, 1.0, 0.05)
