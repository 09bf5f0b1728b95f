"""Multi-query associative recall: name the value that was paired with a key earlier in the sequence.

After zoology (Arora et al. 2023, arXiv 2312.04927): a block of `pairs` key-value pairs, then every key once more, at
gaps drawn without replacement from a power law that favours short distances. The answer is asked at the key; what
follows it is a blank, so answering shows nothing. Symbol 0 is the blank, keys are the rest of the lower half of the
symbols and values the upper half; within a sequence keys are distinct and values are distinct.

One difference, on purpose: the space between queries is always blank. Zoology's default fills it with random tokens,
which may be keys of the same sequence and then ask for an answer that is not scored, or rebind a key.

Weights stand on the answers only, in training as in testing. MAD trains recall on every next token instead: on a stream
of independent symbols that adds a loss no model can lower, hence noise.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from asiarch_jax import config
from asiarch_jax.batch import Batch
from asiarch_jax.tasks import answers
from asiarch_jax.tasks.task import Task

POWER = 0.01  # a in P(gap = x) ~ a x^(a - 1), the setting of zoology


def make(key: jax.Array, tasks: config.Tasks, batch: int, length: int, vocabulary: int) -> Batch:
  """Returns a batch [batch, length] in which each sequence asks for `tasks.pairs` answers.

  Raises:
    ValueError: too few symbols for distinct keys and values, or too short a sequence for the pairs and their queries.
  """
  answers.require_room(tasks, length, vocabulary)
  P, first_value = tasks.pairs, tasks.symbols // 2
  if first_value - 1 < P:
    raise ValueError(
      f'tasks.pairs = {P} needs as many distinct keys, and tasks.symbols = {tasks.symbols} has '
      f'{max(first_value - 1, 0)} (half of the symbols without the blank); use symbols >= {2 * P + 2}'
    )
  slots = (tasks.length - 2 * P) // 2  # a query is a key and the blank after it
  if slots < P:
    raise ValueError(
      f'tasks.length = {tasks.length} has no room for {P} pairs and {P} queries; use tasks.length >= {4 * P}'
    )
  # One draw, cut in three: every further call of the generator costs half a second of compilation.
  noise_BN = jax.random.gumbel(key, (batch, tasks.symbols - 1 + slots))
  keys_BP = 1 + _distinct(noise_BN[:, : first_value - 1], P)
  values_BP = first_value + _distinct(noise_BN[:, first_value - 1 : tasks.symbols - 1], P)
  gaps_BP = _distinct(noise_BN[:, -slots:] + (POWER - 1) * jnp.log(jnp.arange(1, slots + 1)), P)

  pairs_BL = jnp.stack([keys_BP, values_BP], axis=-1).reshape(batch, 2 * P)
  tokens_BL = jnp.zeros((batch, tasks.length), jnp.int32).at[:, : 2 * P].set(pairs_BL)
  rows_B1 = jnp.arange(batch)[:, None]
  queries_BP = 2 * P + 2 * gaps_BP
  tokens_BL = tokens_BL.at[rows_B1, queries_BP].set(keys_BP)
  targets_BL = jnp.zeros_like(tokens_BL).at[rows_B1, queries_BP].set(values_BP)
  return answers.padded(tokens_BL, targets_BL, targets_BL > 0, length)


def _distinct(scores_BN: jax.Array, count: int) -> jax.Array:
  """Returns int32 [B, count] indices. Scores of Gumbel noise plus log weight draw by weight, without replacement."""
  return jax.lax.top_k(scores_BN, count)[1]


def chance(tasks: config.Tasks, vocabulary: int) -> float:
  """Returns the accuracy of one value for every answer.

  A model that remembers which values occurred, but not with which key, reaches 1 / tasks.pairs.
  """
  del vocabulary
  return 1 / (tasks.symbols - tasks.symbols // 2)


TASK = Task('mqar', 'accuracy', 'synthetic', answers.accuracy, chance, make)
