"""A whole search that the same command runs on several hosts: processes here, with workers in their jails."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from asiarch_jax.shell import archive, processes, sandbox, spmd
from tests.cli import ROOT, asiarch

# Under sandlock one worker of a host has the host's name, which Gloo looks up; here all hosts are one.
JAIL = 'bubblewrap' if 'bubblewrap' in sandbox.available(network=True) else 'none'


class Hosts:
  """The same command on each of several hosts, in the environment that `launch/gpu_hosts.sh` gives it."""

  def __init__(self, count, *arguments):
    self.count, self.address = count, f'127.0.0.1:{spmd.free_port()}'
    self.arguments = [*map(str, arguments), '--config.runner.kind=spmd', f'--config.runner.jail={JAIL}']
    self.running = {host: self.start(host) for host in reversed(range(count))}

  def start(self, host):
    told = {'JAX_COORDINATOR_ADDRESS': self.address, 'JAX_NUM_PROCESSES': self.count, 'JAX_PROCESS_ID': host}
    return subprocess.Popen(
      [sys.executable, '-m', 'asiarch_jax.main', *self.arguments], cwd=ROOT, text=True,
      stdout=subprocess.PIPE, stderr=subprocess.PIPE,
      env={**os.environ, 'COLUMNS': '160', **{name: str(value) for name, value in told.items()}},
    )  # fmt: skip

  def ends(self, timeout=900):
    """Returns (status, standard output, standard error) of each host."""
    said = {host: process.communicate(timeout=timeout) for host, process in sorted(self.running.items())}
    return [(self.running[host].returncode, *said[host]) for host in sorted(said)]

  def __enter__(self):
    return self

  def __exit__(self, *_):
    for process in self.running.values():
      with contextlib.suppress(ProcessLookupError):
        process.kill()
      process.wait()


def outcomes(text):
  return {one['id']: one for one in json.loads(text)['outcomes']}


def same(ours, theirs):
  """The designs are the same, and what was measured is, up to the order of sums."""
  assert ours.keys() == theirs.keys()
  for number, one in ours.items():
    other = theirs[number]
    assert one['proposal']['name'] == other['proposal']['name']
    np.testing.assert_allclose(one['test_bits'], other['test_bits'], rtol=1e-4)


@pytest.mark.slow
def test_a_command_on_two_hosts_trains_as_on_one(smoke, tmp_path):
  """One host trained the same in the small search, beside a second seed."""
  small = ('--config=configs/smoke.py', '--json', '--config.training.seeds=1', '--config.tasks.names=()')
  with Hosts(2, 'train', 'delta_net', *small, f'--workdir={tmp_path}') as two:
    (status, said, errors), (followed, _, heard) = two.ends()
  assert status == 0 and followed == 0, errors + heard
  (ours,) = json.loads(said)['training']['replicas']
  with archive.OrbaxArchive.open_read_only(smoke[0]) as kept:
    theirs = kept.outcomes()[0].training.replicas[0]
  np.testing.assert_allclose(ours['losses'], theirs.losses, rtol=1e-4)
  np.testing.assert_allclose(ours['test_bits'], theirs.test_bits, rtol=1e-4)
  assert 'worker 1 of 2 for delta_net' in heard and 'joined: 2 of 2' in errors


@pytest.mark.sweep
@pytest.mark.timeout(1800)
@pytest.mark.parametrize('count', [2, 4])
def test_a_search_on_several_hosts_finds_what_one_finds(tmp_path, count):
  workdir = tmp_path / 'run'
  batch = ('--config.training.batch=4', '--config.tasks.names=()')
  with Hosts(count, 'search', '--config=configs/smoke.py', f'--workdir={workdir}', '--json', *batch) as here:
    ended = here.ends()
  assert [status for status, *_ in ended] == [0] * count, ended
  alone = asiarch('search', '--config=configs/smoke.py', f'--workdir={tmp_path / "one"}', '--json', *batch, timeout=900)
  same(outcomes(ended[0][1]), outcomes(alone.stdout))


@pytest.mark.sweep
@pytest.mark.timeout(1800)
def test_nothing_archived_is_lost_whoever_is_killed(tmp_path):
  arguments = ('search', '--config=configs/smoke.py', f'--workdir={tmp_path}', '--json', '--config.tasks.names=()')
  with Hosts(2, *arguments) as here:
    archived(tmp_path, 1)
    processes.kill_remembered(worker for worker in processes.family(here.running[1].pid))
    archived(tmp_path, 2)
    here.running[0].send_signal(signal.SIGTERM)
    began = time.monotonic()
    (status, _, errors), (followed, _, heard) = here.ends(30)
    assert (status, followed) == (130, 130), errors + heard
    assert time.monotonic() - began < 30
  kept = len(list((tmp_path / 'archive' / 'outcomes').iterdir()))
  assert kept >= 2 and f'stopped with {kept} of 4 outcomes' in errors
  with Hosts(2, *arguments) as again:
    ended = again.ends()
  assert [status for status, *_ in ended] == [0, 0], ended
  assert outcomes(ended[0][1]).keys() == {0, 1, 2, 3} and json.loads(ended[0][1])['added'] == 4 - kept


def archived(workdir, count, seconds=600):
  """Waits until so many outcomes are archived, and the next job is under way."""
  until = time.monotonic() + seconds
  folder = workdir / 'archive' / 'outcomes'
  while not folder.exists() or len(list(folder.iterdir())) < count or not list(workdir.glob('jobs/*/worker.json')):
    assert time.monotonic() < until, 'nothing is archived'
    time.sleep(0.2)


def test_a_host_that_does_not_know_its_place_is_told(tmp_path):
  done = asiarch('search', '--config=configs/smoke.py', f'--workdir={tmp_path}', '--config.runner.kind=spmd')
  assert done.returncode == 2 and 'nothing says which of how many hosts this is' in done.stderr
  assert not list(tmp_path.iterdir())


def test_hosts_that_do_not_come_end_the_search_with_a_line(tmp_path):
  done = asiarch(
    'search', '--config=configs/smoke.py', f'--workdir={tmp_path}', '--config.runner.kind=spmd',
    '--config.runner.host=0', '--config.runner.hosts=3', f'--config.runner.address=127.0.0.1:{spmd.free_port()}',
    '--config.runner.join_seconds=1', f'--config.runner.jail={JAIL}',
  )  # fmt: skip
  assert done.returncode == 2 and 'hosts 1, 2 of 0 to 2 did not join within' in done.stderr, done.stderr
  assert 'Traceback' not in done.stderr
