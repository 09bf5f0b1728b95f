"""Quantiles and tails of the distributions that intervals and tests need.

These are the functions behind `scipy.stats`, without its import, for which every command would wait a second.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import special


def normal_quantile(p: float) -> float:
  """Returns the value below which a standard normal lies with probability p.

  >>> round(normal_quantile(0.975), 3)
  1.96
  """
  return float(special.ndtri(p))


def normal_below(x: float) -> float:
  """Returns the probability of a standard normal below x."""
  return float(special.ndtr(x))


def t_quantile(p: float, freedom: float) -> float:
  """Returns the value below which Student's t with so many degrees of freedom lies with probability p.

  >>> round(t_quantile(0.975, 7), 3)
  2.365
  """
  return float(special.stdtrit(freedom, p))


def t_below(x: float, freedom: float) -> float:
  """Returns the probability of Student's t below x."""
  return float(special.stdtr(freedom, x))


def noncentral_t_above(x: float, freedom: float, shift: float) -> float:
  """Returns the probability of the noncentral t above x: the power of a t test, its one side, with critical value x."""
  return float(1.0 - special.nctdtr(freedom, shift, x))


def chi_square_quantile(p: Any, freedom: float) -> Any:
  """Returns the value, or values, below which chi-square with so many degrees of freedom lies with probability p.

  >>> round(float(chi_square_quantile(0.95, 3)), 3)
  7.815
  """
  return 2.0 * special.gammaincinv(freedom / 2.0, p)


def proportion_interval(hits: int, trials: int, level: float = 0.95) -> tuple[float, float]:
  """Returns the exact interval of a chance of which so many of the trials were hits (Clopper and Pearson 1934).

  >>> [round(end, 3) for end in proportion_interval(0, 6)]
  [0.0, 0.459]
  """
  tail = (1.0 - level) / 2.0
  low = float(special.betaincinv(hits, trials - hits + 1, tail)) if hits else 0.0
  high = float(special.betaincinv(hits + 1, trials - hits, 1.0 - tail)) if hits < trials else 1.0
  return low, high


def quantiles(
  below: Callable[[np.ndarray], np.ndarray], q_N: np.ndarray, low_N: np.ndarray, high_N: np.ndarray, *, steps: int = 10
) -> np.ndarray:
  """Returns where N smooth distribution functions come to `q_N`, each within its ends.

  By bisection to 2^-steps of each range, then by a chord through normal quantiles: those of a mixture of normals are
  nearly straight over so short a piece.
  """
  for _ in range(steps):
    middle_N = (low_N + high_N) / 2
    under_N = below(middle_N) < q_N
    low_N, high_N = np.where(under_N, middle_N, low_N), np.where(under_N, high_N, middle_N)
  from_N, to_N, at_N = (special.ndtri(np.clip(p_N, 1e-300, None)) for p_N in (below(low_N), below(high_N), q_N))
  part_N = np.divide(at_N - from_N, to_N - from_N, out=np.full(len(q_N), 0.5), where=to_N > from_N)
  return low_N + np.clip(part_N, 0.0, 1.0) * (high_N - low_N)
