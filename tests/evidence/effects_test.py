"""Effects of genome fields over simulated archives with known effects, and with none."""

import dataclasses
import math

import numpy as np
import pytest

from asiarch_jax.evidence import effects
from tests import samples

FIELDS = {f'switch_{n}': (False, True) for n in range(12)} | {'decay': ('none', 'head', 'channel'), 'taps': (2, 3, 5)}
START = {field: values[0] for field, values in FIELDS.items()}
TRUTH = {('switch_0', True): 0.04, ('switch_1', True): -0.05, ('decay', 'head'): 0.03}


def worth(genome, truth):
  return sum(gain for (field, value), gain in truth.items() if genome[field] == value)


def search(count, seed, truth, *, handed_down=0.0, **changes):
  """Returns the outcomes of a search that mutates its best: two fields a child on average, parents of the first ten."""
  rng = np.random.default_rng(seed)
  outcomes, genomes, hidden, measured = [samples.baseline(fitted=False)], {0: START}, {0: 0.0}, {0: -samples.BASE_BITS}
  for id in range(1, count + 1):
    parent = int(rng.choice(sorted(measured, key=lambda i: -measured[i])[:10]))
    genome = dict(genomes[parent])
    for field in rng.choice(list(FIELDS), 1 + min(int(rng.poisson(1)), 4), replace=False):
      genome[str(field)] = FIELDS[field][int(rng.integers(len(FIELDS[field])))]
    hidden[id] = hidden[parent] + rng.normal(0.0, handed_down)
    gain = worth(genome, truth) + hidden[id]
    entry = samples.entry(id + 1000 * seed, gain, fitted=False, parent_id=parent, genome=genome, **changes)
    entry = dataclasses.replace(entry, id=id)
    outcomes.append(entry)
    genomes[id], measured[id] = genome, -np.mean([r.test_bits for r in entry.training.chosen])
  return tuple(outcomes)


def fitted(outcomes, **options):
  return effects.effects(outcomes, genomes={'delta_net': START}, **options)


def true_effect(row, truth):
  return truth.get((row.field, row.after), 0.0) - truth.get((row.field, row.before), 0.0)


def test_known_effects_are_found():
  rows = fitted(search(80, 1, TRUTH))
  for (field, value), gain in TRUTH.items():
    row = effects.effect_of(rows, field, FIELDS[field][0], value)
    assert row.distinguishable, row
    assert math.copysign(1.0, row.effect) == math.copysign(1.0, gain)
    assert row.effect == pytest.approx(gain, abs=0.02)
  assert {row.field for row in rows[:3]} <= {'switch_0', 'switch_1', 'decay'}


def test_a_baseline_is_compared_on_the_seeds_that_candidates_have():
  """Seeds of the noise floor on which every design would be much better are no news of any."""
  outcomes = search(40, 3, {}, seeds=3)
  base = outcomes[0].training
  lucky = samples.baseline(fitted=False, improvement=0.5, seeds=9).training
  more = dataclasses.replace(base, replicas=(*base.chosen[:3], *lucky.chosen[3:]))
  alone = dataclasses.replace(base, replicas=base.chosen[:3])
  rows = [fitted((dataclasses.replace(outcomes[0], training=t), *outcomes[1:])) for t in (more, alone)]
  for one, other in zip(*rows, strict=True):
    assert one.field == other.field
    assert (one.effect, one.low) == (pytest.approx(other.effect, abs=2e-3), pytest.approx(other.low, abs=2e-3))


def test_intervals_cover_and_never_show_the_wrong_sign():
  covered, wrong, claims = [], 0, 0
  for seed in range(1, 9):
    for row in fitted(search(50, seed, TRUTH, handed_down=0.003)):
      truth = true_effect(row, TRUTH)
      covered.append(row.low <= truth <= row.high)
      claims += row.distinguishable
      wrong += row.distinguishable and truth != 0.0 and row.effect * truth < 0
  assert np.mean(covered) >= 0.9
  assert wrong == 0
  assert claims > 8


def test_noise_has_no_effects():
  rows = [row for seed in range(1, 11) for row in fitted(search(40, seed, {}))]
  assert len(rows) > 100
  assert np.mean([row.distinguishable for row in rows]) <= 0.02


