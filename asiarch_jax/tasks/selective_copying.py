"""Selective copying: repeat the symbols that stood scattered among blanks, in order.

After MAD (Poli et al. 2024, arXiv 2403.17844): `copies` symbols, drawn with replacement, lie at random places among
blanks; then comes the copy mark, then blanks. The mark asks for the first symbol and each blank after it for the next,
so every answer follows from what stands before it. Symbol 0 is the blank and the last symbol is the mark.

Symbols and their places come from the given key alone (MAD draws places from a global generator that its seed does not
set). Weights stand on the answers only, in training as in testing, as in MAD.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from asiarch_jax import config
from asiarch_jax.batch import Batch
from asiarch_jax.tasks import answers
from asiarch_jax.tasks.task import Task

SPECIAL = 2  # the blank and the mark


def make(key: jax.Array, tasks: config.Tasks, batch: int, length: int, vocabulary: int) -> Batch:
  """Returns a batch [batch, length] in which each sequence asks for `tasks.copies` answers.

  Raises:
    ValueError: fewer than two symbols to copy from, or too short a sequence to hold the symbols and their copies.
  """
  config.require_room('selective_copying', tasks, length, vocabulary)
  C, mark = tasks.copies, tasks.symbols - 1
  asked = tasks.length - C  # the first position that asks: the mark
  # One draw, cut in two: every further call of the generator costs half a second of compilation.
  uniform_BN = jax.random.uniform(key, (batch, C + asked))
  symbols_BC = 1 + jnp.minimum(uniform_BN[:, :C] * (mark - 1), mark - 2).astype(jnp.int32)
  places_BC = jnp.sort(jax.lax.top_k(uniform_BN[:, C:], C)[1], axis=-1)

  tokens_BL = jnp.zeros((batch, tasks.length), jnp.int32)
  tokens_BL = tokens_BL.at[jnp.arange(batch)[:, None], places_BC].set(symbols_BC).at[:, asked].set(mark)
  targets_BL = jnp.zeros_like(tokens_BL).at[:, asked:].set(symbols_BC)
  weights_BL = jnp.broadcast_to(jnp.arange(tasks.length) >= asked, tokens_BL.shape)
  return answers.padded(tokens_BL, targets_BL, weights_BL, length)


def chance(tasks: config.Tasks, vocabulary: int) -> float:
  """Returns the accuracy of one symbol for every answer."""
  del vocabulary
  return 1 / (tasks.symbols - SPECIAL)


TASK = Task('selective_copying', 'accuracy', 'synthetic', answers.accuracy, chance, make)
