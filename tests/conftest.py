"""One small real search through the command line, shared by every test that reads its archive."""

import pytest

from tests.cli import asiarch


@pytest.fixture(scope='session')
def smoke(tmp_path_factory):
  """Returns (workdir, finished process) of `asiarch search --config=configs/smoke.py`."""
  workdir = tmp_path_factory.mktemp('smoke') / 'run'
  return workdir, asiarch('search', '--config=configs/smoke.py', f'--workdir={workdir}')
