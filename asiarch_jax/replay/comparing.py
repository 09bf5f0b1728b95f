"""Policies side by side on a table: ways to search, to promote, to believe, and to stop.

Every comparison is made on many replays, whose luck (which seeds were seen, which choices fell how) is drawn anew and
is the same for all policies of one replay, so that differences are paired. What a choice is worth is read where the
policy did not look: on the rung above, or on seeds that were kept from it.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from asiarch_jax import config
from asiarch_jax.evidence import distributions, improvement, ladder, posterior, promotion
from asiarch_jax.evidence.noise import floor
from asiarch_jax.evidence.pairing import pairs
from asiarch_jax.evidence.placebo import is_placebo
from asiarch_jax.records import Entry, TrainSummary, chosen_rate
from asiarch_jax.replay.playing import best, on_table, play, replayed, seeds_of
from asiarch_jax.replay.table import Table

TOP = 3  # designs that a user takes from a search
SHARE = 0.25  # of the candidates, for rules that promote a fixed share
TENTH = 0.1  # the best of a table, which a rule that stops runs must not lose


@dataclasses.dataclass(frozen=True)
class Mean:
  """A mean over replays with its 95 % interval (t)."""

  value: float
  low: float
  high: float


def mean_of(values: Iterable[float]) -> Mean:
  """Returns the mean of the finite values; nan where there is none, and an open interval for a single one."""
  found = [value for value in values if math.isfinite(value)]
  if not found:
    return Mean(math.nan, -math.inf, math.inf)
  mean = statistics.fmean(found)
  if len(found) == 1:
    return Mean(mean, -math.inf, math.inf)
  margin = distributions.t_quantile(0.975, len(found) - 1) * statistics.stdev(found) / math.sqrt(len(found))
  return Mean(mean, mean - margin, mean + margin)


@dataclasses.dataclass(frozen=True)
class Sampler:
  """A way to search. `worth`: of its best three on the rung above, bits per byte over the baseline."""

  name: str
  about: str
  worth: Mean
  lift: Mean | None  # over the first sampler, paired; None for the first itself
  measured: Mean  # of the same three, as the search saw them
  cycles: int
  seeds: int


@dataclasses.dataclass(frozen=True)
class Promotion:
  """A rule that says who climbs. `worse`: share of those promoted that are not better on the rung above.

  `placebos`: share of the copies of the baseline that it promotes. `best`, `mean`: what the promoted are worth there.
  """

  name: str
  about: str
  promoted: Mean
  worse: Mean
  placebos: Mean
  best: Mean
  mean: Mean


@dataclasses.dataclass(frozen=True)
class Estimator:
  """A way to say how much better a design is, from half of its seeds, held against the other half.

  `error` is the root of the mean squared difference to what the other seeds gave, their noise taken out; `optimism` the
  mean of estimate less the other seeds' value over the best three by the estimate; `covers` the share of the other
  seeds' values inside the interval, widened by their own noise.
  """

  name: str
  about: str
  error: Mean
  optimism: Mean
  covers: Mean


@dataclasses.dataclass(frozen=True)
class Stopping:
  """A rule that ends hopeless runs. `saved`: share of all steps; `lost`: share of the table's best tenth it ends."""

  name: str
  share: float
  at: float
  stopped: float
  saved: float
  lost: float
  regret: float  # worth of the table's best on the rung above, less that of the best that is left


@dataclasses.dataclass(frozen=True)
class Policy:
  """A way to search, as a change of an experiment."""

  name: str
  about: str
  change: Callable[[config.Experiment], config.Experiment]


def _search(**changes: object) -> Callable[[config.Experiment], config.Experiment]:
  def change(experiment: config.Experiment) -> config.Experiment:
    return dataclasses.replace(experiment, search=dataclasses.replace(experiment.search, **changes))  # type: ignore[arg-type]

  return change


