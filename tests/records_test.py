"""Records survive JSON, and a job's name is its content."""

import dataclasses
import json
import math

import pytest

from asiarch_jax import records
from asiarch_jax.records import Entry, Job, Limits, Outcome, Rejection, from_json, to_json

PROPOSAL = records.Proposal('gated', 'why', 'class Mixer: ...', 0, (1, 2), 'evolution', 'mutate', {'taps': 3})
REPLICA = records.Replica(0, 1e-3, 10, (3.0, math.nan), 2.5, math.inf, True)
ENTRY = Entry(
  id=3,
  proposal=PROPOSAL,
  role='candidate',
  findings=(records.Finding('causality', True, 'holds at 4 lengths', 0.5),),
  fingerprint='abc',
  cost=records.Cost(1000, 2000.0, 64, 1.0),
  training=records.TrainSummary((REPLICA,), 1000, 5000, 192, 1e4, 128, 10, 1e-3),
  scores=(records.TaskScore('mqar', 0.5, 0.1, 64),),
  job_key='k',
  fitness=records.Fitness(0.5, None, 0.4, 0.45),
  evidence=records.Evidence(0.01, -0.01, 0.03, 0.8, 4),
  analysis=records.Analysis('d', 'r', 'e', 'x', 's', ('helps: taps',)),
)
REJECTION = Rejection(4, 'checks', 'causality: leaks', PROPOSAL, ENTRY.findings)


@pytest.mark.parametrize('outcome', [ENTRY, REJECTION])
def test_an_outcome_survives_json(outcome):
  text = json.dumps(to_json(outcome), allow_nan=False)
  back = from_json(Outcome, json.loads(text))
  assert type(back) is type(outcome)
  assert json.dumps(to_json(back)) == text


def test_numbers_that_json_cannot_say_travel():
  back = from_json(records.Replica, json.loads(json.dumps(to_json(REPLICA), allow_nan=False)))
  assert math.isnan(back.losses[1]) and math.isinf(back.test_bits)


def test_unknown_missing_and_wrong_fields_are_named():
  with pytest.raises(ValueError, match=r"Finding has no field 'colour'"):
    from_json(records.Finding, {'check': 'a', 'passed': True, 'detail': '', 'colour': 1})
  with pytest.raises(ValueError, match='detail'):
    from_json(records.Finding, {'check': 'a', 'passed': True})
  with pytest.raises(ValueError, match=r'Finding\.passed'):
    from_json(records.Finding, {'check': 'a', 'passed': 'yes', 'detail': ''})
  with pytest.raises(ValueError, match='outcome'):
    from_json(Outcome, {'outcome': 'Elephant'})


JOB = Job('a', 'source', {'seed': 0})


@pytest.mark.parametrize(
  'change',
  [
    {'source': 'other'},
    {'experiment': {'seed': 1}},
    {'kind': 'check'},
    {'corpus': 'c'},
    {'waived': ('growth',)},
    {'parameters': 7},
    {'baseline_losses': (1.0,)},
    {'split': 'vault'},
    {'flops': 1e6},
    {'topology': 'v5e:4x4'},
  ],
)
def test_what_decides_a_result_changes_the_key(change):
  assert dataclasses.replace(JOB, **change).key != JOB.key


@pytest.mark.parametrize('change', [{'name': 'b'}, {'known': {'f': 1}}, {'limits': Limits(1.0, 2.0)}])
def test_what_never_changes_a_result_leaves_the_key(change):
  assert dataclasses.replace(JOB, **change).key == JOB.key


def test_every_field_of_a_job_is_in_one_of_the_two_lists_above():
  assert {field.name for field in dataclasses.fields(Job)} == {
    'name', 'source', 'experiment', 'kind', 'corpus', 'waived', 'parameters', 'baseline_losses', 'known', 'limits',
    'split', 'flops', 'suite', 'topology',
  }  # fmt: skip


def test_without_timing_keeps_all_but_clocks():
  slow = dataclasses.replace(
    ENTRY,
    timing=records.Timing(9.0, 8.0, 7.0, 6.0),
    training=dataclasses.replace(ENTRY.training, seconds_per_step=5.0, peak_bytes=1),
  )
  assert to_json(records.without_timing(slow)) == to_json(records.without_timing(ENTRY))
  other = dataclasses.replace(ENTRY, fingerprint='other')
  assert to_json(records.without_timing(other)) != to_json(records.without_timing(ENTRY))


def test_chosen_replicas_are_those_of_the_chosen_rate_by_seed():
  replicas = tuple(dataclasses.replace(REPLICA, seed=s, learning_rate=r) for s in (1, 0) for r in (1e-3, 2e-3))
  chosen = dataclasses.replace(ENTRY.training, replicas=replicas).chosen
  assert [(r.seed, r.learning_rate) for r in chosen] == [(0, 1e-3), (1, 1e-3)]
