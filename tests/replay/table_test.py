import dataclasses

import pytest

from asiarch_jax import records
from asiarch_jax.agents import genome as genomes
from asiarch_jax.evidence.placebo import is_placebo
from asiarch_jax.replay import table as tables
from asiarch_jax.shell import table_file
from tests.replay.tables import table


@pytest.fixture(scope='module')
def bench():
  return table(30, failing=(9,))


def test_a_table_survives_its_file(bench, tmp_path):
  size = table_file.write(tmp_path / 'some/table.json.xz', tables.as_json(bench))
  again = tables.of_json(table_file.read(tmp_path / 'some/table.json.xz'))
  assert again == bench
  assert size == (tmp_path / 'some/table.json.xz').stat().st_size
  assert [path.name for path in (tmp_path / 'some').iterdir()] == ['table.json.xz']


def test_words_marks_and_clocks_stay_behind(bench):
  entry = next(o for o in bench.lower if isinstance(o, records.Entry) and o.id > 1)
  full = dataclasses.replace(
    entry, proposal=dataclasses.replace(entry.proposal, motivation='long'), timing=records.Timing(9, 9, 9, 9),
    findings=(records.Finding('shapes', True, 'fine'),), fitness=records.Fitness(1, 1, 1, 1),
  )  # fmt: skip
  lower = tuple(full if outcome.id == entry.id else outcome for outcome in bench.lower)
  bare = tables.frozen(lower, bench.upper, bench.experiment, 'small', {}).lower[entry.id]
  assert bare.fitness is None and bare.findings == () and bare.proposal.motivation == ''
  assert bare.timing == records.Timing(accelerator_seconds=9)
  assert bare.proposal.source == entry.proposal.source and bare.training == entry.training


def test_what_can_be_drawn_are_neither_baselines_nor_copies(bench):
  copies = {o.id for o in bench.lower if is_placebo(o.id, bench.experiment)}
  assert copies
  assert {o.id for o in bench.candidates} == {o.id for o in bench.lower} - copies - {0, 1}
  assert copies <= {entry.id for entry in bench.measured}
  assert 9 in {o.id for o in bench.candidates} and 9 not in {entry.id for entry in bench.measured}


def test_worth_is_read_above_and_a_copy_or_a_failure_is_worth_nothing(bench):
  above = {entry.id: entry for entry in bench.upper}
  copy = next(id for id in bench.worth if is_placebo(id, bench.experiment))
  assert bench.worth[copy] == bench.worth[9] == bench.worth[0] == 0.0
  one = next(entry for entry in bench.measured if not is_placebo(entry.id, bench.experiment))
  ours, base = (above[id].training.chosen for id in (one.id, 0))
  assert bench.worth[one.id] == pytest.approx(
    sum(b.test_bits - o.test_bits for o, b in zip(ours, base[:3], strict=True)) / 3
  )


def test_distances_are_those_of_genomes(bench):
  a, b = (o for o in bench.candidates[:2])
  assert bench.apart(a.id, b.id) == bench.apart(b.id, a.id) == genomes.distance(a.proposal.genome, b.proposal.genome)
  assert bench.apart(0, a.id) == genomes.distance(genomes.GENOMES['delta_net'].to_json(), a.proposal.genome)
  assert bench.apart(a.id, a.id) == 0.0 and bench.apart(a.id, 10**6) == 1.0
  assert 0.0 < bench.step < 0.5


def test_without_a_baseline_or_a_common_design_there_is_no_table(bench):
  with pytest.raises(ValueError, match='the search has no measured baseline'):
    tables.frozen(bench.lower[1:], bench.upper, bench.experiment, 'small', {})
  with pytest.raises(ValueError, match='rung small has no measured baseline'):
    tables.frozen(bench.lower, (), bench.experiment, 'small', {})
  with pytest.raises(ValueError, match='asiarch verify'):
    tables.frozen(bench.lower, bench.upper[:2], bench.experiment, 'small', {})


@pytest.mark.parametrize(
  'damage, said',
  {
    'other': (lambda document: [1], 'no table of a replay bench'),
    'schema': (lambda document: {**document, 'schema': 9}, 'asiarch tabulate'),
    'row': (lambda document: {**document, 'lower': [{'outcome': 'Entry', 'id': 0}]}, 'Entry'),
    'setting': (lambda document: {**document, 'experiment': {'modle': {}}}, 'did you mean config.model'),
  }.values(),
)
def test_a_damaged_table_says_where(bench, damage, said):
  with pytest.raises(ValueError, match=said):
    tables.of_json(damage(tables.as_json(bench)))


def test_files_that_are_none(tmp_path, monkeypatch):
  (tmp_path / 'text').write_text('{}')
  with pytest.raises(ValueError, match=r'text is no table \(\*\.json\.xz of asiarch tabulate\)'):
    table_file.read(tmp_path / 'text')
  table_file.write(tmp_path / 'a.json.xz', {'a': list(range(1000))})
  whole = (tmp_path / 'a.json.xz').read_bytes()
  (tmp_path / 'cut.json.xz').write_bytes(whole[:-20])
  with pytest.raises(ValueError, match=r'cut\.json\.xz is no table'):
    table_file.read(tmp_path / 'cut.json.xz')
  monkeypatch.setattr(table_file, 'LARGEST', 1000)
  with pytest.raises(ValueError, match='once unpacked'):
    table_file.read(tmp_path / 'a.json.xz')
  with pytest.raises(OSError, match='nowhere'):
    table_file.read(tmp_path / 'nowhere')


def test_a_write_that_fails_leaves_nothing(tmp_path):
  with pytest.raises(TypeError):
    table_file.write(tmp_path / 'a.json.xz', {'a': object()})
  assert not list(tmp_path.iterdir())
