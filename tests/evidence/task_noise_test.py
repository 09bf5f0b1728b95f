"""How much of the task term is noise: simulated archives whose share is known, and the numbers of the original."""

import math

import numpy as np
import pytest

from asiarch_jax import config
from asiarch_jax.evidence import task_noise
from asiarch_jax.records import TaskScore
from asiarch_jax.search import fitness
from asiarch_jax.tasks import summary

RULE = config.FitnessRule()
# Accuracies of the baseline in the released code of arXiv 2507.18074, twelve tasks.
PAPER = (0.168, 0.324, 0.364, 0.000, 0.296, 0.002, 0.136, 0.526, 0.354, 0.002, 0.008, 0.504)


def scores(values, n=500):
  return tuple(TaskScore(f't{i}', v, math.sqrt(v * (1 - v) / n), n) for i, v in enumerate(values))


def test_500_items_of_the_papers_tasks_move_the_term_from_a_half_to_78_hundredths():
  base = task_noise.mean_accuracy(scores(PAPER))
  assert base.value == pytest.approx(0.2237, abs=1e-4) and base.tasks == 12
  assert base.stderr == pytest.approx(0.0048, abs=1e-4)
  assert task_noise.moved(base.stderr, base.value, RULE) == pytest.approx(0.78, abs=0.01)
  assert task_noise.moved(0.0, base.value, RULE) == 0.5


@pytest.mark.parametrize('stderr, base', [(0.003, 0.2), (0.05, 0.31), (0.0, 0.4), (0.5, 0.1)])
def test_what_one_error_moves_is_the_term_of_the_fitness(stderr, base):
  assert task_noise.moved(stderr, base, RULE) == pytest.approx(fitness.tasks_term(base + stderr, base, RULE))
  assert task_noise.moved(stderr, base, RULE, -1.0) == pytest.approx(fitness.tasks_term(base - stderr, base, RULE))


def archive(count, spread, seed=0, n=500, tasks=12):
  """Candidates whose true accuracies differ by `spread`, measured on n items a task."""
  rng = np.random.default_rng(seed)
  true = np.clip(0.3 + rng.normal(0, spread, (count, 1)) + rng.uniform(-0.1, 0.1, tasks), 0.01, 0.99)
  return [scores(row, n) for row in rng.binomial(n, true) / n]


@pytest.mark.parametrize('spread', [0.0, 0.004, 0.02])
def test_the_share_of_noise_is_the_one_that_was_put_in(spread):
  candidates = archive(2000, spread)
  found = task_noise.task_noise(candidates, candidates[0], RULE)
  noise = np.mean([sum(s.stderr**2 for s in c) / 144 for c in candidates])
  assert found.share == pytest.approx(min(1.0, noise / (noise + spread**2)), rel=0.12)
  assert found.low <= found.share <= found.high <= 1.0 and found.candidates == 2000


def test_the_interval_holds_the_share_as_often_as_it_says():
  spread, held = 0.006, 0
  for seed in range(200):
    candidates = archive(12, spread, seed=seed)
    found = task_noise.task_noise(candidates, candidates[0], RULE)
    noise = np.mean([sum(s.stderr**2 for s in c) / 144 for c in candidates])
    held += found.low <= noise / (noise + spread**2) <= found.high
  assert 180 <= held <= 199


def test_candidates_that_miss_a_task_are_left_out_and_too_few_say_nothing():
  base = scores((0.3, 0.4))
  whole, short, broken = scores((0.31, 0.42)), scores((0.9,)), scores((0.3, 0.5))
  broken = (broken[0], TaskScore('t1', math.nan, 0.1, 5))
  assert task_noise.task_noise([whole, short, broken], base, RULE) is None
  assert task_noise.task_noise([whole, whole, short], base, RULE).candidates == 2
  assert task_noise.task_noise([whole, whole], (), RULE) is None
  bits = TaskScore('bits_per_byte', 2.0, 0.1, 9, 'bits_per_byte')
  assert task_noise.mean_accuracy((*base, bits)) == task_noise.mean_accuracy(base)


def test_equal_candidates_are_all_noise_and_sure_ones_none():
  base = scores((0.3, 0.4))
  assert task_noise.task_noise([base, base, base], base, RULE).share == 1.0
  sure = [(TaskScore('t0', v, 0.0, 500), TaskScore('t1', v, 0.0, 500)) for v in (0.2, 0.3)]
  assert task_noise.task_noise(sure, base, RULE).share == 0.0
  assert task_noise.task_noise(sure[:1] * 3, base, RULE) is None


def test_the_jackknife_of_a_mean_is_its_standard_error():
  items = np.random.default_rng(0).normal(size=300).tolist()
  assert task_noise.jackknife(np.mean, items) == pytest.approx(np.std(items, ddof=1) / math.sqrt(300))


def test_the_jackknife_of_a_ratio_and_a_perplexity_is_the_linearised_one():
  rng = np.random.default_rng(1)
  counts = rng.integers(20, 60, 400)
  sums = -counts * rng.normal(2.0, 0.3, 400)
  pairs = list(zip(sums.tolist(), counts.tolist(), strict=True))

  def ratio(items):
    return sum(s for s, _ in items) / sum(c for _, c in items)

  value, stderr, _ = summary.summarise(sums, counts)
  assert task_noise.jackknife(ratio, pairs) == pytest.approx(stderr, rel=0.01)
  perplexity = math.exp(-value)
  assert task_noise.jackknife(lambda items: math.exp(-ratio(items)), pairs) == pytest.approx(
    perplexity * stderr, rel=0.02
  )


def test_many_items_are_left_out_in_parts():
  items = np.random.default_rng(2).normal(size=5003).tolist()
  expected = np.std(items, ddof=1) / math.sqrt(5003)
  assert task_noise.jackknife(np.mean, items, groups=100) == pytest.approx(expected, rel=0.25)
  assert math.isnan(task_noise.jackknife(np.mean, [1.0])) and math.isnan(task_noise.jackknife(np.mean, []))
