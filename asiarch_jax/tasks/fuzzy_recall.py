"""Fuzzy recall: keys and values are motifs of one to `motif` adjacent tokens, and nothing marks where one ends.

After MAD (Poli et al. 2024, arXiv 2403.17844), `fuzzy-in-context-recall` with several queries. A motif has no token
twice. In training keys have every size; held-out sequences have keys of the largest size only. The sequence ends with a
key that stood before and its value; what room is left is padding in front. The last token of the vocabulary pads, keys
are the lower half of the rest and values the upper half.

Training asks for every next token, padding included; held-out sequences ask for the tokens of values whose key stood
before. One fault is mended: MAD may end a sequence without having shown the key that it asks for last, when the place
drawn for it lies beyond the end of the pairs; here the place is drawn where there is one.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from asiarch_jax.batch import Batch
from asiarch_jax.suites import Sequences
from asiarch_jax.tasks import recall


def make(key: jax.Array, kind: Sequences, rows: int, training: bool) -> Batch:
  """Returns `rows` sequences [rows, length].

  Raises:
    ValueError: too few tokens for motifs of that size, or too short a sequence for two of the largest pairs.
  """
  T, M, pad = kind.length, kind.motif, kind.vocabulary - 1
  K = pad // 2
  if M < 1 or K < M:
    raise ValueError(
      f'vocabulary = {kind.vocabulary} has {max(K, 0)} key tokens and motif = {M} needs as many; '
      f'use vocabulary >= {2 * M + 1}'
    )
  if T < 6 * M + 1:
    raise ValueError(f'length = {T} has no room for pairs of motifs of {M}; use at least {6 * M + 1}')
  least = 1 if training else M  # tokens of a key
  P = T // (least + 1) + 1  # pairs at most
  named = jax.random.split(key, 3)
  # Pair 0 is the probe: drawn first, shown at some place below, asked for last.
  keys_BPM, key_sizes_BP = motifs(named[0], (rows, 1 + P), K, M, least)
  values_BPM, value_sizes_BP = motifs(named[1], (rows, 1 + P), pad - K, M, 1)
  probe_B1 = (key_sizes_BP + value_sizes_BP)[:, :1]
  limit_B1 = T - probe_B1 - 2 * M  # pairs begin before it: so the largest and the probe have room

  def resolved(keys_BPM: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns for each pair the first one with its key, and where it begins, the probe as pair 0 aside."""
    codes_BP = jnp.sum((keys_BPM + 1) * (K + 1) ** jnp.arange(M), axis=-1)
    first_BP = jnp.argmax(codes_BP[:, :, None] == codes_BP[:, None, :], axis=2)
    sizes_BP = jnp.sum(keys_BPM >= 0, axis=-1) + jnp.take_along_axis(value_sizes_BP, first_BP, axis=1)
    ends_BP = jnp.cumsum(sizes_BP.at[:, 0].set(0), axis=1)
    return first_BP, ends_BP - sizes_BP.at[:, 0].set(0)

  # The probe takes the place of the first pair that begins at a random token or behind it.
  _, begins_BP = resolved(keys_BPM)
  latest_B1 = limit_B1 - 2 * M
  at_B1 = jnp.floor(jax.random.uniform(named[2], (rows, 1)) * (latest_B1 + 1)).astype(jnp.int32)
  late_BP = (begins_BP >= at_B1) & (jnp.arange(1 + P) > 0)
  probe_place_B1 = jnp.argmax(late_BP, axis=1)[:, None]
  keys_BPM = jnp.where((jnp.arange(1 + P) == probe_place_B1)[..., None], keys_BPM[:, :1], keys_BPM)
  first_BP, begins_BP = resolved(keys_BPM)
  numbers_P = jnp.arange(1 + P)
  shown_BP = (begins_BP < limit_B1) & (numbers_P > 0)
  # A repeat of the probe's key resolves to pair 0, which itself is not shown: it is seen from its first showing on.
  probes_BP = shown_BP & (first_BP == 0)
  seen_BP = jnp.where(first_BP == 0, jnp.cumsum(probes_BP, axis=1) - probes_BP > 0, first_BP < numbers_P) & shown_BP

  # The probe once more at the end.
  values_BPM = jnp.take_along_axis(values_BPM, first_BP[..., None], axis=1)
  pairs_BPN = jnp.concatenate([keys_BPM, jnp.where(values_BPM >= 0, values_BPM + K, -1)], axis=-1)
  sizes_BP = jnp.sum(pairs_BPN >= 0, axis=-1)
  begins_BP = begins_BP.at[:, 0].set(jnp.sum(sizes_BP * shown_BP, axis=1))
  shown_BP, seen_BP = shown_BP.at[:, 0].set(True), seen_BP.at[:, 0].set(True)

  # One token more than the model is given, so that the last one is asked for.
  front_B1 = T + 1 - begins_BP[:, :1] - probe_B1
  inside_BPN = jnp.cumsum(pairs_BPN >= 0, axis=-1) - 1
  places_BPN = jnp.where((pairs_BPN >= 0) & shown_BP[..., None], (front_B1 + begins_BP)[..., None] + inside_BPN, T + 1)
  rows_B11 = jnp.arange(rows)[:, None, None]
  tokens_BT = jnp.full((rows, T + 1), pad).at[rows_B11, places_BPN].set(pairs_BPN, mode='drop')
  answers_BPN = jnp.broadcast_to(seen_BP[..., None] & (jnp.arange(2 * M) >= M), pairs_BPN.shape)
  answer_BT = jnp.zeros((rows, T + 1), bool).at[rows_B11, places_BPN].set(answers_BPN, mode='drop')
  batch = recall.next_tokens(tokens_BT, None if training else jnp.pad(answer_BT[:, 1:], ((0, 0), (0, 1))))
  return Batch(*(leaf[:, :T] for leaf in batch))


def motifs(key: jax.Array, shape: tuple[int, ...], symbols: int, most: int, least: int) -> tuple[jax.Array, jax.Array]:
  """Returns motifs [*shape, most] of distinct tokens below `symbols`, -1 behind their end, and their sizes.

  The size is uniform from `least` to `most`, and so is every motif of one size.
  """
  named = jax.random.split(key, most + 1)
  sizes = jax.random.randint(named[0], shape, least, most + 1)
  tokens: list[jax.Array] = []
  for place in range(most):
    token = jax.random.randint(named[place + 1], shape, 0, symbols - place)
    # The token-th of those that are left: step over the taken ones in rising order.
    for taken in jnp.sort(jnp.stack(tokens, axis=0), axis=0) if tokens else ():
      token += token >= taken
    tokens.append(token)
  whole = jnp.stack(tokens, axis=-1)
  return jnp.where(jnp.arange(most) < sizes[..., None], whole, -1), sizes
