"""How discoveries come with what is spent: a rate that stays, grows or falls as a power, or a well that runs dry.

The curve is a counting process. Neighbouring points of a cumulative count share every earlier event, so their residuals
are not independent: least squares on the curve, as under the linear law of the original's Figure 1, treats one early
event as if every later point confirmed it, and its AICc, intervals and R squared mean nothing. Here each interval of
cost is one observation, that of the events inside it, and what was spent after the last discovery counts as well:

  linear       L(t) = a t                     the rate stays
  power law    L(t) = a t^b                   (Crow 1974; Duane 1964: reliability growth)
  saturating   L(t) = a (1 - exp(-t / tau))   a finite number to be found (Goel and Okumoto 1979)

L is the expected count. Events of an interval without known trials are Poisson with mean dL. A trial succeeds once at
most, so n trials in an interval are binomial with chance 1 - exp(-dL / n); n without limit is the Poisson case. Both
hold where only counts in bins are known, as in a digitised figure.

Shapes are compared by AICc with n the number of events (Hurvich and Tsai 1989, Biometrika 76). A shape is *excluded*
where a test at 5 % rejects it, which a small weight alone does not say: twice the smaller p of (1) the likelihood ratio
of the best shape to it and (2) the Cramer-von Mises distance of the events from it on its own rescaled time (Choulakian
et al. 1994, Can. J. Stat. 22), each from a parametric bootstrap that fits every shape anew, since linear lies inside
the other two, for saturating on the edge, where no chi-square holds. For the same reason those two are not excluded
where linear is not. With few events nothing is excluded: that is the answer. Events are taken as independent; entries
that descend from one lucky parent are not, and then p is too small.

The original's Figure 1 (36 digitised points, 106 events in 7,000 GPU hours) excludes all three. Its linear law lies 8.6
behind the power law in AICc (p = 0.003); saturating is fitted best by that line and goes with it; a power law with
exponent 1.40 (1.15 to 1.69) is the best and misses the events by its distance (p = 0.002 alone). In fifths of the run
6, 28, 30, 24 and 18 were found: the rate rose and then fell, as in none of these shapes; what is left agrees with
Poisson noise. Its abscissa is four hours times the number of the trial, so it says the same of trials.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np

from asiarch_jax.evidence import distributions

FEWEST = 4  # events below which AICc is not defined for two parameters and no shape is told from another
BINS = 120  # intervals that are fitted at most: neighbours are merged, so that time does not grow with the archive
DRAWS = 400
STARTS, STEPS = 12, 30  # of a shape's number: a grid, then a golden section beside its best point, to 1e-7 of the range
ROOTS = 240  # points at which a likelihood is read for an interval
REACHED = 0.01  # share of the draws at a bound of a shape's number from which their quantiles say nothing
HIGHEST, BISECTIONS = 8.0, 20  # of the logarithm of a scale over the expected count
NEWTON = 6  # steps for the scale of a binomial fit; the Poisson solution, a good start, is exact for small chances


@dataclasses.dataclass(frozen=True)
class Process:
  """Confirmed entries in consecutive intervals of cost, the first from 0 to ends[0].

  `trials` are how many could have been confirmed in each interval, inf where that is not known (a Poisson count).
  `note` says why no shape can be fitted, where there is nothing to fit one to.
  """

  ends: tuple[float, ...]
  counts: tuple[int, ...]
  trials: tuple[float, ...]
  note: str = ''

  @property
  def events(self) -> int:
    return sum(self.counts)

  @property
  def spent(self) -> float:
    """The total cost, in the unit of the input."""
    return self.ends[-1] if self.ends else 0.0


@dataclasses.dataclass(frozen=True)
class Parameter:
  """A parameter in units of the cost, with its parametric and its case bootstrap interval.

  An end is 0 or inf where the shape's number may lie beyond the range in which it is sought. The second interval weighs
  whole intervals of cost at random (Rubin 1981, Ann. Stat. 9), so it also holds where events clump.
  """

  name: str
  value: float
  low: float
  high: float
  case_low: float
  case_high: float


@dataclasses.dataclass(frozen=True)
class Band:
  """The expected cumulative count at each cost, with pointwise intervals of both bootstraps, as in `Parameter`."""

  spent: tuple[float, ...]
  expected: tuple[float, ...]
  low: tuple[float, ...]
  high: tuple[float, ...]
  case_low: tuple[float, ...]
  case_high: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Fit:
  """One shape. `log_likelihood` leaves out what all shapes share; `aicc` is inf below FEWEST events for two parameters.

  `p_ratio` and `p_distance` are those of the two tests; `p` is twice the smaller, and at least that of linear, which
  the other shapes contain. nan where nothing was compared.
  """

  shape: str
  parameters: tuple[Parameter, ...]
  log_likelihood: float
  aicc: float
  behind: float  # AICc above the best
  weight: float  # Akaike's
  p_ratio: float
  p_distance: float
  p: float
  excluded: bool
  band: Band


@dataclasses.dataclass(frozen=True)
class Discovery:
  """The fits, best AICc first; `note` says why shapes were not compared, empty where they were."""

  events: int
  spent: float
  level: float
  fits: tuple[Fit, ...]
  note: str = ''

  @property
  def excluded(self) -> tuple[str, ...]:
    """The shapes that the data exclude."""
    return tuple(fit.shape for fit in self.fits if fit.excluded)

  @property
  def verdict(self) -> str:
    """What the data say of the shape, in one sentence."""
    if self.note:
      return self.note
    left = [fit.shape for fit in self.fits if not fit.excluded]
    if not left:
      return f'The {self.events} events fit none of the shapes: {_listed(self.excluded)} are excluded.'
    if not self.excluded:
      return f'The {self.events} events do not tell {_listed(left)} apart: no shape is excluded.'
    verb = 'is' if len(self.excluded) == 1 else 'are'
    rest = f'{_listed(left)} {"fits" if len(left) == 1 else "cannot be told apart"}'
    return f'Of {self.events} events, {_listed(self.excluded)} {verb} excluded; {rest}.'


def of_trials(costs: Sequence[float], confirmed: Sequence[bool], *, total: float | None = None) -> Process:
  """Returns the process of trials in order, each with its cost in any one unit and whether it was confirmed.

  `total` is the cost so far where more was spent than on the trials that ended. A confirmed trial without cost counts
  at the moment where it came; one that failed for nothing says nothing and is left out.

  Raises:
    ValueError: lengths differ, a cost is negative or not finite, `total` is below the sum of the costs.
  """
  if len(costs) != len(confirmed):
    raise ValueError(f'{len(costs)} costs for {len(confirmed)} trials; give one each')
  _check_costs(costs)
  spent = math.fsum(costs)
  if total is not None and not (math.isfinite(total) and total >= spent * (1 - 1e-9)):
    raise ValueError(f'total = {total}, yet the trials alone cost {spent}; give the total of all, in their unit')
  cells = [(float(cost), int(hit), 1.0) for cost, hit in zip(costs, map(bool, confirmed), strict=True)]
  rest = max((total or 0.0) - spent, 0.0)
  return _process([*cells, (rest if rest > 1e-9 * spent else 0.0, 0, 1.0)])


def of_counts(spent: Sequence[float], cumulative: Sequence[int]) -> Process:
  """Returns the process of a cumulative count at rising costs, as read off a figure; it begins at cost 0 with count 0.

  Raises:
    ValueError: lengths differ, costs or counts fall, a cost is not finite, a count is not whole.
  """
  if len(spent) != len(cumulative):
    raise ValueError(f'{len(spent)} costs for {len(cumulative)} counts; give one each')
  steps = [after - before for before, after in itertools.pairwise((0.0, *spent))]
  _check_costs(steps, 'the step to cost')
  cells = []
  for step, (before, after) in zip(steps, itertools.pairwise((0, *cumulative)), strict=True):
    if after != int(after) or after < before:
      raise ValueError(f'the cumulative count goes from {before} to {after}; it is whole and never falls')
    cells.append((step, int(after) - int(before), math.inf))
  return _process(cells)


def _check_costs(costs: Sequence[float], name: str = 'cost') -> None:
  for index, cost in enumerate(costs):
    if not (math.isfinite(cost) and cost >= 0):
      raise ValueError(f'{name} {index} is {cost}; a cost is finite and at least 0: leave out what was not measured')


def _process(cells: Sequence[tuple[float, int, float]]) -> Process:
  """Returns the intervals of (cost, events, trials), those without length merged into the one before."""
  merged: list[list[float]] = []
  for cost, events, trials in cells:
    if cost > 0 and not (len(merged) == 1 and not merged[0][0]):
      merged.append([cost, events, trials])
    elif cost > 0:  # events came before any cost: they belong to the first interval
      merged[0] = [cost, merged[0][1] + events, merged[0][2] + trials]
    elif events and merged:
      merged[-1] = [merged[-1][0], merged[-1][1] + events, merged[-1][2] + trials]
    elif events:
      merged.append([0.0, events, trials])
  if sum(row[0] for row in merged) <= 0:
    found = int(sum(row[1] for row in merged))
    return Process(
      (), (), (), f'Nothing was spent on trials{f", yet {found} confirmed" if found else ""}: there is no rate.'
    )
  size = math.ceil(len(merged) / BINS)
  groups = [merged[start : start + size] for start in range(0, len(merged), size)]
  ends = np.cumsum([math.fsum(row[0] for row in group) for group in groups])
  counts = tuple(int(sum(row[1] for row in group)) for group in groups)
  return Process(tuple(map(float, ends)), counts, tuple(float(sum(row[2] for row in group)) for group in groups))


def fit(process: Process, *, seed: int | Sequence[int] = 0, draws: int = DRAWS, level: float = 0.95) -> Discovery:
  """Returns the three shapes fitted by maximum likelihood, compared, with intervals at `level`, tested at 1 - `level`.

  Below FEWEST events, and where all fall into one interval, only the rate is given; without any, its upper limit
  (Garwood 1936). `seed` names the bootstrap's draws: the same call gives the same numbers.

  Raises:
    ValueError: fewer than 20 draws or a level outside (0, 1).
  """
  if draws < 20 or not 0 < level < 1:
    raise ValueError(f'draws = {draws}, level = {level}; give at least 20 draws and a level in (0, 1)')
  events, spent = process.events, process.spent
  if process.note:
    return Discovery(events, spent, level, (), process.note)
  if events == sum(process.trials):
    return Discovery(events, spent, level, (), f'All of {events} trials were confirmed: the rate has no upper limit.')
  note = _too_little(process)
  if note:
    return Discovery(events, spent, level, (_rate_alone(process, level),), note)
  rng = np.random.default_rng(seed)
  counts_1N = np.array([process.counts], dtype=np.float64)
  observed = {name: _maximum(shape, process, counts_1N) for name, shape in SHAPES.items()}
  weights_RN = rng.exponential(size=(draws, len(process.ends)))
  weights_RN *= weights_RN.shape[1] / weights_RN.sum(axis=1, keepdims=True)
  scores = {name: _aicc(float(found.score[0]), SHAPES[name].free, events) for name, found in observed.items()}
  best = min(scores.values())
  mass = {name: math.exp((best - score) / 2) for name, score in scores.items()}
  fits: list[Fit] = []
  for name, shape in SHAPES.items():
    found = observed[name]
    drawn_RN = _draw(process, found.means(process)[0], draws, rng)
    again = {other: _maximum(SHAPES[other], process, drawn_RN) for other in SHAPES}
    cases = _maximum(shape, process, counts_1N, weights_RN)
    enough_R = drawn_RN.sum(axis=1) >= FEWEST
    p_ratio = _tail(_ratio(observed, name)[0], _ratio(again, name)[enough_R])
    p_distance = _tail(_distance(process, found, counts_1N)[0], _distance(process, again[name], drawn_RN)[enough_R])
    p = min(1.0, 2 * min(p_ratio, p_distance))
    p = max(p, fits[0].p) if fits else p  # linear, the first, lies in the others: they cannot be excluded without it
    parameters, band = _summary(process, found, again[name], cases, level)
    fits.append(
      Fit(
        name,
        parameters,
        float(found.score[0]),
        scores[name],
        scores[name] - best,
        mass[name] / sum(mass.values()),
        p_ratio,
        p_distance,
        p,
        p < 1 - level,
        band,
      )
    )
  return Discovery(events, spent, level, tuple(sorted(fits, key=lambda row: row.aicc)))


def _too_little(process: Process) -> str:
  if not process.events:
    return 'Nothing was confirmed yet.'
  if process.events < FEWEST:
    found = '1 event says' if process.events == 1 else f'{process.events} events say'
    return f'{found} nothing of a shape: it takes at least {FEWEST}.'
  if sum(count > 0 for count in process.counts) == 1:
    return f'All {process.events} events fall into one interval of cost, so they say nothing of a shape.'
  for counts, trials, side in (
    (process.counts, process.trials, 'before'),
    (process.counts[::-1], process.trials[::-1], 'after'),
  ):
    if _parted(counts, trials):
      return (
        f'All {process.events} events came {side} all trials without one: a step, which a shape fits the better the '
        'steeper it is, so no best fit exists.'
      )
  return ''


def _parted(counts: Sequence[int], trials: Sequence[float]) -> bool:
  """Says whether all trials succeeded up to some interval and none after it: no maximum is finite."""
  rest = list(itertools.dropwhile(lambda pair: pair[0] == pair[1], zip(counts, trials, strict=True)))
  return not any(count for count, _ in rest[1:])


def _rate_alone(process: Process, level: float) -> Fit:
  """Returns the constant rate with the exact interval of a Poisson count."""
  events, spent, tail = process.events, process.spent, (1 - level) / 2
  low, high = (
    distributions.chi_square_quantile(tail, 2 * events) / 2 if events else 0.0,
    distributions.chi_square_quantile(1 - tail, 2 * events + 2) / 2,
  )
  share_N = np.array(process.ends) / spent
  expected, lows, highs = (tuple(map(float, count * share_N)) for count in (events, low, high))
  rate = Parameter('rate', *(float(count / spent) for count in (events, low, high, low, high)))
  score = events * math.log(events) - events if events else 0.0
  nan = math.nan
  band = Band(process.ends, expected, lows, highs, lows, highs)
  return Fit('linear', (rate,), score, _aicc(score, 1, events), 0.0, 1.0, nan, nan, nan, False, band)


@dataclasses.dataclass(frozen=True)
class _Maximum:
  """Fits to R rows of counts: the shape's number without and within its bounds, expected count at the end, score."""

  shape: _Shape
  free: np.ndarray
  theta: np.ndarray
  scale: np.ndarray
  score: np.ndarray

  def means(self, process: Process) -> np.ndarray:
    """Returns the expected events of each interval, R by N: below dL where a trial can succeed once only."""
    rate_RN = self.scale[:, None] * _shares(self.shape, process, self.theta)
    trials_N = np.array(process.trials)
    with np.errstate(invalid='ignore'):
      return np.where(np.isinf(trials_N), rate_RN, -trials_N * np.expm1(-rate_RN / trials_N))


