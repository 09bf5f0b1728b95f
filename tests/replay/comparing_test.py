import dataclasses
import math

import numpy as np
import pytest

from asiarch_jax import config
from asiarch_jax.replay import comparing, playing, table
from asiarch_jax.replay.comparing import POLICIES, mean_of
from tests.replay import tables


@pytest.fixture(scope='module')
def bench():
  return tables.table(60, noise=0.04)


def experiment(cycles=22, seeds=2):
  default = config.Experiment()
  return dataclasses.replace(
    default,
    search=dataclasses.replace(default.search, cycles=cycles, cold_start=3, refresh=1),
    training=dataclasses.replace(default.training, seeds=seeds),
  )


def by_name(rows):
  return {row.name: row for row in rows}


def test_mean_of():
  one = mean_of([1.0, 2.0, 3.0, math.nan])
  assert one.value == 2.0 and one.low == pytest.approx(2 - 4.302653 / math.sqrt(3), 1e-6)
  assert mean_of([5.0]) == comparing.Mean(5.0, -math.inf, math.inf)
  assert math.isnan(mean_of([]).value)


@pytest.mark.slow
def test_searching_beats_not_searching_where_children_resemble_their_parents():
  chosen = [policy for policy in POLICIES if policy.name in ('search', 'random')]
  plain = tables.table(90, noise=0.01)
  rows = by_name(comparing.samplers(plain, experiment(), chosen, replays=20))
  assert rows['search'].lift is None
  assert rows['random'].lift.high < 0.0
  assert rows['random'].worth.value == pytest.approx(rows['search'].worth.value + rows['random'].lift.value)
  # The best by measurement are too good.
  assert rows['search'].measured.value > rows['search'].worth.value


def test_every_policy_changes_what_a_search_does(bench):
  plain = playing.on_table(bench, experiment(cycles=27))
  runs = {policy.name: playing.play(bench, policy.change(plain), 3) for policy in POLICIES}
  told = {name: [(o.proposal.name, o.proposal.parent_id) for o in outcomes] for name, outcomes in runs.items()}
  assert len({str(one) for one in told.values()}) == len(POLICIES)
  assert len(told['one seed']) == 2 + 50 and len(told['four seeds']) == 2 + 12


def test_a_policy_that_needs_more_seeds_than_there_are_is_left_out(bench):
  chosen = [policy for policy in POLICIES if policy.name in ('search', 'four seeds')]
  few = dataclasses.replace(
    bench, lower=tuple(dataclasses.replace(o, training=comparing._summary(o.training, (0, 1))) for o in bench.lower)
  )
  assert [row.name for row in comparing.samplers(few, experiment(), chosen, replays=2)] == ['search']


def test_rules_of_promotion(bench):
  rows = by_name(comparing.promotions(bench, config.Experiment(), replays=4, designs=50, seeds=2))
  assert rows['everybody'].promoted.value == 50 and rows['everybody'].placebos.value == 1.0
  assert rows['best quarter'].promoted.value == 13
  assert rows['false discoveries 5 %'].promoted.value < rows['likely better'].promoted.value < 50
  assert rows['climb'].worse.value < rows['everybody'].worse.value
  assert rows['climb'].mean.value > rows['everybody'].mean.value
  assert rows['everybody'].best.value >= max(row.best.value for row in rows.values())


def test_rules_do_not_see_the_upper_rung_and_the_limits_are_those_of_the_ladder(bench):
  def climbing(one, settings):
    return by_name(comparing.promotions(one, settings, replays=3, designs=50, seeds=2))['climb'].promoted.value

  mixed = dataclasses.replace(bench)
  mixed.__dict__['worth'] = {id: -value for id, value in bench.worth.items()}
  assert climbing(mixed, experiment()) == climbing(bench, experiment())
  wide = dataclasses.replace(experiment().rungs['small'], share=1.0, false_discoveries=0.9)
  assert climbing(bench, dataclasses.replace(experiment(), rungs={'small': wide})) > climbing(bench, experiment())


@pytest.mark.slow
def test_belief_is_less_optimistic_and_nearer_to_the_other_half_than_measurement():
  faint = tables.table(60, noise=0.04, scale=0.25)
  rows = by_name(comparing.estimators(faint, replays=8, designs=50))
  assert rows['believed'].error.value < rows['measured'].error.value
  assert rows['believed'].optimism.value < rows['measured'].optimism.value - 0.01
  assert rows['measured'].optimism.low > 0.0
  assert rows['believed'].covers.value > 0.9


@pytest.mark.slow
def test_the_error_leaves_out_the_noise_of_the_other_half():
  quiet = tables.table(60, noise=1e-4)
  rows = by_name(comparing.estimators(quiet, replays=4, designs=50))
  assert rows['measured'].error.value < 1e-3


def test_one_seed_leaves_nothing_to_hold_an_estimate_against(bench):
  one = dataclasses.replace(
    bench, lower=tuple(dataclasses.replace(o, training=comparing._summary(o.training, (0,))) for o in bench.lower)
  )
  assert comparing.estimators(one, replays=2, designs=10) == ()


def test_stopping_saves_what_comes_after_and_loses_what_it_ends(bench):
  rows = {(row.share, row.at): row for row in comparing.stoppings(bench)}
  strict, mild = rows[0.02, 0.25], rows[0.25, 0.25]
  assert strict.stopped >= mild.stopped == 0.0 and mild.lost == mild.saved == mild.regret == 0.0
  entry = max(bench.measured, key=lambda one: bench.worth[one.id])
  losses = tuple(10.0 for _ in range(tables.LOSSES))
  late = dataclasses.replace(
    entry.training, replicas=tuple(dataclasses.replace(r, losses=losses) for r in entry.training.replicas)
  )
  lower = tuple(dataclasses.replace(o, training=late) if o.id == entry.id else o for o in bench.lower)
  rows = {(row.share, row.at): row for row in comparing.stoppings(dataclasses.replace(bench, lower=lower))}
  assert rows[0.25, 0.25].lost > 0 and rows[0.25, 0.25].regret > 0
  # A quarter of fifteen logs is the fourth: eleven are saved of the one run that ends.
  measured = [one for one in bench.measured if not comparing.is_placebo(one.id, bench.experiment)]
  assert rows[0.25, 0.25].saved == pytest.approx(11 / 15 / len(measured))


def test_replays_are_reproducible(bench):
  first, again = (
    comparing.promotions(bench, config.Experiment(), replays=2, designs=20, seeds=2, seed=7) for _ in range(2)
  )
  assert first == again
  assert np.isfinite([row.promoted.value for row in first]).all()
  assert isinstance(bench, table.Table)
