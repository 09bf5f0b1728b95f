"""The measured judge: marks follow the rubric, rise with what is good, and are recomputed."""

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asiarch_jax import config
from asiarch_jax.agents import judge
from asiarch_jax.records import Cost
from tests import samples

WEIGHTS = config.Judge()
START = {'a': 0, 'b': 0, 'c': 0, 'd': 0}
BASES = samples.baselines()
BASE_COST = BASES[0].cost


def apart(a, b):
  return sum(a[key] != b[key] for key in START) / len(START)


def measured(**changes):
  return judge.MeasuredJudge(WEIGHTS, **{'distance': apart, 'genomes': {'delta_net': START}, **changes})


@pytest.mark.parametrize(
  'fall, low, high',
  [
    (-0.2, 1, 2.5),
    (-0.06, 1, 2.5),
    (-0.03, 2.5, 4.5),
    (-0.009, 4.5, 5.5),
    (0.0, 5, 5),
    (0.009, 4.5, 5.5),
    (0.02, 5.5, 6.5),
    (0.05, 6.5, 7.5),
    (0.10, 7.5, 8.5),
    (0.20, 8.5, 9.5),
    (0.26, 9.5, 10),
    (0.9, 10, 10),
  ],
)
def test_performance_lies_in_the_band_of_the_rubric(fall, low, high):
  assert low <= judge.performance_mark(fall) <= high


@given(st.floats(-1.0, 1.0), st.floats(-1.0, 1.0))
def test_performance_rises_with_the_improvement(first, second):
  low, high = sorted((first, second))
  assert 1.0 <= judge.performance_mark(low) <= judge.performance_mark(high) <= 10.0


@given(
  st.sampled_from(['mixer_parameters', 'flops_per_token', 'state_bytes', 'growth']),
  st.floats(0.05, 20.0),
  st.floats(0.05, 20.0),
)
def test_complexity_falls_with_every_cost(kind, first, second):
  cheap, dear = sorted((first, second))

  def mark(factor):
    value = getattr(BASE_COST, kind) * factor
    return judge.complexity_mark(dataclasses.replace(BASE_COST, **{kind: value}), BASE_COST)[0]

  assert 10.0 >= mark(cheap) >= mark(dear) >= 1.0


