"""Memorisation: the value of a key in a dictionary that is the same for all sequences, so it must lie in the weights.

After MAD (Poli et al. 2024, arXiv 2403.17844): a random key, then a mark that asks for its value, and so on. Keys are
the lower half of the vocabulary without the mark, which is its last token, values the upper half; no two keys share a
value. The dictionary depends on the vocabulary alone, so training, validation and test sets and all seeds share it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from asiarch_jax.batch import Batch
from asiarch_jax.suites import Sequences

DICTIONARY = 12345  # the seed of MAD


def dictionary(vocabulary: int) -> jax.Array:
  """Returns the value of each key, int32 [keys]."""
  keys = (vocabulary - 1) // 2
  return jax.random.permutation(jax.random.key(DICTIONARY), jnp.arange(keys, vocabulary - 1))[:keys]


def make(key: jax.Array, kind: Sequences, rows: int, training: bool) -> Batch:
  """Returns `rows` sequences [rows, length], in training as in testing.

  Raises:
    ValueError: an odd length, or a vocabulary without two keys.
  """
  del training
  if kind.length % 2 or kind.vocabulary < 5:
    raise ValueError(
      f'length = {kind.length} is even and vocabulary = {kind.vocabulary} at least 5 in a dictionary of pairs'
    )
  values_K = dictionary(kind.vocabulary)
  keys_BP = jax.random.randint(key, (rows, kind.length // 2), 0, len(values_K))

  def interleaved(first_BP: jax.Array, second_BP: jax.Array) -> jax.Array:
    return jnp.stack([first_BP, second_BP], axis=-1).reshape(rows, kind.length)

  nothing_BP = jnp.zeros_like(keys_BP)
  return Batch(
    interleaved(keys_BP, jnp.full_like(keys_BP, kind.vocabulary - 1)).astype(jnp.int32),
    interleaved(nothing_BP, values_K[keys_BP]).astype(jnp.int32),
    interleaved(nothing_BP, jnp.ones_like(keys_BP)).astype(jnp.float32),
  )
