"""The composite fitness: published reference values, and what happens when a measurement is missing."""

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asiarch_jax import config
from asiarch_jax.records import TaskScore
from asiarch_jax.search import fitness
from tests import samples

RULE = config.FitnessRule()
finite = st.floats(0.1, 20.0)


@pytest.mark.parametrize(
  'loss, term', [(4.5787, 0.488), (4.5678, 0.524), (4.3772, 0.931), (4.36, 0.944), (4.1175, 0.9975), (4.575, 0.5)]
)
def test_loss_term_gives_the_published_values(loss, term):
  assert fitness.loss_term(loss, 4.575, RULE) == pytest.approx(term, abs=6e-4)


@pytest.mark.parametrize('tasks, term', [(0.2237, 0.480), (0.2262, 0.643), (0.2285, 0.770), (0.2409, 0.989)])
def test_tasks_term_gives_the_published_values(tasks, term):
  assert fitness.tasks_term(tasks, 0.224, RULE) == pytest.approx(term, abs=6e-4)


def test_judge_term_gives_the_published_value_of_the_root():
  # The root's stored composite is a sum of three terms; two are computable, the third says that the judge gave 7.05.
  terms = fitness.loss_term(4.5787, 4.575, RULE) + fitness.tasks_term(0.2237, 0.224, RULE) + fitness.judge_term(7.05)
  assert terms == pytest.approx(1.6395, abs=2e-3)


def test_squash_ends_where_the_paper_clips():
  assert fitness.squash(-9.0, 6.0) == pytest.approx(0.0025, abs=5e-5)
  assert fitness.squash(math.inf, 6.0) == pytest.approx(0.9975, abs=5e-5)


@given(loss=finite, base=finite, scale=st.floats(0.01, 100.0))
def test_the_unit_of_the_loss_does_not_matter(loss, base, scale):
  assert fitness.loss_term(scale * loss, scale * base, RULE) == pytest.approx(fitness.loss_term(loss, base, RULE))


@given(better=finite, worse=finite, base=finite)
def test_a_lower_loss_is_never_worse(better, worse, base):
  better, worse = sorted((better, worse))
  assert fitness.loss_term(better, base, RULE) >= fitness.loss_term(worse, base, RULE)


@pytest.mark.parametrize('loss, base', [(math.nan, 2.0), (2.0, math.nan)])
def test_a_nan_is_refused_instead_of_clipped_to_the_best(loss, base):
  with pytest.raises(ValueError, match='nan'):
    fitness.loss_term(loss, base, RULE)
  with pytest.raises(ValueError, match='nan'):
    fitness.tasks_term(loss, base, RULE)
  with pytest.raises(ValueError, match='nan'):
    fitness.squash(math.nan, 6.0)


@pytest.mark.parametrize('mark', [0.99, 10.01, math.nan])
def test_a_mark_outside_the_scale_is_refused(mark):
  with pytest.raises(ValueError, match='1 to 10'):
    fitness.judge_term(mark)


def test_tasks_against_a_baseline_that_solves_nothing():
  assert fitness.tasks_term(0.0, 0.0, RULE) == 0.5
  assert fitness.tasks_term(0.1, 0.0, RULE) == pytest.approx(0.9975, abs=5e-5)


def test_the_baseline_against_itself_stands_in_the_middle():
  base = samples.baseline(judged=False, fitted=False)
  assert fitness.composite(base, base, RULE) == fitness.Fitness(loss=0.5, tasks=0.5, judge=None, total=0.5)


def test_fitness_is_the_mean_of_its_terms():
  made = fitness.composite(samples.entry(5, 0.05), samples.baseline(), RULE)
  assert made.total == pytest.approx((made.loss + made.tasks + made.judge) / 3)
  assert all(0.0 <= term <= 1.0 for term in (made.loss, made.tasks, made.judge))


@pytest.mark.parametrize('missing', ['tasks', 'judge'])
def test_a_missing_term_is_left_out_of_the_mean(missing):
  entry, base = samples.entry(5, 0.05), samples.baseline()
  whole = fitness.composite(entry, base, RULE)
  partial = dataclasses.replace(entry, **({'scores': ()} if missing == 'tasks' else {'judgement': None}))
  made = fitness.composite(partial, base, RULE)
  assert getattr(made, missing) is None
  rest = [
    term for name, term in (('loss', whole.loss), ('tasks', whole.tasks), ('judge', whole.judge)) if name != missing
  ]
  assert made.total == pytest.approx(sum(rest) / 2)


def test_without_any_term_there_is_no_fitness():
  entry = dataclasses.replace(samples.entry(5, judged=False), scores=())
  base = samples.baseline(diverged=(0, 1, 2, 3), fitted=False)
  with pytest.raises(ValueError, match=r'entry 5 \(gated_mean_5\) has no term'):
    fitness.composite(entry, base, RULE)


@pytest.mark.parametrize('diverged', [(0,), (0, 1, 2, 3)])
def test_a_replica_that_diverged_gives_the_worst_loss_term(diverged):
  lucky = samples.entry(5, 0.2, diverged=diverged)
  assert lucky.fitness.loss == pytest.approx(0.0025, abs=5e-5)
  assert lucky.fitness.total < samples.entry(5, 0.2).fitness.total


def test_a_nan_that_no_flag_announces_is_no_good_loss():
  trained = samples.training(5, 0.05)
  replicas = (dataclasses.replace(trained.replicas[0], test_bits=math.nan), *trained.replicas[1:])
  entry = dataclasses.replace(samples.entry(5, 0.05), training=dataclasses.replace(trained, replicas=replicas))
  assert fitness.composite(entry, samples.baseline(), RULE).loss == pytest.approx(0.0025, abs=5e-5)


def test_one_unmeasured_task_takes_the_whole_term_away():
  entry, base = samples.entry(5, 0.05), samples.baseline()
  failed = tuple(dataclasses.replace(s, value=math.nan) if s.task == 'mqar' else s for s in entry.scores)
  assert fitness.composite(dataclasses.replace(entry, scores=failed), base, RULE).tasks is None
  absent = tuple(score for score in entry.scores if score.task != 'mqar')
  assert fitness.composite(dataclasses.replace(entry, scores=absent), base, RULE).tasks is None


def test_only_accuracies_make_the_task_term():
  entry, base = samples.entry(5, 0.05), samples.baseline()
  more = (*entry.scores, TaskScore('wikitext', 9.0, 0.1, 10, 'bits_per_byte'))
  assert fitness.composite(dataclasses.replace(entry, scores=more), base, RULE) == entry.fitness


def test_only_replicas_at_the_chosen_rate_count():
  entry, base = samples.entry(5, 0.05), samples.baseline()
  other = samples.replica(5, 0, -1.0, learning_rate=1e-2)
  training = dataclasses.replace(entry.training, replicas=(other, *entry.training.replicas))
  assert fitness.composite(dataclasses.replace(entry, training=training), base, RULE) == entry.fitness
