"""The numbers behind the figures: pure functions from outcomes to small values that can be checked by hand."""

from __future__ import annotations

import bisect
import dataclasses
import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence

import numpy as np

from asiarch_jax.evidence import distributions, noise
from asiarch_jax.evidence.pairing import pairs
from asiarch_jax.records import FAILURES, Entry, Outcome, Rejection, TrainSummary, entries_of

# Where a proposal can end, in the order of the line; everything after the checks ends while the worker trains.
GATE = ('reply', 'source', 'novelty', 'duplicate', 'checks', 'repeat')
MEANINGS = {
  'source': 'its text is outside the contract',
  'novelty': 'too close to what is in the archive',
  'reply': 'the language model gave no proposal that could be used',
  'repeat': 'its idea is in the archive already',
  **FAILURES,
}


@dataclasses.dataclass(frozen=True)
class Progress:
  """A measure after each measured entry: its own value, the best until then, the mean of the pool until then."""

  ids: tuple[int, ...]
  values: tuple[float, ...]
  best: tuple[float, ...]
  pool: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Discoveries:
  """What was found after each outcome, against what was spent until then.

  Spent are accelerator-seconds, and tokens and dollars of language models. `shown` counts the candidates whose interval
  excludes zero, or those that are named as confirmed; `estimated` those whose point estimate lies above zero; `chance`
  is what one would expect of intervals above zero if every candidate measured so far equalled the baseline. `best` is
  the best improvement so far in bits per byte, nan before the first. `trial` says which steps tried a proposal: at the
  others a baseline or an anchor was measured.
  """

  seconds: tuple[float, ...]
  tokens: tuple[int, ...]
  dollars: tuple[float, ...]
  shown: tuple[int, ...]
  estimated: tuple[int, ...]
  chance: tuple[float, ...]
  best: tuple[float, ...]
  trial: tuple[bool, ...] = ()


@dataclasses.dataclass(frozen=True)
class Stage:
  """How many proposals ended at a stage, of those that reached it, with the 95 % interval of the share (Wilson)."""

  name: str
  meaning: str
  count: int
  reached: int
  low: float
  high: float


@dataclasses.dataclass(frozen=True)
class Node:
  """One outcome in the lineage: `depth` generations from its root, `row` across, in units of one node."""

  outcome: Outcome
  parent: int | None
  depth: int
  row: float


@dataclasses.dataclass(frozen=True)
class Curve:
  """A value by training step: mean over seeds, and the range of the seeds."""

  steps: np.ndarray
  mean: np.ndarray
  low: np.ndarray
  high: np.ndarray


def verdict(entry: Entry) -> str:
  """Returns what the interval of an entry's improvement lets one say."""
  if entry.evidence is None:
    return 'reference'
  if entry.evidence.low > 0:
    return 'better'
  return 'worse' if entry.evidence.high < 0 else 'not distinguishable'


def is_better(outcome: Outcome) -> bool:
  """Says whether an outcome is an entry that measured better than the baseline."""
  return isinstance(outcome, Entry) and verdict(outcome) == 'better'


def improvement_of(entry: Entry) -> float:
  """Returns an entry's improvement over the baseline in bits per byte; nan where none was measured.

  The baseline itself, first of the archive and without evidence, has 0.
  """
  if entry.evidence is not None:
    return entry.evidence.improvement
  return 0.0 if entry.role == 'baseline' and entry.proposal.parent_id is None else math.nan


def progress(outcomes: Iterable[Outcome], pool: int, measure: str) -> Progress:
  """Returns the progress of `measure` (improvement or fitness) over all entries but anchors.

  The pool is the best `pool` entries by fitness, ties to the older one.
  """
  ids: list[int] = []
  values: list[float] = []
  best: list[float] = []
  means: list[float] = []
  ranked: list[tuple[float, int, float]] = []
  for entry in entries_of(outcomes):
    fitness = entry.fitness.total if entry.fitness else math.nan
    value = improvement_of(entry) if measure == 'improvement' else fitness
    if entry.role == 'anchor' or not math.isfinite(value):
      continue
    if math.isfinite(fitness):
      bisect.insort(ranked, (-fitness, entry.id, value))
      del ranked[pool:]
    ids.append(entry.id)
    values.append(value)
    best.append(max(value, best[-1] if best else -math.inf))
    means.append(float(np.mean([row[2] for row in ranked])) if ranked else math.nan)
  return Progress(tuple(ids), tuple(values), tuple(best), tuple(means))


