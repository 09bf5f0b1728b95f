"""Does a lead hold at scale: loss against compute over several sizes, for an entry and its baseline together.

The law is L(C) = E + A C^-alpha, C compute or parameters, with one floor E for both, since both read the same text.
Three models are compared: `no difference`; `shifted constant`, a common exponent and another A, so that the entry saves
the same factor of compute at every size; `different exponent`, so that the factor grows or shrinks with size.

All sizes and both designs are fitted at once by variable projection (Golub and Pereyra 1973, SIAM J. Numer. Anal. 10):
for given exponents E and A solve a linear problem, and only the exponents are searched. Minima of parabolas, one a
budget, are biased and are not used. Models are ranked by AICc over replicas and by the error at the largest size when
it is held out of the fit. The headline is the compute multiplier, how many times the entry's compute the baseline needs
for the entry's loss, with an interval: AICc alone prefers a difference where there is none now and then.

Intervals are a multiplier bootstrap over seeds: the seeds' deviations from their mean are weighed by normal numbers,
the same for both designs where they trained the same seeds, so luck that a seed gives to both cancels; the scale of
each draw is that of a t distribution, since a few seeds know their own noise badly. Noise is taken to be alike at all
sizes, in the fit and in the draws.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from scipy import interpolate

SIZES, SEEDS = 4, 3  # at least, of a scaling fit
FARTHEST = 4.0  # times the largest size: beyond it an extrapolation carries a warning
MODELS = {'no difference': 3, 'shifted constant': 4, 'different exponent': 5}  # with the parameters of their law
DRAWS = 1000
EXPONENTS = (0.02, 3.0)  # searched
GRID = 513  # points between the least and the largest budget of a multiplier
FIRST, ZOOM, ZOOMS = 33, 9, 10  # points of the grids of log exponents: relative error 1e-5


@dataclasses.dataclass(frozen=True)
class Size:
  """What was measured at one size: compute (or parameters) in any one unit, and a loss a seed, in order of seeds."""

  compute: float
  losses: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Law:
  """L(C) = floor + scale (C / reference)^-exponent, in the units of the losses and of compute."""

  floor: float
  scale: float
  exponent: float
  reference: float

  def loss(self, compute: float) -> float:
    """Returns the loss at some compute."""
    return self.floor + self.scale * (compute / self.reference) ** -self.exponent


@dataclasses.dataclass(frozen=True)
class Multiplier:
  """How many times the candidate's compute, `at`, the baseline needs for its loss: above 1 is better.

  `bound` is '>=' or '<=' where the value is the end of the measured range and the truth lies beyond it; `low_open` and
  `high_open` say the same of the interval's ends. nan where the baseline does not learn from compute. `note` warns.
  """

  value: float
  low: float
  high: float
  at: float
  level: float = 0.95
  bound: str = ''
  low_open: bool = False
  high_open: bool = False
  budgets: tuple[float, ...] = ()
  note: str = ''

  @property
  def shown(self) -> bool:
    """Says whether the interval lies wholly above 1."""
    return self.low > 1.0

  def __str__(self) -> str:
    """Returns the value with its interval.

    >>> str(Multiplier(4.0, 2.5, 4.0, 1.0, bound='>=', high_open=True))
    '>= 4x (95 % interval 2.5x to >= 4x)'
    """
    if math.isnan(self.value):
      return f'unknown: {self.note}'
    low, high = '<= ' * self.low_open, '>= ' * self.high_open
    value = f'{self.bound}{" " * bool(self.bound)}{self.value:.3g}x'
    return f'{value} ({100 * self.level:g} % interval {low}{self.low:.3g}x to {high}{self.high:.3g}x)'


@dataclasses.dataclass(frozen=True)
class ScalingFit:
  """One model: its laws, the deviation of a replica from them, and how it compares with the others.

  `held_out` is the root mean square error at the largest size, in units of loss, of a fit to the smaller ones.
  """

  model: str
  baseline: Law
  entry: Law
  deviation: float
  aicc: float
  behind: float
  weight: float
  held_out: float
  multiplier: Multiplier  # at the largest size
  extrapolated: Multiplier  # at the size that was named, or the largest


@dataclasses.dataclass(frozen=True)
class Scaling:
  """The models, best AICc first. `headline` is the multiplier at the largest size, `extrapolated` at the named one.

  Both average the logarithm over the two models that allow a difference, by their Akaike weights, and each draw has
  weights of its own: an interval that stood on the chosen model alone would forget that the choice was a close one.
  """

  fits: tuple[ScalingFit, ...]
  headline: Multiplier
  extrapolated: Multiplier | None

  @property
  def verdict(self) -> str:
    """What the sizes say, in one sentence."""
    first, foreseen = self.fits[0].model, min(self.fits, key=lambda fit: fit.held_out).model
    agreed = 'which foresees the largest size best too' if first == foreseen else f'yet {foreseen} foresees it best'
    low, high = self.headline.low, self.headline.high
    said = 'saves compute' if low > 1 else 'costs compute' if high < 1 else 'is not told from the baseline'
    return f'The entry {said} at the largest size: {self.headline}. Best by AICc is {first}, {agreed}.'


def compare(
  baseline: Sequence[Size],
  entry: Sequence[Size],
  *,
  extrapolate: float | None = None,
  seed: int | Sequence[int] = 0,
  draws: int = DRAWS,
  level: float = 0.95,
) -> Scaling:
  """Returns the three models fitted to an entry and its baseline, with the multiplier and its interval at `level`.

  `extrapolate` names a compute to ask about as well. Sizes need not agree between the two; where they do, seed by seed,
  luck is paired.

  Raises:
    ValueError: fewer than four different sizes or three seeds at one, or a value that is not positive and finite.
  """
  arms = (_Arm.of(baseline, 'baseline'), _Arm.of(entry, 'entry'))
  if extrapolate is not None and not (math.isfinite(extrapolate) and extrapolate > 0):
    raise ValueError(f'extrapolate = {extrapolate}; name a compute above 0')
  reference = math.exp(float(np.mean(np.log(np.concatenate([arm.compute for arm in arms])))))
  means = tuple(arm.mean[None] for arm in arms)
  again = _redrawn(arms, draws, np.random.default_rng(seed))
  count = sum(int(arm.seeds.sum()) for arm in arms)
  largest = float(arms[1].compute[-1])
  asked = (largest, extrapolate or largest)
  within = sum(arm.within for arm in arms)
  fits, logs, scores = [], [], []
  for model, free in MODELS.items():
    laws, drawn = (_laws(model, arms, values, reference) for values in (means, again))
    score_R = _aicc(np.concatenate([laws.squares, drawn.squares]) + within, free + 1, count)
    log_RC = np.concatenate([_log_ratio(each, asked, reference) for each in (laws, drawn)])
    logs.append(log_RC)
    scores.append(score_R)
    told = _multipliers(log_RC, asked, largest, level)
    deviation = math.sqrt((float(laws.squares[0]) + within) / (count - free))
    held_out = _held_out(model, arms, reference)
    pair = laws.law(0, reference), laws.law(1, reference)
    fits.append(ScalingFit(model, *pair, deviation, float(score_R[0]), 0.0, 0.0, held_out, told[0], told[1]))
  best = min(fit.aicc for fit in fits)
  mass = [math.exp((best - fit.aicc) / 2) for fit in fits]
  ranked = sorted(
    (
      dataclasses.replace(fit, behind=fit.aicc - best, weight=share / sum(mass))
      for fit, share in zip(fits, mass, strict=True)
    ),
    key=lambda fit: fit.aicc,
  )
  share_R = 1.0 / (1.0 + np.exp(np.clip((scores[2] - scores[1]) / 2, -700.0, 700.0)))[:, None]
  headline, extrapolated = _multipliers((1 - share_R) * logs[1] + share_R * logs[2], asked, largest, level)
  return Scaling(tuple(ranked), headline, extrapolated if extrapolate else None)


def compute_multiplier(
  budgets: Sequence[float],
  losses: Sequence[Sequence[float]],
  candidate_losses: Sequence[float],
  *,
  at: float = 1.0,
  seed: int | Sequence[int] = 0,
  draws: int = 2 * DRAWS,
  level: float = 0.95,
) -> Multiplier:
  """Returns how many times a candidate's compute its baseline needs for the candidate's loss.

  `budgets` are those at which the baseline was trained, in the unit of the candidate's own budget `at`; by default they
  are multiples of it. `losses` holds a sequence of seeds for each budget. Where every budget and the candidate have the
  same number of seeds, these are taken to be the same seeds in the same order and are paired. The baseline's losses are
  interpolated between its budgets, through what was measured at each (monotone cubics, Fritsch and Carlson 1980, SIAM
  J. Numer. Anal. 17, over log budgets): no law is assumed, since short trainings follow none, and a candidate that is
  the baseline itself gets 1. Beyond the budgets the answer is a bound, never an extrapolation.

  Raises:
    ValueError: fewer than three different budgets or two seeds, or a value that is not positive and finite.
  """
  if len(budgets) != len(losses) or len(set(budgets)) != len(budgets) or len(budgets) < 3:
    raise ValueError(f'{len(losses)} lists of losses for the budgets {list(budgets)}; give one each for 3 or more')
  order = np.argsort(budgets)
  every = [*((f'loss at budget {budgets[i]:g}', losses[i]) for i in order), ('candidate loss', candidate_losses)]
  for name, values in (('budget', (*budgets, at)), *every):
    _check(name, values)
  if (few := min(len(values) for _, values in every)) < 2:
    raise ValueError(f'{few} seed at one budget says nothing of noise; give at least 2')
  budget_K = np.array(budgets, dtype=np.float64)[order]
  samples = [np.array(values, dtype=np.float64) for _, values in every]
  rng = np.random.default_rng(seed)
  paired = len({len(sample) for sample in samples}) == 1
  drawn_RK = _multiplied([samples] if paired else [[sample] for sample in samples], draws, rng)
  inverse_R = []
  for mean_RK in (np.array([[sample.mean() for sample in samples]]), drawn_RK):
    inverse_R.append(_needed(budget_K, mean_RK[:, :-1], mean_RK[:, -1]) / at)
  (value,), draw_R = inverse_R
  first, last = budget_K[0] / at, budget_K[-1] / at
  known_R = draw_R[~np.isnan(draw_R)]
  if math.isnan(value) or len(known_R) < len(draw_R) / 2:
    note = f'the loss of the baseline does not fall from budget {budget_K[0]:g} to {budget_K[-1]:g}'
    return Multiplier(math.nan, first, last, at, level, '', True, True, tuple(map(float, budget_K)), note)
  low, high = np.quantile(known_R, [(1 - level) / 2, (1 + level) / 2], method='nearest')
  inside, inside_low, inside_high = (float(np.clip(number, first, last)) for number in (value, low, high))
  bound = '>=' if value > last else '<=' if value < first else ''
  open_ends = bool(low < first), bool(high > last)
  return Multiplier(inside, inside_low, inside_high, at, level, bound, *open_ends, tuple(map(float, budget_K)))


def _needed(budget_K: np.ndarray, mean_RK: np.ndarray, loss_R: np.ndarray) -> np.ndarray:
  """Returns the budget at which a curve of mean losses reaches a loss, by rows: 0 before the first budget, inf after
  the last, nan where the curve does not fall. A rise in between is levelled: more training that is worse is no need."""
  falls_R = mean_RK[:, 0] > mean_RK[:, -1]
  level_RK = np.minimum.accumulate(mean_RK, axis=1)
  place_G = np.linspace(math.log(budget_K[0]), math.log(budget_K[-1]), GRID)
  curve_RG = interpolate.PchipInterpolator(np.log(budget_K), level_RK, axis=1)(place_G)
  target_R = np.asarray(loss_R)
  passed_R = np.sum(curve_RG > target_R[:, None], axis=1)  # points of the grid that are still too high
  after_R = np.clip(passed_R, 1, GRID - 1)
  high_R, low_R = (np.take_along_axis(curve_RG, (after_R + by)[:, None], 1)[:, 0] for by in (-1, 0))
  share_R = np.divide(high_R - target_R, high_R - low_R, out=np.zeros_like(target_R), where=high_R > low_R)
  found_R = np.exp(place_G[after_R - 1] + np.clip(share_R, 0.0, 1.0) * (place_G[1] - place_G[0]))
  found_R = np.where(target_R > curve_RG[:, 0], 0.0, np.where(target_R < curve_RG[:, -1], np.inf, found_R))
  return np.where(falls_R, found_R, np.nan)


@dataclasses.dataclass(frozen=True)
class _Arm:
  """One design: K sizes in order of compute, with seeds, mean losses, and squares of the seeds about them."""

  compute: np.ndarray
  seeds: np.ndarray
  mean: np.ndarray
  within: float
  samples: tuple[np.ndarray, ...]

  @staticmethod
  def of(sizes: Sequence[Size], name: str) -> _Arm:
    ordered = sorted(sizes, key=lambda size: size.compute)
    computes = [size.compute for size in ordered]
    _check(f'{name} compute', computes)
    if len(set(computes)) < SIZES or len(set(computes)) < len(computes):
      raise ValueError(
        f'{len(set(computes))} different sizes of the {name} in {len(computes)} rows; a scaling fit takes at least '
        f'{SIZES}, one row each'
      )
    for size in ordered:
      _check(f'{name} loss at {size.compute:g}', size.losses)
      if len(size.losses) < SEEDS:
        raise ValueError(f'{len(size.losses)} seeds of the {name} at {size.compute:g}; train at least {SEEDS}')
    samples = tuple(np.array(size.losses, dtype=np.float64) for size in ordered)
    within = sum(float(np.sum((sample - sample.mean()) ** 2)) for sample in samples)
    mean_K = np.array([sample.mean() for sample in samples])
    return _Arm(np.array(computes), np.array([len(sample) for sample in samples]), mean_K, within, samples)

  def without_largest(self) -> _Arm:
    return dataclasses.replace(
      self, compute=self.compute[:-1], seeds=self.seeds[:-1], mean=self.mean[:-1], samples=self.samples[:-1]
    )


@dataclasses.dataclass(frozen=True)
class _Laws:
  """The best laws of R sets of means: a common floor, and the scale and exponent of baseline and entry."""

  floor: np.ndarray
  scale: np.ndarray
  exponent: np.ndarray
  squares: np.ndarray

  def law(self, arm: int, reference: float) -> Law:
    """Returns the law of the baseline (0) or the entry (1) in the first row."""
    return Law(float(self.floor[0]), float(self.scale[0, arm]), float(self.exponent[0, arm]), reference)


def _check(name: str, values: Sequence[float]) -> None:
  for value in values:
    if not (math.isfinite(value) and value > 0):
      raise ValueError(f'{name} is {value}; give numbers above 0, and leave out replicas that diverged by saying so')


def _redrawn(arms: Sequence[_Arm], draws: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
  """Returns the means of both arms as other seeds might have given them, R by K each."""
  first, second = arms
  if list(first.seeds) == list(second.seeds) and np.allclose(first.compute, second.compute, rtol=0.25):
    groups = [[mine, theirs] for mine, theirs in zip(first.samples, second.samples, strict=True)]
    drawn_RK = _multiplied(groups, draws, rng)
    return drawn_RK[:, ::2], drawn_RK[:, 1::2]
  drawn_RK = _multiplied([[sample] for arm in arms for sample in arm.samples], draws, rng)
  return drawn_RK[:, : len(first.samples)], drawn_RK[:, len(first.samples) :]


def _multiplied(groups: Sequence[Sequence[np.ndarray]], draws: int, rng: np.random.Generator) -> np.ndarray:
  """Returns redrawn means of every sample, R by samples; those of a group share the luck of their seeds.

  The mean of S seeds moves by sum_i g_i d_i / sqrt(F S), g_i normal, d_i the deviations of all seeds and F their
  degrees of freedom: its variance is that of a mean with the pooled noise. Division by the root of a chi-square over F
  makes it a t distribution.
  """
  freedom = sum(len(group[0]) - 1 for group in groups)
  stretch_R1 = np.sqrt(freedom / rng.chisquare(freedom, size=(draws, 1)))
  pooled_SM = np.concatenate([np.stack([sample - sample.mean() for sample in group], axis=1) for group in groups])
  columns = []
  for group in groups:
    luck_RM = rng.normal(size=(draws, len(pooled_SM))) @ pooled_SM * stretch_R1 / math.sqrt(freedom * len(group[0]))
    columns += [sample.mean() + luck_RM[:, member] for member, sample in enumerate(group)]
  return np.stack(columns, axis=1)


def _laws(model: str, arms: Sequence[_Arm], means: Sequence[np.ndarray], reference: float) -> _Laws:
  """Returns the least squares laws for each row of means; grids of exponents close in on the best."""
  if model == 'no difference' and len(arms) == 2:
    compute, seeds, mean = (
      np.concatenate([getattr(arm, name) for arm in arms]) for name in ('compute', 'seeds', 'mean')
    )
    arms, means = (_Arm(compute, seeds, mean, 0.0, ()),), (np.concatenate(means, axis=1),)
  rows, free = len(means[0]), 2 if model == 'different exponent' else 1
  low, high = map(math.log, EXPONENTS)
  center_RF, half = np.full((rows, free), (low + high) / 2), (high - low) / 2
  for points in (FIRST, *(ZOOM,) * ZOOMS):
    log_RFG = np.clip(center_RF[:, :, None] + half * np.linspace(-1.0, 1.0, points), low, high)
    parts = [
      _Sums.of(arm, mean, log_RFG[:, -1 if i else 0], reference) for i, (arm, mean) in enumerate(_zip(arms, means))
    ]
    if free == 2:
      parts = [parts[0].expanded(2), parts[1].expanded(1)]
    _, _, squares = _projected(parts)
    chosen = np.unravel_index(np.argmin(squares.reshape(rows, -1), axis=1), squares.shape[1:])
    center_RF = np.stack([log_RFG[np.arange(rows), f, chosen[f]] for f in range(free)], axis=1)
    half *= 3.0 / (points - 1)  # one and a half steps of the grid to each side
  parts = [
    _Sums.of(arm, mean, center_RF[:, [-1 if i else 0]], reference) for i, (arm, mean) in enumerate(_zip(arms, means))
  ]
  floor, scales, squares = _projected(parts)
  scale_R2 = np.stack([scales[0][:, 0], scales[-1][:, 0]], axis=1)
  return _Laws(floor[:, 0], scale_R2, np.exp(center_RF[:, [0, -1]]), squares[:, 0])


def _zip(arms: Sequence[_Arm], means: Sequence[np.ndarray]) -> list[tuple[_Arm, np.ndarray]]:
  return list(zip(arms, means, strict=True))


@dataclasses.dataclass(frozen=True)
class _Sums:
  """Sums over sizes, weighed by seeds, of z = (C / reference)^-exponent and y, the mean loss: rows by exponents."""

  n: np.ndarray
  z: np.ndarray
  zz: np.ndarray
  y: np.ndarray
  yz: np.ndarray
  yy: np.ndarray
  least: np.ndarray  # of y

  @staticmethod
  def of(arm: _Arm, mean_RK: np.ndarray, log_exponent_RG: np.ndarray, reference: float) -> _Sums:
    z_RGK = np.exp(-np.exp(log_exponent_RG)[:, :, None] * np.log(arm.compute / reference))
    seeds_K, y_R1K = arm.seeds.astype(np.float64), mean_RK[:, None, :]
    y_R1, yy_R1 = (np.sum(seeds_K * value, axis=2) for value in (y_R1K, y_R1K**2))
    n_11 = np.full((1, 1), seeds_K.sum())
    z_RG, zz_RG, yz_RG = (z_RGK @ seeds_K, z_RGK**2 @ seeds_K, np.sum(z_RGK * (seeds_K * y_R1K), axis=2))
    return _Sums(n_11, z_RG, zz_RG, y_R1, yz_RG, yy_R1, y_R1K.min(axis=2))

  def expanded(self, axis: int) -> _Sums:
    """Returns the sums with another axis, along which the exponent of the other design goes."""
    return _Sums(*(np.expand_dims(getattr(self, field.name), axis) for field in dataclasses.fields(self)))


def _projected(parts: Sequence[_Sums]) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
  """Returns the floor, the scale of each part and the squares left, with floor and scales at their best.

  Without its best scale the squares of a part are a quadratic in the floor; the sum of both has its minimum in closed
  form. A floor is not negative, and one above the losses that would turn a scale negative is moved below them.
  """
  bend = sum(part.n - part.z**2 / part.zz for part in parts)
  slope = sum(part.y - part.yz * part.z / part.zz for part in parts)
  floor = np.maximum(slope / np.maximum(bend, 1e-12), 0.0)
  lowest = np.minimum.reduce(np.broadcast_arrays(*(part.least for part in parts)))
  turned = np.logical_or.reduce(np.broadcast_arrays(*(part.yz - floor * part.z < 0 for part in parts)))
  floor = np.where(turned, np.minimum(floor, lowest), floor)
  scales = [np.broadcast_to((part.yz - floor * part.z) / part.zz, floor.shape) for part in parts]
  squares = sum(
    part.yy - 2 * floor * part.y + floor**2 * part.n - scale**2 * part.zz
    for part, scale in zip(parts, scales, strict=True)
  )
  return floor, scales, np.maximum(squares, 0.0)


def _multipliers(log_RC: np.ndarray, asked: Sequence[float], largest: float, level: float) -> list[Multiplier]:
  """Returns the multiplier at each compute from its logarithm, the first row by the data and the others by draws."""
  found = []
  for compute, log_R in zip(asked, np.clip(log_RC, -700.0, 700.0).T, strict=True):
    value, low, high = np.exp([log_R[0], *np.quantile(log_R[1:], [(1 - level) / 2, (1 + level) / 2])])
    times = f'{compute / largest:.3g} times the largest size'
    note = f'{times} that was measured: beyond {FARTHEST:g} times a law is a guess'
    far = compute > FARTHEST * largest * (1 + 1e-9)
    found.append(Multiplier(float(value), float(low), float(high), compute, level, note=note if far else ''))
  return found


def _log_ratio(laws: _Laws, asked: Sequence[float], reference: float) -> np.ndarray:
  """Solves floor + A_0 (M C)^-alpha_0 = floor + A_1 C^-alpha_1 for log M, R by each compute C of the entry."""
  size_C = np.log(np.array(asked) / reference)
  log_R2 = np.log(np.maximum(laws.scale, 1e-300))
  lead_R1 = (log_R2[:, 0] - log_R2[:, 1])[:, None]
  return (lead_R1 + laws.exponent[:, 1:] * size_C) / laws.exponent[:, :1] - size_C


def _held_out(model: str, arms: Sequence[_Arm], reference: float) -> float:
  """Returns the root mean square error at each design's largest size of a fit to the others, in units of loss."""
  smaller = [arm.without_largest() for arm in arms]
  laws = _laws(model, smaller, [arm.mean[None] for arm in smaller], reference)
  errors = [
    laws.floor[0] + laws.scale[0, i] * (arm.compute[-1] / reference) ** -laws.exponent[0, i] - arm.mean[-1]
    for i, arm in enumerate(arms)
  ]
  return math.sqrt(sum(error**2 for error in errors) / len(errors))


def _aicc(squares: np.ndarray, free: int, count: int) -> np.ndarray:
  """Returns AICc of least squares fits; losses that agree to rounding count as agreeing to 1e-9."""
  return count * np.log(squares / count + 1e-18) + 2 * free + 2 * free * (free + 1) / (count - free - 1)
