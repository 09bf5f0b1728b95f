"""The runner: once by hash, limits kept, nothing left behind, whoever dies first."""

import contextlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

from asiarch_jax import config
from asiarch_jax.records import Failure, Finding, Job, JobResult, Limits
from asiarch_jax.shell import machine, processes, results, runner, sandbox

HERE = pathlib.Path(__file__).parent
BODY = """
class Mixer:
  def __init__(self, width, heads):
    pass

  def __call__(self, x):
    return [x]
"""
SLEEPY = f'import time\nprint("begun", flush=True)\ntime.sleep(300)\n{BODY}'


@pytest.fixture(autouse=True)
def workers(monkeypatch):
  monkeypatch.syspath_prepend(str(HERE))


@pytest.fixture(scope='module', params=['bubblewrap', 'sandlock', 'none'])
def jail(request):
  why = '' if request.param == 'none' else sandbox.defect(request.param)
  if why:
    pytest.skip(f'{request.param} does not work here: {why}')
  return request.param


@pytest.fixture(scope='module')
def any_jail():
  return sandbox.available()[0] if sandbox.available() else 'none'


def local(workdir, jail, module='stand_in_worker', on_log=None, corpus=None, **settings):
  settings = {'platform': 'cpu', 'memory_gib': 1.0, **settings}
  return runner.LocalRunner(workdir, config.Runner(jail=jail, **settings), corpus, worker_module=module, on_log=on_log)


def living(pattern):
  """Returns the processes whose command line names a folder."""
  found = []
  for name in filter(str.isdigit, os.listdir('/proc')):
    try:
      if pattern.encode() in pathlib.Path(f'/proc/{name}/cmdline').read_bytes() and int(name) != os.getpid():
        found.append(int(name))
    except OSError:
      continue
  return found


def until(condition, seconds=20.0):
  deadline = time.monotonic() + seconds
  while not (value := condition()):
    assert time.monotonic() < deadline, 'waited in vain'
    time.sleep(0.02)
  return value


def test_a_runner_for_another_folder_shares_results_and_devices_and_is_stopped_with_the_first(tmp_path, jail):
  for name in ('one', 'two'):
    (tmp_path / name).mkdir()
    (tmp_path / name / 'text').write_text(name)
  first = local(tmp_path, jail, corpus=tmp_path / 'one')
  second = first.reading(tmp_path / 'two')
  ask = 'raise ValueError(open(CORPUS + "/text").read())'
  reasons = [one.run(Job('m', ask, {}, corpus=name)).failure.reason for one, name in ((second, 'b'), (first, 'a'))]
  assert 'two' in reasons[0] and 'one' in reasons[1]
  assert second.run(Job('m', ask, {}, corpus='a')) == first.run(Job('m', ask, {}, corpus='a'))  # done before
  first.stop()
  with pytest.raises(runner.RunnerStoppedError):
    second.run(Job('m', ask, {}, corpus='c'))


def test_a_job_runs_once(tmp_path, jail):
  counting = local(tmp_path, jail)
  first = counting.run(Job('m', BODY, {}))
  log = tmp_path / 'jobs' / first.key / 'log.txt'
  log.unlink()
  assert counting.run(Job('renamed', BODY, {}, limits=Limits(5.0))) == first
  assert local(tmp_path, jail).run(Job('m', BODY, {})) == first
  assert not log.exists()
  assert first.failure is None
  assert list(counting.arrays(first.key)['params/w']) == [3.0]


def test_an_error_of_the_proposal_is_a_result_and_is_kept(tmp_path, any_jail):
  failing = local(tmp_path, any_jail)
  job = Job('m', 'raise ValueError("shapes (3,) and (4,)")', {})
  first = failing.run(job)
  assert (first.failure.kind, first.failure.reason) == ('error', 'ValueError: shapes (3,) and (4,)')
  assert 'mixer.py' in first.failure.log
  (tmp_path / 'jobs' / job.key / 'log.txt').unlink()
  assert failing.run(job) == first
  assert not (tmp_path / 'jobs' / job.key / 'log.txt').exists()
  assert failing.arrays(job.key) == {}


def test_arrays_of_an_unknown_job_are_an_error(tmp_path, any_jail):
  with pytest.raises(KeyError, match='no finished job'):
    local(tmp_path, any_jail).arrays('nothing')