@dataclasses.dataclass(frozen=True)
class _Shape:
  """`share` is L(x) / L(1) for a share x of the total cost and the shape's number, which is sought in [low, high] and
  then held at or above `least`: a falling exponential is a shape of this family only with a falling rate. `measures`
  are the parameters told to people, of the shape's number, the expected count at the end and the total cost."""

  free: int
  share: Callable[[np.ndarray, np.ndarray], np.ndarray]
  measures: dict[str, Callable[[np.ndarray, np.ndarray, float], np.ndarray]]
  low: float = 0.0
  high: float = 0.0
  least: float = -math.inf


def _saturated(s_R1: np.ndarray, x_N: np.ndarray) -> np.ndarray:
  """Returns (1 - exp(-s x)) / (1 - exp(-s)), which is x for s = 0; s is the total cost over tau."""
  safe_R1 = np.where(np.abs(s_R1) < 1e-6, 1e-6, s_R1)
  return np.expm1(-safe_R1 * x_N) / np.expm1(-safe_R1)


def _over(above: np.ndarray | float, below: np.ndarray) -> np.ndarray:
  """Returns the quotient, inf where nothing is below."""
  with np.errstate(divide='ignore'):
    return np.where(below > 0, above / np.where(below > 0, below, 1.0), np.inf)


