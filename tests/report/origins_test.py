import dataclasses
import itertools

import pytest

from asiarch_jax import records
from asiarch_jax.report import origins
from tests import samples


def declaring(outcome, *ideas):
  """Returns the outcome with ideas given as 'kind' or 'kind reference'."""
  made = tuple(records.Origin('a part', *idea.split()) for idea in ideas)
  return dataclasses.replace(outcome, proposal=dataclasses.replace(outcome.proposal, origins=made))


def shown(entry, low):
  return dataclasses.replace(entry, evidence=records.Evidence(low + 0.01, low, low + 0.02, 0.9, 4))


def better(key, *ideas):
  return declaring(shown(samples.entry(key), 0.001), *ideas)


def unclear(key, *ideas):
  return declaring(shown(samples.entry(key), -0.001), *ideas)


def rejected(key, *ideas):
  return declaring(samples.rejection(key), *ideas)


def test_components_are_counted_in_the_group_of_their_outcome():
  outcomes = [
    *samples.baselines(),
    better(3, 'cognition a#1', 'cognition a#2', 'analysis 1'),
    better(4),
    unclear(5, 'original', 'original'),
    rejected(6, 'cognition b#1'),
    rejected(7),
  ]
  rows = {group.name: group for group in origins.groups(outcomes)}
  counts = {name: tuple(share.count for share in group.shares.values()) for name, group in rows.items()}
  assert tuple(rows['all'].shares) == ('cognition', 'analysis', 'original')
  assert counts == {'better': (2, 1, 0), 'other measured': (0, 0, 2), 'rejected': (1, 0, 0), 'all': (3, 1, 2)}
  assert {name: group.proposals for name, group in rows.items()} == {
    'better': 1, 'other measured': 1, 'rejected': 1, 'all': 3,
  }  # fmt: skip


def test_an_interval_that_touches_zero_is_not_better():
  at_zero = declaring(shown(samples.entry(3), 0.0), 'original')
  assert [group.components for group in origins.groups([at_zero])] == [0, 1, 0, 1]


@pytest.mark.parametrize('seed', range(4))
def test_the_groups_divide_all_and_shares_lie_in_their_intervals_and_add_up_to_one(seed):
  *parts, whole = origins.groups(samples.model_archive(60, seed))
  for kind in origins.KINDS:
    assert sum(part.shares[kind].count for part in parts) == whole.shares[kind].count
  for group in (*parts, whole):
    assert sum(share.share for share in group.shares.values()) == pytest.approx(1.0)
    for share in group.shares.values():
      assert 0 <= share.interval[0] <= share.share <= share.interval[1] <= 1


def test_the_order_of_outcomes_says_nothing():
  outcomes = samples.model_archive(20)
  assert origins.groups(outcomes) == origins.groups(outcomes[::-1])
  assert origins.cited(outcomes) == origins.cited(outcomes[::-1])


def test_without_declared_origins_there_is_nothing():
  assert origins.groups(samples.archive(10)) == () == origins.groups(())
  assert origins.cited(samples.archive(10)) == ()


def test_a_paper_counts_once_an_outcome_however_many_of_its_insights_are_cited():
  outcomes = [
    better(3, 'cognition a#1', 'cognition a#2', 'cognition b#1'),
    unclear(4, 'cognition a#1'),
    rejected(5, 'cognition c#1', 'cognition c#1'),
    unclear(6, 'analysis 3', 'original', 'cognition'),
  ]
  rows = [(row.paper, row.entries, row.better.count, row.rejected) for row in origins.cited(outcomes)]
  assert rows == [('a', 2, 1, 0), ('b', 1, 1, 0), ('c', 0, 0, 1)]


def test_papers_come_by_how_many_entries_cite_them():
  rows = origins.cited(samples.model_archive(60))
  assert all(one.entries >= other.entries for one, other in itertools.pairwise(rows))
  assert all(row.better.count <= row.entries == row.better.total for row in rows)
