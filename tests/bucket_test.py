"""A workdir in a bucket: the real clients against a server of the same protocol on this machine."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from asiarch_jax import commands as commands_of
from asiarch_jax.shell import corpus as corpora
from tests.bucket_server import BucketServer
from tests.cli import ROOT

pytest.importorskip('gcsfs', reason="the extra [gcs] is not installed: pip install 'asiarch-jax[gcs]'")

# Commands in a process that trains nothing: improvements are planted.
DRIVER = """
import json, sys
import pytest
from asiarch_jax import main
from asiarch_jax.report import drawing
from asiarch_jax.shell import runner, writer_lock
from tests.planted import planted
drawing.saved = lambda figure, format, **how: b'<svg viewBox="0 0 1 1"></svg>'  # nobody looks at them
writer_lock.SETTLE, writer_lock.LEASE, writer_lock.BEAT = 0.1, 1.0, 0.2
runner.LocalRunner = planted(effect=lambda job: 0.0 if job.name == 'delta_net' else 0.05 * (sum(job.name.encode()) % 4))
for arguments in json.loads(sys.argv[1]):
  status = main.main(arguments)
  if status:
    sys.exit(status)
"""
CONFIG = ['--config=configs/smoke.py', '--config.training.seeds=2', '--config.evidence.floor=2',
          '--config.claims.replicas=8']  # fmt: skip


@pytest.fixture(scope='module')
def server():
  with BucketServer() as one:
    yield one


def run(server, *commands, cache, **environment):
  """Runs commands in a process whose cache holds nothing but the corpus that every test uses."""
  built = corpora.docs_folder(commands_of.cache_folder())
  here = corpora.docs_folder(pathlib.Path(cache))
  if built.exists() and not here.exists():
    here.parent.mkdir(parents=True, exist_ok=True)
    here.symlink_to(built)
  return subprocess.run(
    [sys.executable, '-c', DRIVER, json.dumps([list(map(str, command)) for command in commands])],
    cwd=ROOT, capture_output=True, text=True, timeout=300,
    env={**os.environ, **server.environment, 'JAX_PLATFORMS': 'cpu', 'ASIARCH_CACHE': str(cache), **environment},
  )  # fmt: skip


@pytest.mark.slow
def test_a_search_in_a_bucket_is_told_claimed_and_continued(server, tmp_path):
  workdir = '--workdir=gs://my-bucket/runs/first'
  done = run(
    server,
    ['search', *CONFIG, workdir, '--cycles=5'],
    ['claim', '3', workdir, '--matched=parameters'],
    ['report', workdir],
    ['top', workdir, '--json'],
    cache=tmp_path,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  names = server.names('my-bucket')
  for name in ('archive/header.json', 'archive/outcomes/00000004/commit_success.txt', 'report/index.html',
               'claims/0001/family.json', 'claims/0001/verdicts.json'):  # fmt: skip
    assert f'runs/first/{name}' in names
  assert any(name.startswith('runs/first/journal.jsonl.parts/') for name in names)
  assert 'runs/first/archive/writer.lock' not in names
  assert len(json.loads(done.stdout.splitlines()[-1])['outcomes']) == 5
  # Another machine, with nothing on its disk.
  again = run(server, ['search', *CONFIG, workdir, '--cycles=7'], ['claim', workdir], cache=tmp_path / 'other')
  assert again.returncode == 0, again.stderr[-3000:]
  assert 'continues after 5 outcomes' in again.stderr and '2 outcomes in' in again.stdout
  refused = run(server, ['claim', '3', workdir], cache=tmp_path)
  assert refused.returncode == 2 and 'was claimed before' in refused.stderr


@pytest.mark.slow
def test_a_controller_elsewhere_is_respected_while_it_lives_and_followed_after(server, tmp_path):
  workdir, lock = '--workdir=gs://my-bucket/runs/second', ('my-bucket', 'runs/second/archive/writer.lock')
  note = {'pid': 1, 'host': 'elsewhere', 'token': 'theirs', 'beat': 0}
  server.put(*lock, json.dumps(note).encode())
  done = run(server, ['search', *CONFIG, workdir, '--cycles=3'], cache=tmp_path)
  assert done.returncode == 0, done.stderr[-3000:]
  assert lock not in server.objects


@pytest.mark.sweep
def test_a_bucket_that_refuses_says_so_and_nothing_archived_is_lost(server, tmp_path):
  workdir = '--workdir=gs://my-bucket/runs/third'
  assert run(server, ['search', *CONFIG, workdir, '--cycles=3'], cache=tmp_path).returncode == 0
  server.fail('POST', 'runs/third/archive/outcomes', 403)
  try:
    refused = run(server, ['search', *CONFIG, workdir, '--cycles=5'], cache=tmp_path)
  finally:
    server.mend()
  assert refused.returncode == 2 and 'is not in the archive' in refused.stderr, refused.stderr[-2000:]
  assert 'Traceback' not in refused.stderr
  again = run(server, ['search', *CONFIG, workdir, '--cycles=5'], cache=tmp_path)
  assert again.returncode == 0 and 'continues after 3 outcomes' in again.stderr


@pytest.mark.sweep
def test_a_corpus_in_a_bucket_is_fetched_once(server, tmp_path):
  text = tmp_path / 'text.txt'
  text.write_text('\n\n'.join(f'Page {n}: the key {n * n % 89} opens the gate {n}. ' * 40 for n in range(120)))
  corpus = 'gs://my-bucket/corpora/own'
  made = run(server, ['prepare', text, f'--out={corpus}'], cache=tmp_path / 'cache')
  assert made.returncode == 0, made.stderr[-3000:]
  workdir = f'--workdir={tmp_path / "run"}'
  search = ['search', *CONFIG, f'--config.corpus.path={corpus}', workdir, '--cycles=2']
  done = run(server, search, cache=tmp_path / 'cache')
  assert done.returncode == 0, done.stderr[-3000:]
  (folder,) = (tmp_path / 'cache/fetched').iterdir()
  assert (folder / 'card.json').exists()
  before = len(server.requests)
  assert run(server, [*search[:-1], '--cycles=3'], cache=tmp_path / 'cache').returncode == 0
  asked = [path for method, path in server.requests[before:] if 'alt=media' in path and 'tokens' in path]
  assert not asked, 'it is here already'


@pytest.mark.slow
def test_what_is_read_is_what_was_written(server, tmp_path):
  code = """
import numpy as np
from asiarch_jax import config
from asiarch_jax.shell.archive import OrbaxArchive
from tests import samples
outcomes = samples.archive(4)
with OrbaxArchive.open('gs://my-bucket/plain', config.Experiment(), 'text') as archive:
  for outcome in outcomes:
    archive.append(outcome, {'w': np.arange(1000.0) + outcome.id})
with OrbaxArchive.open_read_only('gs://my-bucket/plain') as archive:
  assert archive.outcomes() == outcomes
  print(float(archive.arrays(1)['w'].sum()))
"""
  environment = {**os.environ, **server.environment, 'JAX_PLATFORMS': 'cpu'}
  done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, env=environment, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr[-2000:]
  assert float(done.stdout) == np.arange(1000.0).sum() + 1000
