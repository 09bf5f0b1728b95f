import dataclasses
import itertools
import math

import numpy as np
import pytest

from asiarch_jax import records
from asiarch_jax.report import series
from tests import samples


def with_evidence(entry, improvement, low, high, **changes):
  evidence = records.Evidence(improvement, low, high, 0.9, 4)
  return dataclasses.replace(entry, evidence=evidence, **changes)


def child(key, parent, kind='entry'):
  made = samples.entry(key, name=f'm{key}') if kind == 'entry' else samples.rejection(key)
  return dataclasses.replace(made, proposal=dataclasses.replace(made.proposal, parent_id=parent))


def test_best_so_far_never_falls_and_the_pool_is_the_best_by_fitness():
  gains = {0: 0.0, 3: 0.02, 4: -0.03, 5: 0.05, 6: 0.01}
  entries = [
    dataclasses.replace(
      with_evidence(samples.entry(key), gain, gain - 1, gain + 1), fitness=records.Fitness(None, None, None, 0.5 + gain)
    )
    for key, gain in gains.items()
  ]
  points = series.progress(entries, 2, 'improvement')
  assert points.best == pytest.approx((0.0, 0.02, 0.02, 0.05, 0.05))
  assert points.pool == pytest.approx((0.0, 0.01, 0.01, 0.035, 0.035))


def test_anchors_and_rejections_make_no_progress():
  outcomes = (*samples.baselines(), samples.rejection(3), samples.entry(4))
  assert series.progress(outcomes, 50, 'fitness').ids == (0, 1, 4)


def test_discoveries_count_intervals_points_and_chance_against_all_compute():
  timing = records.Timing(accelerator_seconds=10.0)
  outcomes = [
    with_evidence(samples.baseline(1, 'gated_delta_net'), 0.05, 0.04, 0.06, timing=timing),  # no candidate
    with_evidence(samples.entry(3), 0.02, 0.01, 0.03, timing=timing),
    dataclasses.replace(samples.rejection(4), timing=timing),
    with_evidence(samples.entry(5), 0.02, -0.01, 0.05, timing=timing),
    with_evidence(samples.entry(6), -0.02, -0.03, -0.01, timing=timing),
  ]
  counts = series.discoveries(outcomes)
  assert counts.seconds == (0, 10, 20, 30, 40, 50)
  assert counts.shown == (0, 0, 1, 1, 1, 1)
  assert counts.estimated == (0, 0, 1, 1, 2, 2)
  assert counts.chance == pytest.approx((0, 0, 0.025, 0.025, 0.05, 0.075))
  assert counts.best[2:] == (0.02, 0.02, 0.02, 0.02) and all(map(math.isnan, counts.best[:2]))
  assert counts.tokens == (0,) * 6 and counts.dollars == (0,) * 6
  assert counts.trial == (False, True, True, True, True)
  named = series.discoveries(outcomes, confirmed=[5, 6])
  assert named.shown == (0, 0, 0, 0, 1, 2) and named.estimated == counts.estimated
  blind = series.discoveries(outcomes, placebos=[3, 6])
  assert blind.shown == (0,) * 6 and blind.estimated == (0, 0, 0, 0, 1, 1) and blind.seconds == counts.seconds
  assert series.discoveries(outcomes, confirmed=[5, 6], placebos=[6]).shown == (0, 0, 0, 0, 1, 1)
  assert blind.trial == (False, False, True, True, False) and blind.chance[-1] == pytest.approx(0.025)
  for strange in (4, 1, 99):  # a rejection, a baseline, nothing
    with pytest.raises(ValueError, match=f'confirmed names {strange}, which is no measured candidate'):
      series.discoveries(outcomes, confirmed=[5, strange])


def test_what_is_spent_adds_up_and_nothing_found_is_lost():
  outcomes = samples.model_archive(30)
  counts = series.discoveries(outcomes)
  for field, spends in (
    ('tokens', [o.spend.tokens for o in outcomes]),
    ('dollars', [o.spend.dollars for o in outcomes]),
  ):
    assert getattr(counts, field) == pytest.approx((0, *itertools.accumulate(spends)))
  for rising in (counts.tokens, counts.shown, counts.best):
    assert not any(after < before for before, after in itertools.pairwise(rising))
  candidates = [entry for entry in records.entries_of(outcomes) if entry.role == 'candidate']
  assert counts.best[-1] == max(entry.evidence.improvement for entry in candidates)
  assert counts.shown[-1] == sum(map(series.is_better, candidates)) < sum(map(series.is_better, outcomes))


def test_an_improvement_that_is_no_number_is_not_the_best():
  found = [with_evidence(samples.entry(key), value, -1, 1) for key, value in ((3, math.nan), (4, 0.01), (5, math.nan))]
  assert series.discoveries(found).best[2:] == (0.01, 0.01)


def test_a_model_without_a_reply_ends_first_and_a_repeated_idea_after_the_checks():
  stages = ('repeat', 'checks', 'reply', 'error')
  found = series.stages([samples.rejection(key, stage) for key, stage in enumerate(stages)])
  assert [(stage.name, stage.reached) for stage in found] == [('reply', 4), ('checks', 3), ('repeat', 2), ('error', 1)]
  assert all(stage.meaning for stage in found)


