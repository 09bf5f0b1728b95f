"""What input costs a training step, on eight forced devices: python -m tests.benchmarks.input CORPUS [--exploration]

Trains the default model on batches of a corpus and times what the loop spends on the input of a call: reading
windows, stacking them, handing them to the devices. The loop dispatches a call before it fetches the one before, so
that this goes on while the devices work, and all of it is a bound on what they wait. It is given by the clock, which
other load of the machine stretches, and in processor time of the loop's thread, which that does not.

With --exploration the batches are those of the paper's exploration (configs/asi_arch.py: two replicas of 256 x 2,048
tokens), all read by this one process. A processor would take most of an hour for such a step, so the devices are stood
in for by a clock: a call's losses are there `STEP_MS` after the call before, or after its input, if that is later: the
static estimate of a step on a v5e:4x4, whose four hosts read a quarter each. What the loop takes more is the wait.
"""

import dataclasses
import json
import os
import pathlib
import runpy
import statistics
import sys
import time
import types

import jax
import numpy as np

from asiarch_jax import config
from asiarch_jax.arch import lm
from asiarch_jax.arch.baselines import delta_net
from asiarch_jax.shell import corpus as corpora
from asiarch_jax.training import sharding, train

DEVICES = 8
STEP_MS = 262.0  # docs/LOG.md, 2026-11-26


class Timed(train.Trainer):
  """A trainer that notes the seconds a step of each call's input."""

  def _call_batches(self, *arguments):
    began = time.perf_counter(), time.thread_time()
    made = super()._call_batches(*arguments)
    spent = time.perf_counter() - began[0], time.thread_time() - began[1]
    self.__dict__.setdefault('input', []).append([one / self.training.steps_per_call for one in spent])
    return made


class Late:
  """Losses that are there at a time."""

  def __init__(self, when, shape):
    self.when, self.shape = when, shape

  def __array__(self, dtype=None, copy=None):
    time.sleep(max(0.0, self.when - time.perf_counter()))
    return np.zeros(self.shape, np.float32)


class Clocked(Timed):
  """A trainer whose devices are a clock."""

  done = 0.0
  _initial = staticmethod(lambda keys: types.SimpleNamespace(parameters=None))
  _peak_bytes = staticmethod(int)

  def _step(self, state, batch, peaks, total):
    jax.block_until_ready(batch)
    self.done = max(self.done, time.perf_counter()) + STEP_MS / 1e3
    return state, Late(self.done, (self.training.steps_per_call, self.replicas))


def exploration(path, steps=20):
  given = runpy.run_path(str(pathlib.Path(__file__).parents[2] / 'configs' / 'asi_arch.py'))['get_config']()
  experiment = config.from_dict(given)
  training = dataclasses.replace(experiment.training, steps=steps, steps_per_call=1)
  mesh = sharding.mesh(jax.devices(), training.seeds, DEVICES // training.seeds, training.batch)
  host = lm.LanguageModel(delta_net.Mixer, experiment.model)
  trainer = Clocked(host, training, mesh, 0, clock=time.perf_counter)
  text = corpora.load(path)

  def parts(step, of, rows):
    return text.training_batch(step, range(training.seeds)[of], training.batch, training.length, rows=rows)

  fitted = trainer.fit(parts=parts)
  clock, thread = (statistics.median(one) for one in zip(*trainer.input[1:], strict=True))
  found = {
    'devices': int(mesh.devices.size),
    'tokens': training.seeds * training.batch * training.length,
    'step_ms': STEP_MS,
    'input_ms': {'clock': round(1e3 * clock, 3), 'thread': round(1e3 * thread, 3)},
    'wait': round(1e3 * fitted.seconds_per_step / STEP_MS - 1, 5),
  }
  print(json.dumps(found))
  return found


def main(path, steps=60):
  experiment = config.Experiment()
  training = dataclasses.replace(experiment.training, steps=steps, seeds=4, learning_rates=(5e-3,))
  mesh = sharding.mesh(jax.devices(), training.seeds, 2)
  trainer = Timed(lm.LanguageModel(delta_net.Mixer, experiment.model), training, mesh, 0, clock=time.perf_counter)
  text = corpora.load(path)
  fitted = trainer.fit(
    parts=lambda step, of, rows: text.training_batch(step, range(4)[of], training.batch, training.length, rows=rows)
  )
  clock, thread = (statistics.median(one) for one in zip(*trainer.input[1:], strict=True))
  found = {
    'devices': int(mesh.devices.size),
    'step_ms': round(1e3 * fitted.seconds_per_step, 3),
    'input_ms': {'clock': round(1e3 * clock, 3), 'thread': round(1e3 * thread, 3)},
    'share': {'clock': round(clock / fitted.seconds_per_step, 5), 'thread': round(thread / fitted.seconds_per_step, 5)},
  }
  print(json.dumps(found))
  return found


if __name__ == '__main__':
  if f'device_count={DEVICES}' not in os.environ.get('XLA_FLAGS', ''):
    os.environ['XLA_FLAGS'] = f'--xla_force_host_platform_device_count={DEVICES}'
    os.execv(sys.executable, [sys.executable, '-m', 'tests.benchmarks.input', *sys.argv[1:]])
  (exploration if '--exploration' in sys.argv else main)(sys.argv[1])
