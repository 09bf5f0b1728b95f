"""One compiled program of 8 replicas against 8 separate processes: wall time, start-up and compilation included.

    python tests/benchmarks/replicas.py --steps=120 --replicas=8

Each process imports, compiles, trains the default model on this package's own source bytes and evaluates. The separate
ones run `--at_once` at a time (default: one after the other, as a queue of jobs would). Prints one JSON document; and
`ratio` is separate over together. Processor seconds stand beside wall seconds: on a busy machine only they compare.
"""

import argparse
import concurrent.futures
import dataclasses
import importlib
import json
import os
import pathlib
import resource
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parents[2]


def worker(options):
  """Trains replicas [first, first + replicas) and prints what it took."""
  import jax
  import numpy as np

  from asiarch_jax import config
  from asiarch_jax.arch import lm
  from asiarch_jax.batch import Batch
  from asiarch_jax.training import sharding, train

  text = np.frombuffer(b''.join(path.read_bytes() for path in sorted(ROOT.glob('asiarch_jax/*.py'))), np.uint8)
  training = dataclasses.replace(
    config.Training(),
    steps=options.steps,
    seeds=options.replicas,
    learning_rates=(8e-3,),
    steps_per_call=options.steps_per_call,
  )
  mixer = importlib.import_module(f'asiarch_jax.arch.baselines.{options.baseline}').Mixer
  host = lm.LanguageModel(mixer, config.Model())

  def windows(rng, *shape):
    starts = rng.integers(0, len(text) - training.length - 1, shape)
    tokens = text[starts[..., None] + np.arange(training.length + 1)].astype(np.int32)
    return Batch(tokens[..., :-1], tokens[..., 1:], np.ones_like(tokens[..., 1:], np.float32))

  def batches(step):
    seeds = range(options.first, options.first + options.replicas)
    made = [windows(np.random.default_rng([seed, step]), training.batch) for seed in seeds]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *made)

  def score(logits_BTY, batch):
    entropy_BT = train.cross_entropy(logits_BTY, batch.targets)
    return (entropy_BT * batch.weights).sum(-1), batch.weights.sum(-1)

  mesh = sharding.mesh(jax.devices(), options.replicas)
  layout = options.layout or None
  trainer = train.Trainer(host, training, mesh, options.first, clock=time.perf_counter, layout=layout)
  fitted = trainer.fit(batches)
  held_out = [windows(np.random.default_rng(batch), 32) for batch in range(4)]
  sums, counts = trainer.evaluate(fitted.parameters, held_out, score)
  facts = {
    'mesh': list(mesh.devices.shape),
    'layout': trainer.layout,
    'compile_seconds': round(trainer.compile_seconds, 2),
    'seconds_per_step': round(fitted.seconds_per_step, 4),
    'peak_megabytes': round(fitted.peak_bytes / 1e6),
    'loss': round(float(sums.sum() / counts.sum()), 3),
  }
  print(json.dumps(facts))


def launch(options, first, replicas, devices):
  """Runs one process to its end; returns what it printed."""
  environment = os.environ | {
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': f'{options.xla_flags} --xla_force_host_platform_device_count={devices}',
  }
  command = [
    sys.executable,
    __file__,
    '--worker',
    f'--first={first}',
    f'--replicas={replicas}',
    f'--steps={options.steps}',
  ]
  command += [
    f'--steps_per_call={options.steps_per_call}',
    f'--baseline={options.baseline}',
    f'--layout={options.layout}',
  ]
  done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
  if done.returncode:
    sys.exit(done.stderr)
  return json.loads(done.stdout.splitlines()[-1])


def timed(work):
  """Returns (result, wall seconds, processor seconds of the children)."""
  before, spent = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
  result = work()
  now = resource.getrusage(resource.RUSAGE_CHILDREN)
  used = now.ru_utime + now.ru_stime - spent.ru_utime - spent.ru_stime
  return result, round(time.perf_counter() - before, 2), round(used, 2)


def main(options):
  def apart():
    with concurrent.futures.ThreadPoolExecutor(options.at_once) as pool:
      return list(pool.map(lambda first: launch(options, first, 1, 1), range(options.replicas)))

  together, wall, used = timed(lambda: launch(options, 0, options.replicas, options.devices))
  separate, separate_wall, separate_used = timed(apart)
  print(
    json.dumps(
      {
        'steps': options.steps,
        'replicas': options.replicas,
        'at_once': options.at_once,
        'together': together | {'wall_seconds': wall, 'processor_seconds': used},
        'separate': separate[0] | {'wall_seconds': separate_wall, 'processor_seconds': separate_used},
        'ratio': round(separate_wall / wall, 2),
        'processor_ratio': round(separate_used / used, 2),
        'load': os.getloadavg()[0],
      },
      indent=2,
    )
  )


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--steps', type=int, default=120)
  parser.add_argument('--replicas', type=int, default=8)
  parser.add_argument('--steps_per_call', type=int, default=10)
  parser.add_argument('--at_once', type=int, default=1, help='separate processes at a time; 1 is a queue of jobs')
  parser.add_argument('--devices', type=int, default=os.cpu_count(), help='forced CPU devices of the one program')
  parser.add_argument('--baseline', default='delta_net')
  parser.add_argument('--layout', default='', help='map or vmap; empty: the one that the platform gets')
  parser.add_argument('--xla_flags', default='')
  parser.add_argument('--first', type=int, default=0, help=argparse.SUPPRESS)
  parser.add_argument('--worker', action='store_true', help=argparse.SUPPRESS)
  chosen = parser.parse_args()
  (worker if chosen.worker else main)(chosen)
