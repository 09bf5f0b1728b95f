"""Whether a trained model reads the future: the program that measures it, asked twice about the same past.

The checks before training try a mixer at sizes of their own, and one may tell where it is and behave there only. What
is asked here is the very program that its score comes from, at its sizes, with the trained parameters.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from asiarch_jax.batch import Batch

LIKE = 1e-2, 1e-4  # nats of a row, and share of its sum, that rounding may part two sums by


def leak(measure: Callable[[Batch], np.ndarray], batch: Batch) -> str | None:
  """Returns what a model does with the later half of its tokens in the earlier half, or None where it does nothing.

  Args:
    measure: gives the summed losses in nats, [R, N], of replicas on the N rows of a batch.
    batch: [N, T]; its later half is replaced by that of other rows, read backwards.
  """
  half = batch.tokens.shape[-1] // 2
  tokens, weights = np.array(batch.tokens), np.array(batch.weights)
  tokens[:, half:] = tokens[::-1, half:][:, ::-1]
  weights[:, half:] = 0.0
  before, after = (measure(batch._replace(tokens=x, weights=weights)) for x in (batch.tokens, tokens))
  finite = np.isfinite(before) & np.isfinite(after)  # a replica that diverged tells nothing
  apart = np.where(finite, np.abs(after - before), 0.0)
  if (apart <= LIKE[0] + LIKE[1] * np.where(finite, np.abs(before), 0.0)).all():
    return None
  return (
    f'other tokens from position {half} on change the losses before it by up to {apart.max():.3g} nats a row in the '
    'trained model: it sees the future where it is measured, though not where it was tried before'
  )