def discoveries(
  outcomes: Iterable[Outcome],
  level: float = 0.95,
  *,
  confirmed: Collection[int] | None = None,
  placebos: Collection[int] = (),
) -> Discoveries:
  """Returns the cumulative counts of candidates better than the baseline, in order of id, beginning at zero.

  `confirmed` holds the ids of those that count as shown; without it they are those whose interval lies above zero.
  `placebos` holds the ids of copies of the baseline, which are neither trials nor discoveries.

  Raises:
    ValueError: an id in `confirmed` is not that of a measured candidate.
  """
  outcomes = sorted(outcomes, key=lambda outcome: outcome.id)
  known = {outcome.id for outcome in outcomes if isinstance(outcome, Entry) and outcome.role == 'candidate'}
  if strange := set(confirmed or ()) - known:
    raise ValueError(f'confirmed names {min(strange)}, which is no measured candidate of this archive; leave it out')
  proposed = known - set(placebos)
  claimed = proposed & set(confirmed or ())
  seconds, tokens, dollars, best = [0.0], [0], [0.0], [math.nan]
  shown, estimated, measured = [0], [0], [0]
  for outcome in outcomes:
    evidence = outcome.evidence if isinstance(outcome, Entry) and outcome.id in proposed else None
    seconds.append(seconds[-1] + outcome.timing.accelerator_seconds)
    tokens.append(tokens[-1] + outcome.spend.tokens)
    dollars.append(dollars[-1] + outcome.spend.dollars)
    best.append(float(np.fmax(best[-1], evidence.improvement)) if evidence else best[-1])
    better = evidence is not None and evidence.low > 0
    shown.append(shown[-1] + (better if confirmed is None else outcome.id in claimed))
    estimated.append(estimated[-1] + (evidence is not None and evidence.improvement > 0))
    measured.append(measured[-1] + (evidence is not None))
  chance = tuple(count * (1 - level) / 2 for count in measured)
  trial = tuple(
    (isinstance(outcome, Rejection) or outcome.role == 'candidate') and outcome.id not in placebos
    for outcome in outcomes
  )
  spent = (tuple(seconds), tuple(tokens), tuple(dollars))
  return Discoveries(*spent, tuple(shown), tuple(estimated), chance, tuple(best), trial)


def stages(outcomes: Iterable[Outcome]) -> tuple[Stage, ...]:
  """Returns the stages at which proposals ended, in the order of the line; the baselines are no proposals here."""
  proposals = [o for o in outcomes if isinstance(o, Rejection) or o.role == 'candidate']
  ended = Counter(outcome.stage for outcome in proposals if isinstance(outcome, Rejection))
  reached, rows = len(proposals), []
  for name in GATE:
    if ended[name]:
      rows.append(_stage(name, ended[name], reached))
    reached -= ended[name]
  trained = sorted((name for name in ended if name not in GATE), key=lambda name: (-ended[name], name))
  return tuple(rows + [_stage(name, ended[name], reached) for name in trained])


def failed_checks(outcomes: Iterable[Outcome]) -> list[tuple[str, int]]:
  """Returns the checks that rejected proposals failed, each with how many failed it, the commonest first."""
  counts = Counter(
    finding.check
    for outcome in outcomes
    if isinstance(outcome, Rejection)
    for finding in outcome.findings
    if not finding.passed
  )
  return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _stage(name: str, count: int, reached: int) -> Stage:
  low, high = wilson(count, reached)
  return Stage(name, MEANINGS.get(name, ''), count, reached, low, high)


def wilson(count: int, total: int, level: float = 0.95) -> tuple[float, float]:
  """Returns the Wilson score interval of a share (Wilson 1927, J. Am. Stat. Assoc. 22).

  >>> tuple(round(bound, 3) for bound in wilson(0, 10))
  (0.0, 0.278)
  """
  if not total:
    return 0.0, 1.0
  z = distributions.normal_quantile((1 + level) / 2)
  share, spread = count / total, z * z / total
  middle = share + spread / 2
  margin = z * math.sqrt(share * (1 - share) / total + spread / (4 * total))
  return max(0.0, (middle - margin) / (1 + spread)), min(1.0, (middle + margin) / (1 + spread))


