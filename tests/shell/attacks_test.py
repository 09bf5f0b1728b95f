"""Hostile mixers against each jail that works here: held, said why, nothing outside changed, no process left.

The mixers stand in tests/shell/attacks, one attack a file, and are run with the static check bypassed. Each prints
ATTACK when it begins and BREACH when it got what it wanted; TARGET names what it may try to reach.
"""

import collections
import ctypes
import hashlib
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import time

import pytest

from asiarch_jax import config
from asiarch_jax.records import Job, Limits
from asiarch_jax.shell import processes, runner, sandbox

ATTACKS = pathlib.Path(__file__).with_name('attacks')
REPOSITORY = pathlib.Path(__file__).parents[2]
GOOD = """
class Mixer:
  def __init__(self, width, heads):
    pass

  def __call__(self, x):
    return [x, 2 * x]
"""
SETTINGS = {
  'platform': 'cpu',
  'wall_seconds': 20.0,
  'heartbeat_seconds': 20.0,
  'memory_gib': 0.5,
  'processes': 64,
  'file_mib': 8.0,
  'log_kib': 32.0,
}

# How each attack ends: the kinds of failure that are right, or 'result' where it is harmless and the job goes on.
RESULT = {'result'}
KILLED = {'killed'}
ENDS = {
  'bind_port': RESULT,
  'busy_loop': {'time'},
  'change_the_kernel': RESULT,
  'dig_a_hole': {'killed', 'forged', 'error'},  # an error where locking the door is refused before the kill
  'eat_memory': {'memory', 'error'},
  'eat_memory_in_children': {'memory'},
  'eat_memory_in_files': {'killed', 'memory', 'error'},
  'exit_when_called': KILLED,
  'fill_disk': {'killed', 'error'},
  'fill_disk_unseen': {'killed', 'error'},
  'fill_disk_with_one_file': {'error', 'killed'},
  'flood_log': RESULT,
  'flood_progress': RESULT,
  'forge_done': RESULT,
  'forge_with_wrong_seal': {'forged'},
  'forge_without_seal': {'forged'},
  'fork_without_end': {'killed', 'memory', 'time'},
  'grow_privileges': RESULT,
  'keyboard_interrupt_when_called': KILLED,
  'kill_everyone': {'killed', 'result'},
  'kill_own_group': KILLED,
  'leave_a_daemon': RESULT,
  'link_to_the_job': RESULT,
  'never_exit': RESULT,
  'obey_my_terminal': {'error'},
  'open_tcp': RESULT,
  'open_unix': RESULT,
  'poison_corpus': RESULT,
  'poison_next_job': RESULT,
  'poison_packages': RESULT,
  'progress_is_a_pipe': RESULT,
  'raw_system_calls': RESULT,
  'read_environment': RESULT,
  'read_files': RESULT,
  'read_other_environments': RESULT,
  'result_is_a_folder': {'killed', 'forged'},
  'result_is_a_link': {'forged'},
  'result_is_a_pipe': {'forged'},
  'result_is_deep': {'forged'},
  'result_is_huge': {'forged'},
  'segfault': {'crashed'},
  'send_udp': RESULT,
  'sleep_for_ever': {'time'},
  'start_threads_without_end': {'killed', 'time'},
  'stop_the_warden': {'result', 'killed'},
  'swap_arrays_at_exit': {'forged'},
  'system_exit_at_init': KILLED,
  'trace_the_parent': RESULT,
  'use_up_inodes': KILLED,
  'write_outside': RESULT,
}
SHORT = {'sleep_for_ever': 2.0, 'busy_loop': 2.0, 'fork_without_end': 5.0, 'start_threads_without_end': 3.0}
NAMES = sorted(path.stem for path in ATTACKS.glob('*.py'))


@pytest.fixture(scope='module', params=['bubblewrap', 'sandlock'])
def jail(request):
  why = sandbox.defect(request.param)
  if why:
    pytest.skip(f'{request.param} does not hold anything here: {why}')
  return request.param


def digest(folder):
  """Returns what a folder holds, names, modes and contents."""
  return {
    str(path.relative_to(folder)): (path.lstat().st_mode, hashlib.sha256(path.read_bytes()).hexdigest())
    for path in sorted(folder.rglob('*'))
    if path.is_file() and not path.is_symlink()
  }