def test_regression_to_the_mean_is_not_called_a_harm():
  # Plain differences of child and parent are negative on average here, since parents were picked for their luck.
  plain, modelled = [], []
  for seed in range(1, 9):
    outcomes = search(40, seed, {}, noise=0.03)
    bits = {e.id: np.mean([r.test_bits for r in e.training.chosen]) for e in outcomes}
    plain += [bits[e.proposal.parent_id] - bits[e.id] for e in outcomes[1:]]
    modelled += [row.effect for row in fitted(outcomes)]
  assert np.mean(plain) < -0.005
  assert abs(np.mean(modelled)) < 0.002


def test_a_field_that_never_changed_has_no_row():
  genome = {**START, 'switch_3': True}
  outcomes = (samples.baseline(), samples.entry(3, 0.02, genome=genome), samples.entry(4, 0.02, genome=genome))
  assert {row.field for row in fitted(outcomes)} == {'switch_3'}
  assert fitted(outcomes)[0].pairs == 2


def test_changes_that_always_come_together_share_the_credit():
  outcomes = [samples.baseline(fitted=False)]
  for id in range(1, 13):
    genome = {**START, 'switch_0': id % 2 == 0, 'switch_1': id % 2 == 0}
    outcomes.append(samples.entry(id, 0.05 * (id % 2 == 0), genome=genome, fitted=False))
  first, second = (effects.effect_of(fitted(outcomes), f, False, True) for f in ('switch_0', 'switch_1'))
  assert first.effect == pytest.approx(second.effect)
  assert 0.005 < first.effect < 0.03


def test_a_change_and_its_way_back_are_one_row():
  there, back = {**START, 'switch_0': True}, START
  outcomes = (
    samples.entry(3, 0.02, parent_id=None, genome=back),
    samples.entry(4, 0.05, parent_id=3, genome=there),
    samples.entry(5, 0.02, parent_id=4, genome=back),
    samples.entry(6, 0.05, parent_id=5, genome=there),
  )
  (row,) = effects.effects(outcomes)
  assert (row.field, row.before, row.after, row.pairs) == ('switch_0', False, True, 3)
  turned = effects.effect_of([row], 'switch_0', True, False)
  assert (turned.effect, turned.low, turned.high) == (-row.effect, -row.high, -row.low)
  assert turned.reversed() == row
  assert effects.effect_of([row], 'switch_0', True, 1) is None  # one is not true


def test_what_cannot_be_used_is_left_out():
  genome = {**START, 'switch_0': True}
  outcomes = (
    samples.baseline(),
    samples.entry(3, 0.02),  # without genome
    samples.entry(4, 0.02, genome=genome, diverged=(0, 1, 2, 3)),  # without measurement
    samples.rejection(5, genome=genome),
    samples.entry(6, 0.02, parent_id=99, genome=genome),  # a parent that is not there
  )
  assert fitted(outcomes) == ()
  assert fitted(()) == ()
  assert effects.effects((samples.baseline(), samples.entry(3, genome=genome))) == ()
  # Without a seed that diverged a design would look like those that it survived.
  assert fitted((*outcomes, samples.entry(7, 0.02, genome=genome, diverged=(0,)))) == ()
  rows = fitted((*outcomes, samples.entry(7, 0.02, genome=genome)))
  assert [(row.field, row.pairs) for row in rows] == [('switch_0', 1)]


def test_one_seed_still_gives_intervals():
  rows = fitted(search(60, 2, TRUTH, seeds=1))
  assert rows
  assert all(math.isfinite(row.low) and row.low < row.high for row in rows)


def test_identical_measurements_have_no_effects():
  genomes = [{**START, 'switch_0': bool(id % 2)} for id in range(6)]
  outcomes = tuple(dataclasses.replace(samples.baseline(fitted=False), id=id, proposal=samples.proposal(
    parent_id=id - 1 if id else None, genome=genome)) for id, genome in enumerate(genomes))  # fmt: skip
  rows = effects.effects(outcomes)
  assert [row.distinguishable for row in rows] == [False]
  assert rows[0].effect == pytest.approx(0.0, abs=1e-9)


def test_the_order_of_the_outcomes_does_not_matter():
  outcomes = search(25, 3, TRUTH)
  assert fitted(outcomes) == fitted(outcomes[::-1])


def test_only_the_latest_are_fitted():
  outcomes = search(40, 4, TRUTH)
  assert sum(row.pairs for row in fitted(outcomes, limit=10)) < sum(row.pairs for row in fitted(outcomes))
