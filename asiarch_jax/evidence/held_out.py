"""The held-out loss of a candidate as one number."""

from __future__ import annotations

import math
import statistics

from asiarch_jax.records import TrainSummary


def held_out_loss(training: TrainSummary) -> float | None:
  """Returns the mean test bits per byte over the replicas at the chosen learning rate, never nan.

  A replica that diverged has an unbounded loss, so the mean is then infinite: a design that fails on one seed in four
  must not look as good as its three lucky ones. None when there is no replica to ask.
  """
  bits = [math.inf if r.diverged or not math.isfinite(r.test_bits) else r.test_bits for r in training.chosen]
  return statistics.fmean(bits) if bits else None
