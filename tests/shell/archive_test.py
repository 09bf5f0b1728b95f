import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import ml_dtypes
import numpy as np
import pytest
from etils import epath

from asiarch_jax import config, records
from asiarch_jax.shell import archive as archives
from asiarch_jax.shell.archive import OrbaxArchive
from tests import samples
from tests.fakes import MemoryArchive

ROOT = pathlib.Path(__file__).parents[2]
EXPERIMENT = config.Experiment()
OUTCOMES = samples.archive(12, seed=1)
ARRAYS = {
  'params/embed': np.arange(24, dtype=np.float32).reshape(4, 6),
  'params/scale': np.float32(1.5),
  'params/half': np.linspace(0, 1, 5).astype(ml_dtypes.bfloat16),
  'mask': np.array([True, False, True]),
  'steps': np.array([], np.int64),
  'strided': np.arange(20)[::3],
  'big_endian': np.arange(3, dtype='>i4'),
}


def opened(workdir, **changes):
  return OrbaxArchive.open(workdir, changes.pop('experiment', EXPERIMENT), changes.pop('corpus', 'c0ffee'), **changes)


def step_of(workdir, outcome_id):
  return workdir / 'archive' / 'outcomes' / f'{outcome_id:08d}'


def filled(workdir, outcomes=OUTCOMES[:4]):
  with opened(workdir) as archive:
    for outcome in outcomes:
      archive.append(outcome, ARRAYS)
  return workdir


# The contract of ports.Archive, for both that implement it.


@pytest.fixture(params=['memory', 'orbax'])
def archive(request, tmp_path):
  made = MemoryArchive() if request.param == 'memory' else opened(tmp_path)
  yield made
  made.close()


def test_what_was_appended_comes_back_by_id(archive):
  for outcome in (OUTCOMES[2], OUTCOMES[0], OUTCOMES[5]):
    archive.append(outcome, {})
  assert archive.outcomes() == (OUTCOMES[0], OUTCOMES[2], OUTCOMES[5])


