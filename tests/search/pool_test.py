"""The pool is a function of the archive; replayed, it is what it was."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asiarch_jax import config
from asiarch_jax.records import Fitness
from asiarch_jax.search import pool, sampling
from tests import samples

RULE = config.FitnessRule()
SMALL = config.Search(cold_start=4, refresh=3, pool=6)


def ids(entries):
  return [entry.id for entry in entries]


def grown(kinds):
  """Returns an archive after the baselines: True an entry whose gain depends on its id, False a rejection."""
  outcomes = list(samples.baselines())
  for id, measured in enumerate(kinds, len(outcomes)):
    gain = float(np.random.default_rng(id).normal(0.0, 0.05))
    outcomes.append(samples.entry(id, gain) if measured else samples.rejection(id))
  return tuple(outcomes)


def test_a_cold_start_breeds_from_the_baselines():
  for count in range(4):
    assert ids(pool.pool(grown([True] * count), SMALL, RULE)) == [1, 0]
  assert len(pool.pool(grown([True] * 4), SMALL, RULE)) > 2


def test_rejections_do_not_end_a_cold_start():
  assert ids(pool.pool(grown([False] * 20 + [True] * 3), SMALL, RULE)) == [1, 0]


def test_the_pool_stands_still_between_refreshes():
  pools = [ids(pool.pool(grown([True] * count), SMALL, RULE)) for count in range(4, 11)]
  assert pools[0] == pools[1] == pools[2]
  assert pools[3] == pools[4] == pools[5]
  assert pools[0] != pools[3] != pools[6]


def test_the_published_setting_refreshes_at_200_and_every_50():
  search = config.Search()
  entries = list(grown([]))
  entries += [samples.entry(id, 0.0001 * id) for id in range(3, 303)]
  for count, newest in ((199, None), (200, 202), (249, 202), (250, 252), (300, 302)):
    best = pool.pool(entries[: 3 + count], search, RULE)
    assert len(best) == (2 if newest is None else 50)
    assert newest is None or max(ids(best)) <= newest
    assert newest is None or max(e.id for e in best) > newest - 50  # later ones are better here


@settings(max_examples=30, deadline=None)
@given(st.lists(st.booleans(), max_size=24), st.randoms())
def test_the_pool_is_a_function_of_the_outcomes(kinds, random):
  outcomes = grown(kinds)
  shuffled = list(outcomes)
  random.shuffle(shuffled)
  best = pool.pool(outcomes, SMALL, RULE)
  assert pool.pool(shuffled, SMALL, RULE) == best
  assert len(best) <= SMALL.pool
  totals = [entry.fitness.total for entry in best]
  assert totals == sorted(totals, reverse=True)
  assert all(entry.role != 'anchor' for entry in best)


def test_resumed_equals_uninterrupted():
  search = dataclasses.replace(SMALL, parent_ranks=(1, 3), reference_ranks=(4, 6))
  outcomes, chosen = grown([True, False] * 12), []
  for cycle in range(3, len(outcomes)):
    chosen.append(sampling.select(outcomes[:cycle], search, RULE, np.random.default_rng([0, cycle])))
  for cycle in itertools.islice(
    range(3, len(outcomes)), 0, None, 5
  ):  # started anew at any cycle, with the archive alone
    assert sampling.select(outcomes[:cycle], search, RULE, np.random.default_rng([0, cycle])) == chosen[cycle - 3]


def test_an_anchor_is_never_in_the_pool():
  anchor = samples.baseline(2, 'softmax_attention', 0.2, role='anchor')
  outcomes = (*samples.baselines()[:2], anchor, *grown([True] * 8)[3:])
  assert 2 not in ids(pool.pool(outcomes, SMALL, RULE))
  assert 'anchor' in pool.membership(anchor, outcomes, SMALL, RULE)


@pytest.mark.parametrize(
  'changes, reason',
  [
    ({'improvement': 0.3}, 'suspected leakage'),
    ({'improvement': -0.3, 'tasks': (0.31, 0.42)}, 'above the baseline'),
    ({'improvement': 0.02, 'tasks': (0.2, 0.3)}, 'task accuracy'),
    ({'improvement': 0.02, 'diverged': (1,)}, '1 of 4 replicas diverged'),
  ],
)
def test_a_guilty_entry_stays_in_the_archive_and_out_of_the_pool(changes, reason):
  guilty = samples.entry(7, **changes)
  outcomes = (*grown([True] * 4), guilty, *(samples.entry(id, 0.01) for id in (8, 9)))
  assert 7 not in ids(pool.pool(outcomes, SMALL, RULE))
  assert reason in pool.membership(guilty, outcomes, SMALL, RULE)
  innocent = samples.entry(7, 0.02)
  assert 7 in ids(pool.pool((*outcomes[:7], innocent, *outcomes[8:]), SMALL, RULE))


@pytest.mark.parametrize('total', [None, float('nan')])
def test_an_entry_without_a_measured_fitness_does_not_breed(total):
  entry = dataclasses.replace(samples.entry(6), fitness=None if total is None else Fitness(None, None, None, total))
  outcomes = (*grown([True] * 3), entry)
  assert 6 not in ids(pool.pool(outcomes, SMALL, RULE))
  assert 'no fitness' in pool.membership(entry, outcomes, SMALL, RULE)


def test_without_the_baseline_no_candidate_breeds():
  outcomes = grown([True] * 8)[3:]
  assert pool.pool(outcomes, SMALL, RULE) == ()
  assert 'delta_net has not been measured' in pool.membership(outcomes[0], outcomes, SMALL, RULE)


def test_a_better_baseline_is_no_leak():
  strong = samples.baseline(1, 'gated_delta_net', 0.3)
  assert 1 in ids(pool.pool((samples.baseline(), strong), SMALL, RULE))


def test_membership_and_pool_agree():
  outcomes = samples.archive(40)
  search = dataclasses.replace(SMALL, pool=8)
  reasons = pool.memberships(outcomes, search, RULE)
  assert {id for id, reason in reasons.items() if reason is None} == set(ids(pool.pool(outcomes, search, RULE)))
  assert set(reasons) == {o.id for o in outcomes if hasattr(o, 'fitness')}
  told = ' '.join(filter(None, reasons.values()))
  assert 'ranks 9 by fitness; the pool holds 8' in told
  assert 'after the last refresh' in told


def test_a_cold_start_says_how_far_it_is():
  outcomes = grown([True] * 2)
  assert pool.membership(outcomes[-1], outcomes, SMALL, RULE).startswith('cold start: 2 of 4')


def test_equals_are_ordered_by_age():
  twin = dataclasses.replace(samples.entry(4, 0.02), id=5)
  outcomes = (*samples.baselines(), samples.entry(3, 0.01), samples.entry(4, 0.02), twin, samples.entry(6, 0.0))
  best = ids(pool.pool(outcomes, SMALL, RULE))
  assert best.index(4) + 1 == best.index(5)
