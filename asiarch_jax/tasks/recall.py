"""In-context recall among noise: after a key that stood before comes the value that it had then.

After MAD (Poli et al. 2024, arXiv 2403.17844), `in-context-recall` and `noisy-in-context-recall` with several queries:
pairs of a key and its value, each key's value drawn anew for each sequence; a share of the pairs are two noise tokens
instead. The last pair repeats a key. Keys are the lower half of the vocabulary without noise, values the upper half,
noise tokens the end.

Training asks for every next token, as MAD does; held-out sequences ask at repeated keys only. Where MAD keeps one pair
from being noise, that pair may be the last one, which never is; here it is one of the others.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from asiarch_jax.batch import Batch
from asiarch_jax.suites import Sequences


def make(key: jax.Array, kind: Sequences, rows: int, training: bool) -> Batch:
  """Returns `rows` sequences [rows, length]; the last position has nothing to follow and no weight.

  Raises:
    ValueError: an odd length, too small a vocabulary, or noise without noise tokens.
  """
  plain = kind.vocabulary - kind.noise_symbols
  K, P = plain // 2, kind.length // 2
  if kind.length % 2 or P < 2:
    raise ValueError(f'length = {kind.length} is not a number of pairs; use an even one from 4 on')
  if K < 1 or plain < 2:
    raise ValueError(
      f'vocabulary = {kind.vocabulary} with {kind.noise_symbols} noise tokens leaves {plain} for keys and values; '
      'use at least 2 more than noise_symbols'
    )
  if kind.noise and kind.noise_symbols < 1:
    raise ValueError(f'noise = {kind.noise} has no noise tokens to draw from; set noise_symbols')
  named = jax.random.split(key, 6)
  values_BK = jax.random.randint(named[0], (rows, K), K, plain)
  keys_BP = jax.random.randint(named[1], (rows, P - 1), 0, K)
  noisy_BP = jax.random.uniform(named[2], (rows, P - 1)) < kind.noise
  noisy_BP &= jnp.arange(P - 1) != jax.random.randint(named[3], (rows, 1), 0, P - 1)

  shown_BPK = (keys_BP[:, :, None] == jnp.arange(K)) & ~noisy_BP[:, :, None]
  probe_B1 = jnp.argmax(jnp.where(shown_BPK.any(1), jax.random.uniform(named[4], (rows, K)), -1.0), axis=1)[:, None]
  keys_BP = jnp.concatenate([keys_BP, probe_B1], axis=1)
  noisy_BP = jnp.concatenate([noisy_BP, jnp.zeros((rows, 1), bool)], axis=1)
  pairs_BP2 = jnp.stack([keys_BP, jnp.take_along_axis(values_BK, keys_BP, axis=1)], axis=-1)
  noise_BP2 = jax.random.randint(named[5], (rows, P, 2), plain, max(kind.vocabulary, plain + 1))
  tokens_BT = jnp.where(noisy_BP[:, :, None], noise_BP2, pairs_BP2).reshape(rows, 2 * P)

  earlier_BPK = jnp.cumsum(shown_BPK, axis=1) > 0  # up to and with the pair before
  seen_BP = jnp.take_along_axis(jnp.pad(earlier_BPK, ((0, 0), (1, 0), (0, 0))), keys_BP[:, :, None], axis=2)[..., 0]
  asked_BT = jnp.stack([seen_BP & ~noisy_BP, jnp.zeros_like(noisy_BP)], axis=-1).reshape(rows, 2 * P)
  return next_tokens(tokens_BT, None if training else asked_BT)


def next_tokens(tokens_BT: jax.Array, asked_BT: jax.Array | None) -> Batch:
  """Returns a batch that asks for the next token: everywhere but at the end, or only where `asked_BT`."""
  targets_BT = jnp.pad(tokens_BT[:, 1:], ((0, 0), (0, 1)))
  everywhere_T = jnp.arange(tokens_BT.shape[1]) < tokens_BT.shape[1] - 1
  weights_BT = jnp.broadcast_to(everywhere_T, tokens_BT.shape) if asked_BT is None else asked_BT & everywhere_T
  return Batch(tokens_BT.astype(jnp.int32), targets_BT.astype(jnp.int32), weights_BT.astype(jnp.float32))
