"""Compression: name every token of a sequence from what its last position holds.

After MAD (Poli et al. 2024, arXiv 2403.17844): random tokens, then a mark, the last of the vocabulary. Each position
asks for its own token, the mark included, of a host that passes only the last position on (`arch.autoencoder`).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from asiarch_jax.batch import Batch
from asiarch_jax.suites import Sequences


def make(key: jax.Array, kind: Sequences, rows: int, training: bool) -> Batch:
  """Returns `rows` sequences [rows, length], in training as in testing.

  Raises:
    ValueError: a vocabulary without two tokens beside the mark, or a length without room for any.
  """
  del training
  if kind.vocabulary < 3 or kind.length < 2:
    raise ValueError(
      f'vocabulary = {kind.vocabulary} and length = {kind.length} hold no sequence to compress; use at least 3 and 2'
    )
  mark = kind.vocabulary - 1
  tokens_BT = jax.random.randint(key, (rows, kind.length), 0, mark).at[:, -1].set(mark)
  return Batch(tokens_BT, tokens_BT, jnp.ones(tokens_BT.shape, jnp.float32))
