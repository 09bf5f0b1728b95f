"""What the suites are made of: finite sets of sequences, each a function of a key and a size."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal

import jax
import numpy as np

from asiarch_jax.batch import Batch
from asiarch_jax.suites import Sequences
from asiarch_jax.tasks import compression, fuzzy_recall, mad_copying, memorisation, mqar, recall

# (key, kind, rows, training) -> [rows, length]; held-out sequences may ask for less than those of training.
Generator = Callable[[jax.Array, Sequences, int, bool], Batch]
GENERATORS: dict[str, Generator] = {
  'in-context-recall': recall.make,
  'fuzzy-recall': fuzzy_recall.make,
  'selective-copying': mad_copying.make,
  'compression': compression.make,
  'memorisation': memorisation.make,
  'mqar': mqar.of_kind,
}
SPLITS = ('train', 'validation', 'test')
Split = Literal['train', 'validation', 'test']
ASK_ALL = ('in-context-recall', 'fuzzy-recall')  # in training, every next token
CHUNK = 1 << 18  # numbers drawn at a time: what lies between draws and tokens is many times larger


def stream(root: jax.Array, split: Split, member: int = 0) -> jax.Array:
  """Returns the key of a split; training sets differ by `member`, the seed of the run."""
  return jax.random.fold_in(jax.random.fold_in(root, SPLITS.index(split)), member)


def sequences(key: jax.Array, kind: Sequences, training: bool) -> Batch:
  """Returns the whole set, as numpy arrays [examples, length].

  Sequences are drawn by chunks of keys, so a smaller set is the beginning of a larger one.

  Raises:
    ValueError: sizes that contradict each other, or a task that is not in GENERATORS.
  """
  if kind.task not in GENERATORS:
    raise ValueError(f'{kind.task!r} is not a task; there are {", ".join(GENERATORS)}')
  rows = max(1, CHUNK // max(kind.length, kind.vocabulary // 4 if kind.pairs else 1))
  chunk = _chunk(dataclasses.replace(kind, examples=0), rows, training and kind.task in ASK_ALL)
  made = [jax.tree.map(np.asarray, chunk(jax.random.fold_in(key, part))) for part in range(-(-kind.examples // rows))]
  return Batch(*(np.concatenate(leaves)[: kind.examples] for leaves in zip(*made, strict=True)))


@functools.cache
def _chunk(kind: Sequences, rows: int, training: bool) -> Callable[[jax.Array], Batch]:
  return jax.jit(lambda key: GENERATORS[kind.task](key, kind, rows, training))
