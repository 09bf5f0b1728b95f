"""Which of several gated proposals is trained: test-time compute, spent before accelerator hours.

The score is cheap and scale-free: proposals are ranked by each measure on its own, and the mean rank decides. Measures
are the loss after a short run (lower is better), the distance of the source to the nearest archived one (farther is
better) and the counted FLOPs of a token (fewer is better). A measure that one proposal lacks leaves that proposal last
in it. No measure here ever enters the archive as a result.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Screened:
  """What is known of a proposal before it is trained. `loss` (nats a token) is None where no short run was made."""

  loss: float | None
  distance: float
  flops_per_token: float


def ranks(candidates: Sequence[Screened]) -> tuple[float, ...]:
  """Returns the mean rank of each candidate over the measures, 1 the best; equals share their mean rank.

  >>> ranks([Screened(2.0, 0.5, 100.0), Screened(1.5, 0.7, 90.0)])
  (2.0, 1.0)
  """
  measures = [
    [-candidate.distance for candidate in candidates],
    [candidate.flops_per_token for candidate in candidates],
  ]
  if any(candidate.loss is not None for candidate in candidates):
    measures.append([_or_worst(candidate.loss) for candidate in candidates])
  from scipy import stats  # takes a second, and only a language model's samples are ranked

  table = np.array([stats.rankdata(measure) for measure in measures])
  return tuple(float(value) for value in table.mean(axis=0))


def best(candidates: Sequence[Screened]) -> int:
  """Returns the place of the candidate with the lowest mean rank, the earlier of equals.

  Raises:
    ValueError: there are none.
  """
  if not candidates:
    raise ValueError('no candidate to choose from; gate at least one')
  return int(np.argmin(ranks(candidates)))


def _or_worst(loss: float | None) -> float:
  return loss if loss is not None and math.isfinite(loss) else math.inf
