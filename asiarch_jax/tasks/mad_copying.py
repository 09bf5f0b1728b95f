"""Selective copying as MAD lays it out, for its suite. `selective_copying` is the quick task of a search.

After MAD (Poli et al. 2024, arXiv 2403.17844): each blank stands before one of the tokens to copy, so none stands
between the last of them and the mark; the answers are asked at the blanks behind the mark. The blank is the last token
but one, the mark the last. MAD draws the places from a generator that its seed does not set; here they come from the
key.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from asiarch_jax.batch import Batch
from asiarch_jax.suites import Sequences


def make(key: jax.Array, kind: Sequences, rows: int, training: bool) -> Batch:
  """Returns `rows` sequences [rows, length], in training as in testing.

  Raises:
    ValueError: too short a sequence for the tokens, a blank, the mark and the answers; or fewer than two tokens.
  """
  del training
  T, C, blank, mark = kind.length, kind.copies, kind.vocabulary - 2, kind.vocabulary - 1
  blanks = T - 2 * C - 1
  if C < 1 or blanks < 1:
    raise ValueError(f'length = {T} cannot hold copies = {C} tokens, their answers and a blank; use >= {2 * C + 2}')
  if blank < 2:
    raise ValueError(f'vocabulary = {kind.vocabulary} leaves {blank} tokens to copy; use at least 4')
  symbols_key, places_key = jax.random.split(key)
  symbols_BC = jax.random.randint(symbols_key, (rows, C), 0, blank)
  before_BN = jax.random.randint(places_key, (rows, blanks), 0, C)  # the token that each blank stands before
  blanks_BC = jnp.sum(before_BN[:, None, :] <= jnp.arange(C)[:, None], axis=-1)  # up to each token
  rows_B1 = jnp.arange(rows)[:, None]
  tokens_BT = jnp.full((rows, T), blank).at[rows_B1, jnp.arange(C) + blanks_BC].set(symbols_BC)
  tokens_BT = tokens_BT.at[:, T - C - 1].set(mark)
  answers_T = jnp.arange(T) >= T - C
  targets_BT = jnp.zeros((rows, T), jnp.int32).at[:, T - C :].set(symbols_BC)
  return Batch(tokens_BT.astype(jnp.int32), targets_BT, jnp.broadcast_to(answers_T, (rows, T)).astype(jnp.float32))
