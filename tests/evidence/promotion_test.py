"""Promotion at a rate of false discoveries."""

import pytest

from asiarch_jax.evidence import promotion
from asiarch_jax.evidence.posterior import Posterior


def one(id, p, mean=0.0):
  return Posterior(id, mean, mean, -1.0, 1.0, p, 4)


def test_the_largest_set_within_the_rate():
  chosen = promotion.promoted([one(1, 0.99), one(2, 0.90), one(3, 0.85), one(4, 0.5)], rate=0.1)
  assert [c.id for c in chosen] == [1, 2, 3]
  assert promotion.false_discovery_rate(chosen) == pytest.approx((0.01 + 0.10 + 0.15) / 3)


def test_the_number_is_bounded_and_ties_are_settled():
  rows = [one(4, 0.99), one(3, 0.99, 0.2), one(2, 0.99)]
  assert [c.id for c in promotion.promoted(rows, most=2)] == [3, 2]
  assert promotion.promoted(rows, most=0) == ()


def test_nobody_is_promoted_on_hope():
  assert promotion.promoted([one(1, 0.6), one(2, 0.7)], rate=0.2) == ()
  assert promotion.false_discovery_rate(()) == 0.0
  with pytest.raises(ValueError, match=r'rate = 0\.0'):
    promotion.promoted([], rate=0.0)
