"""What input costs a training step, on eight forced devices: python -m tests.benchmarks.input CORPUS

Trains the exploration's model on batches of a corpus and times what the loop spends on the input of a call: reading
windows, stacking them, handing them to the devices. The loop dispatches a call before it fetches the one before, so
that this goes on while the devices work, and all of it is a bound on what they wait. It is given by the clock, which
other load of the machine stretches, and in processor time of the loop's thread, which that does not.
"""

import dataclasses
import json
import os
import statistics
import sys
import time

import jax

from asiarch_jax import config
from asiarch_jax.arch import lm
from asiarch_jax.arch.baselines import delta_net
from asiarch_jax.shell import corpus as corpora
from asiarch_jax.training import sharding, train

DEVICES = 8


class Timed(train.Trainer):
  """A trainer that notes the seconds a step of each call's input."""

  def _call_batches(self, *arguments):
    began = time.perf_counter(), time.thread_time()
    made = super()._call_batches(*arguments)
    spent = time.perf_counter() - began[0], time.thread_time() - began[1]
    self.__dict__.setdefault('input', []).append([one / self.training.steps_per_call for one in spent])
    return made


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
  main(*sys.argv[1:2])
