"""Jobs on several hosts, each a real process here; the workers need no JAX, but do need each other."""

import contextlib
import copy
import json
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from asiarch_jax import config
from asiarch_jax.records import Job
from asiarch_jax.shell import hosts, hub, processes, runner, sandbox, spmd
from tests.marks import slow_but

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]
JAIL = sandbox.available(network=True)[0] if sandbox.available(network=True) else 'none'
SLOW = 'import time\nmeet("begun")\ntime.sleep(4)\nMET = meet(PROCESS)'


class Slice:
  """A leader in this process and its followers."""

  def __init__(self, folder, count, join_seconds=60.0, corpus=None, **changes):
    self.count, self.port, self.said, self.progress = count, spmd.free_port(), [], []
    self.settings = {
      'kind': 'spmd', 'platform': 'cpu', 'jail': JAIL, 'memory_gib': 1.0, 'join_seconds': join_seconds, **changes
    }  # fmt: skip
    self.followers = {}
    place = hosts.Place(0, count, '127.0.0.1', self.port)
    self.hub = hub.Hub(place, join_seconds, self.said.append)
    self.runner = spmd.SpmdRunner(
      folder, config.Runner(**self.settings), corpus, hub=self.hub, worker_module='peer_worker'
    )

  def follow(self, *which, count=None):
    for host in which:
      self.followers[host] = subprocess.Popen(
        [sys.executable, '-m', 'tests.shell.following', str(self.port), str(host), str(count or self.count),
         json.dumps(self.settings)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
      )  # fmt: skip
    return self

  def run(self, source, **fields):
    return self.runner.run(Job('m', source, {}, **fields), self.progress.append)

  def started(self, source):
    """Returns a thread that runs a job and the list for its result or exception, once all workers have met."""
    done = []

    def run():
      try:
        done.append(self.run(source))
      except Exception as error:
        done.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    until(lambda: any(one.stage == 'train' for one in self.progress))
    return thread, done

  def workers(self, host):
    """Returns the processes below a follower."""
    return processes.family(self.followers[host].pid)

  def close(self):
    self.runner.stop()
    self.hub.close(1)
    for follower in self.followers.values():
      with contextlib.suppress(ProcessLookupError):
        follower.kill()
      follower.communicate()


def command(pid):
  try:
    return pathlib.Path(f'/proc/{pid}/cmdline').read_text()
  except OSError:  # it has ended
    return ''


def until(condition, seconds=240.0):
  limit = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < limit, 'waited in vain'
    time.sleep(0.05)


@pytest.fixture
def slices(monkeypatch):
  monkeypatch.syspath_prepend(str(HERE))
  with contextlib.ExitStack() as stack:

    def made(*arguments, **changes):
      one = Slice(*arguments, **changes)
      stack.callback(one.close)
      return one

    yield made


@pytest.mark.parametrize('count', slow_but([2], [2, 4]))
def test_all_hosts_compute_a_job_and_the_first_one_has_its_result(slices, tmp_path, count):
  here = slices(tmp_path, count).follow(*range(1, count))
  result = here.run('MET = meet(10 * PROCESS)')
  assert result.failure is None, result.failure
  assert here.runner.arrays(result.key)['met'].tolist() == [10 * host for host in range(count)]
  here.hub.close(0)
  for host, follower in here.followers.items():
    assert follower.wait(30) == 0
    assert f'worker {host} of {count} for m' in follower.stdout.read()


def test_a_job_that_was_done_needs_no_follower(slices, tmp_path):
  first = slices(tmp_path, 2).follow(1)
  done = first.run('MET = meet(PROCESS)')
  assert slices(tmp_path, 2).run('MET = meet(PROCESS)') == done


def test_a_fault_of_the_proposal_on_any_host_is_the_result_of_the_job(slices, tmp_path, monkeypatch):
  monkeypatch.setattr(hub, 'AFTERMATH', 1.0)
  here = slices(tmp_path, 2).follow(1)
  source = 'if PROCESS == 1:\n  raise ValueError("no")\nmeet("in vain")'
  failure = here.run(source).failure
  assert failure.kind == 'error' and failure.reason.startswith('on host 1') and 'ValueError: no' in failure.reason
  assert not [one for one in here.progress if one.stage == 'lost']
  before = len(here.progress)
  assert here.run(source).failure == failure and len(here.progress) == before, 'it is kept'
  assert here.run('MET = meet(PROCESS)').failure is None, 'the next job runs'


def test_limits_hold_on_every_host(slices, tmp_path, monkeypatch):
  monkeypatch.setattr(hub, 'AFTERMATH', 1.0)
  here = slices(tmp_path, 2, memory_gib=0.5).follow(1)
  failure = here.run('held = bytearray((700 << 20) * PROCESS)\nfor n in range(0, len(held), 4096):\n  held[n] = 1\n'
                     'import time\ntime.sleep(300 * PROCESS)\nmeet(0)').failure  # fmt: skip
  assert failure.kind == 'memory' and failure.reason.startswith('on host 1')


@pytest.mark.slow
def test_a_worker_killed_from_outside_costs_one_attempt(slices, tmp_path):
  here = slices(tmp_path, 2).follow(1)
  thread, done = here.started(SLOW)
  processes.kill_remembered(here.workers(1))
  thread.join(60)
  assert done[0].failure is None and here.runner.arrays(done[0].key)['met'].tolist() == [0, 1]
  assert [one.note for one in here.progress if one.stage == 'lost'], here.progress


@pytest.mark.slow
def test_a_worker_killed_before_it_had_begun_costs_one_attempt(slices, tmp_path):
  here, done = slices(tmp_path, 2).follow(1), []
  thread = threading.Thread(target=lambda: done.append(here.run(SLOW)), daemon=True)
  thread.start()
  # Not what the follower starts before it, to see which jail works here.
  until(lambda: any('peer_worker' in command(one.pid) for one in here.workers(1)))
  processes.kill_remembered(here.workers(1))
  thread.join(60)
  assert done and done[0].failure is None
  assert len([one for one in here.progress if one.stage == 'lost']) == 1


@pytest.mark.slow
def test_the_first_worker_killed_from_outside_costs_one_attempt(slices, tmp_path):
  here = slices(tmp_path, 2).follow(1)
  thread, done = here.started(SLOW)
  who = json.loads(next((tmp_path / 'jobs').glob('*/worker.json')).read_text())
  processes.kill_remembered(processes.family(who['pid']))
  thread.join(60)
  assert done[0].failure is None and here.runner.arrays(done[0].key)['met'].tolist() == [0, 1]
  assert len([one for one in here.progress if one.stage == 'lost']) == 1


@pytest.mark.slow
def test_a_lost_host_that_comes_back_costs_one_attempt(slices, tmp_path):
  here = slices(tmp_path, 3).follow(1, 2)
  thread, done = here.started(SLOW)
  left = here.workers(2)
  here.followers[2].kill()
  here.follow(2)
  thread.join(60)
  assert done[0].failure is None and here.runner.arrays(done[0].key)['met'].tolist() == [0, 1, 2]
  lost = [one.note for one in here.progress if one.stage == 'lost']
  assert len(lost) == 1 and 'host 2' in lost[0] and lost[0].endswith('is gone; run again (1)')
  until(lambda: not any(alive(one) for one in left))


def alive(one):
  now = processes.process(one.pid)
  return now is not None and now.started == one.started and now.state not in 'ZX'


def test_a_host_that_stays_away_is_named(slices, tmp_path):
  here = slices(tmp_path, 3, join_seconds=1.0)
  here.settings['join_seconds'] = 60.0
  here.follow(1)
  until(lambda: here.hub._members)
  with pytest.raises(ConnectionError, match=r'host 2 of 0 to 2 did not join within runner\.join_seconds = 1: see'):
    here.run('meet(0)')
  assert [one.note for one in here.progress if one.stage == 'wait'], 'it is said while it waits'


@pytest.mark.slow
def test_a_host_lost_again_and_again_ends_it(slices, tmp_path):
  here = slices(tmp_path, 2, retries=0).follow(1)
  thread, done = here.started(SLOW)
  here.followers[1].kill()
  thread.join(60)
  assert isinstance(done[0], ConnectionError)
  assert re.search(r'm was lost 1 times \(runner\.retries = 0\).*host 1 .* is gone', str(done[0]))


@pytest.mark.slow
def test_a_proposal_that_ends_its_own_worker_is_a_failure_and_no_end_of_the_search(slices, tmp_path, monkeypatch):
  monkeypatch.setattr(hub, 'AFTERMATH', 0.5)
  monkeypatch.setattr(spmd, 'REPEATS', 1)
  here = slices(tmp_path, 2).follow(1)
  assert here.run('import os, signal\nos.kill(os.getpid(), signal.SIGKILL)').failure.kind == 'killed'
  assert here.run('raise ValueError("Gloo: connection reset")').failure.kind == 'error'
  assert here.run('MET = meet(PROCESS)').failure is None


def gone(meeting):
  """As a leader that was killed: its connections end, and nobody answers."""
  meeting._server.shutdown(socket.SHUT_RDWR)
  meeting._server.close()
  for member in list(meeting._members.values()):
    member.link.close()


@pytest.mark.slow
def test_a_follower_outlives_its_leader_by_the_limit_and_its_worker_does_not(slices, tmp_path):
  here = slices(tmp_path, 2, join_seconds=10.0).follow(1)
  thread, _ = here.started('import time\nmeet(0)\ntime.sleep(300)')
  left = here.workers(1)
  assert left
  began = time.monotonic()
  gone(here.hub)
  until(lambda: not any(alive(one) for one in left), 15)
  here.runner.stop()
  thread.join(30)
  until(lambda: here.followers[1].poll() is not None)
  said = here.followers[1].stdout.read()
  assert here.followers[1].returncode == 1 and time.monotonic() - began > 10
  assert 'is gone; waiting 10 s for another' in said and 'no leader at 127.0.0.1' in said


@pytest.mark.slow
def test_a_follower_waits_for_a_new_leader(slices, tmp_path):
  here = slices(tmp_path, 2).follow(1)
  assert here.run('MET = meet(PROCESS)').failure is None
  gone(here.hub)
  other = copy.copy(here)
  other.said, other.progress = [], []
  other.hub = hub.Hub(hosts.Place(0, 2, '127.0.0.1', here.port), 60.0, other.said.append)
  other.runner = spmd.SpmdRunner(
    tmp_path / 'other', config.Runner(**here.settings), hub=other.hub, worker_module='peer_worker'
  )
  assert other.run('MET = meet(PROCESS)').failure is None
  other.hub.close(0)
  assert here.followers[1].wait(30) == 0


def test_stopping_the_leader_ends_all_workers_at_once(slices, tmp_path):
  here = slices(tmp_path, 2).follow(1)
  thread, done = here.started('import time\nmeet(0)\ntime.sleep(300)')
  left, began = here.workers(1), time.monotonic()
  here.runner.stop()
  thread.join(30)
  assert isinstance(done[0], runner.RunnerStoppedError)
  assert time.monotonic() - began < 15 and not any(alive(one) for one in left)
  here.hub.close(130)
  assert here.followers[1].wait(30) == 130


def test_a_follower_answers_sigterm_at_once(slices, tmp_path):
  here = slices(tmp_path, 2, retries=0).follow(1)
  thread, done = here.started('import time\nmeet(0)\ntime.sleep(300)')
  left, began = here.workers(1), time.monotonic()
  here.followers[1].send_signal(signal.SIGTERM)
  assert here.followers[1].wait(30) == 130 and time.monotonic() - began < 15
  assert not any(alive(one) for one in left)
  thread.join(30)
  assert isinstance(done[0], ConnectionError)


@pytest.mark.parametrize(
  'host, count, said', [(1, 3, 'it is host 1 of 3, and the first host counts 2'), (2, 2, 'it is host 2 of 2')]
)
def test_a_host_that_was_started_otherwise_is_refused(slices, tmp_path, host, count, said):
  here = slices(tmp_path, 2).follow(host, count=count)
  assert here.followers[host].wait(60) == 1
  assert f'refuses this host: {said}' in here.followers[host].stdout.read()
  assert said in ' '.join(here.said)


def test_other_versions_are_refused(slices, tmp_path, monkeypatch):
  here = slices(tmp_path, 2)
  ours = hub.versions()
  monkeypatch.setattr(hub, 'versions', lambda: {**ours, 'jax': '0.0.1'})
  here.follow(1)
  assert here.followers[1].wait(60) == 1
  assert f'it has jax {ours["jax"]} instead of 0.0.1' in here.followers[1].stdout.read()


def test_a_corpus_is_brought_to_the_followers(slices, tmp_path):
  (tmp_path / 'corpus' / 'part').mkdir(parents=True)
  (tmp_path / 'corpus' / 'part' / 'text').write_text('42')
  here = slices(tmp_path / 'run', 2, corpus=tmp_path / 'corpus').follow(1)
  result = here.run('MET = meet(int(open(CORPUS + "/part/text").read()) + PROCESS)', corpus='c0ffee')
  assert result.failure is None, result.failure
  assert here.runner.arrays(result.key)['met'].tolist() == [42, 43]


def test_followers_keep_a_corpus_and_not_what_one_job_is_asked(slices, tmp_path, monkeypatch):
  own = tmp_path / 'own'  # where a follower keeps files of its own
  own.mkdir()
  for name, value in (('corpus', '42'), ('asked', '7')):
    (tmp_path / name).mkdir()
    (tmp_path / name / 'text').write_text(value)
  here = slices(tmp_path / 'run', 2, corpus=tmp_path / 'corpus')
  monkeypatch.setenv('TMPDIR', str(own))
  here.follow(1)
  source = 'MET = meet(int(open(CORPUS + "/text").read()) + PROCESS)'
  asking = here.runner.reading(tmp_path / 'asked').run(Job('m', source, {}, kind='answer', corpus='beef'))
  trained = here.run(source, corpus='c0ffee')
  met = [here.runner.arrays(one.key)['met'].tolist() for one in (asking, trained)]
  assert met == [[7, 8], [42, 43]]
  until(lambda: [path.read_text() for path in own.rglob('text')] == ['42'])


def test_a_worker_that_cannot_begin_is_a_fault_of_the_host(slices, tmp_path):
  here = slices(tmp_path, 2)
  here.settings['devices'] = 4
  here.follow(1)
  with pytest.raises(runner.WorkerStartError, match=r'on host 1 .*runner\.devices = 4'):
    here.run('meet(0)')


@pytest.mark.slow
def test_a_second_leader_at_the_same_port_is_told(slices, tmp_path):
  here = slices(tmp_path, 2)
  with pytest.raises(OSError, match=f'cannot listen at port {here.port}'):
    hub.Hub(hosts.Place(0, 2, '127.0.0.1', here.port), 1.0, print)


def test_a_command_without_jobs_waits_for_hosts_that_are_late(slices, tmp_path):
  here = slices(tmp_path, 2)
  closing = threading.Thread(target=here.hub.close, args=(0,))
  closing.start()
  here.follow(1)
  assert here.followers[1].wait(60) == 0
  closing.join(60)


def test_without_followers_jobs_are_run_here(tmp_path):
  assert type(runner.of(tmp_path, config.Runner(kind='spmd'))) is runner.LocalRunner
