"""Replicas from several jobs as one summary."""

import dataclasses

import pytest

from asiarch_jax import records
from asiarch_jax.evidence import blocks
from tests import samples


def block(first, seeds=2, rates=(0.01, 0.02), bits=2.0, **changes):
  replicas = tuple(
    records.Replica(first + seed, rate, 10, (), bits + rate * (seed - 1), bits)
    for seed in range(seeds)
    for rate in rates
  )
  return samples.training(replicas=replicas, learning_rate=rates[0], **changes)


def test_all_replicas_are_there_and_what_was_timed_is_the_first_blocks():
  whole = blocks.merged(block(0, tokens_per_second=7.0), block(2, tokens_per_second=9.0), block(4))
  assert [replica.seed for replica in whole.chosen] == [0, 1, 2, 3, 4, 5]
  assert whole.tokens_per_second == 7.0


def test_the_learning_rate_is_chosen_over_all_blocks():
  first = block(0)
  assert first.learning_rate == 0.01
  others = dataclasses.replace(
    block(2),
    replicas=tuple(dataclasses.replace(r, validation_bits=9 - 100 * r.learning_rate) for r in block(2).replicas),
  )
  assert blocks.merged(first, others).learning_rate == 0.02


def test_a_rate_with_a_diverged_replica_comes_last():
  lost = dataclasses.replace(block(2).replicas[0], diverged=True, validation_bits=float('nan'))
  assert blocks.merged(block(0), dataclasses.replace(block(2), replicas=(lost,))).learning_rate == 0.02


def test_what_is_no_replica_is_refused():
  with pytest.raises(ValueError, match=r'seed 1 was trained twice at learning rate 0\.01'):
    blocks.merged(block(0), block(1))
  with pytest.raises(ValueError, match='are no replicas of'):
    blocks.merged(block(0), block(2, parameters=5))
