"""Micro and macro accuracy from answers, as plain numpy."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int


def micro(predicted_N: Int[np.ndarray, ' N'], targets_N: Int[np.ndarray, ' N']) -> float:
  """Returns the share of right answers.

  >>> micro(np.array([1, 1, 2]), np.array([1, 1, 1])), macro(np.array([1, 1, 2]), np.array([1, 1, 1]))
  (0.6666666666666666, 0.3333333333333333)
  """
  return float(np.mean(predicted_N == targets_N))


def macro(predicted_N: Int[np.ndarray, ' N'], targets_N: Int[np.ndarray, ' N']) -> float:
  """Returns the mean over classes of the share of a class's answers that are right.

  The convention of torchmetrics' `MulticlassAccuracy`, which MAD uses: a class takes part when it is asked or answered,
  so one that is answered and never asked counts as zero. A predicted -1 says nothing: it is wrong, and no class.
  """
  asked = np.bincount(targets_N)
  answered = np.bincount(predicted_N[predicted_N >= 0], minlength=len(asked))
  classes = max(len(asked), len(answered))
  right = np.bincount(targets_N[predicted_N == targets_N], minlength=classes)
  asked = np.pad(asked, (0, classes - len(asked)))
  takes_part = (asked + answered) > 0
  return float(np.mean((right / np.maximum(asked, 1))[takes_part]))


def of_rows(
  predicted_NT: Int[np.ndarray, 'N T'],
  targets_NT: Int[np.ndarray, 'N T'],
  weights_NT: Float[np.ndarray, 'N T'],
  rows: int,
) -> tuple[float, float]:
  """Returns (macro, micro) over the positions with weight.

  Macro is the mean over blocks of `rows` sequences, each by its own size: MAD logs it so, batch by batch. Where there
  are more classes than a block asks for, that is lower than over all sequences at once.
  """
  blocks = [slice(start, start + rows) for start in range(0, len(targets_NT), rows)]
  asked = [weights_NT[block] > 0 for block in blocks]
  values = [macro(predicted_NT[b][a], targets_NT[b][a]) for b, a in zip(blocks, asked, strict=True)]
  sizes = [len(targets_NT[block]) for block in blocks]
  whole = weights_NT > 0
  return float(np.average(values, weights=sizes)), micro(predicted_NT[whole], targets_NT[whole])
