"""What a worker says of a proposal that raises: enough to repair it by, and the same on every machine."""

import dataclasses
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from asiarch_jax import config, worker
from asiarch_jax.arch import contract, lm
from asiarch_jax.records import Cost, Job, JobResult
from asiarch_jax.training import sharding
from pallas_kernels import target
from tests import fakes

SMALL = dataclasses.replace(config.Experiment(), model=config.Model(width=16))
BREAKS = {
  'while it is loaded': (f'{fakes.MIXER}\nLEAK = jnp.linspace(0.0, 1.0, steps=4)\n', 'LEAK = jnp.linspace'),
  'inside JAX': (f'{fakes.MIXER}\nWIDE = jnp.dot(jnp.ones((2, 3)), jnp.ones((4, 5)))\n', 'WIDE = jnp.dot'),
}


@pytest.mark.parametrize('name', BREAKS)
def test_a_traceback_begins_at_the_proposal_quotes_its_line_and_names_no_place_on_this_machine(name):
  source, line = BREAKS[name]
  result, arrays = worker.run(Job('broken', source, config.worker_part(SMALL), kind='check'), '', '', lambda _: None)
  assert result.failure.kind == 'error' and arrays == {}
  first, place, quoted, *_ = result.failure.log.splitlines()
  assert first.startswith('Traceback') and 'File "broken.py", line ' in place and line in quoted
  assert ' "/' not in result.failure.log and result.failure.log.splitlines()[-1].startswith('TypeError')


def test_the_gate_runs_on_the_processor_wherever_training_does(monkeypatch):
  seen = []

  def gate(job, settings, report):
    seen.append((jax.config.jax_default_device, target.device()[0]))
    raise ValueError('enough')

  monkeypatch.setattr(worker, 'gate', gate)
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  worker.run(Job('any', fakes.MIXER, config.worker_part(SMALL), kind='check'), '', '', lambda _: None)
  assert seen == [(jax.local_devices(backend='cpu')[0], 'cpu')] and jax.config.jax_default_device is None


def test_a_job_for_an_accelerator_does_not_run_on_the_processor_instead(monkeypatch):
  monkeypatch.setenv('JAX_PLATFORMS', 'cuda,cpu')
  job = Job('any', fakes.MIXER, config.worker_part(SMALL), kind='check')
  result, _ = worker.run(job, '', '', lambda _: None)
  assert "no device of platform 'cuda'" in result.failure.reason and 'platform=cpu' in result.failure.reason


def test_a_call_is_traced_for_the_default_device(monkeypatch):
  accelerator = types.SimpleNamespace(platform='cuda', device_kind='NVIDIA H100 80GB HBM3')
  monkeypatch.setattr(target.jax, 'devices', lambda *_: [accelerator])
  assert target.device() == ('gpu', 'NVIDIA H100 80GB HBM3')
  with jax.default_device(jax.local_devices()[0]):
    assert target.device()[0] == 'cpu'
  with target.processor():
    assert target.device()[0] == 'cpu'


def test_a_contract_finding_quotes_the_line_that_raised():
  source = fakes.MIXER.replace('nn.Dense(self.width, dtype=self.dtype)(x_BTD)', 'x_BTD @ jnp.ones((3, self.width))')
  source = source.replace('return x_BTD', "self.param('w', nn.initializers.ones, (1,))\n    return x_BTD")
  result, _ = worker.run(Job('broken', source, config.worker_part(SMALL), kind='check'), '', '', lambda _: None)
  (found,) = [finding for finding in result.findings if not finding.passed]
  assert 'raised at line 14 (return x_BTD @ jnp.ones((3, self.width)))' in found.detail


def test_settings_that_do_not_suit_the_devices_are_a_sentence_without_a_traceback(monkeypatch):
  def gate(job, settings, report):
    sharding.mesh(jax.devices(), 4, data_parallel=1024)

  monkeypatch.setattr(worker, 'gate', gate)
  result, _ = worker.run(Job('any', fakes.MIXER, config.worker_part(SMALL), kind='check'), '', '', lambda _: None)
  assert result.failure.reason.startswith('training.data_parallel = 1024 needs as many devices')
  assert result.failure.log == ''


def test_a_replica_that_loses_what_is_measured_after_training_has_diverged():
  losses = np.array([[3.0, 3.0, np.nan, 3.0], [2.0, 2.0, 2.0, 2.0]])
  validation, test = np.array([1.0, np.nan, 1.0, 1.0]), np.array([1.0, 1.0, 1.0, np.inf])
  assert worker.lost(losses, (validation, test)).tolist() == [False, True, True, True]
  assert worker.lost(losses, ()).tolist() == [False, False, True, False]  # ended early: nothing was measured


def test_what_is_trained_is_loaded_anew_after_the_checks(monkeypatch):
  checked, trained = [], []

  def gate(job, settings, report):
    checked.append(contract.load(job.source, job.name))
    return JobResult(job.key, cost=Cost(1, 1.0, 0, 1.0)), checked[0], 8

  def learn(job, settings, mixer, *_):
    trained.append(mixer)
    raise ValueError('enough')

  monkeypatch.setattr(worker, 'gate', gate)
  monkeypatch.setattr(worker, 'learn', learn)
  monkeypatch.setattr(worker.corpora, 'load', lambda _: None)
  worker.run(Job('any', fakes.MIXER, config.worker_part(SMALL)), '', '', lambda _: None)
  assert trained[0] is not checked[0] and trained[0].__name__ == checked[0].__name__


def test_the_gate_is_told_every_number_of_rows_that_a_mixer_sees():
  training = config.Training(batch=16, microbatches=2, data_parallel=4, length=64)
  evaluation = config.Evaluation(batch=32)
  sizes = worker.sizes_of(dataclasses.replace(config.Experiment(), training=training, evaluation=evaluation))
  assert sizes == ((16, 64), (8, 64), (2, 64), (32, 64))


def test_a_mixer_has_one_name_in_its_checks_and_in_its_host():
  names = []

  class Mixer(nn.Module):
    width: int
    heads: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_BTD):
      names.append(self.name)
      return nn.Dense(self.width)(x_BTD)

  x_BTD, key = jnp.zeros((1, 4, 16)), jax.random.key(0)
  jax.eval_shape(contract.build(Mixer, contract.spec_of(SMALL.model)).init, key, x_BTD)
  jax.eval_shape(lm.LanguageModel(Mixer, SMALL.model).initial_parameters, key)
  assert len(names) > 1 and set(names) == {'mixer'}
