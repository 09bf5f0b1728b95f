"""The real worker, with JAX, in each jail: a good proposal passes, a hostile one is held while it is traced."""

import pathlib

import pytest

from asiarch_jax import config
from asiarch_jax.records import Job
from asiarch_jax.shell import runner, sandbox

ROOT = pathlib.Path(__file__).parents[2]
EXPERIMENT = config.worker_part(config.Experiment())
HEAD = """
import gc
import os
import pathlib
import socket

import flax.linen as nn
import jax
import jax.numpy as jnp

class Mixer(nn.Module):
  width: int
  heads: int
  dtype: object = jnp.float32

  @nn.compact
  def __call__(self, x_BTD):
    print('ATTACK', gc.get_threshold(), flush=True)
    {attack}
    return nn.Dense(self.width, dtype=self.dtype)(x_BTD)
"""


@pytest.fixture(scope='module', params=['bubblewrap', 'sandlock'])
def jail(request):
  why = sandbox.defect(request.param)
  if why:
    pytest.skip(f'{request.param} does not work here: {why}')
  return request.param


def run(tmp_path, jail, source, module):
  settings = config.Runner(jail=jail, platform='cpu', memory_gib=4.0)
  job = Job('m', source, EXPERIMENT, kind='check')
  result = runner.LocalRunner(tmp_path, settings, worker_module=module).run(job)
  return result, (tmp_path / 'jobs' / job.key / 'log.txt').read_text()


@pytest.mark.slow
@pytest.mark.jail
@pytest.mark.parametrize(
  'path', ['asiarch_jax/arch/baselines/delta_net.py', 'tests/checks/innocent/solved_side_by_side.py']
)
def test_a_good_proposal_passes_the_gate(jail, tmp_path, path):
  source = (ROOT / path).read_text()
  result, log = run(tmp_path, jail, source, 'asiarch_jax.worker')
  assert result.failure is None, (result.failure, log)
  assert result.fingerprint and all(finding.passed for finding in result.findings)


@pytest.mark.jail
@pytest.mark.parametrize(
  'attack, kinds',
  [
    ('socket.create_connection(("127.0.0.1", 1), timeout=1)', {'error', 'checks'}),
    pytest.param(
      'pathlib.Path(jax.__file__).with_name("planted.py").write_text("")', {'error', 'checks'}, marks=pytest.mark.slow
    ),
    ('jax.debug.callback(lambda x: os._exit(0), x_BTD)', {'killed', 'checks', 'error'}),
  ],
)
def test_an_attack_while_tracing_is_held(jail, tmp_path, attack, kinds):
  result, log = run(tmp_path, jail, HEAD.format(attack=attack), 'unchecked_worker')
  assert 'ATTACK (20000, 20, 50)' in log, log  # as seldom as a worker looks through what lives
  assert result.failure is not None and result.failure.kind in kinds, (result.failure, log)


@pytest.fixture(autouse=True)
def workers(monkeypatch):
  monkeypatch.syspath_prepend(str(pathlib.Path(__file__).parent))
