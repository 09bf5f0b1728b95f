"""The posterior over candidates, by simulation: coverage, shrinkage, what noise is mistaken for."""

import dataclasses
import functools

import numpy as np
import pytest

from asiarch_jax.evidence import ladder, posterior, promotion
from asiarch_jax.evidence.noise import Noise
from tests import samples


def search(rng, candidates, pairs, *, zeros=0.0, spread=1.0, centre=0.0, noisier=1.0, few=None, halved=False):
  """Returns true improvements and observations; `noisier`: the standard deviation of the baseline over a candidate's.

  A difference has variance 1 where both are equally noisy. With `few`, every other candidate has that many pairs only;
  `halved`: the less promising half after so many, half of the others after twice as many, as on a rung.
  """
  truth_N = np.where(rng.random(candidates) < zeros, 0.0, centre + spread * rng.standard_normal(candidates))
  shared_S = np.sqrt(0.5) * noisier * rng.standard_normal(pairs)
  own_NS = np.sqrt(0.5) * rng.standard_normal((candidates, pairs))
  seen_NS = truth_N[:, None] + shared_S + own_NS

  def observed(counts):
    return [posterior.Observation(n, tuple(seen_NS[n, :count]), tuple(range(count))) for n, count in counts.items()]

  counts = {n: few if few and n % 2 else pairs for n in range(candidates)}
  if halved:
    counts = dict.fromkeys(range(candidates), few)
    while max(counts.values()) < pairs:
      most = max(counts.values())
      found = posterior.posteriors(observed(counts), noise=floor(rng, noisier, 9))
      on = ladder.promising([one for one in found if counts[one.id] == most])
      counts |= dict.fromkeys(on, 2 * most)
  return truth_N, observed(counts)


def floor(rng, noisier, replicas, luck=0.5):
  """Returns the floor of a baseline whose replicas also have what every design has from its seed, in standard
  deviations of a candidate's own."""
  if not replicas:
    return None
  bits = np.sqrt(0.5) * (noisier * rng.standard_normal(replicas) + luck * rng.standard_normal(replicas))
  return Noise(float(np.std(bits, ddof=1)), 0.0, 0.0, replicas - 1)


def covered(searches, floored=9, **kind):
  """Returns the shares of the intervals that hold the truth: of all (each search alike), of the true improvements that
  are zero, of the others."""
  rng = np.random.default_rng(0)
  shares, truths, holds = [], [], []
  for _ in range(searches):
    truth_N, observed = search(rng, **kind)
    found = posterior.posteriors(observed, noise=floor(rng, kind.get('noisier', 1.0), floored))
    hold_N = np.array([one.low <= true <= one.high for one, true in zip(found, truth_N, strict=True)])
    shares.append(hold_N.mean())
    truths.append(truth_N)
    holds.append(hold_N)
  truth_M, hold_M = np.concatenate(truths), np.concatenate(holds)
  zeros, others = (float(hold_M[rows].mean()) if rows.any() else np.nan for rows in (truth_M == 0, truth_M != 0))
  return float(np.mean(shares)), zeros, others


SEARCHES = {  # what a search may be like
  'all differ': {'candidates': 12, 'pairs': 3},
  'half change nothing': {'candidates': 12, 'pairs': 3, 'zeros': 0.5, 'centre': 0.5},
  'most change nothing': {'candidates': 30, 'pairs': 3, 'zeros': 0.8},
  'small differences': {'candidates': 12, 'pairs': 4, 'zeros': 0.3, 'spread': 0.5},
  'the baseline is twice as noisy': {'candidates': 12, 'pairs': 3, 'zeros': 0.3, 'noisier': 2.0},
  'the baseline is three times as noisy': {'candidates': 30, 'pairs': 4, 'zeros': 0.2, 'noisier': 3.0},
  'the baseline is half as noisy': {'candidates': 12, 'pairs': 3, 'zeros': 0.5, 'noisier': 0.5},
  'one pair each': {'candidates': 12, 'pairs': 1, 'zeros': 0.3},
  'half have fewer pairs': {'candidates': 12, 'pairs': 8, 'zeros': 0.3, 'noisier': 2.0, 'few': 2},
  'three hundred, most worse': {'candidates': 300, 'pairs': 3, 'centre': -1.0, 'spread': 0.5},
  'halved twice': {'candidates': 12, 'pairs': 8, 'zeros': 0.3, 'noisier': 2.0, 'few': 2, 'halved': True},
}


def test_intervals_cover():
  assert 0.88 <= covered(15, **SEARCHES['half change nothing'])[0] <= 0.99


@pytest.mark.slow
def test_intervals_of_thousands_cover_where_most_are_worse():
  """The heaviest grid points alone were those of one corner: the baseline's luck was known, and wrong (0.68)."""
  assert covered(6, candidates=4000, pairs=3, centre=-1.0, spread=0.5)[0] >= 0.88


