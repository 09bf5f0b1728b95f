"""dump, load, merge and import, whole: over planted searches, and one import with a real worker."""

import dataclasses
import gzip
import json
import re
import shutil

import numpy as np
import pytest

from asiarch_jax import config, records
from asiarch_jax.commands import sharing
from asiarch_jax.shell import archive as archives
from asiarch_jax.shell import dump_file
from asiarch_jax.shell import runner as runners
from tests import samples
from tests.cli import asiarch
from tests.cli import in_process as run
from tests.planted import planted
from tests.search.merging_test import marked

EXPERIMENT = config.Experiment()
ARRAYS = {'params/w': np.arange(6.0, dtype=np.float32).reshape(2, 3), 'step': np.int32(4)}


def write(folder, outcomes, experiment=EXPERIMENT, corpus='text'):
  with archives.OrbaxArchive.open(folder, experiment, corpus) as archive:
    for outcome in outcomes:
      archive.append(outcome, ARRAYS if isinstance(outcome, records.Entry) else {})
  return folder


def read(folder):
  with archives.OrbaxArchive.open_read_only(folder) as archive:
    outcomes = archive.outcomes()
    return outcomes, {o.id: {path: array.tolist() for path, array in archive.arrays(o.id).items()} for o in outcomes}


@pytest.fixture(scope='module')
def ours(tmp_path_factory):
  return write(tmp_path_factory.mktemp('ours'), marked(samples.archive(6), 'ours'))


@pytest.fixture(scope='module')
def theirs(tmp_path_factory):
  return write(tmp_path_factory.mktemp('theirs'), marked(samples.archive(5, seed=1), 'theirs'))


@pytest.mark.parametrize('name', ['a.jsonl', 'a.jsonl.gz', 'a.jsonl.xz'])
def test_a_dump_loaded_is_the_archive(ours, tmp_path, name, capsys):
  status, out, _ = run(capsys, 'dump', f'--workdir={ours}', f'--out={tmp_path / name}', '--json')
  assert status == 0 and json.loads(out)['outcomes'] == 9
  status, out, _ = run(capsys, 'load', tmp_path / name, f'--workdir={tmp_path / "again"}')
  assert status == 0 and '9 of 9 outcomes added' in out
  assert read(tmp_path / 'again') == read(ours)
  assert archives.read_header(tmp_path / 'again') == archives.read_header(ours)
  assert '0 of 9' in run(capsys, 'load', tmp_path / name, f'--workdir={tmp_path / "again"}')[1]
  assert run(capsys, 'top', f'--workdir={tmp_path / "again"}')[0] == 0


def test_a_dump_without_arrays_and_one_that_is_there(ours, tmp_path, capsys):
  arguments = ('dump', f'--workdir={ours}', f'--out={tmp_path / "a.jsonl"}', '--noarrays')
  assert run(capsys, *arguments)[0] == 0
  assert 'params/w' not in (tmp_path / 'a.jsonl').read_text()
  status, _, error = run(capsys, *arguments)
  assert status == 2 and 'is there already' in error


def test_a_load_goes_on_after_an_interruption(ours, tmp_path, capsys):
  run(capsys, 'dump', f'--workdir={ours}', f'--out={tmp_path / "a.jsonl"}')
  outcomes, _ = read(ours)
  write(tmp_path / 'half', outcomes[:4])
  assert '5 of 9' in run(capsys, 'load', tmp_path / 'a.jsonl', f'--workdir={tmp_path / "half"}')[1]
  assert read(tmp_path / 'half') == read(ours)


def test_a_load_of_what_diverged_goes_on_too(tmp_path, capsys):
  """What was not measured is nan, which is no nan."""
  outcomes = marked((*samples.archive(3), samples.entry(7, diverged=(0,))), 'ours')
  write(tmp_path / 'ours', outcomes)
  run(capsys, 'dump', f'--workdir={tmp_path / "ours"}', f'--out={tmp_path / "a.jsonl"}')
  for added in (len(outcomes), 0):
    status, out, error = run(capsys, 'load', tmp_path / 'a.jsonl', f'--workdir={tmp_path / "again"}')
    assert status == 0 and f'{added} of {len(outcomes)}' in out, error


