"""What a worker is let into for the sake of an accelerator's driver, and what not: a stand-in device, in each jail."""

import json
import subprocess

import pytest

from asiarch_jax import config
from asiarch_jax.shell import sandbox

TRY = """
import json, os, sys, threading

def opens(path, mode):
  try:
    with open(path, mode, buffering=0) as f:
      return f.write(b'name') > 0 if mode == 'wb' else True
  except OSError as error:
    return error.strerror

found = {'device': opens('/dev/full', 'r+b')}
def name_itself():
  found['thread'] = opens(f'/proc/self/task/{threading.get_native_id()}/comm', 'wb')
thread = threading.Thread(target=name_itself)
thread.start()
thread.join()
found['settings'] = [opens(path, 'r+b') is True for path in json.loads(sys.argv[1]) if os.path.isfile(path)]
found['other'] = opens(f'/proc/{os.getppid()}/comm', 'wb') is True
print(json.dumps(found))
"""
SETTINGS = ('/proc/sys/kernel/core_pattern', '/proc/sys/kernel/hostname', '/proc/sys/vm/overcommit_memory')


def tried(jail, platform, folder, monkeypatch):
  monkeypatch.setattr(sandbox, 'ACCELERATORS', ('full',))
  out = folder / 'out'
  out.mkdir()
  cell = sandbox.Cell(
    folder, out, None, sandbox.packages_of('asiarch_jax'), config.Runner(platform=platform), wall_seconds=20
  )
  command, environment = sandbox.launch(jail, cell, ['-I', '-S', '-c', TRY, json.dumps(SETTINGS)])
  done = subprocess.run(
    command, capture_output=True, text=True, env=environment, cwd='/', start_new_session=True, timeout=60, check=False
  )
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout)


@pytest.mark.parametrize('jail', sandbox.JAILS)
def test_a_worker_opens_its_devices_and_names_its_threads_as_cuda_does(jail, tmp_path, monkeypatch):
  if why := sandbox.defect(jail):
    pytest.skip(why)
  found = tried(jail, 'cuda', tmp_path, monkeypatch)
  assert found['device'] is True and found['thread'] is True
  assert len(found['settings']) == len(SETTINGS) and not any(found['settings'])
  assert not found['other'] or jail == 'bubblewrap'  # whose parent is its own, of its own namespace


@pytest.mark.parametrize('jail', sandbox.JAILS)
def test_a_worker_on_a_processor_has_none_of_this(jail, tmp_path, monkeypatch):
  if why := sandbox.defect(jail):
    pytest.skip(why)
  found = tried(jail, 'cpu', tmp_path, monkeypatch)
  assert found['thread'] is not True
  assert found['device'] is not True or jail == 'bubblewrap'  # that has a /dev/full of its own
  assert not any(found['settings']) and not found['other']