def test_a_workdir_may_be_relative(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with opened('here') as archive:
    archive.append(OUTCOMES[0], {'a': np.arange(3)})
  with OrbaxArchive.open_read_only('here') as archive:
    assert len(archive.outcomes()) == 1 and archive.arrays(OUTCOMES[0].id)['a'].tolist() == [0, 1, 2]


def test_an_empty_archive_has_no_outcomes(archive):
  assert archive.outcomes() == ()


def test_entries_and_rejections_keep_their_kind(archive):
  for outcome in OUTCOMES:
    archive.append(outcome, {})
  assert [type(outcome) for outcome in archive.outcomes()] == [type(outcome) for outcome in OUTCOMES]
  assert any(isinstance(outcome, records.Rejection) for outcome in archive.outcomes())


def test_nan_and_unusual_text_survive(archive):
  source = '# Straße — 数学 \u2028 <script> \x00 "quoted"\nclass Mixer: ...\n'
  odd = samples.entry(7, diverged=(1,), proposal_changes={'source': source}, genome={'gate': 'softmax', 'n': [1, 2]})
  archive.append(odd, {})
  (back,) = archive.outcomes()
  assert back.proposal == odd.proposal
  assert np.isnan(back.training.replicas[1].test_bits)


def test_arrays_come_back_with_their_dtype_and_shape(archive):
  archive.append(OUTCOMES[0], ARRAYS)
  back = archive.arrays(0)
  assert set(back) == set(ARRAYS)
  for path, array in ARRAYS.items():
    assert back[path].shape == np.shape(array), path
    assert back[path].dtype.newbyteorder('=') == np.asarray(array).dtype.newbyteorder('='), path
    np.testing.assert_array_equal(back[path], array)


def test_no_arrays_come_back_as_none(archive):
  archive.append(OUTCOMES[0], {})
  assert dict(archive.arrays(0)) == {}


def test_what_is_archived_does_not_follow_later_changes(archive):
  array = np.zeros(3)
  archive.append(OUTCOMES[0], {'a': array})
  array[:] = 1
  np.testing.assert_array_equal(archive.arrays(0)['a'], np.zeros(3))


def test_an_id_is_appended_once(archive):
  archive.append(OUTCOMES[0], ARRAYS)
  with pytest.raises(FileExistsError, match='outcome 0'):
    archive.append(samples.rejection(0), {})
  assert archive.outcomes() == (OUTCOMES[0],)
  assert archive.arrays(0)


def test_a_negative_id_is_refused(archive):
  with pytest.raises(ValueError, match='-1'):
    archive.append(samples.rejection(-1), {})


def test_arrays_of_an_unknown_id_are_a_key_error(archive):
  with pytest.raises(KeyError, match='17'):
    archive.arrays(17)


@pytest.mark.parametrize('bad', [np.array(['text']), np.array([object()]), np.array('2020-01-01', 'datetime64[D]')])
def test_arrays_that_are_not_numbers_are_refused_by_name_and_nothing_is_kept(archive, bad):
  with pytest.raises(TypeError, match='params/odd'):
    archive.append(OUTCOMES[0], {'fine': np.zeros(2), 'params/odd': bad})
  assert archive.outcomes() == ()
  archive.append(OUTCOMES[0], {})


# What only the archive on disk promises.


def test_packing_is_undone_by_unpacking():
  blob, layout = archives.pack(ARRAYS)
  assert json.loads(json.dumps(layout)) == layout
  assert blob.dtype == np.uint8
  assert {path: array.tolist() for path, array in archives.unpack(blob, layout).items()} == {
    path: np.asarray(array).tolist() for path, array in ARRAYS.items()
  }


def test_reopened_archive_equals_the_one_that_was_closed(tmp_path):
  filled(tmp_path, OUTCOMES)
  with opened(tmp_path) as archive:
    assert archive.outcomes() == OUTCOMES
    np.testing.assert_array_equal(archive.arrays(3)['params/embed'], ARRAYS['params/embed'])


def test_outcomes_are_read_from_their_steps_when_the_index_is_lost(tmp_path):
  shutil.rmtree(filled(tmp_path) / 'archive' / 'index')
  with opened(tmp_path, read_only=True) as archive:
    assert archive.outcomes() == OUTCOMES[:4]


@pytest.mark.parametrize('damage', ['cut', 'flip', 'empty'])
def test_a_damaged_index_is_passed_over_and_written_anew(tmp_path, damage):
  (segment,) = (filled(tmp_path) / 'archive' / 'index').iterdir()
  content = bytearray(segment.read_bytes())
  if damage == 'cut':
    del content[len(content) // 2 :]
  elif damage == 'flip':
    content[-3] ^= 0xFF
  else:
    content.clear()
  segment.write_bytes(content)
  with opened(tmp_path) as archive:
    assert archive.outcomes() == OUTCOMES[:4]
  (renewed,) = (tmp_path / 'archive' / 'index').iterdir()
  assert renewed != segment
  assert len(archives._read_segment(epath.Path(renewed))) == 4


def test_opening_an_indexed_archive_reads_no_step(tmp_path):
  filled(tmp_path)
  for outcome in OUTCOMES[:4]:
    shutil.rmtree(step_of(tmp_path, outcome.id) / 'record')
  with opened(tmp_path, read_only=True) as archive:
    assert archive.outcomes() == OUTCOMES[:4]


def test_full_segments_are_never_written_again(tmp_path):
  count = archives.SEGMENT
  small = samples.rejection(0)
  with opened(tmp_path) as archive:
    for number in range(count):
      archive.append(records.Rejection(number, 'checks', 'x', small.proposal), {})
    index = tmp_path / 'archive' / 'index'
    (full,) = index.iterdir()
    stamp = full.stat().st_mtime_ns
    archive.append(records.Rejection(count, 'checks', 'x', small.proposal), {})
  sizes = {path.name: len(archives._read_segment(epath.Path(path))) for path in index.iterdir()}
  assert sorted(sizes.values()) == [1, count]
  assert full.stat().st_mtime_ns == stamp
  for number in range(count + 1, count + 4):  # one partial segment replaces the other
    with opened(tmp_path) as archive:
      archive.append(records.Rejection(number, 'checks', 'x', small.proposal), {})
  assert sorted(len(archives._read_segment(epath.Path(path))) for path in index.iterdir()) == [4, count]
  with opened(tmp_path, read_only=True) as archive:
    assert [outcome.id for outcome in archive.outcomes()] == list(range(count + 4))


def test_closing_without_news_leaves_the_index_alone(tmp_path):
  before = {path.name for path in (filled(tmp_path) / 'archive' / 'index').iterdir()}
  opened(tmp_path).close()
  assert {path.name for path in (tmp_path / 'archive' / 'index').iterdir()} == before


def test_readers_see_what_a_living_writer_appended(tmp_path):
  with opened(tmp_path) as writer:
    for outcome in OUTCOMES[:3]:
      writer.append(outcome, {})
      with opened(tmp_path, read_only=True) as reader:
        assert reader.outcomes()[-1] == outcome


def test_a_reader_cannot_append_and_writes_nothing(tmp_path):
  filled(tmp_path)
  before = sorted(str(path) for path in tmp_path.rglob('*'))
  with OrbaxArchive.open_read_only(tmp_path) as reader:
    assert reader.experiment == EXPERIMENT
    with pytest.raises(ValueError, match='opened for reading'):
      reader.append(OUTCOMES[9], {})
  assert sorted(str(path) for path in tmp_path.rglob('*')) == before


def test_temporary_steps_are_ignored_by_readers_and_removed_by_the_writer(tmp_path):
  filled(tmp_path)
  unfinished = step_of(tmp_path, 4).with_name('00000004.orbax-checkpoint-tmp')
  (unfinished / 'record').mkdir(parents=True)
  uncommitted = step_of(tmp_path, 5)  # what a killed writer leaves on an object store
  shutil.copytree(step_of(tmp_path, 3), uncommitted)
  (uncommitted / 'commit_success.txt').unlink()
  with opened(tmp_path, read_only=True) as reader:
    assert reader.outcomes() == OUTCOMES[:4]
  assert unfinished.exists() and uncommitted.exists()
  with opened(tmp_path) as writer:
    assert writer.outcomes() == OUTCOMES[:4]
    assert not unfinished.exists() and not uncommitted.exists()
    writer.append(OUTCOMES[4], {})
    writer.append(OUTCOMES[5], {})


# Refusals.


def test_another_experiment_is_refused_naming_keys_and_both_values(tmp_path):
  filled(tmp_path)
  other = config.from_dict({'seed': 7, 'model': {'width': 128}, 'search': {'cycles': 99}, 'name': 'renamed'})
  with pytest.raises(ValueError) as refusal:
    opened(tmp_path, experiment=other)
  message = str(refusal.value)
  assert 'seed is 0 there and 7 here' in message
  assert 'model.width is 64 there and 128 here' in message
  assert 'cycles' not in message and 'renamed' not in message
  opened(tmp_path).close()  # the refusal left no lock behind


def test_what_may_be_continued_may_differ(tmp_path):
  filled(tmp_path)
  more = config.from_dict({'search': {'cycles': 99}, 'runner': {'wall_seconds': 9.0}})
  with opened(tmp_path, experiment=more) as archive:
    assert len(archive.outcomes()) == 4


def test_a_changed_corpus_is_refused_naming_both_hashes(tmp_path):
  filled(tmp_path)
  with pytest.raises(ValueError, match=r"'c0ffee'.*'decaf'"):
    opened(tmp_path, corpus='decaf')


def rewrite_header(workdir, **changes):
  path = workdir / 'archive' / 'header.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_another_schema_is_refused(tmp_path):
  rewrite_header(filled(tmp_path), schema=999)
  with pytest.raises(ValueError, match=f'schema 999, this program reads {records.SCHEMA}'):
    opened(tmp_path)


def test_a_header_with_a_setting_of_another_version_is_refused_by_name(tmp_path):
  rewrite_header(filled(tmp_path), experiment={'telepathy': 1})
  with pytest.raises(ValueError, match='telepathy'):
    OrbaxArchive.open_read_only(tmp_path)


def test_a_header_cut_short_is_written_again_only_while_there_are_no_outcomes(tmp_path):
  opened(tmp_path).close()
  header = tmp_path / 'archive' / 'header.json'
  header.write_text(header.read_text()[:40])
  with pytest.raises(ValueError, match='damaged'):
    OrbaxArchive.open_read_only(tmp_path)
  filled(tmp_path)
  header.write_text(header.read_text()[:40])
  with pytest.raises(ValueError, match='cut short'):
    opened(tmp_path)
  header.unlink()
  with pytest.raises(ValueError, match='missing'):
    opened(tmp_path)


def test_no_archive_is_said_so_and_none_is_begun(tmp_path):
  for open_it in (
    lambda: opened(tmp_path / 'none', create=False),
    lambda: opened(tmp_path / 'none', read_only=True),
    lambda: OrbaxArchive.open_read_only(tmp_path / 'none'),
  ):
    with pytest.raises(FileNotFoundError, match=r'no archive in .*none'):
      open_it()
  assert not (tmp_path / 'none').exists()


def test_a_second_writer_is_refused_naming_the_first(tmp_path):
  with opened(tmp_path):
    with pytest.raises(BlockingIOError, match=f'process {os.getpid()} on '):
      opened(tmp_path)
  opened(tmp_path).close()


WRITER = textwrap.dedent("""
  import sys, time
  from asiarch_jax import config
  from asiarch_jax.shell.archive import OrbaxArchive
  from tests import samples
  import numpy as np
  workdir, count, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
  archive = OrbaxArchive.open(workdir, config.Experiment(), 'c0ffee', segment=3)
  done = {outcome.id for outcome in archive.outcomes()}
  print('open', flush=True)
  for outcome in samples.archive(count, seed=seed):
    if outcome.id not in done:
      archive.append(outcome, {'w': np.full((50, 100), outcome.id, np.float32)})
      print(outcome.id, flush=True)
  archive.close()
""")


def writer(workdir, count, seed=3):
  return subprocess.Popen(
    [sys.executable, '-c', WRITER, str(workdir), str(count), str(seed)],
    cwd=ROOT,
    env=os.environ | {'JAX_PLATFORMS': 'cpu'},
    stdout=subprocess.PIPE,
    text=True,
  )


def test_the_lock_of_another_process_names_its_pid_and_dies_with_it(tmp_path):
  process = writer(tmp_path, 5000)
  try:
    assert process.stdout.readline() == 'open\n'
    with pytest.raises(BlockingIOError, match=f'process {process.pid} on '):
      opened(tmp_path)
  finally:
    process.kill()
    process.wait()
  with opened(tmp_path) as archive:
    archive.append(samples.rejection(99_999), {})


def test_a_damaged_step_is_named(tmp_path):
  filled(tmp_path)
  shutil.rmtree(tmp_path / 'archive' / 'index')
  record = step_of(tmp_path, 2) / 'record' / 'metadata'
  whole = record.read_text()
  for damaged in (whole[:100], whole.replace('gated', 'gilded', 1), '{}', ''):
    record.write_text(damaged)
    with pytest.raises(ValueError, match=r'step .*00000002 is damaged'):
      opened(tmp_path, read_only=True)
  record.write_text(whole)
  assert len(opened(tmp_path, read_only=True).outcomes()) == 4


def test_damaged_arrays_are_named_and_leave_the_records_readable(tmp_path):
  filled(tmp_path, OUTCOMES[:1])
  for path in (step_of(tmp_path, 0) / 'arrays').rglob('*'):
    if path.is_file() and path.stat().st_size > 200:
      content = bytearray(path.read_bytes())
      content[len(content) // 2] ^= 0xFF
      path.write_bytes(content)
  with opened(tmp_path, read_only=True) as archive:
    assert archive.outcomes() == OUTCOMES[:1]
    with pytest.raises(ValueError, match=r'step .*00000000 is damaged'):
      archive.arrays(0)


def test_a_step_that_is_gone_is_named_and_the_remedy_works(tmp_path):
  shutil.rmtree(step_of(filled(tmp_path), 1))
  with pytest.raises(ValueError, match=r'outcome 1.*00000001 is gone'):
    opened(tmp_path)
  shutil.rmtree(tmp_path / 'archive' / 'index')
  with opened(tmp_path) as archive:
    assert [outcome.id for outcome in archive.outcomes()] == [0, 2, 3]


# What the world may do to a writer.


def in_namespace(script, *arguments):
  """Runs Python as a process that may mount file systems of its own; skips where that is not allowed."""
  unshare = shutil.which('unshare')
  if not unshare:
    pytest.skip('needs unshare(1) to mount a small or read-only disk')
  flags = [unshare, '--mount', *([] if os.geteuid() == 0 else ['--user', '--map-root-user'])]
  if subprocess.run([*flags, 'mount', '-t', 'tmpfs', 'tmpfs', '/mnt'], capture_output=True).returncode:
    pytest.skip('this host does not let tests mount a small or read-only disk')
  return subprocess.run(
    [*flags, sys.executable, '-c', textwrap.dedent(script), *map(str, arguments)],
    cwd=ROOT,
    env=os.environ | {'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
    timeout=120,
  )


def test_a_full_disk_is_a_clear_error_and_leaves_the_archive_whole(tmp_path):
  script = """
    import os, subprocess, sys
    import numpy as np
    from asiarch_jax import config
    from asiarch_jax.shell.archive import OrbaxArchive
    from tests import samples
    subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=3m', 'tmpfs', sys.argv[1]], check=True)
    kept = []
    archive = OrbaxArchive.open(sys.argv[1], config.Experiment(), 'c0ffee')
    noise = np.random.default_rng(0)
    try:
      for outcome in samples.archive(60):
        archive.append(outcome, {'w': noise.normal(size=40_000)})
        kept.append(outcome)
    except OSError as error:
      print(error)
    else:
      raise SystemExit('the disk never filled')
    assert kept and archive.outcomes() == tuple(kept)
    left = [name for name in os.listdir(sys.argv[1] + '/archive/outcomes') if not name.isdigit()]
    assert not left, left
    rest = samples.archive(60)[len(kept)]
    subprocess.run(['mount', '-o', 'remount,size=16m', sys.argv[1]], check=True)
    archive.append(rest, {'w': noise.normal(size=40_000)})  # space was freed: the same archive goes on
    archive.close()
    with OrbaxArchive.open(sys.argv[1], config.Experiment(), 'c0ffee') as again:
      assert again.outcomes() == (*kept, rest)
      assert all(again.arrays(outcome.id)['w'].size == 40_000 for outcome in again.outcomes())
  """
  done = in_namespace(script, tmp_path)
  assert done.returncode == 0, done.stderr
  assert 'could not be written' in done.stdout and 'free space' in done.stdout, done.stdout


def test_a_read_only_workdir_is_a_clear_error_and_can_still_be_read(tmp_path):
  filled(tmp_path)
  script = """
    import subprocess, sys
    from asiarch_jax import config
    from asiarch_jax.shell.archive import OrbaxArchive
    subprocess.run(['mount', '--bind', sys.argv[1], sys.argv[1]], check=True)
    subprocess.run(['mount', '-o', 'remount,ro,bind', sys.argv[1]], check=True)
    try:
      OrbaxArchive.open(sys.argv[1], config.Experiment(), 'c0ffee')
    except OSError as error:
      print(error)
    else:
      raise SystemExit('a read-only folder was opened for appending')
    with OrbaxArchive.open_read_only(sys.argv[1]) as archive:
      assert len(archive.outcomes()) == 4
  """
  done = in_namespace(script, tmp_path)
  assert done.returncode == 0, done.stderr
  assert 'cannot hold an archive; name a folder that can be written' in done.stdout, done.stdout


def test_a_file_where_the_workdir_should_be_is_a_clear_error(tmp_path):
  (tmp_path / 'taken').write_text('')
  with pytest.raises(OSError, match='taken cannot hold an archive'):
    opened(tmp_path / 'taken')


def test_an_append_that_fails_leaves_nothing_and_can_be_repeated(tmp_path):
  """The largest file a process may write stands in for the disk, where no disk can be mounted."""
  script = """
    import os, resource, sys
    import numpy as np
    from asiarch_jax import config
    from asiarch_jax.shell.archive import OrbaxArchive
    from tests import samples
    archive = OrbaxArchive.open(sys.argv[1], config.Experiment(), 'c0ffee')
    first, second = samples.archive(2)[:2]
    archive.append(first, {})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
      archive.append(second, {'w': np.random.default_rng(0).normal(size=40_000)})
    except OSError as error:
      print(error)
    else:
      raise SystemExit('it was written')
    assert os.listdir(sys.argv[1] + '/archive/outcomes') == ['00000000']
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    archive.append(second, {'w': np.zeros(3)})
    archive.close()
    with OrbaxArchive.open_read_only(sys.argv[1]) as again:
      assert again.outcomes() == (first, second)
  """
  done = subprocess.run(
    [sys.executable, '-c', textwrap.dedent(script), str(tmp_path)],
    cwd=ROOT,
    env=os.environ | {'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert done.returncode == 0, done.stderr
  assert 'outcome 1 could not be written' in done.stdout


@pytest.mark.sweep  # tests/restart_test.py kills a whole search as often
def test_killed_twenty_times_the_archive_equals_that_of_an_uninterrupted_run(tmp_path):
  """Kills come at random instants: while opening, importing, appending, and writing a segment of the index."""
  kills, count, rng = 20, 120, random.Random(5)
  whole = samples.archive(count, seed=3)
  printed: set[int] = set()
  killed = 0
  for attempt in range(kills * 2):
    process = writer(tmp_path, count)
    first = process.stdout.readline()
    if attempt % 4:
      printed |= {int(process.stdout.readline())}
    time.sleep(rng.uniform(0.0, 0.12))
    process.kill()
    printed |= {int(line) for line in process.stdout.read().split('\n')[:-1] if line.isdigit()}
    killed += process.wait() == -signal.SIGKILL
    assert first == 'open\n'
    with opened(tmp_path, read_only=True) as archive:
      kept = archive.outcomes()
    assert printed <= {outcome.id for outcome in kept}, 'an outcome whose append returned is gone'
    assert kept == whole[: len(kept)], 'something else than what was appended is there'
    if killed >= kills:
      break
  assert killed >= kills and 10 < len(kept) < len(whole)
  last = writer(tmp_path, count)
  last.communicate(timeout=120)
  assert last.returncode == 0
  with opened(tmp_path) as archive:
    assert [records.without_timing(o) for o in archive.outcomes()] == [records.without_timing(o) for o in whole]
    for outcome in whole[:: len(whole) // 10]:
      np.testing.assert_array_equal(archive.arrays(outcome.id)['w'], np.full((50, 100), outcome.id, np.float32))
  assert {path.name for path in (tmp_path / 'archive' / 'outcomes').iterdir()} == {f'{o.id:08d}' for o in whole}


def test_reading_while_another_process_appends_gives_a_prefix(tmp_path):
  process = writer(tmp_path, 120, seed=4)
  whole = samples.archive(120, seed=4)
  try:
    assert process.stdout.readline() == 'open\n'
    sizes = []
    for _ in range(10):
      with OrbaxArchive.open_read_only(tmp_path) as archive:
        kept = archive.outcomes()
      assert kept == whole[: len(kept)]
      sizes.append(len(kept))
  finally:
    process.kill()
    process.communicate()
  assert sizes == sorted(sizes)
