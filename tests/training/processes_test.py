"""Several real processes that train one candidate together."""

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest

from tests.devices import forced
from tests.training import across_devices

ROOT = pathlib.Path(__file__).parents[2]


def free_port():
  with contextlib.closing(socket.socket()) as one:
    one.bind(('127.0.0.1', 0))
    return one.getsockname()[1]


def together(processes):
  """Returns what the first of the processes prints; a hang is a timeout, and none is left behind."""
  coordinator = f'127.0.0.1:{free_port()}'
  started = [
    subprocess.Popen(
      [sys.executable, '-m', 'tests.training.across_processes', coordinator, str(processes), str(process)],
      cwd=ROOT, env=forced(1), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )
    for process in range(processes)
  ]  # fmt: skip
  try:
    said = [process.communicate(timeout=240) for process in started]
  finally:
    for process in started:
      with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
  assert [process.returncode for process in started] == [0] * processes, said[0][1][-2000:]
  return json.loads(said[0][0].splitlines()[-1])


@pytest.mark.sweep  # a command on two hosts does in tests/spmd_search_test.py what this does without jails
@pytest.mark.parametrize('processes', [2, 4])
def test_several_processes_give_the_losses_of_one(processes):
  found = together(processes)
  for name, seeds, mesh in (
    ('replicas', 8, [processes, 1, 1]),
    ('rows', 1, [1, processes, 1]),
    ('both', 2, [2, processes // 2, 1]),
    ('parts', 1, [1, processes // 2, 2]),
  ):
    here = across_devices.losses(1, 1, seeds=seeds)
    assert found[name]['mesh'] == mesh and found[name]['stopped'] == ''
    np.testing.assert_allclose(found[name]['losses'], here['losses'], rtol=2e-5)
    np.testing.assert_allclose(found[name]['held_out'], here['held_out'], rtol=2e-5)
    assert found[name]['size'] > 0
  parts = found['input']
  assert parts['asked'] == [['rows', 1 / processes], ['seeds', 1 / processes]], 'nobody makes what others need'
  np.testing.assert_array_equal(parts['losses']['seeds'], found['replicas']['losses'])
  np.testing.assert_array_equal(parts['losses']['rows'], found['rows']['losses'])
  resumed = found['resumed']
  assert resumed['before'] is None and resumed['steps'][0] > 3, 'it goes on, and does not begin again'
  assert resumed['losses'] == resumed['whole']
