"""What every test shares: one small real search through the command line, and programs that are let go in time."""

import os
import pathlib

import jax
import pytest

from tests.cli import ROOT, asiarch


@pytest.fixture(scope='session')
def smoke(tmp_path_factory):
  """Returns (workdir, finished process) of `asiarch search --config=configs/smoke.py`."""
  workdir = tmp_path_factory.mktemp('smoke') / 'run'
  # As a person types it: a path relative to where they stand.
  return workdir, asiarch('search', '--config=configs/smoke.py', f'--workdir={os.path.relpath(workdir, ROOT)}')


MAPS = 30_000  # of 65,530 that Linux gives a process by default
_MAPS = pathlib.Path('/proc/self/maps')


@pytest.fixture(autouse=True)
def programs_let_go():
  """Forgets the compiled programs before they fill the process's memory map, in which each takes about ten places: the
  compiler of one too many ends the process."""
  yield
  if _MAPS.exists() and _MAPS.read_bytes().count(b'\n') > MAPS:
    jax.clear_caches()