def test_arrays_that_were_changed_are_an_error(tmp_path, any_jail):
  one = local(tmp_path, any_jail)
  key = one.run(Job('m', BODY, {})).key
  with open(tmp_path / 'jobs' / key / 'arrays.npz', 'ab') as file:
    file.write(b'x')
  with pytest.raises(ValueError, match='not the file that the result was sealed with'):
    one.arrays(key)


def test_a_worker_is_killed_within_two_seconds_of_its_wall_clock(tmp_path, jail):
  began = time.monotonic()
  result = local(tmp_path, jail).run(Job('m', SLEEPY, {}, limits=Limits(2.0)))
  assert result.failure.kind == 'time' and '2 s of wall clock' in result.failure.reason
  assert 2.0 <= time.monotonic() - began < 4.0
  assert not living(str(tmp_path))


def test_a_silent_worker_is_killed(tmp_path, jail):
  began = time.monotonic()
  result = local(tmp_path, jail, heartbeat_seconds=2.0).run(Job('m', SLEEPY, {}))
  assert result.failure.kind == 'time' and 'silent' in result.failure.reason
  assert time.monotonic() - began < 12.0
  assert not living(str(tmp_path))


LIMITS = {  # what the worker does, a limit that it breaks, one that it keeps to
  'memory_gib': ('held = bytearray(700 * 2**20)', 0.5, 2.0),
  'processes': (
    'import threading\nfor _ in range(40):\n  threading.Thread(target=time.sleep, args=(3,)).start()',
    20,
    200,
  ),
  'file_mib': ('open(OUT + "/large", "wb").write(bytes(20 * 2**20))', 8.0, 64.0),
}


@pytest.mark.jail
@pytest.mark.parametrize('name', LIMITS)
def test_a_limit_is_the_one_that_was_set(name, tmp_path, any_jail):
  body, tight, loose = LIMITS[name]
  job = Job('m', f'import time\n{body}\ntime.sleep(2)\n{BODY}', {})
  broken = local(tmp_path / 'tight', any_jail, **{name: tight}).run(job)
  assert broken.failure is not None
  assert local(tmp_path / 'loose', any_jail, **{name: loose}).run(job).failure is None


def test_as_much_of_the_log_is_kept_as_was_set(tmp_path, any_jail):
  job = Job('m', f'print("a line\\n" * 20000)\n{BODY}', {})
  for kib in (4.0, 64.0):
    local(tmp_path / str(kib), any_jail, log_kib=kib).run(job)
    kept = (tmp_path / str(kib) / 'jobs' / job.key / 'log.txt').stat().st_size
    assert kib * 1024 * 0.8 < kept <= kib * 1024 + 200


def test_a_worker_is_told_the_platform_and_the_number_of_devices(tmp_path, any_jail, monkeypatch):
  ask = 'import os\nraise ValueError(os.environ["JAX_PLATFORMS"] + " " + os.environ.get("XLA_FLAGS", "alone"))'

  def said(name, **settings):
    return local(tmp_path / name, any_jail, **settings).run(Job('m', ask, {})).failure.reason

  monkeypatch.setattr(runner.sandbox.importlib.metadata, 'version', lambda _: '0.12.0.1')
  assert 'cpu alone' in said('one')
  assert 'cpu --xla_force_host_platform_device_count=3' in said('three', host_devices=3)
  told = said('told', host_devices=3, xla_flags=('--xla_a=1', '--xla_b'))
  assert 'cpu --xla_a=1 --xla_b --xla_force_host_platform_device_count=3' in told
  assert 'tpu,cpu alone' in said('tpu', platform='tpu')  # the gate runs on the processor
  monkeypatch.setattr(runner.sandbox.importlib.metadata, 'version', lambda _: '0.11.2')
  in_order = 'cpu --xla_cpu_enable_concurrency_optimized_scheduler=false'
  assert in_order in said('older') and f'{in_order} --xla_a=1' in said('asked', xla_flags=('--xla_a=1',))


