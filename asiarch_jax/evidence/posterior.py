"""What all candidates of a rung together say about each: an empirical-Bayes posterior that shrinks the maxima.

The best of many measurements is too good: it won by merit and by luck, and luck does not come again. Here a share pi of
the candidates changes nothing (theta = 0: a search makes many of those, and placebos are nothing else), the others have
true improvements theta ~ N(mu, tau^2). What is measured is the mean of n paired differences, y = theta + b + r + e.
Over all S seeds that any candidate has, the error of the baseline's replicas is b, which all candidates share, with
variance w / S; r is what the candidate's own seeds deviate from that, with w (1 / n - 1 / S), and e the candidate's own
error, with v / n. Given pi, mu, tau, v and b the candidates are independent, and these five are integrated over a grid:
so a lucky baseline is no good news about every candidate, and intervals stay wide while there are few.

Candidates that have all seeds tell r of the others: K of them show it with a variance of v / K (1 / n - 1 / S), so a
share w / (w + v / K) of what they show is taken off, and what is left of r is in the candidate's own variance. What it
has in common with others of the same few seeds is not followed further.

The baseline need not be as noisy as the candidates. v is what candidates and seeds leave of the differences. Of w three
things tell: how far the seeds' means lie apart, which few seeds tell badly; the baseline's own floor over all its
replicas, of which pairing takes away an unknown part; and, as the prior, that the baseline is a design like another, so
that w is about v. b is drawn from its distribution over all w.

Sources: Efron and Morris 1973 (J. Am. Stat. Assoc. 68); Morris 1983 (same, 78) on the interval; Johnstone and Silverman
2004 (Ann. Stat. 32) on the share of zeros; Gelman 2006 (Bayesian Analysis 1) on priors of tau.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Sequence

import numpy as np
from scipy import sparse, special

from asiarch_jax.evidence import distributions
from asiarch_jax.evidence.noise import Noise, floor
from asiarch_jax.evidence.pairing import lost, pairs
from asiarch_jax.records import Entry, Outcome, entries_of

ZEROS = (0.0, 0.2, 0.4, 0.6, 0.8, 0.95)  # pi
SPREADS = (0.3, 0.6, 1.0, 1.6, 2.5, 4.0, 7.0, 12.0, 25.0)  # tau, in standard errors of a measurement
CENTRES = 61  # values of mu + b, over the range of what was measured
LUCKS = 31  # values of b, at quantiles of its prior
VARIANCES = 5  # values of v, at quantiles of its posterior
RATIOS = np.geomspace(1 / 32, 64, 23)  # w / v
UNLIKE = math.log(4.0)  # standard deviation of log(w / v) over designs
PAIRED = (0.0, 0.2, 0.4, 0.6)  # share of the floor's variance that pairing by seed takes away, equally likely
SMALLEST = 1e-18  # of a variance, where all measurements agree
TAIL = 4.0  # scale of the Cauchy prior of mu, in standard errors
NEGLIGIBLE = 1e-6  # weight of a grid point that is left out, to that of the heaviest
MOST = 4_000  # grid points that are kept at most
CELLS = 200_000  # grid points times candidates that are kept: fewer points where there are many candidates
LEAST = 100  # grid points that are kept at least where so many count
LEARNED_FROM = 100  # candidates at most that the five are learned from, spread over all
SWEEPS = 50  # of the least squares for candidates and seeds


@dataclasses.dataclass(frozen=True)
class Observation:
  """The paired differences of one candidate to the baseline, bits per byte, positive is better."""

  id: int
  differences: tuple[float, ...]
  seeds: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Posterior:
  """What is believed of a candidate's true improvement after all candidates were seen.

  `measured` is the plain mean; `mean` over it is how much the posterior shrinks it. The interval covers both what is
  believed over all pi and what is believed if no improvement is exactly zero: a share of zeros draws every interval
  towards zero, and that share is known badly while candidates are few.
  """

  id: int
  measured: float
  mean: float
  low: float
  high: float
  probability_better: float
  pairs: int


def observations(entries: Sequence[Entry], baseline: Entry) -> tuple[Observation, ...]:
  """Returns the candidates that share a finite pair of replicas with the baseline.

  One that diverged on any seed has no finite improvement, whatever its other seeds came to, and is left out.
  """
  found = [
    (entry.id, pairs(entry.training, baseline.training))
    for entry in entries
    if entry.role == 'candidate' and entry.id != baseline.id and not lost(entry.training)
  ]
  return tuple(Observation(id, paired.differences, paired.seeds) for id, paired in found if paired.differences)


def believed(outcomes: Iterable[Outcome], baseline: str) -> dict[int, Posterior]:
  """Returns the posterior of every measured candidate by id, against the baseline of that name.

  Empty before the baseline is measured, and where nothing says how far replicas lie apart.
  """
  entries = entries_of(outcomes)
  base = next((entry for entry in entries if entry.role == 'baseline' and entry.proposal.name == baseline), None)
  if base is None:
    return {}
  try:
    return {one.id: one for one in posteriors(observations(entries, base), noise=floor(base.training))}
  except ValueError:
    return {}


def posteriors(
  observed: Sequence[Observation], *, noise: Noise | None = None, level: float = 0.95
) -> tuple[Posterior, ...]:
  """Returns the posterior of each candidate, in their order, with the interval at `level`.

  `noise` is the floor of one replica of the baseline (`noise.floor`). Empty without candidates.

  Raises:
    ValueError: neither the candidates nor `noise` say how far replicas lie apart.
  """
  return _posteriors(tuple(observed), noise, level) if observed else ()


@functools.lru_cache(maxsize=16)  # the parts of a page, and commands one after the other, ask for the same
def _posteriors(observed: tuple[Observation, ...], noise: Noise | None, level: float) -> tuple[Posterior, ...]:
  seen = _seen(observed, noise)
  beliefs, moved = (_beliefs(seen, zeros) for zeros in (ZEROS, (0.0,)))
  ends_BSN = np.array([[one.quantile((1 + side * level) / 2) for side in (-1, 1)] for one in (beliefs, moved)])
  low_N, high_N = ends_BSN[:, 0].min(0), ends_BSN[:, 1].max(0)
  return tuple(
    Posterior(
      one.id,
      float(np.mean(one.differences)),
      float(mean),
      float(low),
      float(high),
      float(better),
      len(one.differences),
    )
    for one, mean, low, high, better in zip(observed, beliefs.mean(), low_N, high_N, beliefs.better(), strict=True)
  )


@dataclasses.dataclass(frozen=True)
class _Beliefs:
  """The posterior of each theta as a mixture over grid points: zero with some chance, else normal."""

  weight: np.ndarray  # [G]
  zero: np.ndarray  # [G, N], chance of theta = 0
  slab: np.ndarray  # [G, N], mean of theta where it is not
  deviation: np.ndarray  # [G, N]

  def mean(self) -> np.ndarray:
    return self.weight @ ((1.0 - self.zero) * self.slab)

  def better(self) -> np.ndarray:
    return self.weight @ ((1.0 - self.zero) * special.ndtr(self.slab / self.deviation))

  def slab_below(self, x_N: np.ndarray) -> np.ndarray:
    """Returns P(theta <= x and theta is not zero)."""
    return self.weight @ ((1.0 - self.zero) * special.ndtr((x_N - self.slab) / self.deviation))

  def quantile(self, q: float) -> np.ndarray:
    """Returns the smallest x with P(theta <= x) >= q."""
    reach = 6.0 * self.deviation.max(0)
    origin_N, zero_N = np.zeros(self.slab.shape[1]), self.weight @ self.zero
    under_N = self.slab_below(origin_N)
    negative, positive = under_N >= q, under_N + zero_N < q
    low_N = np.where(positive, 0.0, np.minimum(self.slab.min(0), 0.0) - reach)
    high_N = np.where(negative, 0.0, np.maximum(self.slab.max(0), 0.0) + reach)
    sought_N = np.where(positive, q - zero_N, q)
    return np.where(negative | positive, distributions.quantiles(self.slab_below, sought_N, low_N, high_N), 0.0)


@dataclasses.dataclass(frozen=True)
class _Seen:
  """What is seen of the candidates, for each of V equally likely values of v."""

  y: np.ndarray  # [V, N], without the part of r that others show
  own: np.ndarray  # [V, N], variance of y given theta and b
  luck: np.ndarray  # [V, L], values of b


def _seen(observed: Sequence[Observation], noise: Noise | None) -> _Seen:
  """Returns what is seen, with what is not known of the noise."""
  split = _split(observed)
  if split.freedom:
    variance, freedom = split.squares / split.freedom, split.freedom
  elif any(len(one.differences) > 1 for one in observed):  # no two candidates share seeds: both noises are in each
    samples = [np.asarray(one.differences) for one in observed]
    freedom = sum(len(sample) - 1 for sample in samples)
    variance = sum(float(np.sum((sample - sample.mean()) ** 2)) for sample in samples) / freedom / 2.0
  elif noise is not None:
    variance, freedom = noise.sd**2, noise.freedom
  else:
    raise ValueError('no candidate has two pairs and no noise floor is given; train at least two seeds')
  quantiles = (np.arange(VARIANCES) + 0.5) / VARIANCES
  own_V = max(variance, SMALLEST) * freedom / distributions.chi_square_quantile(1.0 - quantiles, freedom)
  shared_R = own_V[:, None] * RATIOS  # [V, R], values of w
  log_R = np.broadcast_to(-0.5 * (np.log(RATIOS) / UNLIKE) ** 2, shared_R.shape)
  if split.seed_freedom and split.freedom:
    log_R = log_R + _log_chi2(split.seed_squares, split.seed_freedom, own_V[:, None] + split.candidates * shared_R)
  if noise is not None and noise.freedom > split.seed_freedom:  # the seeds above are among the floor's replicas
    freedom = noise.freedom - split.seed_freedom
    of_floor = [_log_chi2(freedom * noise.sd**2, freedom, shared_R / (1.0 - share)) for share in PAIRED]
    log_R = log_R + special.logsumexp(of_floor, axis=0)
  weight_VR = special.softmax(log_R, axis=1)
  missing = _missing(observed)
  taken_R = RATIOS / (RATIOS + 1.0 / missing.complete) if missing.complete else np.zeros(len(RATIOS))
  left_V = np.sum(weight_VR * shared_R * (1.0 - taken_R), axis=1)
  y_N, n_N = (np.array([of(one.differences) for one in observed], dtype=float) for of in (np.mean, len))
  return _Seen(
    y_N - (weight_VR @ taken_R)[:, None] * missing.shown,
    own_V[:, None] / n_N + left_V[:, None] * (1.0 / n_N - 1.0 / missing.seeds),
    np.stack(
      [
        _mixed_normal(weights, np.sqrt(values / missing.seeds), (np.arange(LUCKS) + 0.5) / LUCKS)
        for weights, values in zip(weight_VR, shared_R, strict=True)
      ]
    ),
  )


@dataclasses.dataclass(frozen=True)
class _Missing:
  """How many seeds there are, how many candidates have all of them, and what these show of r, for each candidate."""

  seeds: int
  complete: int
  shown: np.ndarray  # [N]


def _missing(observed: Sequence[Observation]) -> _Missing:
  seeds = sorted({seed for one in observed for seed in one.seeds})
  rows = [dict(zip(one.seeds, one.differences, strict=True)) for one in observed if len(one.seeds) == len(seeds)]
  if not rows:
    return _Missing(len(seeds), 0, np.zeros(len(observed)))
  mean = {seed: float(np.mean([row[seed] for row in rows])) for seed in seeds}
  whole = float(np.mean(list(mean.values())))
  shown = [np.mean([mean[seed] for seed in one.seeds]) - whole for one in observed]
  return _Missing(len(seeds), len(rows), np.array(shown))


def _log_chi2(squares: float, freedom: int, variance: np.ndarray) -> np.ndarray:
  """Returns the log likelihood of a variance, up to a constant, given a sum of squares and its degrees of freedom."""
  return -0.5 * (freedom * np.log(variance) + squares / variance)


def _mixed_normal(weight_R: np.ndarray, deviation_R: np.ndarray, quantiles_L: np.ndarray) -> np.ndarray:
  """Returns quantiles of a mixture of normals of mean zero."""
  high_L = np.full(len(quantiles_L), 8.0 * deviation_R.max())
  return distributions.quantiles(
    lambda x_L: special.ndtr(x_L[:, None] / deviation_R) @ weight_R, quantiles_L, -high_L, high_L, steps=20
  )


@dataclasses.dataclass(frozen=True)
class _Split:
  """Sums of squares of the differences, with degrees of freedom: what seeds explain beside candidates, and the rest.

  What a seed does to the baseline is in the differences of all candidates alike: one draw a seed, however many
  candidates there are. `candidates` is how many there are to a seed.
  """

  squares: float
  freedom: int
  seed_squares: float
  seed_freedom: int
  candidates: float


def _split(observed: Sequence[Observation]) -> _Split:
  """Returns the split by least squares."""
  seeds = sorted({seed for one in observed for seed in one.seeds})
  rows = [
    (row, seeds.index(seed), difference)
    for row, one in enumerate(observed)
    for seed, difference in zip(one.seeds, one.differences, strict=True)
  ]
  at_M, seed_M, left_M = (np.array(column) for column in zip(*rows, strict=True))
  left_M = left_M - (np.bincount(at_M, left_M) / np.bincount(at_M))[at_M]
  within = float(np.sum(left_M**2))
  for _ in range(SWEEPS):  # each takes out the means of seeds, then of candidates; one is enough where none is missing
    for group_M in (seed_M, at_M):
      left_M = left_M - (np.bincount(group_M, left_M) / np.bincount(group_M))[group_M]
  joined = sparse.coo_array(
    (np.ones(len(rows)), (at_M, len(observed) + seed_M)), shape=2 * (len(observed) + len(seeds),)
  )
  pieces = int(sparse.csgraph.connected_components(joined, directed=False)[0])
  squares = float(np.sum(left_M**2))
  return _Split(
    squares,
    len(rows) - (len(observed) + len(seeds) - pieces),
    max(within - squares, 0.0),
    len(seeds) - pieces,
    len(rows) / len(seeds),
  )


def _beliefs(seen: _Seen, zeros: Sequence[float]) -> _Beliefs:
  """Returns the posterior over the grid. Given b and c = mu + b a candidate is zero around b, or normal around c, so
  each of the two is counted once for every b or c and not for every pair of them."""
  count = seen.y.shape[1]
  learned = np.linspace(0, count - 1, min(count, LEARNED_FROM)).astype(int)
  y_VN, own_VN, luck_VL = seen.y[:, learned], seen.own[:, learned], seen.luck
  at_middle = len(y_VN) // 2
  error = math.sqrt(float(np.median(own_VN[at_middle]) + np.mean(luck_VL[at_middle] ** 2)))
  centre_C = np.linspace(min(y_VN.min(), -error), max(y_VN.max(), error), CENTRES)
  log_VTPLC = np.empty((len(y_VN), len(SPREADS), len(zeros), LUCKS, CENTRES))
  for at_v, (y_N, own_N, luck_L) in enumerate(zip(y_VN, own_VN, luck_VL, strict=True)):
    zero_NL = _log_normal(y_N[:, None] - luck_L, own_N[:, None])
    prior_LC = -np.log1p(((centre_C - luck_L[:, None]) / (TAIL * error)) ** 2)  # Cauchy, of mu = c - b
    for at_tau, tau in enumerate(error * np.array(SPREADS)):
      slab_NC = _log_normal(y_N[:, None] - centre_C, own_N[:, None] + tau**2)
      ahead_NLC = zero_NL[:, :, None] - slab_NC[:, None]
      larger_LC = np.maximum(ahead_NLC, 0.0).sum(0)
      # Both over the larger of them: products over LEARNED_FROM candidates stay within what a float holds.
      zero_NLC, slab_NLC = np.exp(np.minimum(ahead_NLC, 0.0)), np.exp(np.minimum(-ahead_NLC, 0.0))
      for at_pi, pi in enumerate(zeros):
        both_LC = larger_LC + np.log(np.prod((1.0 - pi) * slab_NLC + pi * zero_NLC, axis=0)) if pi else 0.0
        log_VTPLC[at_v, at_tau, at_pi] = slab_NC.sum(0) + both_LC + prior_LC
  weight_G = np.exp(log_VTPLC - log_VTPLC.max()).ravel()
  weight_G /= weight_G.sum()
  kept, share_K = _thinned(weight_G, min(MOST, max(LEAST, CELLS // count)))
  at = np.unravel_index(kept, log_VTPLC.shape)
  tau_G, pi_G, centre_G = error * np.array(SPREADS)[at[1], None], np.array(zeros)[at[2], None], centre_C[at[4], None]
  luck_G = luck_VL[at[0], at[3]][:, None]
  y_GN, own_GN = seen.y[at[0]], seen.own[at[0]]
  with np.errstate(divide='ignore'):
    zero_GN = np.log(pi_G) + _log_normal(y_GN - luck_G, own_GN)
  slab_GN = np.log1p(-pi_G) + _log_normal(y_GN - centre_G, own_GN + tau_G**2)
  share_GN = tau_G**2 / (tau_G**2 + own_GN)
  return _Beliefs(
    share_K,
    special.expit(zero_GN - slab_GN),
    centre_G - luck_G + share_GN * (y_GN - centre_G),
    np.sqrt(share_GN * own_GN),
  )


def _thinned(weight_G: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns at most `most` grid points that stand for all, with their weights.

  Where more count, equal parts of the mass keep one point each, by systematic sampling. The heaviest alone would be
  those of one corner: where many candidates lie away from zero, what b is stays open, and the prior of mu prefers b far
  away.
  """
  kept = np.flatnonzero(weight_G > NEGLIGIBLE * weight_G.max())
  mass_K = np.cumsum(weight_G[kept])
  if len(kept) <= most:
    return kept, weight_G[kept] / mass_K[-1]
  drawn, times = np.unique(np.searchsorted(mass_K, mass_K[-1] * (np.arange(most) + 0.5) / most), return_counts=True)
  return kept[drawn], times / most


def _log_normal(x: np.ndarray, variance: np.ndarray) -> np.ndarray:
  return -0.5 * (np.log(2.0 * math.pi * variance) + x**2 / variance)
