"""What a task is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

from asiarch_jax import config
from asiarch_jax.batch import Batch

Make = Callable[[Any, config.Tasks, int, int, int], Batch]
Score = Callable[[Any, Batch], tuple[Any, Any]]
Chance = Callable[[config.Tasks, int], float]


@dataclasses.dataclass(frozen=True)
class Task:
  """A measurement of a language model, by pure functions.

  kind 'synthetic': examples come from `make(key, tasks, batch, length, vocabulary) -> Batch` with leaves [B, T], where
    T = length. It runs under `jax.jit` with all but the key static, and raises ValueError when the sizes contradict
    each other. A fresh model is trained on one stream of keys and tested on another.
  kind 'corpus': examples are held-out windows of text, `make` is None, and the model trained on the text is measured.
  score(logits_BTY, batch) -> (sum_B, count_B), float32: what is averaged and over how much of it, for each sequence.
    `summary.summarise` makes value and standard error of them.
  chance(tasks, vocabulary): the value that the best answer reaches which does not look at the sequence.
  """

  name: str
  unit: Literal['accuracy', 'bits_per_byte']
  kind: Literal['corpus', 'synthetic']
  score: Score
  chance: Chance
  make: Make | None = None
