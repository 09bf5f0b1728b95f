"""Quantiles and tails are those of `scipy.stats`."""

import doctest

import numpy as np
import pytest
from scipy import stats

from asiarch_jax.evidence import distributions

FREEDOMS = (1, 2, 2.5, 7, 40, 300)
CHANCES = (1e-4, 0.025, 0.3, 0.5, 0.975, 0.9999)


def test_examples():
  assert doctest.testmod(distributions).failed == 0


@pytest.mark.parametrize('freedom', FREEDOMS)
def test_they_agree_with_the_reference(freedom):
  for p in CHANCES:
    assert distributions.normal_quantile(p) == pytest.approx(stats.norm.ppf(p), rel=1e-10)
    assert distributions.t_quantile(p, freedom) == pytest.approx(stats.t.ppf(p, freedom), rel=1e-9, abs=1e-12)
  np.testing.assert_allclose(
    distributions.chi_square_quantile(np.array(CHANCES), freedom), stats.chi2.ppf(CHANCES, freedom), rtol=1e-9
  )
  for x in (-9.0, -0.5, 0.0, 2.0, 12.0):
    assert distributions.normal_below(x) == pytest.approx(stats.norm.cdf(x), rel=1e-10)
    assert distributions.t_below(x, freedom) == pytest.approx(stats.t.cdf(x, freedom), rel=1e-9)
    for shift in (0.0, 1.0, 8.0) if x > 0 else ():  # critical values are positive
      found = distributions.noncentral_t_above(x, freedom, shift)
      assert found == pytest.approx(stats.nct.sf(x, freedom, shift), abs=1e-10)


@pytest.mark.parametrize('hits, trials', [(0, 1), (0, 6), (3, 6), (6, 6), (13, 40)])
def test_the_interval_of_a_chance_is_the_exact_one(hits, trials):
  expected = stats.binomtest(hits, trials).proportion_ci()
  assert distributions.proportion_interval(hits, trials) == pytest.approx((expected.low, expected.high), abs=1e-9)
