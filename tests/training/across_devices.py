"""Prints, as JSON, the losses of the tiny host on meshes of forced CPU devices; run with XLA_FLAGS set.

The long case dispatches many small calls with a collective in each: on JAX 0.10 a loop that never waits hangs there.
"""

import json

import jax
import numpy as np

from tests.training import tiny

SHARDED = ('embedding/embedding$ -,data', 'hidden/.*kernel data,-', 'head/bias$ data')
SETTINGS = {'seeds': 8, 'steps': 12, 'batch': 4}


def losses(devices, data_parallel, **changes):
  trainer = tiny.trainer(tiny.Host(auxiliary=0.5), devices=devices, data_parallel=data_parallel, **SETTINGS | changes)
  seeds = range(trainer.training.seeds)
  fitted = trainer.fit(lambda step: uneven(tiny.copy_batch(step, seeds)))
  sums, counts = trainer.evaluate(fitted.parameters, [held_out()], score)
  return {
    'mesh': list(trainer.mesh.devices.shape),
    'losses': fitted.losses.tolist(),
    'held_out': (sums.sum(1) / counts.sum(1)).tolist(),
    'part': list(fitted.parameters['hidden']['kernel'].addressable_shards[0].data.shape),
    'kernel': np.asarray(fitted.parameters['hidden']['kernel'])[0].tolist(),
  }


def uneven(batch):
  """Rows count differently, so that an average of the devices' averages would be wrong."""
  batch.weights[:, 0, 2:] = 0
  return batch


def held_out():
  return jax.tree.map(lambda leaf: leaf[0], tiny.copy_batch(10_000))


def score(logits_BTY, batch):
  picked = jax.numpy.take_along_axis(jax.nn.log_softmax(logits_BTY), batch.targets[..., None], -1)[..., 0]
  return -(picked * batch.weights).sum(-1), batch.weights.sum(-1)


if __name__ == '__main__':
  cases = {'1x1': (1, 1), '8x1': (8, 1), '4x2': (8, 2), '2x4': (8, 4)}
  found = {name: losses(*case) for name, case in cases.items()}
  found['sharded'] = losses(8, 4, sharded=SHARDED)
  found['sharded, in microbatches'] = losses(8, 2, sharded=SHARDED, microbatches=2)
  found['long'] = losses(8, 2, steps=300, steps_per_call=1)
  assert np.isfinite(found['long']['losses']).all()
  print(json.dumps(found))