class World:
  """A host worth attacking: secrets, servers, a bystander, a checkout, a corpus; it notices what happens to it."""

  def __init__(self, folder):
    self.word = os.urandom(16).hex()
    self.private = folder / 'private'
    self.corpus = folder / 'corpus'
    for made in (self.private, self.corpus):
      made.mkdir()
    (self.private / 'key').write_text(self.word)
    (self.corpus / 'card.json').write_text('{}')
    self.tcp, self.unix, self.abstract = (
      socket.socket(family, socket.SOCK_STREAM) for family in (socket.AF_INET, socket.AF_UNIX, socket.AF_UNIX)
    )
    self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    self.tcp.bind(('127.0.0.1', 0))
    self.udp.bind(('127.0.0.1', 0))
    self.unix.bind(str(self.private / 'socket'))
    self.abstract.bind(f'\0asiarch-{self.word}')
    for listening in (self.tcp, self.unix, self.abstract):
      listening.listen()
    for one in (self.tcp, self.unix, self.abstract, self.udp):
      one.setblocking(False)
    self.bystander = subprocess.Popen(['sleep', '600'], env={'PATH': os.defpath, 'API_KEY': self.word})
    self.planted = [REPOSITORY / 'planted.py', REPOSITORY / 'asiarch_jax' / 'planted.py']
    self.before = digest(folder)
    self.folder = folder

  def target(self, workdir):
    return {
      'word': self.word,
      'file': str(self.private / 'key'),
      'folder': str(self.private),
      'repository': str(REPOSITORY),
      'tcp': self.tcp.getsockname()[1],
      'udp': self.udp.getsockname()[1],
      'unix': str(self.private / 'socket'),
      'abstract': f'asiarch-{self.word}',
      'pid': self.bystander.pid,
      'controller': os.getpid(),
      'jobs': str(workdir / 'jobs'),
    }

  def harm(self):
    """Returns what was done to this world, in sentences."""
    found = []
    after = digest(self.folder)
    found += [
      f'{name} changed' for name in self.before.keys() | after.keys() if self.before.get(name) != after.get(name)
    ]
    found += [f'{path} was planted' for path in self.planted if path.exists()]
    for name in ('tcp', 'unix', 'abstract'):
      try:
        getattr(self, name).accept()
        found.append(f'a connection by {name}')
      except BlockingIOError:
        pass
    try:
      self.udp.recv(64)
      found.append('a packet')
    except BlockingIOError:
      pass
    state = processes.process(self.bystander.pid)
    if state is None or state.state not in 'SR':
      found.append(f'the bystander is {state}')
    return found

  def close(self):
    self.bystander.kill()
    self.bystander.wait()
    for one in (self.tcp, self.unix, self.abstract, self.udp):
      one.close()


@pytest.fixture(scope='module')
def world(tmp_path_factory):
  made = World(tmp_path_factory.mktemp('world'))
  yield made
  made.close()


@pytest.fixture(scope='module')
def adopting():
  """Makes this process the parent of every orphan below it: what escapes a runner is then seen here."""
  libc = ctypes.CDLL(None)
  libc.prctl(36, 1, 0, 0, 0)
  yield
  libc.prctl(36, 0, 0, 0, 0)


@pytest.fixture
def workers(monkeypatch):
  """Lets runners find the stand-in worker beside this file."""
  monkeypatch.syspath_prepend(str(pathlib.Path(__file__).parent))


def survivors(known):
  return [one for one in processes.family(os.getpid()) if one.pid not in known]


def test_every_attack_has_an_expected_end():
  assert len(NAMES) >= 25
  assert set(NAMES) == set(ENDS)


@pytest.mark.jail
@pytest.mark.parametrize('name', NAMES)
def test_an_attack_is_held(name, jail, world, adopting, workers, tmp_path, monkeypatch):
  monkeypatch.setenv('GEMINI_API_KEY', world.word)
  known = {one.pid for one in processes.family(os.getpid())}
  seen = []
  run = runner.LocalRunner(
    tmp_path, config.Runner(jail=jail, **SETTINGS), world.corpus, worker_module='stand_in_worker'
  )
  source = f'TARGET = {world.target(tmp_path)!r}\n' + (ATTACKS / f'{name}.py').read_text()
  job = Job(name, source, {}, limits=Limits(SHORT.get(name, 20.0)))
  began = time.monotonic()
  result = run.run(job, seen.append)
  seconds = time.monotonic() - began
  folder = tmp_path / 'jobs' / job.key
  log = (folder / 'log.txt').read_text()

  assert 'ATTACK' in log, f'the attack did not begin: {log}'
  assert 'BREACH' not in log, log
  assert world.word not in log
  assert not world.harm()
  assert (result.failure.kind if result.failure else 'result') in ENDS[name], result
  assert result.key == job.key
  assert result.fingerprint != 'splendid'
  # The kill itself is timed in runner_test; here a busy machine may take its time to clear a thousand processes.
  assert seconds < SHORT.get(name, 20.0) + 30
  assert len(log) <= SETTINGS['log_kib'] * 1024 + 100
  assert len(seen) <= 10 + 10 * seconds
  assert not [c for one in seen for c in one.stage + one.note if not c.isprintable()]
  assert '\033' not in log and '\033' not in (result.failure.log if result.failure else '')
  assert not survivors(known)
  assert not (folder / 'out').exists()

  # An attack that ended in a result has shown this by its own job.
  if result.failure is not None or name.startswith('poison'):
    good = run.run(Job('good', GOOD, {}))
    assert good.failure is None and good.fingerprint == 'f'
    assert list(run.arrays(good.key)['params/w']) == [3.0, 6.0]


