"""The paired comparison: it covers, it pairs by seed, and it knows when it knows nothing."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asiarch_jax.evidence import noise
from asiarch_jax.evidence.improvement import improvement, of_differences
from asiarch_jax.evidence.pairing import pairs
from tests import samples


def with_bits(bits, seeds=None, diverged=()):
  replicas = tuple(
    dataclasses.replace(samples.replica(seed=seed), test_bits=value, diverged=seed in diverged)
    for seed, value in zip(seeds or range(len(bits)), bits, strict=True)
  )
  return samples.training(replicas=replicas)


@pytest.mark.parametrize('seeds', [2, 3, 4, 8])
@pytest.mark.parametrize('truth', [0.0, 0.02])
def test_the_interval_covers_the_truth(seeds, truth):
  rng = np.random.default_rng([seeds, int(1000 * truth)])
  made = [of_differences(row) for row in rng.normal(truth, 0.01, (2000, seeds))]
  assert 0.93 <= np.mean([e.low <= truth <= e.high for e in made]) <= 0.97


def test_without_a_difference_the_probability_is_uniform():
  rng = np.random.default_rng(3)
  chances = np.array([of_differences(row).probability_better for row in rng.normal(0.0, 0.01, (2000, 4))])
  for level in (0.05, 0.25, 0.5, 0.75, 0.95):
    assert np.mean(chances < level) == pytest.approx(level, abs=0.035)


def test_a_known_case():
  found = improvement(with_bits([2.38, 2.40, 2.41]), with_bits([2.40, 2.41, 2.44]))  # differences 0.02, 0.01, 0.03
  assert found.improvement == pytest.approx(0.02)
  assert (found.low, found.high) == pytest.approx((0.02 - 4.302653 * 0.0057735, 0.02 + 4.302653 * 0.0057735), rel=1e-5)
  assert found.probability_better == pytest.approx(0.962975, abs=1e-4)  # t = 2 sqrt(3), two degrees of freedom
  assert found.replicas == 3


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(1.0, 5.0), st.floats(1.0, 5.0)), min_size=1, max_size=6))
def test_swapping_the_two_turns_the_sign(bits):
  ours, theirs = with_bits([a for a, _ in bits]), with_bits([b for _, b in bits])
  there, back = improvement(ours, theirs), improvement(theirs, ours)
  assert (there.improvement, there.low, there.high) == pytest.approx((-back.improvement, -back.high, -back.low))
  assert there.probability_better == pytest.approx(1 - back.probability_better)
  assert (there.low > 0) <= (there.probability_better > 0.97)


def test_pairs_are_made_by_seed_and_not_by_position():
  ours, theirs = with_bits([2.30, 2.40], seeds=(7, 3)), with_bits([2.45, 2.33, 9.9], seeds=(3, 7, 5))
  assert pairs(ours, theirs).seeds == (3, 7)
  assert pairs(ours, theirs).differences == pytest.approx((0.05, 0.03))


def test_luck_that_a_seed_gives_to_both_does_not_widen_the_interval():
  luck, own = np.random.default_rng(0).normal(0, 1.0, 8), np.random.default_rng(1).normal(0, 0.001, 8)
  found = improvement(with_bits(list(5 + luck - 0.01 + own)), with_bits(list(5 + luck)))
  assert 0 < found.low < 0.01 < found.high < 0.02


def test_pairs_lost_to_divergence_are_dropped_and_counted():
  ours = with_bits([2.38, math.nan, 2.41, 2.37], diverged=(1,))
  theirs = with_bits([2.40, 2.41, 2.44, math.nan], diverged=(3,))
  assert pairs(ours, theirs).dropped == (1, 3)
  assert improvement(ours, theirs).replicas == 2
  unflagged = with_bits([2.38, math.inf, 2.41, 2.37])
  assert pairs(unflagged, theirs).dropped == (1, 3)


def test_a_design_that_diverges_on_some_seeds_is_not_better_by_the_others():
  theirs = with_bits([2.40, 2.41, 2.44, 2.40, 2.43])
  sound = improvement(with_bits([2.30, 2.32, 2.34, 2.31, 2.33]), theirs)
  unstable = improvement(with_bits([2.30, 2.32, 2.34, math.inf, math.nan], diverged=(3,)), theirs)
  assert sound.low > 0 and sound.probability_better > 0.95
  assert unstable.dropped == 2 and unstable.low == -math.inf and unstable.probability_better == 0.5
  unlucky = improvement(with_bits([2.30, 2.32, 2.34]), with_bits([2.40, 2.41, math.nan], diverged=(2,)))
  assert unlucky.dropped == 1 and unlucky.low > 0 and unlucky.high == math.inf
  behind = improvement(with_bits([2.50, 2.52, 2.54, 2.51]), with_bits([2.40, 2.41, 2.44, math.nan], diverged=(3,)))
  assert behind.improvement < 0 < behind.high and behind.probability_better == 0.5, 'the other side diverged'
  elsewhere = improvement(with_bits([2.50, 2.52, 2.54]), with_bits([2.40, 2.41, 2.44, math.nan], diverged=(3,)))
  assert elsewhere.high < 0 and elsewhere.dropped == 0, 'on a seed of the noise floor, with which none is paired'


def test_a_number_that_a_diverged_replica_left_is_not_used():
  assert improvement(with_bits([0.1], diverged=(0,)), with_bits([2.4])) is None


@pytest.mark.parametrize('ours', [with_bits([math.nan, math.nan], diverged=(0, 1)), with_bits([2.3], seeds=(9,))])
def test_without_a_pair_there_is_no_evidence(ours):
  assert improvement(ours, with_bits([2.4, 2.4])) is None


def test_one_pair_knows_nothing_of_noise():
  found = improvement(with_bits([1.0]), with_bits([2.4]))
  assert (found.low, found.high, found.probability_better) == (-math.inf, math.inf, 0.5)
  assert found.improvement == pytest.approx(1.4)


def test_one_pair_borrows_the_floor_of_the_rung():
  floor = noise.Noise(0.01, 0.005, 0.02, 7)
  rng = np.random.default_rng(0)
  found = improvement(with_bits([2.3]), with_bits([2.4]), noise=floor)
  assert found.low == pytest.approx(0.1 - 2.364624 * 0.0141421, rel=1e-4)
  covered = []
  for _ in range(2000):
    floor = noise.floor(with_bits(list(rng.normal(2.4, 0.01, 8))))
    ours, theirs = rng.normal(2.38, 0.01), rng.normal(2.4, 0.01)
    found = improvement(with_bits([ours]), with_bits([theirs]), noise=floor)
    covered.append(found.low <= 0.02 <= found.high)
  assert 0.93 <= np.mean(covered) <= 0.97


def test_differences_that_agree_to_rounding_are_no_sample_of_noise():
  ours, theirs = with_bits([2.3, 1.1, 4.7]), with_bits([2.3 + 0.1, 1.1 + 0.1, 4.7 + 0.1])
  assert 0 < np.ptp(pairs(ours, theirs).differences) < 1e-14
  found = improvement(ours, theirs)
  assert (found.low, found.high, found.probability_better) == (-math.inf, math.inf, 0.5)
  floored = improvement(ours, theirs, noise=noise.Noise(0.01, 0.005, 0.02, 7))
  assert 0 < floored.low < 0.1 < floored.high
  assert improvement(ours, theirs, noise=noise.Noise(0.0, 0.0, 0.0, 7)).low == -math.inf


def test_a_clone_reproduces_the_baseline_and_is_not_better():
  found = improvement(samples.training(0, 0.0), samples.training(0, 0.0))
  assert (found.improvement, found.low, found.high, found.probability_better) == (0.0, 0.0, 0.0, 0.5)


def test_each_side_stands_at_its_own_learning_rate():
  ours = samples.training(5, 0.05, learning_rate=1e-2, replicas=tuple(
    samples.replica(5, seed, 0.05, learning_rate=rate) for seed in range(3) for rate in (4e-3, 1e-2)
  ))  # fmt: skip
  theirs = samples.training(0, 0.0)
  assert pairs(ours, theirs).seeds == (0, 1, 2)
  expected = [theirs.chosen[s].test_bits - samples.replica(5, s, 0.05, learning_rate=1e-2).test_bits for s in range(3)]
  assert pairs(ours, theirs).differences == pytest.approx(expected)
