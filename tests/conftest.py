"""What every test shares: one small real search through the command line, and programs that are let go in time."""

import fcntl
import gc
import json
import os
import pathlib
import shutil
import subprocess

import jax
import pytest

from asiarch_jax.shell import factorisations, sandbox
from tests.cli import ROOT, asiarch

# Each program of a test runs once or twice, so compiling costs more than running; without the fusion emitters, which
# write MLIR for LLVM, it takes a third. Workers, whose environment is their own, and the sweep compile as users do.
QUICK = (
  '--xla_backend_optimization_level=0',
  '--xla_llvm_disable_expensive_passes=true',
  '--xla_cpu_parallel_codegen_split_count=1',
  *sandbox.processor_flags(),
  # An option that is not known ends the process.
  *(('--xla_cpu_use_fusion_emitters=false',) if jax.__version_info__ < (0, 11) else ()),
)


def pytest_configure(config):
  """Compiles quickly, unless XLA_FLAGS says something: `XLA_FLAGS=' ' make test` compiles as users do.

  Processes that test side by side leave each other their cores, as the command line leaves them to workers.
  """
  os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')
  if config.option.markexpr != 'sweep':
    os.environ.setdefault('XLA_FLAGS', ' '.join(QUICK))


def pytest_collection_finish():
  """Looks through what lives as seldom as the command line and its workers do: a tenth of the time of what traces."""
  factorisations.without_threads()
  gc.freeze()
  gc.set_threshold(20_000, 20, 50)


def pytest_collection_modifyitems(items):
  """Begins with the longest file, which makes the small search, and ends with the others that look at it: processes
  that test side by side would wait for it otherwise."""
  lookers = {item.path for item in items if 'smoke' in getattr(item, 'fixturenames', ())}
  items.sort(key=lambda item: 0 if item.path.name == 'docs_test.py' else 1 + (item.path in lookers))


@pytest.fixture(scope='session', autouse=True)
def programs_shared(request, tmp_path_factory):
  """Keeps compiled programs for every process that tests side by side, since many tests make the same ones anew: the
  gate's of a baseline, an initialisation. Workers and the sweep compile as users do."""
  if request.config.option.markexpr != 'sweep':
    jax.config.update('jax_compilation_cache_dir', str(_shared(tmp_path_factory) / 'programs'))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.2)
    jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)


def _shared(tmp_path_factory):
  """Returns the temporary folder that all processes of one run see."""
  base = tmp_path_factory.getbasetemp()
  return base.parent if 'PYTEST_XDIST_WORKER' in os.environ else base


@pytest.fixture(scope='session')
def smoke(tmp_path_factory):
  """Returns (workdir, finished process) of `asiarch search --config=configs/smoke.py`.

  Processes that test side by side share one search, and each has a copy of its workdir.
  """
  shared = _shared(tmp_path_factory) / 'shared_smoke'
  shared.mkdir(exist_ok=True)
  with open(shared / 'lock', 'w') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    said = shared / 'process.json'
    if not said.exists():
      # As a person types it: a path relative to where they stand.
      workdir = f'--workdir={os.path.relpath(shared / "run", ROOT)}'
      done = asiarch('search', '--config=configs/smoke.py', workdir, timeout=560)  # five minutes where cores are busy
      said.write_text(json.dumps([done.args, done.returncode, done.stdout, done.stderr]))
  workdir = tmp_path_factory.mktemp('smoke') / 'run'
  shutil.copytree(shared / 'run', workdir)
  return workdir, subprocess.CompletedProcess(*json.loads(said.read_text()))


MAPS = 30_000  # of 65,530 that Linux gives a process by default
_MAPS = pathlib.Path('/proc/self/maps')


@pytest.fixture(autouse=True)
def programs_let_go():
  """Forgets the compiled programs before they fill the process's memory map, in which each takes about ten places: the
  compiler of one too many ends the process."""
  yield
  if _MAPS.exists() and _MAPS.read_bytes().count(b'\n') > MAPS:
    jax.clear_caches()


@pytest.fixture(autouse=True)
def drawn_where_looked_at(request, monkeypatch):
  """Leaves figures blank but in the tests of the report, and there in those of its words: to draw those of one page
  takes four seconds."""
  if 'report' not in request.path.parts or request.node.get_closest_marker('words'):
    from asiarch_jax.report import drawing

    blank = {'svg': b'<svg viewBox="0 0 1 1"></svg>', 'png': b''}
    monkeypatch.setattr(drawing, 'saved', lambda figure, format, **how: blank[format])
