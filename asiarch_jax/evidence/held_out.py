"""The held-out loss of a candidate as one number, and the baseline's beside it."""

from __future__ import annotations

import dataclasses
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


def compared(training: TrainSummary, baseline: TrainSummary) -> tuple[float | None, float | None]:
  """Returns the held-out losses of a candidate and of the baseline over the same seeds.

  The baseline has more replicas, for the noise floor; those without a partner would only add their own luck to the
  difference. Where the baseline lacks one of the candidate's seeds, all of both count.
  """
  seeds = {replica.seed for replica in training.chosen}
  shared = tuple(replica for replica in baseline.chosen if replica.seed in seeds)
  if {replica.seed for replica in shared} == seeds:
    baseline = dataclasses.replace(baseline, replicas=shared)
  return held_out_loss(training), held_out_loss(baseline)