def test_a_load_into_another_archive_is_refused(ours, theirs, tmp_path, capsys):
  run(capsys, 'dump', f'--workdir={ours}', f'--out={tmp_path / "a.jsonl"}')
  shutil.copytree(theirs, tmp_path / 'theirs')
  status, _, error = run(capsys, 'load', tmp_path / 'a.jsonl', f'--workdir={tmp_path / "theirs"}')
  assert status == 2 and 'asiarch merge' in error


def damaged(tmp_path, change):
  lines = (tmp_path / 'a.jsonl').read_text().splitlines()
  (tmp_path / 'a.jsonl').write_text('\n'.join(change(lines)) + '\n')


@pytest.mark.parametrize(
  'change, said',
  {
    'cut': (lambda lines: lines[:-2], 'is cut short: 7 of 9 outcomes'),
    'torn': (lambda lines: [*lines[:4], lines[4][:50], *lines[5:]], 'line 5, is damaged'),
    'other': (lambda lines: ['{}'], 'is no dump of an archive'),
    'schema': (lambda lines: [lines[0].replace('"schema": 1', '"schema": 7'), *lines[1:]], 'has schema 7'),
    'twice': (lambda lines: [*lines[:2], lines[1], *lines[2:]], 'line 3, has outcome 0 once more'),
    'settings': (
      lambda lines: [re.sub('"model": {[^}]*}', '"model": 5', lines[0]), *lines[1:]],
      'a.jsonl has settings',
    ),
    'bytes': (lambda lines: [*lines[:1], lines[1].replace('"bytes": "', '"bytes": "!'), *lines[2:]], 'line 2'),
  }.values(),
)
def test_a_damaged_dump_says_where(ours, tmp_path, capsys, change, said):
  run(capsys, 'dump', f'--workdir={ours}', f'--out={tmp_path / "a.jsonl"}')
  damaged(tmp_path, change)
  status, _, error = run(capsys, 'load', tmp_path / 'a.jsonl', f'--workdir={tmp_path / "again"}')
  assert status == 2 and said in error
  assert not (tmp_path / 'again').exists(), 'whole or not at all'


