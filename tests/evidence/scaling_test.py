"""Scaling fits and compute multipliers on simulated losses whose law is known."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asiarch_jax.evidence import scaling

COMPUTE = (1e15, 4e15, 16e15, 64e15)


def law(compute, saved=1.0, steeper=0.0):
  """Returns the loss of a design that saves a factor of compute at 1e16, more at larger sizes if steeper."""
  return 1.0 + 0.6 * (np.asarray(compute) / 1e16) ** -(0.25 + steeper) * saved**-0.25


def sizes(rng, *, saved=1.0, steeper=0.0, noise=0.005, luck=0.005, seeds=3, compute=COMPUTE):
  """Returns a baseline and an entry whose replicas share the luck of their seeds."""
  baseline, entry = [], []
  for each in compute:
    shared = rng.normal(0.0, luck, seeds)
    for arm, loss in ((baseline, law(each)), (entry, law(each, saved, steeper))):
      arm.append(scaling.Size(each, tuple(float(value) for value in loss + shared + rng.normal(0.0, noise, seeds))))
  return baseline, entry


def multiplied(saved, steeper, compute):
  """Returns the true multiplier, by the definition."""
  above = law(compute, saved, steeper) - 1.0
  return (above / 0.6) ** (-1 / 0.25) * 1e16 / compute


def test_laws_without_noise_are_found():
  baseline, entry = sizes(np.random.default_rng(0), saved=1.5, noise=0.0, luck=0.0)
  found = scaling.compare(baseline, entry, draws=20)
  shifted = next(fit for fit in found.fits if fit.model == 'shifted constant')
  for fitted, factor in ((shifted.baseline, 1.0), (shifted.entry, 1.5)):
    assert (fitted.floor, fitted.exponent) == pytest.approx((1.0, 0.25), abs=1e-3)
    assert fitted.loss(3e16) == pytest.approx(float(law(3e16, factor)), abs=1e-5)
  assert shifted.multiplier.value == pytest.approx(1.5, rel=1e-3)
  assert shifted.held_out < 1e-4


@pytest.mark.parametrize(
  'saved, steeper, model',
  [(1.0, 0.0, 'no difference'), (1.5, 0.0, 'shifted constant'), (1.5, 0.08, 'different exponent')],
)
def test_the_true_model_is_chosen(saved, steeper, model):
  chosen, foreseen = [], []
  for seed in range(10):
    found = scaling.compare(*sizes(np.random.default_rng(seed), saved=saved, steeper=steeper), draws=20)
    chosen.append(found.fits[0].model == model)
    wrong = next(fit for fit in found.fits if fit.model == ('no difference' if saved > 1 else 'different exponent'))
    right = next(fit for fit in found.fits if fit.model == model)
    foreseen.append(right.held_out <= wrong.held_out)
    assert found.fits[0].behind == 0.0 and sum(fit.weight for fit in found.fits) == pytest.approx(1.0)
  assert np.mean(chosen) >= 0.8
  assert np.mean(foreseen) >= 0.5 if saved == 1 else np.mean(foreseen) == 1.0


def coverage(repeats, draws=200):
  covered, shown = [], {}
  for saved, steeper in ((1.0, 0.0), (1.5, 0.0), (1.5, 0.05)):
    for noise, luck in ((0.004, 0.008), (0.01, 0.0)):
      rng = np.random.default_rng([int(100 * saved), int(100 * steeper), int(1000 * noise)])
      for seed in range(repeats):
        baseline, entry = sizes(rng, saved=saved, steeper=steeper, noise=noise, luck=luck)
        found = scaling.compare(baseline, entry, seed=seed, draws=draws).headline
        covered.append(found.low <= multiplied(saved, steeper, COMPUTE[-1]) <= found.high)
        shown.setdefault(saved, []).append(found.shown)
  return np.mean(covered), {saved: np.mean(values) for saved, values in shown.items()}


def test_the_interval_of_the_multiplier_covers():
  covered, shown = coverage(6, 100)
  assert covered >= 0.85
  assert shown[1.0] <= 0.15 and shown[1.5] >= 0.95


@pytest.mark.sweep
def test_the_interval_of_the_multiplier_covers_over_many():
  covered, shown = coverage(80)  # 480 pairs of designs
  assert 0.91 <= covered <= 0.98
  assert shown[1.0] <= 0.045


def test_luck_that_a_seed_gives_to_both_cancels():
  rng = np.random.default_rng(3)
  alone = scaling.compare(*sizes(rng, saved=1.3, noise=0.001, luck=0.02), draws=200).headline
  baseline, entry = sizes(rng, saved=1.3, noise=0.001, luck=0.02)
  turned = [scaling.Size(size.compute, size.losses[::-1]) for size in entry]  # the same numbers, no longer paired
  unpaired = scaling.compare(baseline, turned, draws=200).headline
  assert alone.high / alone.low < unpaired.high / unpaired.low


def test_an_extrapolation_is_far_where_it_is_far():
  baseline, entry = sizes(np.random.default_rng(0), saved=1.5, steeper=0.05)
  near = scaling.compare(baseline, entry, extrapolate=4 * COMPUTE[-1], draws=50)
  far = scaling.compare(baseline, entry, extrapolate=40 * COMPUTE[-1], draws=50)
  assert near.extrapolated.at == 4 * COMPUTE[-1] and not near.extrapolated.note
  assert '40 times the largest size' in far.extrapolated.note
  assert far.extrapolated.high - far.extrapolated.low > near.headline.high - near.headline.low
  assert near.headline.at == COMPUTE[-1] and not near.headline.note


def test_the_verdict_says_saves_costs_or_neither():
  rng = np.random.default_rng(0)
  for saved, said in ((1.6, 'saves compute'), (0.6, 'costs compute'), (1.0, 'is not told from the baseline')):
    found = scaling.compare(*sizes(rng, saved=saved), draws=200)
    assert found.verdict.startswith(f'The entry {said} at the largest size: '), found.verdict


@settings(max_examples=10, deadline=None)
@given(st.floats(1e-6, 1e6))
def test_the_unit_of_compute_does_not_matter(unit):
  baseline, entry = sizes(np.random.default_rng(1), saved=1.4)
  there = scaling.compare(baseline, entry, draws=20)
  here = scaling.compare(
    *([scaling.Size(unit * size.compute, size.losses) for size in arm] for arm in (baseline, entry)), draws=20
  )
  assert [fit.model for fit in there.fits] == [fit.model for fit in here.fits]
  assert here.headline.value == pytest.approx(there.headline.value, rel=1e-3)
  assert here.headline.low == pytest.approx(there.headline.low, rel=1e-3)


def test_who_is_the_baseline_turns_the_multiplier_around():
  baseline, entry = sizes(np.random.default_rng(2), saved=1.5)
  there, back = (scaling.compare(*arms, draws=200) for arms in ((baseline, entry), (entry, baseline)))
  assert there.fits[0].model == back.fits[0].model == 'shifted constant'
  assert there.headline.value == pytest.approx(1 / back.headline.value, rel=0.02)


@pytest.mark.parametrize(
  'change, said',
  [
    (lambda arm: arm[:3], '3 different sizes of the entry in 3 rows; a scaling fit takes at least 4'),
    (lambda arm: [*arm[:3], arm[2]], '3 different sizes of the entry in 4 rows'),
    (lambda arm: [*arm[:3], scaling.Size(1e17, (1.0, 1.1))], '2 seeds of the entry at 1e[+]17; train at least 3'),
    (lambda arm: [*arm[:3], scaling.Size(1e17, (1.0, 1.1, math.nan))], 'entry loss at 1e[+]17 is nan'),
    (lambda arm: [*arm[:3], scaling.Size(1e17, (1.0, 1.1, -1.0))], 'is -1.0; give numbers above 0'),
    (lambda arm: [*arm[:3], scaling.Size(0.0, (1.0, 1.1, 1.2))], 'entry compute is 0.0'),
  ],
)
def test_sizes_that_cannot_be_fitted_are_refused(change, said):
  baseline, entry = sizes(np.random.default_rng(0))
  with pytest.raises(ValueError, match=said):
    scaling.compare(baseline, change(entry))
  with pytest.raises(ValueError, match='name a compute above 0'):
    scaling.compare(baseline, entry, extrapolate=-1.0)


BUDGETS = (0.5, 1.0, 2.0, 4.0)


def at_budgets(rng, saved, *, seeds=6, noise=0.004, luck=0.01):
  """Returns the losses of a baseline at BUDGETS times 1e16 and of a candidate at 1e16."""
  shared = rng.normal(0.0, luck, seeds)
  losses = [law(1e16 * budget) + shared + rng.normal(0.0, noise, seeds) for budget in BUDGETS]
  return losses, law(1e16, saved) + shared + rng.normal(0.0, noise, seeds)


def test_a_multiplier_between_budgets_is_interpolated_and_covers():
  rng = np.random.default_rng(0)
  made = [scaling.compute_multiplier(BUDGETS, *at_budgets(rng, 1.4), seed=seed, draws=400) for seed in range(60)]
  assert np.median([each.value for each in made]) == pytest.approx(1.4, rel=0.03)
  assert np.mean([each.low <= 1.4 <= each.high for each in made]) >= 0.88
  assert not any(each.bound for each in made)


def test_a_candidate_without_lead_is_seldom_shown_to_save():
  rng = np.random.default_rng(1)
  made = [scaling.compute_multiplier(BUDGETS, *at_budgets(rng, 1.0), seed=seed, draws=400) for seed in range(60)]
  assert np.mean([each.shown for each in made]) <= 0.07
  assert np.mean([each.low <= 1.0 <= each.high for each in made]) >= 0.88


def test_a_copy_of_the_baseline_saves_nothing_whatever_the_shape_of_its_curve():
  # Short trainings fall faster and faster at first, which no power law does.
  rng, shapes = np.random.default_rng(2), ((4.9, 4.7, 4.1), (5.0, 4.2, 4.19), (3.0, 2.0, 1.0))
  for shape in shapes:
    luck = rng.normal(0.0, 0.02, (40, 8))
    found = [
      scaling.compute_multiplier(
        (0.5, 1.0, 2.0),
        [loss + mine + rng.normal(0.0, 0.03, 8) for loss in shape],
        shape[1] + mine + rng.normal(0.0, 0.03, 8),
        seed=number,
        draws=400,
      )
      for number, mine in enumerate(luck)
    ]
    assert np.mean([one.low <= 1.0 <= one.high for one in found]) >= 0.85, shape


@pytest.mark.parametrize('saved, bound, end', [(20.0, '>=', 4.0), (0.1, '<=', 0.5)])
def test_beyond_the_budgets_a_bound_is_given(saved, bound, end):
  found = scaling.compute_multiplier(BUDGETS, *at_budgets(np.random.default_rng(0), saved))
  assert (found.bound, found.value) == (bound, end)
  assert (found.high_open, found.low_open) == (saved > 1, saved < 1)
  assert str(found).startswith(f'{bound} {end:g}x')
  below_floor = scaling.compute_multiplier(BUDGETS, at_budgets(np.random.default_rng(0), 1.0)[0], [0.5] * 6)
  assert below_floor.bound == '>=' and below_floor.low == below_floor.high == 4.0


def test_budgets_may_be_in_any_unit_and_order():
  losses, candidate = at_budgets(np.random.default_rng(0), 1.4)
  there = scaling.compute_multiplier(BUDGETS, losses, candidate)
  here = scaling.compute_multiplier([1e16 * b for b in BUDGETS[::-1]], losses[::-1], candidate, at=1e16)
  assert (here.value, here.low, here.high) == pytest.approx((there.value, there.low, there.high), rel=1e-3)


def test_a_baseline_that_does_not_learn_has_no_multiplier():
  found = scaling.compute_multiplier(BUDGETS, [[1.5, 1.6], [1.6, 1.7], [1.7, 1.8], [1.8, 1.9]], [1.5, 1.4])
  assert math.isnan(found.value) and not found.shown
  assert str(found) == 'unknown: the loss of the baseline does not fall from budget 0.5 to 4'


@pytest.mark.parametrize(
  'arguments, said',
  [
    (((1.0, 2.0), [[1.0, 1.1]] * 2, [1.0, 1.1]), 'give one each for 3 or more'),
    (((1.0, 2.0, 2.0), [[1.0, 1.1]] * 3, [1.0, 1.1]), 'give one each for 3 or more'),
    (((1.0, 2.0, 4.0), [[1.0, 1.1]] * 2, [1.0, 1.1]), '2 lists of losses'),
    (((1.0, 2.0, 4.0), [[1.0, 1.1]] * 3, [1.0]), '1 seed at one budget says nothing of noise'),
    (((1.0, 2.0, 4.0), [[1.0, 1.1]] * 3, [1.0, math.nan]), 'candidate loss is nan'),
    (((0.0, 2.0, 4.0), [[1.0, 1.1]] * 3, [1.0, 1.1]), 'budget is 0.0'),
  ],
)
def test_budgets_that_cannot_be_read_are_refused(arguments, said):
  with pytest.raises(ValueError, match=said):
    scaling.compute_multiplier(*arguments)
