"""The loss on held-out text, in a unit that does not depend on the tokenizer."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from asiarch_jax import config
from asiarch_jax.batch import Batch
from asiarch_jax.tasks.task import Task


def score(logits_BTY: Float[Array, 'B T Y'], batch: Batch) -> tuple[Float[Array, ' B'], Float[Array, ' B']]:
  """Returns the nats of each window's targets, and the number of its targets. `bits` makes bits and bytes of both."""
  log_p_BTY = jax.nn.log_softmax(logits_BTY.astype(jnp.float32), axis=-1)
  nats_BT = -jnp.take_along_axis(log_p_BTY, batch.targets[..., None], axis=-1)[..., 0]
  return jnp.sum(batch.weights * nats_BT, axis=-1), jnp.sum(batch.weights, axis=-1)


def bits(nats_N: np.ndarray, tokens_N: np.ndarray, bytes_per_token: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
  """Returns (bits, bytes) of each window: their ratio is bits per byte. `bytes_per_token` stands in the corpus card.

  >>> bits(np.array([math.log(2) * 12]), np.array([4]), 3.0)
  (array([12.]), array([12.]))
  """
  return np.asarray(nats_N, np.float64) / math.log(2), np.asarray(tokens_N, np.float64) * bytes_per_token


def chance(tasks: config.Tasks, vocabulary: int) -> float:
  """Returns bits per byte of the uniform guess over byte tokens; for other tokens divide by the bytes of a token."""
  del tasks
  return math.log2(vocabulary)


TASK = Task('bits_per_byte', 'bits_per_byte', 'corpus', score, chance)
