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


@pytest.mark.parametrize('steps, error', [(10, 2e-3), (20, 1e-8)])
def test_quantiles_of_mixtures_are_where_their_share_is(steps, error):
  """Narrow and wide together: bisection alone is off by 0.03. What comes to its share at an end is at that end."""
  means_G, deviations_G, weights_G = np.array([-2.0, 0.0, 0.1]), np.array([1.0, 0.3, 4.0]), np.array([0.3, 0.5, 0.2])

  def below(x_N):
    return stats.norm.cdf((x_N[:, None] - means_G) / deviations_G) @ weights_G

  at_N = np.array([-30.0, -3.0, -0.5, 0.0, 0.2, 7.0])
  low_N, high_N = np.full(6, -30.0), np.full(6, 30.0)
  found_N = distributions.quantiles(below, below(at_N), low_N, high_N, steps=steps)
  np.testing.assert_allclose(found_N, at_N, atol=error)
  beyond_N = distributions.quantiles(below, below(at_N), low_N, np.full(6, -1.0), steps=steps)
  np.testing.assert_allclose(beyond_N, np.minimum(at_N, -1.0), atol=60 * 2.0**-steps)