def _seeds(seeds: int) -> Callable[[config.Experiment], config.Experiment]:
  """Returns the change to another number of seeds at the same cost in replicas."""

  def change(experiment: config.Experiment) -> config.Experiment:
    first = len(experiment.search.baselines)
    cycles = first + max(1, (experiment.search.cycles - first) * experiment.training.seeds // seeds)
    search = dataclasses.replace(experiment.search, cycles=cycles)
    training = dataclasses.replace(experiment.training, seeds=seeds)
    return dataclasses.replace(experiment, search=search, training=training)

  return change


def _loss_alone(experiment: config.Experiment) -> config.Experiment:
  judge = dataclasses.replace(experiment.judge, performance=1.0, innovation=0.0, complexity=0.0)
  return dataclasses.replace(experiment, judge=judge)


def _fresh(chance: float) -> Callable[[config.Experiment], config.Experiment]:
  def change(experiment: config.Experiment) -> config.Experiment:
    return dataclasses.replace(experiment, researcher=dataclasses.replace(experiment.researcher, fresh=chance))

  return change


POLICIES = (
  Policy('search', 'the experiment as it is', lambda experiment: experiment),
  Policy('no_search', 'the parent is always the baseline', _search(parents='baseline')),
  Policy('random', 'designs without a parent', _search(parents='none')),
  Policy('greedy', 'the parent is always the best so far', _search(parent_ranks=(1, 1))),
  Policy('three', 'the parent is one of the best three', _search(parent_ranks=(1, 3))),
  Policy('wide', 'the parent is one of the best thirty', _search(parent_ranks=(1, 30))),
  Policy('late', 'the pool is drawn after each ten only, as the paper does after fifty',
         _search(cold_start=10, refresh=10)),
  Policy('loss alone', 'the judge marks performance and nothing else', _loss_alone),
  Policy('no fresh', 'no independent designs', _fresh(0.0)),
  Policy('fresh half', 'every other design is independent', _fresh(0.5)),
  Policy('one seed', 'half the seeds, twice the designs', _seeds(1)),
  Policy('four seeds', 'twice the seeds, half the designs', _seeds(4)),
)  # fmt: skip


def samplers(
  table: Table, experiment: config.Experiment, policies: Sequence[Policy] = POLICIES, *, replays: int, seed: int = 0
) -> tuple[Sampler, ...]:
  """Returns how the policies search. A policy that asks for more seeds than the table has is left out."""
  most = len(seeds_of(table))
  rows: list[Sampler] = []
  first: list[float] = []
  for policy in policies:
    changed = policy.change(on_table(table, experiment))
    if changed.training.seeds > most:
      continue
    worth, seen = [], []
    for number in range(replays):
      outcomes = play(table, changed, seed + number)
      chosen = best(outcomes, table, TOP)
      gains = sorted(
        (e.evidence.improvement for e in outcomes
         if isinstance(e, Entry) and e.role == 'candidate' and e.evidence and math.isfinite(e.evidence.improvement)),
        reverse=True,
      )  # fmt: skip
      worth.append(statistics.fmean(table.worth[id] for id in chosen) if chosen else 0.0)
      seen.append(statistics.fmean(gains[:TOP]) if gains else math.nan)
    lift = mean_of(ours - theirs for ours, theirs in zip(worth, first, strict=True)) if first else None
    first = first or worth
    rows.append(
      Sampler(
        policy.name, policy.about, mean_of(worth), lift, mean_of(seen), changed.search.cycles, changed.training.seeds
      )
    )
  return tuple(rows)


@dataclasses.dataclass(frozen=True)
class _Seen:
  """What one replay shows of some designs: entries on the seeds that were drawn, and the baseline on the same."""

  entries: tuple[Entry, ...]
  baseline: Entry
  beliefs: Mapping[int, posterior.Posterior]


def _seen(table: Table, entries: Sequence[Entry], seeds: Sequence[int]) -> _Seen:
  """Returns entries as if only `seeds` had been trained; the baseline keeps what no candidate trained on as well."""
  kept = [e for one in entries if (e := _only(one, seeds)) is not None]
  spare = {r.seed for r in table.baseline.training.replicas} - set(seeds_of(table))
  baseline = _only(table.baseline, sorted({*seeds, *spare}))
  assert baseline is not None
  observed = posterior.observations(kept, baseline)
  found = posterior.posteriors(observed, noise=floor(baseline.training)) if observed else ()
  return _Seen(tuple(kept), baseline, {one.id: one for one in found})


def _only(entry: Entry, seeds: Sequence[int]) -> Entry | None:
  training = _summary(entry.training, seeds)
  return None if training is None else dataclasses.replace(entry, training=training)


def _summary(training: TrainSummary, seeds: Sequence[int]) -> TrainSummary | None:
  rates = {replica.learning_rate for replica in training.replicas}
  replicas = replayed(training.replicas, {seed: seed for seed in seeds}, rates)
  if not replicas:
    return None
  return dataclasses.replace(training, replicas=replicas, learning_rate=chosen_rate(replicas))


def _shown(seen: _Seen) -> list[int]:
  """Returns the ids whose plain interval excludes zero from below."""
  found = []
  for entry in seen.entries:
    evidence = improvement.improvement(entry.training, seen.baseline.training, noise=floor(seen.baseline.training))
    if evidence is not None and evidence.low > 0:
      found.append(entry.id)
  return found


def _top(values: Mapping[int, float]) -> list[int]:
  return sorted(values, key=lambda id: (-values[id], id))[: math.ceil(SHARE * len(values))]


def _likely(seen: _Seen) -> list[int]:
  return [id for id, one in seen.beliefs.items() if one.probability_better > 0.5]


def _climb(seen: _Seen, rung: config.Rung) -> list[int]:
  """Returns who climbs when nothing stands on the rung above yet, so that nothing is known of how far the two agree."""
  beliefs = tuple(seen.beliefs.values())
  return [one.id for one in ladder.climbers(beliefs, rung, ladder.EXPECTED[0], np.random.default_rng(0)).promoted]


RULES: Mapping[str, tuple[str, Callable[[_Seen, config.Rung], list[int]]]] = {
  'climb': ('as a first asiarch verify does: surest first, within the limits of the rung', _climb),
  'false discoveries 5 %': (
    'surest first, at most 5 % expected not better',
    lambda seen, _: [one.id for one in promotion.promoted(tuple(seen.beliefs.values()), rate=0.05)],
  ),
  'likely better': ('probability of being better above one half', lambda seen, _: _likely(seen)),
  'interval above zero': ("the design's own t interval excludes zero", lambda seen, _: _shown(seen)),
  'best quarter': (
    'the best quarter by plain mean',
    lambda seen, _: _top({id: one.measured for id, one in seen.beliefs.items()}),
  ),
  'everybody': ('no choice at all', lambda seen, _: list(seen.beliefs)),
}


def promotions(
  table: Table, experiment: config.Experiment, *, replays: int, designs: int, seeds: int, seed: int = 0
) -> tuple[Promotion, ...]:
  """Returns how rules promote from `designs` random designs of the table, of which they see `seeds` replicas each.

  The limits of `climb` are those of the first rung of the experiment's ladder.
  """
  rung = experiment.rungs[experiment.ladder[0]] if experiment.ladder else config.Rung()
  kept: dict[str, list[tuple[float, ...]]] = {name: [] for name in RULES}
  for rng in _lucks(seed, replays):
    drawn = [table.measured[place] for place in _draw(rng, len(table.measured), designs)]
    seen = _seen(table, drawn, _draw(rng, seeds_of(table), seeds))
    if not seen.beliefs:
      continue
    copies = {id for id in seen.beliefs if is_placebo(id, table.experiment)}
    for name, (_, rule) in RULES.items():
      chosen = rule(seen, rung)
      worth = [table.worth[id] for id in chosen]
      kept[name].append((
        float(len(chosen)),
        sum(value <= 0.0 for value in worth) / len(worth) if worth else math.nan,
        len(copies & set(chosen)) / len(copies) if copies else math.nan,
        max(worth, default=0.0),
        statistics.fmean(worth) if worth else math.nan,
      ))  # fmt: skip
  return tuple(
    Promotion(name, RULES[name][0], *(mean_of(row[column] for row in rows) for column in range(5)))
    for name, rows in kept.items()
  )


def _measured(seen: _Seen) -> dict[int, tuple[float, float, float]]:
  found = {}
  for entry in seen.entries:
    evidence = improvement.improvement(entry.training, seen.baseline.training, noise=floor(seen.baseline.training))
    if evidence is not None:
      found[entry.id] = (evidence.improvement, evidence.low, evidence.high)
  return found


def _believed(seen: _Seen) -> dict[int, tuple[float, float, float]]:
  return {id: (one.mean, one.low, one.high) for id, one in seen.beliefs.items()}


ESTIMATORS: Mapping[str, tuple[str, Callable[[_Seen], dict[int, tuple[float, float, float]]]]] = {
  'believed': ('the posterior of all designs together', _believed),
  'measured': ('mean of the paired differences, t interval', _measured),
}


def estimators(table: Table, *, replays: int, designs: int, seed: int = 0) -> tuple[Estimator, ...]:
  """Returns how estimates from one half of the seeds fare on the other half."""
  known = seeds_of(table)
  half = len(known) // 2
  if not half:
    return ()
  kept: dict[str, list[tuple[float, ...]]] = {name: [] for name in ESTIMATORS}
  for rng in _lucks(seed, replays):
    candidates = [one for one in table.measured if not is_placebo(one.id, table.experiment)]
    drawn = [candidates[place] for place in _draw(rng, len(candidates), designs)]
    order = [int(one) for one in rng.permutation(known)]
    ours, others = (_seen(table, drawn, sorted(part)) for part in (order[:half], order[half:]))
    truth = {entry.id: _difference(entry, others.baseline) for entry in others.entries}
    noise = _variance(table, drawn) / (len(known) - half)
    for name, (_, estimate) in ESTIMATORS.items():
      rows = {id: one for id, one in estimate(ours).items() if math.isfinite(truth.get(id, math.nan))}
      ordered = sorted(rows, key=lambda id: (-rows[id][0], id))[:TOP]
      squares = statistics.fmean((rows[id][0] - truth[id]) ** 2 for id in rows) - noise
      kept[name].append((
        math.sqrt(max(squares, 0.0)),
        statistics.fmean(rows[id][0] - truth[id] for id in ordered),
        statistics.fmean(float(_inside(rows[id], truth[id], noise)) for id in rows),
      ))  # fmt: skip
  return tuple(
    Estimator(name, ESTIMATORS[name][0], *(mean_of(row[column] for row in rows) for column in range(3)))
    for name, rows in kept.items()
  )


def _difference(entry: Entry, baseline: Entry) -> float:
  differences = pairs(entry.training, baseline.training).differences
  return float(np.mean(differences)) if differences else math.nan


def _inside(estimate: tuple[float, float, float], truth: float, noise: float) -> bool:
  """Says whether the interval, each side widened by the noise of the truth, holds the truth."""
  middle, low, high = estimate
  extra = 1.96**2 * noise
  return (
    middle - math.hypot(middle - low, math.sqrt(extra)) <= truth <= middle + math.hypot(high - middle, math.sqrt(extra))
  )


def _variance(table: Table, entries: Sequence[Entry]) -> float:
  """Returns the variance of one paired difference around its design's mean, pooled over designs."""
  samples = [np.asarray(pairs(entry.training, table.baseline.training).differences) for entry in entries]
  samples = [sample for sample in samples if len(sample) > 1]
  return sum(float(np.sum((s - s.mean()) ** 2)) for s in samples) / max(1, sum(len(s) - 1 for s in samples))


def stoppings(
  table: Table, *, shares: Sequence[float] = (0.02, 0.05, 0.1, 0.25), at: Sequence[float] = (0.25, 0.5, 0.75)
) -> tuple[Stopping, ...]:
  """Returns what `monitor.hopeless` would save and lose: the best replica is that share above the baseline's loss."""
  base = _curves(table.baseline.training).mean(0)
  entries = [entry for entry in table.measured if not is_placebo(entry.id, table.experiment)]
  ranked = sorted(entries, key=lambda entry: (-table.worth[entry.id], entry.id))
  good = {entry.id for entry in ranked[: max(1, round(TENTH * len(ranked)))]}
  rows = []
  for share in shares:
    for moment in at:
      place = max(1, math.ceil(moment * len(base))) - 1
      ended = {entry.id for entry in entries if _lowest(entry, place) > (1 + share) * base[place]}
      left = [table.worth[entry.id] for entry in entries if entry.id not in ended]
      rows.append(
        Stopping(
          f'{share:.0%} above at {moment:.0%}', share, moment, len(ended) / len(entries),
          len(ended) / len(entries) * (1 - (place + 1) / len(base)), len(good & ended) / len(good),
          table.worth[ranked[0].id] - max(left, default=0.0),
        )
      )  # fmt: skip
  return tuple(rows)


def _curves(training: TrainSummary) -> np.ndarray:
  return np.array([replica.losses for replica in training.chosen if not replica.diverged])


def _lowest(entry: Entry, place: int) -> float:
  losses = [r.losses[place] for r in entry.training.replicas if not r.diverged and len(r.losses) > place]
  return min(losses, default=math.inf)


def _lucks(seed: int, replays: int) -> Iterable[np.random.Generator]:
  return (np.random.default_rng([seed, number]) for number in range(replays))


def _draw(rng: np.random.Generator, among: int | Sequence[int], count: int) -> list[int]:
  most = among if isinstance(among, int) else len(among)
  return sorted(int(one) for one in rng.choice(among, min(count, most), replace=False))
