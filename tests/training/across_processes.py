"""One of several processes that train together over CPU collectives; the first prints the losses as JSON.

Usage: python -m tests.training.across_processes COORDINATOR PROCESSES PROCESS
"""

import json
import sys
import tempfile
import time

import jax
import numpy as np

from asiarch_jax.shell import checkpoint
from asiarch_jax.training import sharding, train
from tests.training import across_devices, tiny


def main(coordinator, processes, process):
  jax.distributed.initialize(coordinator, processes, process)
  found = {}
  shared = {'sharded': across_devices.SHARDED, 'fsdp': 2}
  for name, seeds, changes in (('replicas', 8, {}), ('rows', 1, {}), ('both', 2, {}), ('parts', 1, shared)):
    clock = time.perf_counter if name == 'replicas' else _uneven(process)
    trainer = tiny.trainer(
      tiny.Host(auxiliary=0.5), devices=None, clock=clock, **across_devices.SETTINGS | {'seeds': seeds} | changes
    )
    fitted = trainer.fit(
      lambda step, seeds=seeds: across_devices.uneven(tiny.copy_batch(step, range(seeds))), watch=_slow(name)
    )
    sums, counts = trainer.evaluate(fitted.parameters, [across_devices.held_out()], across_devices.score)
    parameters = jax.tree.map(sharding.host, fitted.parameters)
    found[name] = {
      'mesh': list(trainer.mesh.devices.shape),
      'losses': fitted.losses.tolist(),
      'held_out': (sums.sum(1) / counts.sum(1)).tolist(),
      'size': float(sum(abs(leaf).sum() for leaf in jax.tree.leaves(parameters))),
      'stopped': fitted.stopped.kind if fitted.stopped else '',
    }
  found['input'] = _in_parts()
  found['resumed'] = _resumed(process)
  if process == 0:
    print(json.dumps(found))
  jax.distributed.shutdown()


def _in_parts():
  """The losses of a run whose processes make what they need, and how much of a whole batch that is here."""
  asked, losses = set(), {}
  for name, seeds in (('seeds', 8), ('rows', 1)):
    trainer = tiny.trainer(tiny.Host(auxiliary=0.5), devices=None, **across_devices.SETTINGS | {'seeds': seeds})

    def part(step, of, rows, seeds=seeds, name=name):
      whole = across_devices.uneven(tiny.copy_batch(step, range(seeds)))
      cut = jax.tree.map(lambda leaf: leaf[of, rows], whole)
      asked.add((name, cut.tokens.size / whole.tokens.size))
      return cut

    losses[name] = trainer.fit(parts=part).losses.tolist()
  return {'losses': losses, 'asked': sorted(asked)}


def _resumed(process):
  """The losses of a run that goes on from a snapshot, which the first process alone can read."""
  with tempfile.TemporaryDirectory() as folder:
    trainer = tiny.trainer(tiny.Host(), devices=None, **across_devices.SETTINGS | {'seeds': 2, 'checkpoint_every': 6})
    kept = checkpoint.Shared(folder, sharding.host)

    def batches(step):
      return across_devices.uneven(tiny.copy_batch(step, range(2)))

    nothing = kept.restore(
      train.Snapshot(trainer._initial(trainer._keys()), np.zeros((4, 2), np.float32), np.asarray(0))
    )
    whole = trainer.fit(batches, save=kept.save)
    steps = []
    rest = trainer.fit(batches, restore=kept.restore, on_progress=lambda step, *_: steps.append(step))
  return {'before': nothing, 'steps': steps, 'whole': whole.losses.tolist(), 'losses': rest.losses.tolist()}


def _uneven(process):
  """A clock that runs faster in later processes: what is decided by it has to be decided once."""
  return lambda: time.perf_counter() * (1 + 1000 * process)


def _slow(name):
  from asiarch_jax.training import monitor

  def watch(losses_LR, seconds_L):
    limit = 100.0  # seconds a step, which the clock of the second process alone would exceed
    return monitor.Stop('too_slow', 'slow') if name != 'replicas' and max(seconds_L) > limit else None

  return watch


if __name__ == '__main__':
  main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
