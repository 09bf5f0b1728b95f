"""The noise floor and what can be shown above it, by simulation."""

import math

import numpy as np
import pytest

from asiarch_jax.evidence import noise
from asiarch_jax.evidence.improvement import of_differences
from tests import samples


def summary(bits, **changes):
  replicas = tuple(
    samples.records.Replica(seed, samples.LEARNING_RATE, 120, (), value, value, diverged=math.isnan(value))
    for seed, value in enumerate(bits)
  )
  return samples.training(replicas=replicas, **changes)


def test_the_floor_is_the_deviation_over_seeds_with_its_chi_square_interval():
  floor = noise.floor(summary([2.40, 2.42, 2.44, 2.46, 2.48]))
  assert floor.sd == pytest.approx(0.0316228, rel=1e-5)
  assert (floor.low, floor.high) == pytest.approx((0.0189464, 0.0908697), rel=1e-4)  # n = 5: s times 0.599 and 2.874
  assert floor.freedom == 4


def test_the_interval_of_the_floor_covers():
  rng = np.random.default_rng(0)
  floors = [noise.floor(summary(row)) for row in rng.normal(2.4, 0.01, (2000, 4))]
  assert 0.93 <= np.mean([floor.low <= 0.01 <= floor.high for floor in floors]) <= 0.97


def test_baselines_are_pooled_around_their_own_means():
  together = noise.floor(summary([2.40, 2.42]), summary([9.00, 9.02]))
  assert together.sd == pytest.approx(noise.floor(summary([2.40, 2.42])).sd)
  assert together.freedom == 2
  assert together.high < noise.floor(summary([2.40, 2.42])).high


@pytest.mark.parametrize('bits', [[2.4], [2.4, math.nan], []])
def test_no_floor_without_two_finite_replicas(bits):
  assert noise.floor(summary(bits)) is None
  assert noise.floor() is None


def test_a_replica_that_diverged_does_not_raise_the_floor():
  assert noise.floor(summary([2.40, 2.42, math.nan])).sd == noise.floor(summary([2.40, 2.42])).sd


@pytest.mark.parametrize('seeds, correlation', [(3, 0.0), (4, 0.0), (8, 0.5)])
def test_the_smallest_improvement_is_shown_with_the_power_it_promises(seeds, correlation):
  floor = noise.Noise(0.01, 0.005, 0.02, 30)
  effect = noise.smallest_improvement(floor, seeds, correlation=correlation)
  rng = np.random.default_rng(1)
  differences = rng.normal(effect, 0.01 * math.sqrt(2 * (1 - correlation)), (2000, seeds))
  assert np.mean([of_differences(row).low > 0 for row in differences]) == pytest.approx(0.8, abs=0.03)


def test_more_seeds_show_less_and_one_seed_shows_nothing():
  floor = noise.Noise(0.01, 0.005, 0.02, 3)
  shown = [noise.smallest_improvement(floor, seeds) for seeds in (1, 2, 4, 8, 16)]
  assert shown[0] == math.inf
  assert shown == sorted(shown, reverse=True)


@pytest.mark.parametrize('arguments', [{'seeds': 0}, {'seeds': 4, 'correlation': 1.0}])
def test_impossible_questions_are_refused(arguments):
  with pytest.raises(ValueError, match='give at least 1'):
    noise.smallest_improvement(noise.Noise(0.01, 0.005, 0.02, 3), **arguments)
