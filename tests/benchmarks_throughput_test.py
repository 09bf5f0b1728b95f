"""The benchmark of cycles in flight runs, and what it predicts holds."""

import pytest

from tests.benchmarks import throughput

LOAD = throughput.Load(2, (120.0, 60.0, 240.0))


@pytest.mark.slow
def test_a_tiny_run_prints_its_table(capsys):
  throughput.main(['--scale=0.002', '--in_flight=1,3', '--cycles=6', '--judge_calls=1'])
  said, _, head, *rows = capsys.readouterr().out.splitlines()
  assert said.startswith('5 calls of 60 s in sequence and 2 jobs of 20 s a cycle, 2 places')
  assert said.endswith('17 cycles in flight needed') and 'measured' in head
  assert [row.split()[:2] for row in rows] == [['1', '6'], ['3', '6']]
  assert [len(row.split()) for row in rows] == [9, 9]


@pytest.mark.parametrize('in_flight', [1, 4, 12])
def test_few_cycles_in_flight_keep_places_as_busy_as_the_formula_says(in_flight):
  assert throughput.queue(LOAD, in_flight, 400).busy(2) == pytest.approx(LOAD.share(in_flight), rel=0.06)


def test_half_as_many_again_as_are_needed_keep_places_busy():
  """At the needed number itself cycles wait for one another."""
  many = LOAD.needed() * 3 // 2
  assert 0.9 < throughput.queue(LOAD, LOAD.needed(), 400).busy(2) < throughput.queue(LOAD, many, 400).busy(2)
  assert throughput.queue(LOAD, many, 400).busy(2) > 0.97
