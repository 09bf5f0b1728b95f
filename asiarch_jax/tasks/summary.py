"""A value and its standard error from sums and counts of sequences."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float


def summarise(sums_N: Float[np.ndarray, ' N'], counts_N: Float[np.ndarray, ' N']) -> tuple[float, float, int]:
  """Returns (value, standard error, number of sequences that count) of the ratio of the totals.

  The value is r = sum(s) / sum(c). Answers within one sequence share a context, so they are not independent: the
  sequence is the unit that was drawn, and the error is the linearised one of a ratio estimator over sequences,

    e_i = s_i - r c_i,   stderr^2 = N / (N - 1) * sum(e_i^2) / sum(c)^2     (Cochran 1977, eq. 6.13, f = 0).

  It counts both the spread of the answers and that of how many each sequence asks. Sequences that ask nothing (c = 0)
  say nothing and are left out. Where every sequence scores alike the error is zero: it speaks of the spread that was
  seen. Dependence between sequences (neighbouring windows of one document) is not in it; windows are spaced as
  widely as the split allows to keep that small.

  >>> summarise(np.array([2.0, 4.0, 3.0]), np.array([4.0, 4.0, 4.0]))
  (0.75, 0.14433756729740643, 3)

  Raises:
    ValueError: shapes differ, or fewer than two sequences count: a spread needs two.
  """
  sums_N, counts_N = np.asarray(sums_N, np.float64), np.asarray(counts_N, np.float64)
  if sums_N.shape != counts_N.shape or sums_N.ndim != 1:
    raise ValueError(f'sums {sums_N.shape} and counts {counts_N.shape} are not two vectors of one length')
  asked_N = counts_N > 0
  n, total = int(asked_N.sum()), counts_N[asked_N].sum()
  if n < 2:
    raise ValueError(
      f'{n} of {len(counts_N)} sequences ask for an answer; a standard error needs 2: measure more windows'
    )
  value = sums_N[asked_N].sum() / total
  residual_N = sums_N[asked_N] - value * counts_N[asked_N]
  stderr = np.sqrt(n / (n - 1) * np.sum(residual_N**2)) / total
  return float(value), float(stderr), n