def test_a_stage_is_divided_by_the_proposals_that_reached_it():
  outcomes = [
    *samples.baselines(),
    *(samples.rejection(key, 'source') for key in (3, 4)),
    *(samples.rejection(key, 'checks') for key in (5, 6, 7)),
    samples.rejection(8, 'too_slow'),
    samples.rejection(9, 'a stage of the future'),
    *(samples.entry(key) for key in (10, 11, 12)),
  ]
  found = {stage.name: (stage.count, stage.reached) for stage in series.stages(outcomes)}
  assert found == {'source': (2, 10), 'checks': (3, 8), 'too_slow': (1, 5), 'a stage of the future': (1, 5)}
  for stage in series.stages(outcomes):
    assert 0 <= stage.low < stage.count / stage.reached < stage.high <= 1


def test_every_kind_of_failure_has_a_meaning():
  assert set(records.FAILURES) <= set(series.MEANINGS)


def test_failed_checks_count_only_those_not_passed():
  outcomes = [samples.rejection(3), samples.rejection(4), samples.rejection(5, 'duplicate'), samples.entry(6)]
  assert series.failed_checks(outcomes) == [('causality', 2)]


def test_wilson_agrees_with_a_published_value():
  """15 of 148 gives 0.0624 to 0.1605 (Newcombe 1998, Statist. Med. 17, table I, method 3)."""
  assert series.wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
  assert series.wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize('seed', range(6))
def test_a_tidy_tree_puts_no_two_on_one_place_and_centres_parents(seed):
  rng = np.random.default_rng(seed)
  outcomes = [child(0, None)]
  for key in range(1, 120):
    parent = None if rng.random() < 0.05 else int(rng.integers(max(0, key - 20), key))
    outcomes.append(child(key, parent, 'entry' if rng.random() < 0.8 else 'rejection'))
  nodes = {node.outcome.id: node for node in series.lineage(outcomes)}
  assert len(nodes) == 120
  for depth in {node.depth for node in nodes.values()}:
    rows = sorted(node.row for node in nodes.values() if node.depth == depth)
    assert all(after - before >= 1 - 1e-9 for before, after in itertools.pairwise(rows))
  for key, node in nodes.items():
    below = [other.row for other in nodes.values() if other.parent == key]
    if below:
      assert node.row == pytest.approx((min(below) + max(below)) / 2)
    assert node.depth == (nodes[node.parent].depth + 1 if node.parent is not None else 0)


def test_a_chain_is_a_straight_line_and_deep_ones_do_not_recurse():
  nodes = series.lineage([child(0, None), *(child(key, key - 1, 'rejection') for key in range(1, 3000))])
  assert {node.row for node in nodes} == {0.0} and nodes[-1].depth == 2999


def test_a_parent_that_is_missing_or_younger_makes_a_root():
  nodes = {node.outcome.id: node for node in series.lineage([child(3, 99), child(4, 5), child(5, 4), child(6, 6)])}
  assert {key for key, node in nodes.items() if node.parent is None} == {3, 4, 6}
  assert nodes[5].depth == 1


def test_a_loss_curve_is_the_mean_over_seeds_without_the_diverged():
  training = samples.training(3, seeds=3, diverged=(2,))
  curve = series.loss_curve(training)
  kept = np.array([replica.losses for replica in training.replicas[:2]])
  np.testing.assert_allclose(curve.mean, kept.mean(0))
  np.testing.assert_allclose(curve.low, kept.min(0))
  assert curve.steps.tolist() == list(range(10, 121, 10))
  assert series.loss_curve(samples.training(3, seeds=1, diverged=(0,))) is None


def test_runs_that_ended_at_different_steps_are_compared_where_both_were():
  training = samples.training(3)
  short = dataclasses.replace(training.replicas[1], losses=training.replicas[1].losses[:5])
  curve = series.loss_curve(dataclasses.replace(training, replicas=(training.replicas[0], short)))
  assert len(curve.steps) == 5


def test_a_gap_is_paired_by_seed():
  base, better = samples.training(0, 0.0, noise=0.0), samples.training(0, 0.1, noise=0.0)
  gap = series.loss_gap(better, base)
  assert gap.mean[-1] == pytest.approx(-0.1 * math.log(2), abs=0.01)
  assert series.loss_gap(dataclasses.replace(better, log_every=7), base) is None


def test_the_band_shrinks_with_the_noise_and_is_unknown_without_baseline():
  quiet, loud = (
    (samples.baseline(noise=noise), *(samples.entry(key, 0.0, noise=noise) for key in range(3, 20)))
    for noise in (0.002, 0.02)
  )
  narrow, wide = series.noise_band(quiet, 'delta_net'), series.noise_band(loud, 'delta_net')
  assert wide == pytest.approx(10 * narrow, rel=0.35)
  assert wide == pytest.approx(1.96 * 0.02 * math.sqrt(2 / 4), rel=0.35)
  assert series.noise_band(quiet[1:], 'delta_net') is None
  many = (samples.baseline(noise=0.02, seeds=16), *loud[1:])
  assert series.noise_band(many, 'delta_net') == pytest.approx(wide, rel=0.35), 'as candidates are measured, on four'
  assert series.noise_band((), 'delta_net') is None
  assert series.noise_band((samples.baseline(),), 'delta_net') > 0  # from the baseline's own replicas
  assert series.noise_band((samples.baseline(seeds=1),), 'delta_net') is None
