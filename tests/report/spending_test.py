import dataclasses

import pytest

from asiarch_jax import dialogue, records
from asiarch_jax.report import series, spending
from tests import samples


def test_calls_are_added_up_by_role_and_other_events_are_none():
  events = [
    samples.call('judge', tokens=10, dollars=0.5, seconds=2.0, fault='truncated'),
    samples.call('judge', tokens=20, dollars=0.25, seconds=1.0, model='other'),
    samples.call('analyst', tokens=100, dollars=1.0, seconds=3.0, fault='blocked'),
    {'event': 'measured', 'role': 'judge', 'tokens': 1_000_000},
  ]
  analyst, judge = spending.roles(events)
  assert analyst.name == 'analyst' and analyst.spend == records.Spend(1, 100, 1.0, 3.0)
  assert judge.spend == records.Spend(2, 30, 0.75, 3.0) and judge.models == ('gemini-x-001', 'other')
  assert judge.faults == {'truncated': 1}
  whole = spending.whole([analyst, judge])
  assert whole.spend == records.Spend(3, 130, 1.75, 6.0) and whole.faults == {'truncated': 1, 'blocked': 1}


def test_retries_are_the_attempts_that_were_not_the_first():
  (role,) = spending.roles([samples.call(attempts=3), samples.call(), samples.call(attempts=0)])
  assert role.attempts == 5 and role.retried == pytest.approx(2 / 5)
  (role,) = spending.roles([samples.call()])
  assert role.retried == 0
  assert spending.whole([]).retried == 0


@pytest.mark.parametrize('seed', range(3))
def test_kinds_divide_the_spend_and_the_journal_agrees_with_the_archive(seed):
  outcomes = samples.model_archive(30, seed)
  baselines, candidates, better, rejected, everything = spending.kinds(outcomes)
  assert everything.number == len(outcomes) == baselines.number + candidates.number + rejected.number
  parts = dialogue.total(kind.spend for kind in (baselines, candidates, rejected))
  assert dataclasses.astuple(everything.spend) == pytest.approx(dataclasses.astuple(parts))
  assert better.number == sum(map(series.is_better, outcomes)) - sum(map(series.is_better, samples.baselines()))
  assert better.spend.tokens <= candidates.spend.tokens
  assert spending.whole(spending.roles(samples.model_journal(outcomes))).spend.calls == everything.spend.calls


def test_screening_counts_choices_repeats_and_repairs():
  sampled = {'event': 'sampled', 'cycle': 3, 'chosen': 'a', 'samples': [{'name': 'a'}, {'name': 'b'}]}
  repeated = {'event': 'repeated', 'cycle': 3, 'name': 'c', 'reason': 'computes the same function as entry 1'}
  repaired = {'event': 'repaired', 'cycle': 3, 'name': 'a', 'reason': 'output at token 3 depends on token 9'}
  events = [sampled, repeated, sampled, repaired, samples.call()]
  assert spending.screening(events) == spending.Screening(cycles=2, proposals=4, repeated=1, repaired=1)
  assert spending.screening([]) == spending.Screening(0, 0, 0, 0)


def test_a_share_is_in_tokens_where_no_price_is_known():
  assert spending.amount(records.Spend(4, 1_000, 2.0, 1.0), 4) == '$0.500'
  assert spending.amount(records.Spend(4, 1_000, 0.0, 1.0), 4) == '250 tokens'
  assert spending.spent(records.Spend()) == ''
  assert '$' not in spending.spent(records.Spend(1, 10, 0.0, 1.0))
