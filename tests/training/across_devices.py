"""Prints, as JSON, the losses of the tiny host on meshes of forced CPU devices; run with XLA_FLAGS set.

The long case dispatches many small calls with a collective in each: on JAX 0.10 a loop that never waits hangs there.
"""

import json

import jax
import numpy as np

from asiarch_jax import config
from asiarch_jax.arch import lm
from tests.training import tiny

SHARDED = ('embedding/embedding$ -,fsdp', 'hidden/.*kernel fsdp,-', 'head/bias$ fsdp')
SETTINGS = {'seeds': 8, 'steps': 12, 'batch': 4}
IN_A_ROW = ('embedding$ fsdp,-', 'layer_.*kernel$ fsdp,-')  # of a language model whose layers are a Python loop
STACKED = ('embedding$ fsdp,-', 'layers/.*kernel$ -,fsdp,-')  # of one whose layers are a scan
DEEP = {'scan_layers': True, 'remat': True, 'sharded': STACKED}
SMALL = {'seeds': 2, 'steps': 6, 'batch': 8}
LAYERS = 4
BLOCKS = {
  'alone': {'devices': 1},
  'in a row': {'devices': 4, 'sharded': IN_A_ROW, 'remat': True, 'layout': 'vmap'},
  'in a scan': {'devices': 4, **DEEP},
  'in a scan, at once': {'devices': 4, **DEEP, 'at_once': True},
  'in a scan, copies beside, in microbatches': {'devices': 4, **DEEP, 'fsdp': 2, 'microbatches': 2, 'layout': 'vmap'},
}


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


def of_blocks(devices, scan_layers=False, remat=False, at_once=False, layout='map', **changes):
  """The last losses of a language model, and the bytes that its step holds beside its arguments."""
  model = config.Model(
    vocabulary=tiny.VOCABULARY, width=64, layers=LAYERS, heads=2, mlp_width=128, scan_layers=scan_layers, remat=remat
  )
  host = lm.LanguageModel(tiny.Shift, model)
  trainer = tiny.trainer(host, devices=devices, data_parallel=devices, layout=layout, **SETTINGS | SMALL | changes)
  if at_once:
    trainer.running, trainer.later = host, ()
    return {'temporary': trainer.compiled_step.memory_analysis().temp_size_in_bytes}
  fitted = trainer.fit(lambda step: tiny.copy_batch(step, range(2), 8))
  sums, counts = trainer.evaluate(fitted.parameters, [held_out()], score)
  return {
    'mesh': list(trainer.mesh.devices.shape),
    'losses': fitted.losses.tolist(),
    'held_out': (sums.sum(1) / counts.sum(1)).tolist(),
    'temporary': trainer.compiled_step.memory_analysis().temp_size_in_bytes,
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
  found['sharded, copies beside'] = losses(8, 4, sharded=SHARDED, fsdp=2)
  found['blocks'] = {name: of_blocks(**case) for name, case in BLOCKS.items()}
  found['long'] = losses(8, 2, steps=300, steps_per_call=1)
  assert np.isfinite(found['long']['losses']).all()
  print(json.dumps(found))
