import dataclasses
import statistics

import numpy as np
import pytest

from asiarch_jax import config, records
from asiarch_jax.evidence.placebo import is_placebo
from asiarch_jax.replay import playing
from tests.replay.tables import table


@pytest.fixture(scope='module')
def bench():
  return table(60, failing=(9, 10, 11))


def experiment(cycles=22, seeds=2, **search):
  default = config.Experiment()
  return dataclasses.replace(
    default,
    search=dataclasses.replace(default.search, cycles=cycles, cold_start=3, refresh=1, **search),
    training=dataclasses.replace(default.training, seeds=seeds),
  )


def test_a_replay_is_the_search_on_rows_of_the_table(bench):
  outcomes = playing.play(bench, experiment(), 0)
  assert [outcome.id for outcome in outcomes] == list(range(22))
  names = [outcome.proposal.name for outcome in outcomes]
  assert names[:2] == ['delta_net', 'gated_delta_net'] and len(set(names)) == 22
  rows = {outcome.proposal.name: outcome for outcome in bench.lower}
  for outcome in outcomes[2:]:
    row = rows[outcome.proposal.name]
    assert not is_placebo(row.id, bench.experiment)
    assert outcome.proposal.source == row.proposal.source
    if isinstance(outcome, records.Entry):
      assert len(outcome.training.chosen) == 2 and outcome.fitness is not None and outcome.evidence.replicas == 2
      assert outcome.scores == ()  # the table's are of all four seeds
    else:
      assert (outcome.stage, outcome.reason) == ('checks', 'leaks')


def test_the_same_seed_gives_the_same_replay_and_another_sees_other_replicas(bench):
  first, again, other = (playing.play(bench, experiment(), seed) for seed in (3, 3, 4))
  assert first == again
  assert first[0].training.chosen != other[0].training.chosen


def test_seeds_are_paired_whatever_they_stand_for(bench):
  outcomes = playing.play(bench, experiment(), 5)
  rows = {outcome.proposal.name: outcome for outcome in bench.lower}
  base = {replica.test_bits: replica.seed for replica in rows['delta_net'].training.replicas}
  for entry in records.entries_of(outcomes):
    theirs = {replica.test_bits: replica.seed for replica in rows[entry.proposal.name].training.replicas}
    for ours, baseline in zip(entry.training.chosen, outcomes[0].training.chosen, strict=True):
      assert ours.seed == baseline.seed
      assert theirs[ours.test_bits] == base[baseline.test_bits]


@pytest.mark.slow
def test_children_lie_near_their_parents(bench):
  apart, rng = [], np.random.default_rng(0)
  for seed in range(6):
    for outcome in playing.play(bench, experiment(), seed):
      if outcome.proposal.operator == 'mutate':
        parent = next(o for o in playing.play(bench, experiment(), seed) if o.id == outcome.proposal.parent_id)
        apart.append(bench.apart(bench.rows[outcome.proposal.name].id, bench.rows[parent.proposal.name].id))
  ids = [outcome.id for outcome in bench.candidates]
  anywhere = [bench.apart(*rng.choice(ids, 2, replace=False)) for _ in range(200)]
  assert statistics.fmean(apart) < 0.7 * statistics.fmean(anywhere)


def test_settings_of_the_search_decide(bench):
  none = playing.play(bench, experiment(parents='none'), 0)
  assert all(outcome.proposal.parent_id is None for outcome in none)
  baseline = playing.play(bench, experiment(parents='baseline'), 0)
  assert {outcome.proposal.parent_id for outcome in baseline[2:]} <= {0, None}
  greedy = playing.play(bench, experiment(parent_ranks=(1, 1)), 0)
  wide = playing.play(bench, experiment(parent_ranks=(1, 30)), 0)
  assert len({o.proposal.parent_id for o in greedy}) < len({o.proposal.parent_id for o in wide})


def test_a_table_that_is_used_up_declines(bench):
  outcomes = playing.play(bench, experiment(cycles=2 + len(bench.candidates) + 1), 0)
  assert isinstance(outcomes[-1], records.Rejection)
  assert outcomes[-1].stage == 'repeat' and 'designs of the table were drawn' in outcomes[-1].reason


def test_more_seeds_than_the_table_has_fail(bench):
  with pytest.raises(ValueError, match='6 seeds'):
    playing.play(bench, experiment(seeds=6), 0)


def test_the_best_are_those_that_measured_best(bench):
  outcomes = playing.play(bench, experiment(), 0)
  chosen = playing.best(outcomes, bench, 3)
  gains = sorted((e.evidence.improvement for e in records.entries_of(outcomes) if e.role == 'candidate'), reverse=True)
  names = {name for name, row in bench.rows.items() if row.id in chosen}
  assert sorted(
    (e.evidence.improvement for e in records.entries_of(outcomes) if e.proposal.name in names), reverse=True
  ) == gains[:3]  # fmt: skip
