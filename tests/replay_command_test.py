"""`asiarch tabulate` and `asiarch replay`, whole: a planted search becomes a file, and policies are compared on it."""

import json

import pytest

from asiarch_jax.replay import table as tables
from asiarch_jax.shell import runner as runners
from asiarch_jax.shell import table_file
from tests.cli import in_process as run
from tests.planted import planted
from tests.replay.tables import table

CONFIG = ('--config=configs/smoke.py', '--config.evidence.floor=4', '--config.training.seeds=2',
          '--config.rungs.small.training.seeds=2', '--config.rungs.small.share=1', '--config.rungs.small.rounds=1',
          '--config.rungs.small.false_discoveries=0.999', '--config.rungs.small.audit=0')  # fmt: skip


def effect(job):
  return 0.0 if job.name == 'delta_net' else 0.05 * (sum(job.name.encode()) % 4)


@pytest.fixture
def use(monkeypatch):
  kind = planted(effect=effect)
  monkeypatch.setattr(runners, 'LocalRunner', kind)
  return kind


@pytest.fixture(scope='module')
def file(tmp_path_factory):
  place = tmp_path_factory.mktemp('table') / 'planted.json.xz'
  table_file.write(place, tables.as_json(table(30)))
  return place


@pytest.mark.slow
def test_a_search_becomes_a_table_after_an_interruption(use, tmp_path, capsys):
  arguments = ('tabulate', *CONFIG, f'--workdir={tmp_path / "run"}', f'--out={tmp_path / "t.json.xz"}', '--cycles=9')
  use.interrupt_after = 13
  status, _, error = run(capsys, *arguments)
  assert status == 130 and 'asiarch tabulate' in error and not (tmp_path / 't.json.xz').exists()
  use.interrupt_after = None
  status, out, error = run(capsys, *arguments)
  assert status == 0, error
  assert 'designs on both rungs' in out and 'asiarch replay --table=' in out and 'leaderboard' not in out
  made = tables.of_json(table_file.read(tmp_path / 't.json.xz'))
  assert len(made.lower) == 9 and made.rung == 'small' and len(made.measured) >= 4 and 'jax' in made.made
  status, _, error = run(capsys, *arguments)
  assert status == 2 and 'is there already' in error
  status, out, error = run(
    capsys, 'replay', f'--table={tmp_path / "t.json.xz"}', '--replays=2', '--draws=3', '--designs=4', '--json'
  )
  assert status == 0, error
  page = json.loads(out)
  assert page['designs'] == len(made.measured) and {row['name'] for row in page['samplers']} >= {'search', 'random'}


def test_a_rung_is_frozen_as_it_was_climbed_also_where_the_search_began_with_another(use, tmp_path, capsys):
  arguments = (*CONFIG, f'--workdir={tmp_path / "run"}', '--cycles=6')
  assert run(capsys, 'search', *arguments)[0] == 0
  status, _, error = run(
    capsys, 'tabulate', *arguments, '--config.rungs.small.model.width=32', f'--out={tmp_path / "t.json.xz"}'
  )
  assert status == 0, error
  assert tables.of_json(table_file.read(tmp_path / 't.json.xz')).experiment.rungs['small'].model.width == 32


def test_a_name_that_is_no_table_is_refused_before_any_work(use, tmp_path, capsys):
  status, _, error = run(capsys, 'tabulate', *CONFIG, f'--workdir={tmp_path / "run"}', '--out=table.json')
  assert status == 2 and '.json.xz' in error and not use.jobs


def test_the_page_tells_every_part(file, capsys, monkeypatch):
  monkeypatch.setenv('COLUMNS', '200')
  status, out, _ = run(capsys, 'replay', f'--table={file}', '--replays=2', '--draws=8', '--designs=20')
  assert status == 0
  for words in ('Search. Worth', 'no_search', 'Promotion from 20 designs', 'interval above zero', 'Optimism',
                'believed', 'monitor.hopeless', '10% above at 50%', 'date 2026-11-26'):  # fmt: skip
    assert words in out


def test_parts_and_numbers_are_what_was_asked_for(file, capsys):
  arguments = ('replay', f'--table={file}', '--parts=promotion', '--replays=3', '--designs=12', '--seeds=1', '--json')
  page = json.loads(run(capsys, *arguments)[1])
  assert page['samplers'] == page['estimators'] == page['stoppings'] == []
  assert page['promotions'][-1]['promoted']['value'] == 12 and page['replays'] == 3
  other = json.loads(run(capsys, *arguments, '--seed=1')[1])
  assert other['promotions'] != page['promotions']


def test_a_setting_of_the_experiment_is_what_is_compared(file, capsys):
  arguments = ('replay', f'--table={file}', '--parts=search', '--replays=2', '--draws=10', '--json')
  first = json.loads(run(capsys, *arguments)[1])['samplers'][0]
  second = json.loads(run(capsys, *arguments, '--config=configs/smoke.py', '--config.search.parents=none')[1])
  assert first['name'] == 'search' and second['samplers'][0] != first
  assert second['samplers'][0]['worth'] == next(row for row in second['samplers'] if row['name'] == 'random')['worth']


@pytest.mark.parametrize(
  'arguments, said',
  [
    (('--parts=promotion,luck',), 'search, promotion, belief, stopping'),
    (('--draws=1000',), 'designs to draw'),
    (('--seed=-5',), 'non-negative'),
    (('--draws=5', '--seeds=9'), 'designs of the table have 4'),
    (('--draws=5', '--table=/nowhere/t.json.xz'), '--table=/nowhere/t.json.xz: no such file'),
    (('--table=README.md',), 'README.md is no table'),
  ],
)
def test_bad_input_says_what_to_do(file, capsys, arguments, said):
  status, _, error = run(capsys, 'replay', f'--table={file}', *arguments)
  assert status == 2 and said in error


def test_the_table_of_the_package_is_whole():
  made = tables.of_json(table_file.read(table_file.packaged()))
  assert len(made.measured) >= 200 and len(made.candidates) >= 200 and made.made['jax']
  assert table_file.packaged().stat().st_size < 1 << 20
