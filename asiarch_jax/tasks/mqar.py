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
from asiarch_jax.suites import Sequences
from asiarch_jax.tasks import answers
from asiarch_jax.tasks.task import Task

POWER = 0.01  # a in P(gap = x) ~ a x^(a - 1), the setting of zoology


def make(key: jax.Array, tasks: config.Tasks, batch: int, length: int, vocabulary: int) -> Batch:
  """Returns a batch [batch, length] in which each sequence asks for `tasks.pairs` answers.

  Raises:
    ValueError: too few symbols for distinct keys and values, or too short a sequence for the pairs and their queries.
  """
  config.require_room('mqar', tasks, length, vocabulary)
  tokens_BL, targets_BL = sequences(key, batch, tasks.length, tasks.pairs, tasks.symbols)
  return answers.padded(tokens_BL, targets_BL, targets_BL > 0, length)


def of_kind(key: jax.Array, kind: Sequences, rows: int, training: bool) -> Batch:
  """Returns `rows` sequences of a suite [rows, length], in training as in testing.

  Raises:
    ValueError: too few symbols or too short a sequence.
  """
  del training
  P, U, first_value = kind.pairs, kind.updates, kind.vocabulary // 2
  if U > P:
    raise ValueError(f'updates = {U} exceeds pairs = {P}; every key is updated once at most')
  if min(first_value - 1, kind.vocabulary - first_value - U) < P:
    raise ValueError(
      f'pairs = {P} with updates = {U} need {2 * P + 2 * U + 2} symbols, vocabulary = {kind.vocabulary}; raise it'
    )
  if kind.length < 4 * P + 2 * U:
    raise ValueError(
      f'length = {kind.length} has no room for {P + U} pairs and {P} queries; use at least {4 * P + 2 * U}'
    )
  tokens_BL, targets_BL = sequences(key, rows, kind.length, P, kind.vocabulary, U)
  return answers.padded(tokens_BL, targets_BL, targets_BL > 0, kind.length)


def sequences(
  key: jax.Array, rows: int, length: int, pairs: int, symbols: int, updates: int = 0
) -> tuple[jax.Array, jax.Array]:
  """Returns tokens and targets [rows, length], targets 0 where nothing is asked.

  `updates` of the keys stand a second time behind the pairs, each with another value, which is the one asked for
  (zoology's `forgetting_mqar`).
  """
  P, U, first_value = pairs, updates, symbols // 2
  shown = 2 * (P + U)
  slots = (length - shown) // 2
  # One draw, cut in three: every further call of the generator costs half a second of compilation.
  noise_BN = jax.random.gumbel(key, (rows, symbols - 1 + slots + (P if U else 0)))
  keys_BP = 1 + _distinct(noise_BN[:, : first_value - 1], P)
  drawn_BV = first_value + _distinct(noise_BN[:, first_value - 1 : symbols - 1], P + U)
  gap_noise_BN = noise_BN[:, symbols - 1 : symbols - 1 + slots]
  gaps_BP = _distinct(gap_noise_BN + (POWER - 1) * jnp.log(jnp.arange(1, slots + 1)), P)
  values_BP = drawn_BV[:, :P]
  pairs_BL = jnp.stack([keys_BP, values_BP], axis=-1).reshape(rows, 2 * P)
  rows_B1 = jnp.arange(rows)[:, None]
  if U:
    updated_BU = _distinct(noise_BN[:, -P:], U)
    again_BU2 = jnp.stack([keys_BP[rows_B1, updated_BU], drawn_BV[:, P:]], axis=-1)
    pairs_BL = jnp.concatenate([pairs_BL, again_BU2.reshape(rows, 2 * U)], axis=1)
    values_BP = values_BP.at[rows_B1, updated_BU].set(drawn_BV[:, P:])
  tokens_BL = jnp.zeros((rows, length), jnp.int32).at[:, :shown].set(pairs_BL)
  queries_BP = shown + 2 * gaps_BP
  tokens_BL = tokens_BL.at[rows_B1, queries_BP].set(keys_BP)
  return tokens_BL, jnp.zeros_like(tokens_BL).at[rows_B1, queries_BP].set(values_BP)


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