@pytest.mark.jail
def test_the_attacks_do_succeed_without_a_jail(world, workers, tmp_path):
  """The guilty example of the test above: it would see what the jails hold."""
  harmless_to_the_host = ('read_files', 'open_tcp', 'send_udp', 'open_unix', 'forge_done')
  run = runner.LocalRunner(
    tmp_path, config.Runner(jail='none', **SETTINGS), world.corpus, worker_module='stand_in_worker'
  )
  said = collections.defaultdict(str)
  for name in harmless_to_the_host:
    source = f'TARGET = {world.target(tmp_path)!r}\n' + (ATTACKS / f'{name}.py').read_text()
    job = Job(name, source, {})
    run.run(job)
    said[name] = (tmp_path / 'jobs' / job.key / 'log.txt').read_text()
  assert all('BREACH' in said[name] for name in ('read_files', 'open_tcp', 'open_unix'))
  assert {'a connection by tcp', 'a connection by unix', 'a packet'} <= set(world.harm())
  assert 'wrote' in said['forge_done']


@pytest.mark.jail
def test_weaknesses_of_a_jail_are_found_by_trying(jail):
  found = sandbox.weaknesses(jail)
  assert not set(found) & {
    sandbox.SENTENCES[name]
    for name in ('tcp', 'udp', 'unix', 'read', 'write', 'modes', 'settings', 'environ', 'signal')
  }
  open_to_all = {sandbox.SENTENCES[name] for name in ('tcp', 'udp', 'unix', 'read', 'write', 'modes', 'signal')}
  assert open_to_all <= set(sandbox.weaknesses('none'))


def test_a_jail_that_is_missing_is_refused_with_the_remedy(monkeypatch, tmp_path):
  monkeypatch.setenv('PATH', str(tmp_path))
  with pytest.raises(RuntimeError, match=r'not installed.*apt install bubblewrap.*runner\.jail=none'):
    sandbox.choose('bubblewrap')
  assert sandbox.choose('none') == 'none'


def test_a_jail_that_does_not_start_is_not_available(monkeypatch, tmp_path):
  broken = tmp_path / 'bwrap'
  broken.write_text('#!/bin/sh\necho bwrap: No permissions to create new namespace >&2\nexit 1\n')
  broken.chmod(0o755)
  monkeypatch.setenv('PATH', f'{tmp_path}:{os.environ["PATH"]}')
  assert 'No permissions' in sandbox.defect('bubblewrap')


@pytest.mark.jail
def test_jax_compiles_in_the_jail(jail, tmp_path):
  script = 'import jax, jax.numpy as jnp; print(float(jax.jit(lambda x: (x @ x).sum())(jnp.ones((8, 8)))))'
  (tmp_path / 'out').mkdir()
  cell = sandbox.Cell(
    tmp_path, tmp_path / 'out', None, sandbox.packages_of('asiarch_jax'), config.Runner(platform='cpu'), 60.0
  )
  command, environment = sandbox.launch(jail, cell, ['-c', script])
  said = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
  assert said.stdout.strip() == '512.0', said.stderr


def test_an_interpreter_is_found_through_its_links():
  folders = sandbox.interpreter_folders(sys.executable)
  real = os.path.realpath(sys.executable)
  assert any(real.startswith(f'{folder}/') for folder in (*folders, '/usr'))
  assert not {'/', os.path.expanduser('~')} & set(folders)
  assert shutil.which('sh')


def test_a_link_among_other_things_is_read_alone(tmp_path):
  """As in ~/bin/python3, by which a virtual environment may be made: the home around it is not the interpreter's."""
  (tmp_path / 'home/bin').mkdir(parents=True)
  (tmp_path / 'home/secret').write_text('key')
  (tmp_path / 'home/bin/python3').symlink_to(sys.executable)
  (tmp_path / 'python').symlink_to(tmp_path / 'home/bin/python3')
  folders = sandbox.interpreter_folders(str(tmp_path / 'python'))
  assert str(tmp_path / 'home/bin/python3') in folders
  assert not [path for path in folders if str(tmp_path / 'home/secret').startswith(f'{path}/')]