def test_a_union_that_fails_leaves_none(ours, theirs, tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(sharing.merging, 'merged', lambda *_: (_ for _ in ()).throw(OSError(5, 'Input/output error')))
  status, _, error = run(capsys, 'merge', ours, theirs, f'--workdir={tmp_path / "union"}')
  assert status == 2 and 'Input/output error' in error
  assert not (tmp_path / 'union/archive').exists()
  monkeypatch.undo()
  assert run(capsys, 'merge', ours, theirs, f'--workdir={tmp_path / "union"}')[0] == 0


@pytest.mark.parametrize('ended, said', [(False, 'is appending to'), (True, 'another merge has just written')])
def test_a_union_that_another_began_meanwhile_is_left_alone(ours, theirs, tmp_path, capsys, monkeypatch, ended, said):
  """Both looked before either wrote."""
  target, outcomes, begun = tmp_path / 'union', read(ours)[0], []
  real = sharing.registry.read_claims

  def meanwhile(place):
    if not begun:
      begun.append(archives.OrbaxArchive.open(target, EXPERIMENT, 'text'))
      begun[0].append(outcomes[0], ARRAYS)
      if ended:
        begun[0].close()
    return real(place)

  monkeypatch.setattr(sharing.registry, 'read_claims', meanwhile)
  status, _, error = run(capsys, 'merge', ours, theirs, f'--workdir={target}')
  begun[0].close()
  assert status == 2 and said in error
  assert read(target)[0] == outcomes[:1]


def test_a_union_says_where_its_parameters_are(ours, tmp_path, capsys):
  run(capsys, 'dump', f'--workdir={ours}', f'--out={tmp_path / "a.jsonl"}', '--noarrays')
  run(capsys, 'load', tmp_path / 'a.jsonl', f'--workdir={tmp_path / "bare"}')
  status, out, error = run(capsys, 'merge', tmp_path / 'bare', ours, f'--workdir={tmp_path / "union"}')
  entries = sum(isinstance(one, records.Entry) for one in read(ours)[0])
  assert status == 0 and f'{entries} of what was there already have parameters here and none in the union' in out, error
  assert 'have parameters' not in run(capsys, 'merge', ours, tmp_path / 'bare', f'--workdir={tmp_path / "other"}')[1]


def test_a_compressed_dump_that_is_cut_short(ours, tmp_path, capsys):
  run(capsys, 'dump', f'--workdir={ours}', f'--out={tmp_path / "a.jsonl.gz"}')
  whole = (tmp_path / 'a.jsonl.gz').read_bytes()
  (tmp_path / 'a.jsonl.gz').write_bytes(whole[: len(whole) // 2])
  status, _, error = run(capsys, 'load', tmp_path / 'a.jsonl.gz', f'--workdir={tmp_path / "again"}')
  assert status == 2 and 'a.jsonl.gz is damaged or cut short' in error
  (tmp_path / 'b.jsonl.gz').write_bytes(gzip.compress(b'[]'))
  assert 'is no dump' in run(capsys, 'load', tmp_path / 'b.jsonl.gz', f'--workdir={tmp_path / "b"}')[2]


def test_a_dump_that_fails_leaves_nothing(tmp_path):
  def rows():
    yield samples.baseline(), ARRAYS
    raise OSError('no space left')

  with pytest.raises(OSError, match='no space'):
    dump_file.write(tmp_path / 'a.jsonl', archives.Header(config.Experiment(), 'text'), 2, rows())
  assert not list(tmp_path.iterdir())


def test_two_archives_become_one_without_a_double(ours, theirs, tmp_path, capsys):
  before = read(ours), read(theirs)
  status, out, error = run(capsys, 'merge', ours, theirs, ours, f'--workdir={tmp_path / "union"}')
  assert status == 0, error
  outcomes, arrays = read(tmp_path / 'union')
  assert len(outcomes) == 9 + 5 and '14 outcomes' in out
  assert outcomes[:9] == before[0][0] and arrays[outcomes[-1].id] == before[1][1][7]
  assert (read(ours), read(theirs)) == before
  assert run(capsys, 'tree', f'--workdir={tmp_path / "union"}')[0] == 0
  status, _, error = run(capsys, 'merge', ours, theirs, f'--workdir={tmp_path / "union"}')
  assert status == 2 and 'holds an archive already' in error


def test_other_hardware_is_said(ours, tmp_path, capsys):
  outcomes, _ = read(ours)
  base = outcomes[0]
  replicas = tuple(dataclasses.replace(r, test_bits=r.test_bits + 0.01) for r in base.training.replicas)
  other = dataclasses.replace(base, training=dataclasses.replace(base.training, replicas=replicas))
  write(tmp_path / 'other', [other, *outcomes[1:]])
  out = run(capsys, 'merge', ours, tmp_path / 'other', f'--workdir={tmp_path / "union"}')[1]
  assert 'differs by 0.0100 bits/byte a replica' in out and 'other hardware or versions' in out


@pytest.mark.parametrize(
  'experiment, corpus, said',
  [(config.Experiment(seed=1), 'text', 'seed: 0 and 1'), (config.Experiment(), 'other text', 'another corpus')],
)
def test_other_experiments_are_refused(ours, tmp_path, capsys, experiment, corpus, said):
  write(tmp_path / 'other', samples.baselines(), experiment, corpus)
  status, _, error = run(capsys, 'merge', ours, tmp_path / 'other', f'--workdir={tmp_path / "union"}')
  assert status == 2 and said in error and not (tmp_path / 'union').exists()


def test_claims_stay_with_the_first_and_a_second_reading_is_no_way_out(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(runners, 'LocalRunner', planted())
  flags = ('--config=configs/smoke.py', '--config.training.seeds=2', '--cycles=6')
  for name in ('a', 'b'):
    assert run(capsys, 'search', *flags, f'--workdir={tmp_path / name}')[0] == 0
  assert run(capsys, 'claim', 3, f'--workdir={tmp_path / "a"}', '--matched=parameters')[0] == 0
  status, _, error = run(capsys, 'merge', tmp_path / 'b', tmp_path / 'a', f'--workdir={tmp_path / "union"}')
  assert status == 2 and 'stays read' in error
  status, _, error = run(capsys, 'merge', tmp_path / 'a', tmp_path / 'b', f'--workdir={tmp_path / "union"}')
  assert status == 0, error
  status, _, error = run(capsys, 'claim', 3, f'--workdir={tmp_path / "union"}')
  assert status == 2 and 'was claimed before' in error


def test_a_mixer_of_ones_own_becomes_an_entry(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(runners, 'LocalRunner', planted(effect=lambda job: 0.1 if job.name == 'mine' else 0.0))
  flags = ('--config=configs/smoke.py', '--config.training.seeds=2', '--cycles=4')
  assert run(capsys, 'search', *flags, f'--workdir={tmp_path / "run"}')[0] == 0
  (tmp_path / 'mine.py').write_text(samples.SOURCE)
  arguments = ('import', tmp_path / 'mine.py', f'--workdir={tmp_path / "run"}', '--parent=delta_net', '--json')
  status, out, error = run(capsys, *arguments)
  assert status == 0, error
  row = json.loads(out)
  assert row['outcome'] == 'Entry' and row['proposal']['parent_id'] == 0 and row['proposal']['author'] == 'human'
  assert row['evidence']['improvement'] > 0.05 and row['judgement'] and row['fitness'] and row['analysis']
  assert 'mine' in run(capsys, 'top', f'--workdir={tmp_path / "run"}')[1]
  status, out, _ = run(capsys, *arguments)  # the same function once more
  assert status == 1 and json.loads(out)['stage'] == 'duplicate'
  assert run(capsys, 'search', *flags[:2], '--cycles=8', f'--workdir={tmp_path / "run"}')[0] == 0  # it goes on


@pytest.mark.parametrize(
  'arguments, said',
  [
    (('import', 'nowhere.py'), 'no such file'),
    (('import', 'delta_net', '--parent=nobody'), 'neither an id nor a name'),
  ],
)
def test_an_import_that_cannot_be(tmp_path, capsys, monkeypatch, arguments, said):
  monkeypatch.setattr(runners, 'LocalRunner', planted())
  flags = ('--config=configs/smoke.py', '--config.training.seeds=2', '--cycles=3')
  assert run(capsys, 'search', *flags, f'--workdir={tmp_path / "run"}')[0] == 0
  status, _, error = run(capsys, *arguments, f'--workdir={tmp_path / "run"}')
  assert status == 2 and said in error
  status, _, error = run(capsys, 'import', 'delta_net', f'--workdir={tmp_path / "none"}')
  assert status == 2 and 'there is no archive' in error


@pytest.mark.slow
def test_a_real_worker_measures_an_import(smoke, tmp_path):
  shutil.copytree(smoke[0], tmp_path / 'run')
  (tmp_path / 'mine.py').write_text(samples.SOURCE.replace('cumsum(x_BTD, axis=1)', 'cumsum(x_BTD[:, ::-1], axis=1)'))
  process = asiarch('import', tmp_path / 'mine.py', f'--workdir={tmp_path / "run"}')
  assert process.returncode == 1 and 'depends on' in process.stdout, process.stderr
