"""A host small enough to train in a moment, and batches of a copy problem: what the training tests share."""

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from asiarch_jax import config
from asiarch_jax.batch import Batch
from asiarch_jax.training import sharding, train

VOCABULARY = 16
SETTINGS = config.Training(steps=12, batch=4, length=8, seeds=4, steps_per_call=3, learning_rates=(1e-2,))


class Host(nn.Module):
  """A language model of one causal mean over the last two tokens; sows a loss when asked."""

  width: int = 16
  auxiliary: float = 0.0
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, tokens_BT):
    x_BTD = nn.Embed(VOCABULARY, self.width, dtype=self.dtype, name='embedding')(tokens_BT)
    x_BTD += jnp.pad(x_BTD, ((0, 0), (1, 0), (0, 0)))[:, :-1]
    x_BTD = nn.silu(nn.Dense(self.width, dtype=self.dtype, name='hidden')(x_BTD))
    if self.auxiliary:
      self.sow('losses', 'constant', jnp.float32(self.auxiliary))
      self.sow('diagnostics', 'mean', jnp.mean(x_BTD))
    return nn.Dense(VOCABULARY, dtype=self.dtype, name='head')(x_BTD).astype(jnp.float32)

  @nn.nowrap
  def initial_parameters(self, key):
    return self.init(key, jnp.zeros((1, 2), jnp.int32))['params']


class Shift(nn.Module):
  """A small mixer that sows both collections."""

  width: int
  heads: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x_BTD):
    y_BTD = nn.Dense(self.width, use_bias=False, dtype=self.dtype, name='mix')(x_BTD)
    self.sow('losses', 'size', 1e-2 * jnp.mean(jnp.square(y_BTD.astype(jnp.float32))))
    self.sow('diagnostics', 'largest', jnp.max(jnp.abs(y_BTD)))
    return jnp.pad(y_BTD, ((0, 0), (1, 0), (0, 0)))[:, :-1]


def trainer(host=None, settings=SETTINGS, *, devices=1, seed=0, clock=time.perf_counter, layout=None, **changes):
  settings = dataclasses.replace(settings, **changes)
  mesh = sharding.mesh_of(jax.devices()[:devices], settings)
  return train.Trainer(host or Host(), settings, mesh, seed, clock=clock, layout=layout)


def copy_batch(step, seeds=range(4), rows=4, length=8):
  """Each token says which comes next, but for the first: learnable to a loss near zero. Positions 0 do not count."""
  tokens = np.stack([np.random.default_rng([seed, step]).integers(0, VOCABULARY, (rows, 1)) for seed in seeds])
  tokens = (tokens + 3 * np.arange(length + 1)) % VOCABULARY
  weights = np.ones((len(seeds), rows, length), np.float32)
  weights[..., 0] = 0
  return Batch(tokens[..., :-1].astype(np.int32), tokens[..., 1:].astype(np.int32), weights)