def test_thinned_points_stand_for_all():
  weight_G = np.exp(-(np.linspace(-4, 4, 10_000) ** 2) / 2)
  weight_G /= weight_G.sum()
  at_G = np.linspace(-4, 4, 10_000)
  for most in (100, 20_000):
    kept, share_K = posterior._thinned(weight_G, most)
    assert len(kept) <= most and share_K.sum() == pytest.approx(1.0)
    assert share_K @ at_G[kept] == pytest.approx(0.0, abs=0.01) and share_K @ at_G[kept] ** 2 == pytest.approx(
      1.0, abs=0.02
    )


@functools.cache
def covered_by_a_thousand(name):
  return covered(1000, **SEARCHES[name])


@pytest.mark.sweep
@pytest.mark.timeout(3600)
@pytest.mark.parametrize('name', SEARCHES)
def test_intervals_cover_over_a_thousand_searches_of_each_kind(name):
  """An interval may hold zero for the sake of the share that is exactly zero, and then holds every one of these: where
  many are, the kind's share is above the level although the others' is not."""
  share, zeros, others = covered_by_a_thousand(name)
  print(f'{name}: {share:.3f} of the intervals hold the truth; of zero {zeros:.3f}, of others {others:.3f}')
  assert 0.93 <= share <= 0.985 and 0.9 <= others <= 0.97


@pytest.mark.sweep
@pytest.mark.timeout(7200)
def test_intervals_cover_over_all_kinds():
  share = np.mean([covered_by_a_thousand(name)[0] for name in SEARCHES])
  print(f'all kinds: {share:.3f} of the intervals hold the truth')
  assert 0.93 <= share <= 0.97


def test_a_baseline_noisier_than_the_candidates_widens_every_interval_and_its_own_floor_tells():
  """Seeds that move all candidates alike are the baseline's; three of them say little, nine replicas of it say more.

  That the intervals then cover is in the sweep.
  """
  _, observed = search(np.random.default_rng(2), 12, 3)
  widths = [
    float(np.mean([one.high - one.low for one in posterior.posteriors(observed, noise=noise)]))
    for noise in (Noise(0.5, 0.3, 1.0, 8), None, Noise(3.0, 2.0, 6.0, 8))
  ]
  assert widths[0] < widths[1] < widths[2] > 1.5 * widths[0]


def errors(searches, rate, **kind):
  """Returns the mean share of false promotions and the mean share of truly better candidates that are promoted."""
  rng = np.random.default_rng(1)
  false, power = [], []
  for _ in range(searches):
    truth_N, observed = search(rng, **kind)
    noise = floor(rng, kind.get('noisier', 1.0), 9)
    chosen = promotion.promoted(posterior.posteriors(observed, noise=noise), rate=rate)
    false.append(np.mean([truth_N[one.id] <= 0 for one in chosen]) if chosen else 0.0)
    better = np.sum(truth_N > 0)
    power.append(np.sum([truth_N[one.id] > 0 for one in chosen]) / better if better else np.nan)
  return float(np.mean(false)), float(np.nanmean(power)) if np.isfinite(power).any() else np.nan


def test_false_promotions_stay_within_the_rate():
  kind = {**SEARCHES['half change nothing'], 'centre': 0.0}
  assert errors(15, 0.1, **kind)[0] <= 0.1 < errors(15, 0.8, **kind)[0]


@pytest.mark.sweep
@pytest.mark.parametrize('name', [*SEARCHES, 'nothing is there'])
def test_false_promotions_stay_within_the_rate_over_five_hundred_searches(name):
  kind = SEARCHES.get(name, {'candidates': 20, 'pairs': 4, 'zeros': 1.0})
  false, power = errors(500, 0.1, **kind)
  print(f'{name}: {false:.3f} of the promoted are not better; {power:.2f} of the better are promoted')
  assert false <= 0.1


def test_the_best_of_many_copies_is_drawn_to_nothing():
  _, observed = search(np.random.default_rng(3), 60, 3, zeros=1.0)
  found = posterior.posteriors(observed)
  best = max(found, key=lambda one: one.measured)
  spread = [float(np.std([getattr(one, kind) for one in found])) for kind in ('mean', 'measured')]
  assert spread[0] < 0.35 * spread[1] and best.probability_better < 0.7 and best.low < 0.0 < best.high


def test_a_lucky_baseline_is_no_news_of_all_candidates():
  """Every candidate seems better by the same two standard errors: that is the baseline's luck, or all of them."""
  rng = np.random.default_rng(4)
  rows = 1.2 + 0.3 * rng.standard_normal((20, 3))
  found = posterior.posteriors([posterior.Observation(n, tuple(row), (0, 1, 2)) for n, row in enumerate(rows)])
  alone = posterior.posteriors([posterior.Observation(0, tuple(rows[0]), (0, 1, 2))])[0]
  assert all(one.high - one.low > 0.3 for one in found) and alone.high - alone.low > 0.3


