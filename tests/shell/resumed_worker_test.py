"""A worker killed from outside in the middle of training is followed by one that goes on from its checkpoint."""

import json
import os
import signal
import threading
import time

import pytest

from asiarch_jax import config
from asiarch_jax.records import Job, to_json
from asiarch_jax.shell import corpus as corpora
from asiarch_jax.shell import processes, runner, sandbox
from tests.cli import ROOT

EXPERIMENT = config.from_dict(
  {
    'model': {'width': 16, 'layers': 1, 'mlp_width': 24},
    'training': {
      'steps': 240, 'batch': 2, 'length': 16, 'seeds': 2, 'learning_rates': [5e-3], 'steps_per_call': 2,
      'checkpoint_every': 8,
    },
    'evaluation': {'validation_windows': 4, 'test_windows': 4, 'batch': 4},
    'tasks': {'names': []},
  }
)  # fmt: skip


@pytest.fixture(scope='module')
def text(tmp_path_factory):
  folder = tmp_path_factory.mktemp('text')
  lines = [
    json.dumps({'text': f'the state {n} of key {n * n % 97} is written once and read twice. ' * 8}) for n in range(300)
  ]
  (folder / 'text.jsonl').write_text('\n'.join(lines))
  corpora.prepare(str(folder / 'text.jsonl'), folder / 'corpus')
  return folder / 'corpus'


@pytest.mark.sweep  # tests/training/resume_test.py kills a process without a jail in every run
@pytest.mark.jail
@pytest.mark.parametrize('jail', ['bubblewrap', 'sandlock'])
def test_training_goes_on_from_its_checkpoint(jail, text, tmp_path):
  why = sandbox.defect(jail)
  if why:
    pytest.skip(f'{jail} does not work here: {why}')
  source = (ROOT / 'asiarch_jax/arch/baselines/delta_net.py').read_text()
  job = Job('delta_net', source, config.worker_part(EXPERIMENT), corpus='text')
  settings = config.Runner(jail=jail, platform='cpu')

  whole = runner.LocalRunner(tmp_path / 'whole', settings, text).run(job)
  assert whole.failure is None, whole.failure

  steps, workers = [], runner.LocalRunner(tmp_path / 'killed', settings, text)
  kept = tmp_path / 'killed/jobs' / job.key / 'out/checkpoint'

  def kill_once_saved():
    while not (kept.is_dir() and any(child.name.isdigit() for child in kept.iterdir())):
      time.sleep(0.01)
    for one in processes.family(os.getpid()):
      if 'asiarch_jax.worker' in command_of(one.pid):
        os.kill(one.pid, signal.SIGKILL)

  killer = threading.Thread(target=kill_once_saved, daemon=True)
  killer.start()
  first = workers.run(job)
  killer.join(10)
  assert first.failure is not None and first.failure.kind == 'killed', first
  second = workers.run(job, lambda progress: steps.append(progress.step) if progress.stage == 'train' else None)
  assert second.failure is None, second.failure
  assert steps and min(steps) > EXPERIMENT.training.steps_per_call, 'it began from step 0 again'
  assert to_json(second.training.replicas) == to_json(whole.training.replicas)


def command_of(pid):
  try:
    with open(f'/proc/{pid}/cmdline', 'rb') as file:
      return file.read().replace(b'\0', b' ').decode(errors='replace')
  except OSError:
    return ''
