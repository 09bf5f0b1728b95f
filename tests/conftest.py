"""One small real search through the command line, shared by every test that reads its archive."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]


def asiarch(*arguments, timeout=300, **options):
  """Runs the command line as a user does, in a process of its own."""
  return subprocess.run(
    [sys.executable, '-m', 'asiarch_jax.main', *map(str, arguments)],
    cwd=ROOT, capture_output=True, text=True, timeout=timeout, env={**os.environ, 'COLUMNS': '160'}, **options,
  )  # fmt: skip


@pytest.fixture(scope='session')
def smoke(tmp_path_factory, worker_id='master'):
  """Returns (workdir, finished process) of `asiarch search --config=configs/smoke.py`."""
  workdir = tmp_path_factory.mktemp('smoke') / 'run'
  return workdir, asiarch('search', '--config=configs/smoke.py', f'--workdir={workdir}')