SHAPES = {
  'linear': _Shape(1, lambda _, x_N: x_N[None], {'rate': lambda _, scale, spent: scale / spent}),
  'power law': _Shape(
    2,
    lambda log_b_R1, x_N: x_N ** np.exp(log_b_R1),
    {'exponent': lambda log_b, *_: np.exp(log_b)},
    math.log(0.05),
    math.log(20.0),
  ),
  'saturating': _Shape(
    2,
    _saturated,
    {
      'time constant': lambda s, _, spent: _over(spent, s),
      'ceiling': lambda s, scale, _: _over(scale, -np.expm1(-np.maximum(s, 0.0))),
    },
    -30.0,
    200.0,
    0.0,
  ),
}


def _shares(shape: _Shape, process: Process, theta_R: np.ndarray) -> np.ndarray:
  """Returns the share of L(1) in each interval, R by N, never quite zero."""
  x_N = np.array((0.0, *process.ends)) / process.spent
  return np.maximum(np.diff(shape.share(theta_R[:, None], x_N), axis=1), 1e-280)


def _profile(
  shape: _Shape, process: Process, theta_R: np.ndarray, counts_RN: np.ndarray, weights_RN: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the best expected count at the end for a shape's number, and the log likelihood there, both R.

  With h = dL / n the binomial log likelihood is k log(dL (1 - exp(-h)) / h) + k h - dL up to a constant; h = 0 is the
  Poisson case. It is concave in the logarithm of the scale, where Newton's steps are taken.
  """
  share_RN = _shares(shape, process, theta_R)
  trials_N = np.array(process.trials)
  events_R = np.sum(weights_RN * counts_RN, axis=1)
  scale_R = events_R / np.sum(weights_RN * share_RN, axis=1)
  if np.isfinite(trials_N).any():
    for _ in range(NEWTON):
      mean_RN = scale_R[:, None] * share_RN
      chance_RN = np.maximum(mean_RN / trials_N, 1e-12)
      miss_RN = np.exp(-chance_RN)
      lift_RN = chance_RN / -np.expm1(-chance_RN)
      slope_R = np.sum(weights_RN * (counts_RN * lift_RN - mean_RN), axis=1)
      curve_RN = counts_RN * lift_RN * (1.0 - miss_RN * lift_RN) - mean_RN
      bend_R = np.minimum(np.sum(weights_RN * curve_RN, axis=1), -1e-12)
      step_R = np.clip(-slope_R / bend_R, -1.0, 1.0)
      scale_R = scale_R * np.exp(step_R)
      if np.abs(step_R).max() < 1e-5:  # the next one would be its square
        break
  mean_RN = np.maximum(scale_R[:, None] * share_RN, 1e-290)
  chance_RN = np.maximum(mean_RN / trials_N, 1e-12)
  log_RN = np.log(mean_RN) + np.log(-np.expm1(-chance_RN) / chance_RN) + chance_RN
  return scale_R, np.sum(weights_RN * (counts_RN * log_RN - mean_RN), axis=1)


def _maximum(shape: _Shape, process: Process, counts_RN: np.ndarray, weights_RN: np.ndarray | None = None) -> _Maximum:
  """Returns the maximum likelihood fit to each row of counts (or of weights on the intervals), by golden section."""
  weights_RN = np.ones((1, 1)) if weights_RN is None else weights_RN
  rows = max(len(counts_RN), len(weights_RN))
  if len(weights_RN) == 1:
    weights_RN = np.ones((1, counts_RN.shape[1]))

  def score(theta_R: np.ndarray) -> np.ndarray:
    return _profile(shape, process, theta_R, counts_RN, weights_RN)[1]

  low_R, high_R = np.full(rows, shape.low), np.full(rows, shape.high)
  if shape.high > shape.low:
    # Far from the best the smallest share is all that is left of a likelihood: flat, where no section finds its way.
    starts_S = np.linspace(shape.low, shape.high, STARTS)
    best_R = np.argmax([score(np.full(rows, start)) for start in starts_S], axis=0)
    low_R, high_R = starts_S[np.maximum(best_R - 1, 0)], starts_S[np.minimum(best_R + 1, STARTS - 1)]
    golden = (math.sqrt(5.0) - 1.0) / 2.0
    left_R, right_R = high_R - golden * (high_R - low_R), low_R + golden * (high_R - low_R)
    at_left_R, at_right_R = score(left_R), score(right_R)
    for _ in range(STEPS):
      lower_R = at_left_R > at_right_R
      low_R, high_R = np.where(lower_R, low_R, left_R), np.where(lower_R, right_R, high_R)
      new_R = np.where(lower_R, high_R - golden * (high_R - low_R), low_R + golden * (high_R - low_R))
      at_new_R = score(new_R)
      left_R, right_R = np.where(lower_R, new_R, right_R), np.where(lower_R, left_R, new_R)
      at_left_R, at_right_R = np.where(lower_R, at_new_R, at_right_R), np.where(lower_R, at_left_R, at_new_R)
  free_R = (low_R + high_R) / 2
  theta_R = np.maximum(free_R, shape.least)
  scale_R, score_R = _profile(shape, process, theta_R, counts_RN, weights_RN)
  return _Maximum(shape, free_R, theta_R, scale_R, score_R)


def _draw(process: Process, mean_N: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
  """Returns counts drawn from the expected events of each interval, draws by N."""
  trials_N = np.array(process.trials)
  known_N = np.isfinite(trials_N)
  count_N = np.where(known_N, trials_N, 1.0).astype(np.int64)
  binomial_RN = rng.binomial(count_N, np.clip(mean_N / count_N, 0.0, 1.0), size=(draws, len(mean_N)))
  return np.where(known_N, binomial_RN, rng.poisson(mean_N, size=(draws, len(mean_N)))).astype(np.float64)


def _ratio(found: dict[str, _Maximum], name: str) -> np.ndarray:
  return 2.0 * (np.max([each.score for each in found.values()], axis=0) - found[name].score)


def _distance(process: Process, found: _Maximum, counts_RN: np.ndarray) -> np.ndarray:
  """Returns the Cramer-von Mises distance between where events fell and where they were expected, for binned data."""
  mean_RN = found.means(process)
  total_R1 = np.maximum(mean_RN.sum(axis=1, keepdims=True), 1e-12)
  events_R1 = np.maximum(counts_RN.sum(axis=1, keepdims=True), 1.0)
  gap_RN = np.cumsum(counts_RN, axis=1) / events_R1 - np.cumsum(mean_RN, axis=1) / total_R1
  return events_R1[:, 0] * np.sum(gap_RN**2 * mean_RN / total_R1, axis=1)


def _tail(observed: float, drawn: np.ndarray) -> float:
  """Returns the share of draws that lie as far out, the observation counted among them; ties count as farther."""
  return (1 + int(np.sum(drawn >= observed - 1e-6))) / (1 + len(drawn))


def _aicc(score: float, free: int, events: int) -> float:
  if events <= free + 1:
    return math.inf
  return -2.0 * score + 2.0 * free + 2.0 * free * (free + 1) / (events - free - 1)


def _mirrored(
  process: Process, found: _Maximum, drawn: _Maximum, widening: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
  """Returns shapes' numbers and scales that are as far from the fit as the draws, on the other side, R each.

  Their quantiles are basic bootstrap intervals (Davison and Hinkley 1997, section 5.2) of any function of them: a fit
  that came out too high was drawn from too high. For the logarithm of a power law's exponent this is exact, since its
  distance to the estimate has no unknown in it. The expected count is turned where its noise is even: on roots, or with
  n trials on arcsines of roots. A number is infinite where it lies outside the range in which numbers are sought.
  """
  some_R = drawn.scale > 0
  number_R = _numbers(process, found, drawn.free[some_R], widening)
  trials = sum(process.trials)
  middle, total_R = found.means(process).sum(), drawn.means(process).sum(axis=1)[some_R]
  if math.isinf(trials):
    return number_R, np.maximum((1 + widening) * math.sqrt(middle) - widening * np.sqrt(total_R), 0.0) ** 2
  angle, angle_R = (np.arcsin(np.sqrt(np.minimum(total / trials, 1.0))) for total in (middle, total_R))
  turned_R = np.clip((1 + widening) * angle - widening * angle_R, 0.0, math.pi / 2 - 1e-3)
  return number_R, _scale_of(process, found.shape, number_R, trials * np.sin(turned_R) ** 2)


def _numbers(process: Process, found: _Maximum, drawn_R: np.ndarray, widening: float) -> np.ndarray:
  """Returns what `_mirrored` says of the shape's number.

  Draws that end at a bound tell nothing of how far off the number may be: all may lie there, the fit among them. Then
  the numbers are such that twice the logarithm of the likelihood ratio to them is chi-square, so that they end where a
  likelihood interval does, and never where the likelihood has not fallen enough within the range.
  """
  shape, fitted = found.shape, found.free[0]
  if shape.high == shape.low:
    return np.zeros(len(drawn_R))
  margin = 1e-4 * (shape.high - shape.low)
  if np.mean((drawn_R < shape.low + margin) | (drawn_R > shape.high - margin)) <= REACHED:
    number_R = fitted - widening * (drawn_R - fitted)
    return np.where(number_R < shape.low, -np.inf, np.where(number_R > shape.high, np.inf, number_R))
  theta_G = np.append(np.linspace(shape.low, shape.high, ROOTS), fitted)
  theta_G.sort()
  score_G = _profile(shape, process, theta_G, np.array([process.counts], np.float64), np.ones((1, 1)))[1]
  side_G = np.sign(theta_G - fitted)
  root_G = side_G * np.sqrt(2.0 * np.maximum(score_G.max() - score_G, 0.0))
  root_G = np.where(side_G < 0, np.minimum.accumulate(root_G[::-1])[::-1], np.maximum.accumulate(root_G))
  rows = len(drawn_R)
  normal_R = np.array([distributions.normal_quantile((row + 0.5) / rows) for row in range(rows)])
  return np.interp(widening * normal_R, root_G, theta_G, left=-np.inf, right=np.inf)


def _within(shape: _Shape, number_R: np.ndarray) -> np.ndarray:
  """Returns numbers as a shape can have them."""
  return np.clip(number_R, max(shape.low, shape.least), shape.high)


def _scale_of(process: Process, shape: _Shape, number_R: np.ndarray, total_R: np.ndarray) -> np.ndarray:
  """Returns the scale that gives an expected number of events where a trial succeeds once at most, by bisection."""
  share_RN, trials_N = _shares(shape, process, _within(shape, number_R)), np.array(process.trials)
  low_R, high_R = np.zeros(len(number_R)), np.full(len(number_R), HIGHEST)
  for _ in range(BISECTIONS):
    middle_R = (low_R + high_R) / 2
    scale_R = total_R * np.exp(middle_R)
    below_R = np.sum(-trials_N * np.expm1(-scale_R[:, None] * share_RN / trials_N), axis=1) < total_R
    low_R, high_R = np.where(below_R, middle_R, low_R), np.where(below_R, high_R, middle_R)
  return total_R * np.exp((low_R + high_R) / 2)


def _ends(values_R: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
  low, high = np.quantile(values_R, [(1 - level) / 2, (1 + level) / 2], axis=0, method='nearest')  # some are infinite
  return low, high


def _summary(
  process: Process, found: _Maximum, again: _Maximum, cases: _Maximum, level: float
) -> tuple[tuple[Parameter, ...], Band]:
  """Returns the parameters and the expected count at the end of each interval, each with both of its intervals.

  Case intervals are widened as the t interval of a mean is to the normal one (Hesterberg 2015, Am. Stat. 69).
  """
  shape, events, spent = found.shape, process.events, process.spent
  tail = (1 + level) / 2
  widening = (distributions.t_quantile(tail, events - 1) / distributions.normal_quantile(tail)) * math.sqrt(
    events / (events - 1)
  )
  sides = (_mirrored(process, found, again), _mirrored(process, found, cases, widening))
  parameters = []
  for name, measure in shape.measures.items():
    ends = [end for number_R, scale_R in sides for end in _ends(measure(number_R, scale_R, spent), level)]
    value = measure(found.theta, found.scale, spent)[0]
    parameters.append(Parameter(name, *map(float, (value, *ends))))
  bounds: list[np.ndarray] = []
  for number_R, scale_R in sides:
    drawn = dataclasses.replace(found, theta=_within(shape, number_R), scale=scale_R)
    bounds += _ends(np.cumsum(drawn.means(process), axis=1), level)
  lines = (np.cumsum(found.means(process), axis=1)[0], *bounds)
  return tuple(parameters), Band(process.ends, *(tuple(map(float, line)) for line in lines))


def _listed(names: Sequence[str]) -> str:
  return names[0] if len(names) == 1 else f'{", ".join(names[:-1])} and {names[-1]}'