def test_units_do_not_matter_and_order_does_not():
  _, observed = search(np.random.default_rng(5), 8, 3, spread=2.0)
  small = [posterior.Observation(o.id, tuple(1e-3 * d for d in o.differences), o.seeds) for o in observed]
  for one, other in zip(posterior.posteriors(observed), posterior.posteriors(small), strict=True):
    assert other.mean == pytest.approx(1e-3 * one.mean, rel=1e-6)
    assert other.probability_better == pytest.approx(one.probability_better, rel=1e-6)
  turned = {one.id: one for one in posterior.posteriors(observed[::-1])}
  assert all(turned[one.id].mean == pytest.approx(one.mean, rel=1e-6) for one in posterior.posteriors(observed))


def test_more_pairs_are_believed_more():
  few = posterior.Observation(0, (1.0, 1.4), (0, 1))
  many = posterior.Observation(1, tuple(np.tile((1.0, 1.4), 6)), tuple(range(12)))
  noise = [posterior.Observation(n, tuple(x), (0, 1)) for n, x in enumerate([(0.1, -0.4), (-0.3, 0.3), (0.2, 0.5)], 2)]
  found = posterior.posteriors([few, many, *noise])
  assert found[1].high - found[1].low < found[0].high - found[0].low


def test_one_pair_leans_on_the_floor_and_is_refused_without():
  lone = [posterior.Observation(0, (0.5,), (0,)), posterior.Observation(1, (0.1,), (0,))]
  found = posterior.posteriors(lone, noise=Noise(0.2, 0.1, 0.4, 7))
  assert found[0].mean > found[1].mean and found[0].low < 0
  with pytest.raises(ValueError, match='train at least two seeds'):
    posterior.posteriors(lone)
  assert posterior.posteriors([]) == ()


def test_an_archive_is_believed_as_a_whole_and_large_ones_are_quick_enough():
  outcomes = samples.archive(60)
  found = posterior.believed(outcomes, 'delta_net')
  measured = [o for o in outcomes if getattr(o, 'role', '') == 'candidate' and o.evidence]
  assert set(found) == {entry.id for entry in measured}
  assert posterior.believed(outcomes, 'nobody') == {} and posterior.believed((), 'delta_net') == {}
  _, many = search(np.random.default_rng(6), 600, 3, zeros=0.8)
  assert len(posterior.posteriors(many)) == 600


def test_seeds_that_miss_here_and_there_are_fitted_too():
  _, observed = search(np.random.default_rng(7), 10, 4)
  holes = [posterior.Observation(o.id, o.differences[: 2 + o.id % 3], o.seeds[: 2 + o.id % 3]) for o in observed]
  whole, part = posterior.posteriors(observed), posterior.posteriors(holes)
  assert np.corrcoef([p.mean for p in whole], [p.mean for p in part])[0, 1] > 0.7


def test_a_design_that_diverges_on_a_seed_is_believed_in_nothing():
  outcomes = list(samples.archive(30))
  place = next(n for n, o in enumerate(outcomes) if getattr(o, 'role', '') == 'candidate' and o.evidence)
  entry = outcomes[place]
  assert entry.id in posterior.believed(outcomes, 'delta_net')
  first, *others = entry.training.replicas
  broken = dataclasses.replace(entry.training, replicas=(dataclasses.replace(first, diverged=True), *others))
  outcomes[place] = dataclasses.replace(entry, training=broken)
  assert entry.id not in posterior.believed(outcomes, 'delta_net')


def test_what_all_seeds_show_of_a_few_is_taken_off_and_what_they_do_not_show_widens():
  """The baseline was lucky on seeds 0 and 1 by one: candidates with these alone seem worse by that."""
  rng = np.random.default_rng(8)
  luck_S = np.array([-1.0, -1.0, *np.zeros(6)])
  seen_NS = 0.2 + luck_S + 0.1 * rng.standard_normal((12, 8))
  whole = [posterior.Observation(n, tuple(row), tuple(range(8))) for n, row in enumerate(seen_NS[:10])]
  few = [posterior.Observation(n, tuple(row[:2]), (0, 1)) for n, row in enumerate(seen_NS[10:], 10)]
  # Nobody has all seeds: each of the ten misses one of the others.
  holes = [
    posterior.Observation(
      one.id, *(tuple(x for s, x in enumerate(xs) if s != 2 + one.id % 6) for xs in (one.differences, one.seeds))
    )
    for one in whole
  ]
  told, alone = posterior.posteriors([*whole, *few]), posterior.posteriors([*holes, *few])
  assert few[0].differences[0] < -0.5 and abs(told[10].mean - told[0].mean) < 0.15
  assert alone[10].high - alone[10].low > 1.5 * (told[10].high - told[10].low)
