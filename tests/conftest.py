"""One small real search through the command line, shared by every test that reads its archive."""

import os

import pytest

from tests.cli import ROOT, asiarch


@pytest.fixture(scope='session')
def smoke(tmp_path_factory):
  """Returns (workdir, finished process) of `asiarch search --config=configs/smoke.py`."""
  workdir = tmp_path_factory.mktemp('smoke') / 'run'
  # As a person types it: a path relative to where they stand.
  return workdir, asiarch('search', '--config=configs/smoke.py', f'--workdir={os.path.relpath(workdir, ROOT)}')