def test_workers_that_share_an_accelerator_take_memory_as_they_need_it(tmp_path, any_jail, monkeypatch):
  monkeypatch.delenv('XLA_PYTHON_CLIENT_PREALLOCATE', raising=False)
  ask = 'import os\nraise ValueError(os.environ.get("XLA_PYTHON_CLIENT_PREALLOCATE", "all at once"))'

  def said(name, **settings):
    return local(tmp_path / name, any_jail, platform='cuda', **settings).run(Job('m', ask, {})).failure.reason

  assert 'all at once' in said('alone') and 'false' in said('shared', workers=2)
  monkeypatch.setenv('XLA_PYTHON_CLIENT_PREALLOCATE', 'true')
  assert 'true' in said('asked', workers=2)


def test_workers_that_share_a_host_hold_their_own_devices(tmp_path, any_jail, monkeypatch):
  monkeypatch.setattr(runner.machine, 'accelerators', lambda: tuple(f'/dev/nvidia{n}' for n in range(4)))
  here = local(tmp_path, any_jail, platform='cuda', workers=2, devices=2)
  ask = 'import os, time\ntime.sleep(0.5)\nraise ValueError({n}, os.environ["CUDA_VISIBLE_DEVICES"], time.time())'
  said = {}

  def run(n):
    said[n] = here.run(Job('m', ask.format(n=n), {})).failure.reason

  threads = [threading.Thread(target=run, args=(n,)) for n in range(3)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  held, ended = zip(*(re.search(r"'([\d,]+)', ([\d.]+)", reason).groups() for reason in said.values()), strict=True)
  assert sorted(held)[0] == '0,1' and sorted(held)[2] == '2,3' and set(held) == {'0,1', '2,3'}
  assert max(map(float, ended)) - min(map(float, ended)) > 0.4, 'the third waits for a place'
  with pytest.raises(ValueError, match='need 6 accelerators'):
    local(tmp_path, any_jail, platform='cuda', workers=3, devices=2)


def test_the_kind_says_who_runs_a_job_and_what_it_needs(tmp_path, monkeypatch):
  assert isinstance(runner.of(tmp_path, config.Runner()), runner.LocalRunner)
  monkeypatch.setitem(sys.modules, 'ray', None)
  with pytest.raises(ModuleNotFoundError, match=r"cluster needs ray, .* pip install 'asiarch-jax\[cluster\]'"):
    runner.of(tmp_path, config.Runner(kind='cluster'))


def test_a_heartbeat_keeps_a_worker_alive(tmp_path, any_jail):
  beat = f'import time\nfor _ in range(8):\n  time.sleep(0.5)\n  open(OUT + "/progress.jsonl", "a").write("x")\n{BODY}'
  assert local(tmp_path, any_jail, heartbeat_seconds=3.0).run(Job('m', beat, {})).failure is None


def test_too_little_time_is_forgotten_when_there_is_more(tmp_path, any_jail):
  slow = Job('m', f'import time\ntime.sleep(2.5)\n{BODY}', {}, limits=Limits(1.5))
  generous = Job('m', slow.source, {}, limits=Limits(60.0))
  assert local(tmp_path, any_jail).run(slow).failure.kind == 'time'
  assert slow.key == generous.key
  began = time.monotonic()
  assert local(tmp_path, any_jail).run(slow).failure.kind == 'time'
  assert time.monotonic() - began < 1.0, 'the same limits give the stored failure'
  assert local(tmp_path, any_jail).run(generous).failure is None


def test_a_function_that_one_archive_had_is_new_to_another(tmp_path):
  """Arms share what they have run."""
  job, folder = Job('m', BODY, {}, known={'f': 12}), tmp_path / 'job'
  folder.mkdir()
  result = JobResult(job.key, fingerprint='f', failure=Failure('duplicate', 'computes the same function as entry 12'))
  results.keep(folder, result, '', {})
  assert results.stored(folder, {}, job.known) == result
  assert results.stored(folder, {}, {}) is None


def test_too_slow_for_one_parent_is_not_too_slow_for_another(tmp_path):
  result = JobResult('k', failure=Failure('too_slow', 'a step takes 0.9 s, the limit is 0.3 s'))
  strict, generous, none = (
    results.limits_of(Job('m', BODY, {}, limits=Limits(60.0, pace)), config.Runner()) for pace in (0.3, 3.0, None)
  )
  results.keep(tmp_path, result, '', strict)
  assert results.stored(tmp_path, strict, {}) == result
  assert results.stored(tmp_path, {**strict, 'memory_gib': 99.0}, {}) == result
  assert results.stored(tmp_path, generous, {}) is None and results.stored(tmp_path, none, {}) is None
  results.keep(tmp_path, JobResult('k', failure=Failure('time', 'late')), '', none)
  assert results.stored(tmp_path, strict, {}) and results.stored(tmp_path, {**strict, 'wall_seconds': 1.0}, {}) is None


def test_progress_arrives_while_the_worker_runs(tmp_path, jail):
  seen = []
  result = local(tmp_path, jail).run(Job('m', f'import time\ntime.sleep(0.6)\n{BODY}', {}), seen.append)
  assert result.failure is None
  assert [one.stage for one in seen] == ['check', 'train']


def test_log_lines_are_handed_on(tmp_path, any_jail):
  lines = []
  local(tmp_path, any_jail, on_log=lines.append).run(Job('m', f'print("one")\nprint("two")\n{BODY}', {}))
  assert lines == ['one', 'two']


def test_a_worker_that_cannot_start_is_our_fault(tmp_path, any_jail, monkeypatch):
  (tmp_path / 'broken_worker.py').write_text('raise ImportError("libfoo is missing")')
  monkeypatch.syspath_prepend(str(tmp_path))
  with pytest.raises(RuntimeError, match=r'before it began its job.*libfoo is missing|libfoo'):
    local(tmp_path / 'work', any_jail, module='broken_worker').run(Job('m', BODY, {}))


@pytest.mark.skipif(bool(machine.accelerators()), reason='it may be there')
def test_a_lost_accelerator_is_no_fault_of_a_proposal(tmp_path, any_jail):
  lost = local(tmp_path, any_jail, 'asiarch_jax.worker', platform='cuda')
  with pytest.raises(runner.WorkerStartError, match=r"before it began its job(.|\n)*no device of platform 'cuda'"):
    lost.run(Job('m', BODY, config.worker_part(config.Experiment()), kind='check'))
  assert not list(tmp_path.rglob('done.json')), 'it may run when the device is back'


def test_a_damaged_corpus_is_no_fault_of_a_proposal(tmp_path, any_jail):
  (tmp_path / 'corpus').mkdir()
  asked = runner.LocalRunner(tmp_path / 'work', config.Runner(jail=any_jail), tmp_path / 'corpus')
  with pytest.raises(runner.WorkerStartError, match=r'before it began its job(.|\n)*corpus'):
    asked.run(Job('m', BODY, config.worker_part(config.Experiment())))
  assert not list(tmp_path.rglob('done.json'))


def test_an_interrupt_of_the_controller_ends_the_worker(tmp_path, jail):
  def interrupt(_):
    raise KeyboardInterrupt

  job = Job('m', SLEEPY, {})
  with pytest.raises(KeyboardInterrupt):
    local(tmp_path, jail).run(job, interrupt)
  assert not living(str(tmp_path))
  assert not (tmp_path / 'jobs' / job.key / 'done.json').exists()


def test_a_runner_that_is_stopped_ends_the_workers_of_all_threads_and_begins_none(tmp_path, any_jail):
  runs, ended = local(tmp_path, any_jail, workers=2), []

  def go(name):
    try:
      runs.run(Job(name, f'{SLEEPY}# {name}\n', {}))
    except runner.RunnerStoppedError:
      ended.append(name)

  threads = [threading.Thread(target=go, args=(name,)) for name in 'ab']
  for thread in threads:
    thread.start()
  until(lambda: len(list(tmp_path.glob('jobs/*/worker.json'))) == 2)
  runs.stop()
  for thread in threads:
    thread.join(timeout=10)
  assert sorted(ended) == ['a', 'b'] and until(lambda: not living(str(tmp_path)))
  with pytest.raises(runner.RunnerStoppedError):
    runs.run(Job('c', SLEEPY, {}))


@pytest.mark.parametrize('innermost', [False, True])
def test_a_worker_killed_by_others_is_run_again(tmp_path, jail, innermost):
  job = Job('m', SLEEPY, {})
  folder = tmp_path / 'jobs' / job.key
  results = []
  thread = threading.Thread(target=lambda: results.append(local(tmp_path, jail).run(job)))
  thread.start()
  warden = until(lambda: (folder / 'worker.json').exists() and json.loads((folder / 'worker.json').read_text()))['pid']
  until(lambda: (folder / 'out' / 'progress.jsonl').exists())
  inside = processes.family(warden)
  os.kill(inside[-1].pid if innermost and inside else warden, signal.SIGKILL)
  thread.join(20)
  assert results[0].failure.kind == 'killed'
  until(lambda: not living(str(tmp_path)))
  assert not (folder / 'done.json').exists()


CONTROLLER = """
import sys
sys.path[:0] = [{here!r}, {root!r}]
from asiarch_jax import config
from asiarch_jax.records import Job
from asiarch_jax.shell import runner
settings = config.Runner(jail={jail!r}, platform='cpu')
jobs = runner.LocalRunner({workdir!r}, settings, {corpus!r}, worker_module='stand_in_worker')
jobs.run(Job('m', {source!r}, {{}}))
"""


def test_a_killed_controller_leaves_nothing_and_its_job_is_run_again(tmp_path, jail):
  # Sleeps the first time only: until its corpus has a file.
  source = f'import os, time\nif not os.listdir(CORPUS):\n  time.sleep(300)\n{BODY}'
  (tmp_path / 'corpus').mkdir()
  text = CONTROLLER.format(
    here=str(HERE),
    root=str(HERE.parents[1]),
    workdir=str(tmp_path),
    jail=jail,
    source=source,
    corpus=str(tmp_path / 'corpus'),
  )
  controller = subprocess.Popen([sys.executable, '-c', text])
  job = Job('m', source, {})
  folder = tmp_path / 'jobs' / job.key
  until(lambda: (folder / 'out' / 'progress.jsonl').exists())
  pid = json.loads((folder / 'worker.json').read_text())['pid']
  family = (pid, *(one.pid for one in processes.family(pid)))
  controller.kill()
  controller.wait()
  again = local(tmp_path, jail, corpus=tmp_path / 'corpus')
  until(lambda: all(processes.process(one) is None or processes.process(one).state in 'ZX' for one in family), 5.0)
  assert not (folder / 'worker.json').exists()
  (tmp_path / 'corpus' / 'card.json').write_text('{}')
  assert again.run(job).failure is None


def test_a_checkpoint_is_left_to_the_next_worker_and_nothing_else_is(tmp_path, any_jail):
  source = f"""
import os, time
if not os.path.isdir(OUT + '/checkpoint'):
  os.makedirs(OUT + '/checkpoint/1')
  open(OUT + '/litter', 'w').close()
  open(OUT + '/progress.jsonl', 'a').write('{{"stage": "saved"}}' + chr(10))
  time.sleep(300)
assert os.listdir(OUT + '/checkpoint') == ['1'] and not os.path.exists(OUT + '/litter')
{BODY}"""
  job = Job('m', source, {})

  def interrupt(progress):
    if progress.stage == 'saved':
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    local(tmp_path, any_jail).run(job, interrupt)
  assert local(tmp_path, any_jail).run(job).failure is None
  assert not (tmp_path / 'jobs' / job.key / 'out').exists()


def test_a_planted_link_is_no_checkpoint(tmp_path, any_jail):
  job = Job('m', f'import os\nassert os.listdir(OUT) == ["progress.jsonl"]\n{BODY}', {})
  (tmp_path / 'precious').mkdir()
  (tmp_path / 'precious' / 'file').write_text('')
  out = tmp_path / 'jobs' / job.key / 'out'
  out.mkdir(parents=True)
  (out / 'checkpoint').symlink_to(tmp_path / 'precious')
  assert local(tmp_path, any_jail).run(job).failure is None
  assert (tmp_path / 'precious' / 'file').exists()


def test_an_orphan_is_known_by_its_start_time(tmp_path):
  orphan = subprocess.Popen(['sleep', '100'], start_new_session=True)
  other = subprocess.Popen(['sleep', '100'], start_new_session=True)
  try:
    for name, process, shift in (('orphan', orphan, 0), ('other', other, 1)):
      folder = tmp_path / 'jobs' / name
      folder.mkdir(parents=True)
      started = processes.process(process.pid).started + shift
      (folder / 'worker.json').write_text(json.dumps({'pid': process.pid, 'started': started}))
    assert runner.reap_orphans(tmp_path / 'jobs') == 1
    assert orphan.wait(5) == -signal.SIGKILL
    assert other.poll() is None
    assert not list(tmp_path.glob('jobs/*/worker.json'))
  finally:
    for process in (orphan, other):
      process.kill()
      process.wait()


def test_a_second_runner_leaves_the_workers_of_the_first_alone(tmp_path, jail):
  slow = Job('slow', f'import time\ntime.sleep(2)\n{BODY}', {})
  results = []
  thread = threading.Thread(target=lambda: results.append(local(tmp_path, jail).run(slow)))
  thread.start()
  until(lambda: (tmp_path / 'jobs' / slow.key / 'out' / 'progress.jsonl').exists())
  second = local(tmp_path, jail)
  assert second.reaped == 0
  assert second.run(Job('quick', f'# quick\n{BODY}', {})).failure is None
  thread.join(30)
  assert results[0].failure is None


def test_two_runners_at_the_same_job_run_it_once(tmp_path, any_jail):
  job = Job('m', f'import time\ntime.sleep(1)\nprint(time.time())\n{BODY}', {})
  results = []
  threads = [threading.Thread(target=lambda: results.append(local(tmp_path, any_jail).run(job))) for _ in range(2)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(30)
  assert len(results) == 2 and results[0] == results[1]
  assert len((tmp_path / 'jobs' / job.key / 'log.txt').read_text().splitlines()) == 1


def test_a_tree_without_end_is_measured_in_bounded_time(tmp_path):
  for number in range(50):
    (tmp_path / str(number)).write_text('x' * 5000)
  assert processes.tree_bytes(tmp_path, 100) >= 50 * 4096
  assert processes.tree_bytes(tmp_path, 10) is None
  assert processes.tree_bytes(tmp_path / 'missing', 10) == 0


def test_a_locked_folder_hides_nothing_and_one_that_goes_away_no_other(tmp_path, monkeypatch):
  for number in range(20):
    (tmp_path / str(number)).write_text('x' * 5000)
  (tmp_path / 'locked').mkdir()
  scan = os.scandir

  class Going:  # a name that is removed between being read and being asked for its size
    def __init__(self, entry):
      self.name, self.path, self.is_dir = entry.name, entry.path, entry.is_dir
      self.stat = entry.stat if entry.name != '3' else lambda **_: os.stat('/nowhere')

  monkeypatch.setattr(os, 'scandir', lambda path: contextlib.nullcontext([Going(one) for one in scan(path)]))
  assert processes.tree_bytes(tmp_path, 100) >= 19 * 4096

  class Readable(Going):  # of a folder that may be read and not entered: names, and no sizes
    def __init__(self, entry):
      super().__init__(entry)
      self.stat = lambda **_: (_ for _ in ()).throw(PermissionError(13, 'Permission denied'))

  monkeypatch.setattr(os, 'scandir', lambda path: contextlib.nullcontext([Readable(one) for one in scan(path)]))
  assert processes.tree_bytes(tmp_path, 100) is None

  def refused(path):  # what everybody but root gets of a folder without permissions
    if path.endswith('locked'):
      raise PermissionError(13, 'Permission denied', path)
    return scan(path)

  monkeypatch.setattr(os, 'scandir', refused)
  assert processes.tree_bytes(tmp_path, 100) is None


def test_no_text_of_a_result_holds_commands():
  dirty = 'a\x1b[2Jb'
  result = JobResult(
    'k', findings=(Finding(dirty, False, dirty),), fingerprint=dirty, failure=Failure(dirty, dirty, dirty)
  )
  assert '\x1b' not in repr(runner._cleaned(result)) and runner._cleaned(result).findings[0].check == 'a[2Jb'


def test_cleaning_keeps_text_and_drops_commands():
  assert runner.clean('a\tb\nc\x1b[2J\x00\x9b\u202e\u00e9') == 'a\tb\nc[2J\u00e9'
  assert runner.clean('a\nb' * 100, 4) == 'a ba'
