"""Parents and references come from their ranks, uniformly."""

import dataclasses

import numpy as np
import pytest
from scipy import stats

from asiarch_jax import config
from asiarch_jax.records import Selection
from asiarch_jax.search import pool, sampling
from tests import samples

RULE = config.FitnessRule()
SEARCH = config.Search(cold_start=0, refresh=1)
ARCHIVE = (*samples.baselines(), *(samples.entry(id, 0.001 * id) for id in range(3, 70)))
RANKED = [entry.id for entry in pool.pool(ARCHIVE, SEARCH, RULE)]


def draws(outcomes, search, count):
  return [sampling.select(outcomes, search, RULE, np.random.default_rng([1, n])) for n in range(count)]


def test_parents_are_uniform_over_the_first_ranks():
  counts = np.zeros(len(RANKED))
  for selection in draws(ARCHIVE, SEARCH, 600):
    counts[RANKED.index(selection.parent.id)] += 1
  assert counts[10:].sum() == 0
  assert stats.chisquare(counts[:10]).pvalue > 1e-3


def test_references_are_distinct_and_uniform_over_their_ranks():
  counts = np.zeros(len(RANKED))
  for selection in draws(ARCHIVE, SEARCH, 600):
    chosen = [RANKED.index(entry.id) for entry in selection.references]
    assert len(set(chosen)) == 4
    assert chosen == sorted(chosen)
    counts[chosen] += 1
  assert counts[:10].sum() == 0
  assert stats.chisquare(counts[10:50]).pvalue > 1e-3


@pytest.mark.parametrize('members', [1, 2, 4, 7, 12])
def test_a_small_pool_lends_what_it_has(members):
  small = ARCHIVE[: 2 if members >= 2 else 1] + ARCHIVE[3 : 3 + max(members - 2, 0)]
  assert len(pool.pool(small, SEARCH, RULE)) == members
  for selection in draws(small, SEARCH, 30):
    chosen = [entry.id for entry in selection.references]
    assert len(chosen) == min(4, members - 1)
    assert selection.parent.id not in chosen
    if members == 12:  # ranks 11 and 12 are reference ranks: they come first
      assert {entry.id for entry in pool.pool(small, SEARCH, RULE)[10:]} <= {*chosen}


def test_an_empty_archive_asks_for_a_fresh_design():
  assert sampling.select((), SEARCH, RULE, np.random.default_rng(0)) == Selection(None, ())


@pytest.mark.parametrize('parents, parent', [('baseline', 'delta_net'), ('none', None)])
def test_a_control_arm_is_told_of_no_candidate(parents, parent):
  control = dataclasses.replace(SEARCH, parents=parents)
  selection = sampling.select(ARCHIVE, control, RULE, np.random.default_rng(0))
  assert (selection.parent and selection.parent.proposal.name) == parent and selection.references == ()
  assert [entry.id for entry in selection.told(ARCHIVE)] == [0, 1, 2]
  assert sampling.select(ARCHIVE, SEARCH, RULE, np.random.default_rng(0)).told(ARCHIVE) is ARCHIVE


def test_only_the_generator_decides():
  first, second = (sampling.select(ARCHIVE, SEARCH, RULE, np.random.default_rng(5)) for _ in range(2))
  assert first == second
  assert len({selection.parent.id for selection in draws(ARCHIVE, SEARCH, 50)}) > 1


def test_ranks_beyond_the_pool_fall_back_to_its_last_member():
  search = dataclasses.replace(SEARCH, parent_ranks=(20, 30))
  small = ARCHIVE[:2]
  assert {s.parent.id for s in draws(small, search, 10)} == {pool.pool(small, search, RULE)[-1].id}


def test_no_references_when_none_are_wanted():
  search = dataclasses.replace(SEARCH, references=0)
  assert all(selection.references == () for selection in draws(ARCHIVE, search, 5))
