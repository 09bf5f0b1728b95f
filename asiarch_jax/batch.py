"""The pytree that tasks and corpora hand to training."""

from __future__ import annotations

from typing import Any, NamedTuple


class Batch(NamedTuple):
  """Token ids, what follows each, and how much each position counts.

  tokens:  int32 [..., B, T] in [0, vocabulary).
  targets: int32 [..., B, T]; what each position is asked: the next token of a text, the answer in a synthetic task.
  weights: float32 [..., B, T]; 0 where no answer is asked, else 1.
  """

  tokens: Any
  targets: Any
  weights: Any
