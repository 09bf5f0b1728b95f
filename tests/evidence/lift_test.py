"""The lift of one arm over another."""

import math

import numpy as np
import pytest

from asiarch_jax.evidence import lift


def entries(rng, means, seeds=8, sd=0.02, luck=None):
  luck = np.zeros(seeds) if luck is None else luck
  return [dict(enumerate(mean + luck + sd * rng.standard_normal(seeds))) for mean in means]


def test_one_run_covers_what_its_entries_are_worth():
  rng = np.random.default_rng(0)
  hits = 0
  for seed in range(80):
    luck = 0.05 * rng.standard_normal(8)  # the baseline's, shared by all
    ours = entries(rng, rng.normal(0.10, 0.02, 5), luck=luck)
    theirs = entries(rng, rng.normal(0.04, 0.02, 5), luck=luck)
    found = lift.of_one_run('a', 'b', ours, theirs, seed=seed)
    hits += found.low <= 0.06 <= found.high
    assert found.high - found.low < 0.12  # the shared luck cancels
  assert hits / 80 >= 0.88


def test_one_entry_says_nothing_of_others():
  found = lift.of_one_run('a', 'b', [{0: 0.1, 1: 0.2}], [{0: 0.0, 1: 0.1}])
  assert found.lift == pytest.approx(0.1) and math.isinf(found.low)


def test_runs_are_paired():
  found = lift.of_runs('a', 'b', [0.3, 0.5, 0.4], [0.2, 0.4, 0.28])
  assert found.runs == 3 and found.lift == pytest.approx(0.1067, abs=1e-3) and found.low > 0.05


def test_bad_input_is_named():
  with pytest.raises(ValueError, match='a has 0 entries'):
    lift.of_one_run('a', 'b', [], [{0: 1.0}])
  with pytest.raises(ValueError, match='no fresh seed is common'):
    lift.of_one_run('a', 'b', [{0: 1.0}], [{1: 1.0}])
  with pytest.raises(ValueError, match='at least 2'):
    lift.of_runs('a', 'b', [0.1], [0.1])