def test_the_cost_of_the_baseline_stands_at_the_anchor():
  assert judge.complexity_mark(BASE_COST, BASE_COST)[0] == 5.0
  halved = Cost(BASE_COST.mixer_parameters // 2, BASE_COST.flops_per_token / 2, BASE_COST.state_bytes // 2, 1.0)
  assert judge.complexity_mark(halved, BASE_COST)[0] == pytest.approx(7.5)


def test_quadratic_cost_gets_one_of_the_first_three_marks():
  tiny = Cost(1, 1.0, 1, 2.0)
  assert judge.complexity_mark(tiny, BASE_COST)[0] <= 3.0
  assert judge.complexity_mark(dataclasses.replace(tiny, growth=1.0), BASE_COST)[0] == 10.0


def test_a_mixer_without_state_is_cheap_and_not_infinitely_so():
  stateless = dataclasses.replace(BASE_COST, state_bytes=0)
  assert 5.0 < judge.complexity_mark(stateless, BASE_COST)[0] < 10.0
  mark, told = judge.complexity_mark(BASE_COST, stateless)
  assert 1.0 < mark < 5.0
  assert 'against no state' in told
  assert judge.complexity_mark(stateless, stateless)[0] == 5.0


def test_the_score_is_recomputed_from_the_parts():
  made = measured()(samples.entry(5, 0.05, genome={**START, 'a': 1}), BASES)
  expected = 0.30 * made.performance + 0.25 * made.innovation + 0.45 * made.complexity
  assert made.score == pytest.approx(expected)
  assert 1.0 <= made.score <= 10.0
  other = dataclasses.replace(measured(), weights=config.Judge(1.0, 0.0, 0.0))
  assert other(samples.entry(5, 0.05), BASES).score == pytest.approx(made.performance)


def test_weights_that_weigh_nothing_are_refused():
  with pytest.raises(ValueError, match='weights'):
    judge.judged(config.Judge(0.0, 0.0, 0.0), 5.0, 5.0, 5.0, '')


def test_innovation_rises_with_the_distance_to_the_nearest():
  marks = [
    measured()(samples.entry(5, genome={**START, **dict.fromkeys('abcd'[:changed], 1)}), BASES).innovation
    for changed in range(5)
  ]
  assert marks == sorted(marks)
  assert marks[0] == 1.0
  near = samples.entry(4, genome={**START, 'a': 1, 'b': 1, 'c': 1})
  assert measured()(samples.entry(5, genome={**START, 'a': 1, 'b': 1}), (*BASES, near)).innovation < marks[2] + 1e-9


def test_only_what_came_before_takes_novelty_away():
  entry = samples.entry(5, genome={**START, 'a': 1, 'b': 1})
  later = samples.entry(6, genome=entry.proposal.genome)
  assert measured()(entry, (*BASES, entry, later)) == measured()(entry, BASES)


def test_the_same_function_is_no_innovation_whatever_its_genome():
  twin = samples.entry(4, genome={**START, 'a': 1})
  entry = dataclasses.replace(samples.entry(5, genome=dict.fromkeys(START, 1)), fingerprint=twin.fingerprint)
  made = measured()(entry, (*BASES, twin))
  assert made.innovation == 1.0
  assert 'same function as entry 4' in made.reason


def test_without_a_genome_the_source_is_compared():
  renamed = samples.SOURCE.replace('gate_BTD', 'opening').replace('A causal average', 'Something else, says the text,')
  rewritten = samples.SOURCE.replace(
    'jnp.cumsum(x_BTD, axis=1) / seen_T[:, None]', 'x_BTD - jnp.roll(x_BTD, 1, axis=1)'
  )
  marks = [
    measured()(samples.entry(5, proposal_changes={'source': source}), BASES).innovation
    for source in (samples.SOURCE, renamed, rewritten, 'import math\n\nclass Mixer:\n  size = math.pi\n')
  ]
  assert marks[0] == marks[1] == 1.0
  assert 1.0 < marks[2] < marks[3] <= 10.0


def test_the_baseline_is_the_anchor_of_the_scale():
  made = measured()(dataclasses.replace(BASES[0], judgement=None), ())
  assert (made.performance, made.innovation, made.complexity) == (5.0, 5.0, 5.0)
  assert made.score == pytest.approx(5.0)


def test_it_gives_no_mark_without_something_to_measure_by():
  assert measured()(samples.entry(5), ()) is None
  assert measured(baseline='mamba2')(samples.entry(5), BASES) is None
  broken = samples.baseline(diverged=(0,), fitted=False)
  assert measured()(samples.entry(5), (broken,)) is None
  uncounted = samples.entry(5, cost={'growth': math.nan})
  assert measured()(uncounted, BASES) is None


def test_a_replica_that_diverged_gets_the_lowest_performance():
  made = measured()(samples.entry(5, 0.2, diverged=(2,)), BASES)
  assert made.performance == 1.0
  assert 'diverged' in made.reason


def test_the_reason_carries_the_numbers():
  reason = measured()(samples.entry(5, 0.05, flops_per_token=4.2e5, genome={**START, 'a': 1}), BASES).reason
  for word in ('bits per byte', '% below', '0.250 from the nearest, entry 0 (delta_net)', '2.00x FLOPs', 'T^1.00'):
    assert word in reason


def test_it_reads_the_genomes_of_the_offline_researcher():
  from asiarch_jax.agents import genome

  design = genome.canonical(dataclasses.replace(genome.Genome(), decay='head')).to_json()
  made = judge.MeasuredJudge(WEIGHTS)(samples.entry(5, 0.02, genome=design), BASES)
  assert 1.0 < made.innovation < 8.0