def lineage(outcomes: Sequence[Outcome]) -> tuple[Node, ...]:
  """Returns a tidy tree of all outcomes: parents centred over children, subtrees as close as their outlines allow.

  After Reingold and Tilford 1981 (IEEE Trans. Softw. Eng. 7), on whole outlines. A parent that is not in the archive
  before its child makes the child a root. Parents are older than children, so one pass up the ids and one down do it.
  """
  by_id = {outcome.id: outcome for outcome in outcomes}
  children: dict[int | None, list[int]] = defaultdict(list)
  for key in sorted(by_id):
    parent = by_id[key].proposal.parent_id
    children[parent if parent is not None and parent in by_id and parent < key else None].append(key)
  outlines: dict[int, list[tuple[float, float]]] = {}
  offsets: dict[int, float] = {}
  for key in sorted(by_id, reverse=True):
    outlines[key] = [(0.0, 0.0), *_place(children[key], outlines, offsets)]
  _place(children[None], outlines, offsets)
  nodes: dict[int, Node] = {}
  for parent in (None, *sorted(by_id)):
    above = nodes.get(parent) if parent is not None else None
    for key in children[parent]:
      depth, row = (above.depth + 1, above.row) if above else (0, 0.0)
      nodes[key] = Node(by_id[key], parent, depth, row + offsets[key])
  return tuple(nodes[key] for key in sorted(nodes))


def _place(
  keys: Sequence[int], outlines: dict[int, list[tuple[float, float]]], offsets: dict[int, float]
) -> list[tuple[float, float]]:
  """Sets each key's offset from the middle of its siblings; returns the outline of all, by depth."""
  merged: list[tuple[float, float]] = []
  shifts = []
  for key in keys:
    outline = outlines.pop(key)
    gaps = [right - left + 1.0 for (_, right), (left, _) in zip(merged, outline, strict=False)]
    shift = max(gaps) if gaps else 0.0
    shifts.append(shift)
    for depth, (left, right) in enumerate(outline):
      if depth < len(merged):
        merged[depth] = (merged[depth][0], right + shift)
      else:
        merged.append((left + shift, right + shift))
  middle = (shifts[0] + shifts[-1]) / 2 if shifts else 0.0
  offsets.update({key: shift - middle for key, shift in zip(keys, shifts, strict=True)})
  return [(left - middle, right - middle) for left, right in merged]


def loss_curve(training: TrainSummary) -> Curve | None:
  """Returns the training loss in nats a token of the chosen replicas that did not diverge; None without a loss."""
  return _curve({r.seed: r.losses for r in training.chosen if not r.diverged}, training.log_every)


def loss_gap(training: TrainSummary, baseline: TrainSummary) -> Curve | None:
  """Returns the loss minus the baseline's at the same step and seed, in nats a token: negative is better."""
  if training.log_every != baseline.log_every:
    return None
  theirs = {r.seed: r.losses for r in baseline.chosen if not r.diverged}
  gaps = {
    r.seed: tuple(ours - other for ours, other in zip(r.losses, theirs[r.seed], strict=False))
    for r in training.chosen
    if not r.diverged and r.seed in theirs
  }
  return _curve(gaps, training.log_every)


def _curve(by_seed: dict[int, tuple[float, ...]], log_every: int) -> Curve | None:
  logged = min((len(values) for values in by_seed.values()), default=0)
  if not logged:
    return None
  values_RN = np.array([values[:logged] for values in by_seed.values()])
  steps_N = log_every * np.arange(1, logged + 1)
  return Curve(steps_N, values_RN.mean(0), values_RN.min(0), values_RN.max(0))


def noise_band(outcomes: Iterable[Outcome], baseline: str, level: float = 0.95) -> float | None:
  """Returns half the width of the band in which copies of the baseline would be measured; None if it is unknown.

  In bits per byte, as a candidate is measured: the mean of differences paired by seed, over the median number of pairs
  of candidates, since the baseline has more seeds. The deviation of one difference is pooled over all entries, each
  about its own mean; without any, it is sqrt(2) times the noise floor of the baselines, which takes no credit for
  pairing.
  """
  entries = entries_of(outcomes)
  base = next((entry for entry in entries if entry.proposal.name == baseline and entry.role == 'baseline'), None)
  if base is None:
    return None
  squares, freedom, pairs_of = 0.0, 0, []
  for entry in entries:
    differences = np.asarray(pairs(entry.training, base.training).differences) if entry is not base else np.zeros(0)
    if len(differences) and entry.role == 'candidate':
      pairs_of.append(len(differences))
    if len(differences) >= 2:
      squares += float(np.sum((differences - differences.mean()) ** 2))
      freedom += len(differences) - 1
  if not freedom:
    found = noise.floor(*(entry.training for entry in entries if entry.role == 'baseline'))
    if found is None:
      return None
    squares, freedom = 2 * found.sd**2 * found.freedom, found.freedom
  seeds = float(np.median(pairs_of)) if pairs_of else len(base.training.chosen)
  return distributions.t_quantile((1 + level) / 2, freedom) * math.sqrt(squares / freedom / seeds)
