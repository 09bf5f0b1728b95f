"""The analyst that needs no language model: what the measurements show, and nothing they do not.

Every comparison is paired by seed and comes with its interval. The comparison with the baseline stands at 95 %, since
it is the question that was asked; all the others of one analysis (parent, siblings, curves, tasks) share a second 5 %,
so each stands at a higher level (Bonferroni). Where an interval includes zero the text says 'not distinguishable'.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from asiarch_jax.agents import genome
from asiarch_jax.evidence import claims, distributions, noise
from asiarch_jax.evidence.effects import Z95, Effect, effect_of, effects, genome_of
from asiarch_jax.evidence.improvement import improvement, of_differences
from asiarch_jax.evidence.pairing import pairs
from asiarch_jax.records import Analysis, Entry, Evidence, Outcome, TrainSummary, entries_of

SIBLINGS = 2  # strongest other children of the parent that an entry is compared with
LESSONS = 6  # most that one analysis teaches
NOTABLE = 1.1  # ratio of costs that is worth a word
MOST_SEEDS = 100  # beyond which no number of replicas is named


@dataclasses.dataclass(frozen=True)
class MeasuredAnalyst:
  """Compares an entry with parent, strongest siblings and baseline, and credits changes by the archive's effects.

  A `ports.Analyst`. `baseline` is the name of the baseline's proposal. `changed_fields` takes two genomes, `describe`
  and `why` a field and a value; `genomes` holds those of baselines, whose proposals carry none.
  """

  baseline: str = 'delta_net'
  changed_fields: Callable[[Mapping[str, Any], Mapping[str, Any]], Sequence[str]] = genome.changed_fields
  describe: Callable[[str, Any], str] = genome.describe
  why: Callable[[str, Any], str] = genome.reason
  genomes: Mapping[str, Mapping[str, Any]] = dataclasses.field(
    default_factory=lambda: {name: value.to_json() for name, value in genome.GENOMES.items()}
  )

  def __call__(self, entry: Entry, outcomes: Sequence[Outcome]) -> Analysis:
    """Returns the five sections and the lessons. Missing relatives and genomes are said to be missing."""
    earlier = tuple(other for other in entries_of(outcomes) if other.id < entry.id)
    base = next((e for e in earlier if e.role == 'baseline' and e.proposal.name == self.baseline), None)
    parent = next((e for e in earlier if e.id == entry.proposal.parent_id), None)
    relatives = Relatives(base, parent, _strongest(entry, earlier))
    changes = self._changes(entry, parent)
    rows = effects((*earlier, entry), genomes=self.genomes) if changes else ()
    credited = [(change, effect_of(rows, change.field, change.before, change.after)) for change in changes]
    floor = noise.floor(*(other.training for other in earlier if other.role == 'baseline'))
    results = _compare(entry, relatives, floor)
    return Analysis(
      design=' '.join(self._design(entry, relatives, changes)),
      results=' '.join(_results(entry, relatives, results)),
      expectation=' '.join(self._expectation(entry, relatives, changes, results)),
      explanation=' '.join(_explanation(entry, relatives, credited, results)),
      synthesis=' '.join(_synthesis(entry, relatives, credited, results)),
      lessons=_lessons(entry, relatives, credited, results),
    )

  def _changes(self, entry: Entry, parent: Entry | None) -> tuple[Change, ...]:
    ours, theirs = genome_of(entry, self.genomes), genome_of(parent, self.genomes) if parent else None
    if not ours or not theirs:
      return ()
    return tuple(Change(field, theirs.get(field), ours.get(field)) for field in self.changed_fields(theirs, ours))

  def _design(self, entry: Entry, relatives: Relatives, changes: Sequence[Change]) -> list[str]:
    proposal, parent = entry.proposal, relatives.parent
    origin = f'{proposal.name} (entry {entry.id}) was written by {proposal.author} ({proposal.operator})'
    if parent is not None:
      said = [f'{origin} from {_name(parent)}.']
    elif proposal.parent_id is not None:
      said = [f'{origin} from entry {proposal.parent_id}, which is not among the measured entries.']
    else:
      said = [f'{origin}, without a parent.']
    if changes:
      said.append(f'It changes {_count(len(changes), "field")} of the genome: {"; ".join(map(self._told, changes))}.')
    elif parent is not None and genome_of(entry, self.genomes) and genome_of(parent, self.genomes):
      said.append('Its genome is that of its parent.')
    elif parent is not None:
      said.append('Without a genome on both sides, what changed can only be read in the source.')
    said.append(_costs(entry, relatives.base or entry))
    return said

  def _told(self, change: Change) -> str:
    try:
      about, _, after = self.describe(change.field, change.after).partition(': ')
      before = self.describe(change.field, change.before).rpartition(': ')[2]
    except ValueError:  # a value that this version of the genome does not know
      return f'{change.field} from {change.before!r} to {change.after!r}'
    return f'{about}, {after or about} instead of {before} ({change.field})'

  def _expectation(
    self, entry: Entry, relatives: Relatives, changes: Sequence[Change], results: Comparisons
  ) -> list[str]:
    said = []
    for change in changes:
      try:
        said.append(f'Expected of {change}: {self.why(change.field, change.after)}.')
      except ValueError:
        said.append(f'Nothing was said about what {change} should bring.')
    if not changes:
      motivation = ' '.join(entry.proposal.motivation.split())
      first = motivation.partition('. ')[0].rstrip('.')
      said.append(f'Expected: {first}.' if first else 'No expectation was stated.')
    if relatives.parent is not None and results.parent is not None:
      said.append(f'What happened: it is {_verdict(results.parent, _name(relatives.parent))}.')
    elif relatives.base is not None and results.base is not None:
      said.append(f'What happened: it is {_verdict(results.base, _name(relatives.base))}.')
    else:
      said.append('What happened has nothing to be held against: no earlier parent or baseline shares a finished seed.')
    return said


@dataclasses.dataclass(frozen=True)
class Change:
  """A field of the genome that a child has otherwise than its parent."""

  field: str
  before: Any
  after: Any

  def __str__(self) -> str:
    return f'{self.field} = {self.after}, not {self.before}'


@dataclasses.dataclass(frozen=True)
class Relatives:
  """What an entry is compared with; None where it was not measured."""

  base: Entry | None
  parent: Entry | None
  siblings: tuple[Entry, ...]


@dataclasses.dataclass(frozen=True)
class Comparisons:
  """Differences with intervals, positive where the entry is better: bits per byte, nats a token early and late in
  training, task accuracies. None where no pair of replicas was left."""

  base: Evidence | None
  parent: Evidence | None
  siblings: tuple[Evidence | None, ...]
  early: Evidence | None
  late: Evidence | None
  tasks: Mapping[str, Evidence]
  level: float  # of all but `base`


def _strongest(entry: Entry, earlier: Sequence[Entry]) -> tuple[Entry, ...]:
  """Returns the best of the parent's other children, by fitness and not by how many children they had."""
  if entry.proposal.parent_id is None:
    return ()
  siblings = [e for e in earlier if e.proposal.parent_id == entry.proposal.parent_id and e.fitness is not None]
  return tuple(sorted(siblings, key=lambda e: (-e.fitness.total, e.id))[:SIBLINGS])  # type: ignore[union-attr]


def _compare(entry: Entry, relatives: Relatives, floor: noise.Noise | None) -> Comparisons:
  base, parent = relatives.base, relatives.parent
  nearest = parent or base
  compared_tasks = _shared_tasks(entry, base)
  apart = parent is not None and (base is None or parent.id != base.id)
  looks = int(apart) + len(relatives.siblings) + 2 * (nearest is not None) + len(compared_tasks)
  level = 1.0 - 0.05 / max(looks, 1)
  curves = _curves(entry.training, nearest.training) if nearest else None
  return Comparisons(
    base=improvement(entry.training, base.training, noise=floor) if base else None,
    parent=improvement(entry.training, parent.training, noise=floor, level=level if apart else 0.95)
    if parent
    else None,
    siblings=tuple(
      improvement(entry.training, sibling.training, noise=floor, level=level) for sibling in relatives.siblings
    ),
    early=of_differences(curves[0], level=level) if curves else None,
    late=of_differences(curves[1], level=level) if curves else None,
    tasks={task: _accuracy_difference(*scores, level) for task, scores in compared_tasks.items()},
    level=level,
  )


def _curves(ours: TrainSummary, theirs: TrainSummary) -> tuple[np.ndarray, np.ndarray] | None:
  """Returns by seed how much lower our training loss is in the first and in the last third, nats a token."""
  if ours.log_every != theirs.log_every:
    return None
  seeds = pairs(ours, theirs).seeds
  first = {replica.seed: replica.losses for replica in ours.chosen}
  second = {replica.seed: replica.losses for replica in theirs.chosen}
  early, late = [], []
  for seed in seeds:
    count = min(len(first[seed]), len(second[seed]))
    difference = np.subtract(second[seed][:count], first[seed][:count])
    if count >= 3 and np.all(np.isfinite(difference)):
      early.append(difference[: count // 3].mean())
      late.append(difference[-(count // 3) :].mean())
  return (np.array(early), np.array(late)) if early else None


def _shared_tasks(entry: Entry, base: Entry | None) -> dict[str, tuple[Any, Any]]:
  ours = {score.task: score for score in entry.scores if score.unit == 'accuracy'}
  theirs = {score.task: score for score in base.scores if score.unit == 'accuracy'} if base else {}
  return {
    task: (ours[task], theirs[task])
    for task in theirs
    if task in ours and math.isfinite(ours[task].value + theirs[task].value + ours[task].stderr + theirs[task].stderr)
  }


def _accuracy_difference(ours: Any, theirs: Any, level: float) -> Evidence:
  """Returns the difference of two accuracies with its normal interval, errors taken as independent."""
  difference, error = ours.value - theirs.value, math.hypot(ours.stderr, theirs.stderr)
  if error == 0.0:  # all right or all wrong on both sides: the formula knows no error, so nothing is claimed
    return Evidence(difference, -math.inf, math.inf, 0.5, 1) if difference else Evidence(0.0, 0.0, 0.0, 0.5, 1)
  margin = distributions.normal_quantile((1 + level) / 2) * error
  return Evidence(
    difference, difference - margin, difference + margin, distributions.normal_below(difference / error), 1
  )


def _results(entry: Entry, relatives: Relatives, results: Comparisons) -> list[str]:
  said = []
  diverged = [replica.seed for replica in entry.training.chosen if replica.diverged]
  if diverged:
    said.append(
      f'{len(diverged)} of {len(entry.training.chosen)} replicas diverged (seeds {", ".join(map(str, diverged))}); '
      'the comparisons leave their pairs out, so they speak for the others only.'
    )
  if entry.training.stopped != 'finished':
    said.append(f'Training was stopped: {entry.training.stopped}.')
  if relatives.base is None:
    bits = [replica.test_bits for replica in entry.training.chosen if math.isfinite(replica.test_bits)]
    spread = f', standard deviation {np.std(bits, ddof=1):.4f} over {len(bits)} seeds' if len(bits) > 1 else ''
    said.append(f'{np.mean(bits):.4f} bits per byte on the test windows{spread}.' if bits else 'No replica finished.')
    said.append('There is no baseline before it to compare with.')
    return said
  said.append(_sentence(results.base, relatives.base))
  said.append(f'All that follows holds at 95 % together, {results.level:.1%} each.')
  if relatives.parent is not None and relatives.parent.id != relatives.base.id:
    said.append(_sentence(results.parent, relatives.parent))
  said.extend(map(_sentence, results.siblings, relatives.siblings))
  said.extend(_tasks_told(results))
  said.extend(_curves_told(relatives, results))
  return said


def _explanation(
  entry: Entry,
  relatives: Relatives,
  credited: Sequence[tuple[Change, Effect | None]],
  results: Comparisons,
) -> list[str]:
  said = []
  told = [(change, row) for change, row in credited if row is not None]
  if told:
    said.append('Over the archive (bits per byte, 95 % interval, other changes and lineage accounted for):')
    for change, row in sorted(told, key=lambda pair: -abs(pair[1].effect)):
      clear = f'{row.effect:+.4f}' if row.distinguishable else f'not distinguishable from no effect, {row.effect:+.4f}'
      said.append(f'{change}: {clear} ({row.low:+.4f} to {row.high:+.4f}, {_count(row.pairs, "pair")}).')
    if len(told) > 1:
      said.append(f'{len(told)} fields changed at once here, so this entry alone cannot tell them apart.')
  elif relatives.parent is not None:
    said.append('No choice of the genome is known to differ from the parent, so the difference has no field to credit.')
  else:
    said.append('Without a measured parent there is no single change to credit.')
  if relatives.parent is not None:
    said.append(_costs(entry, relatives.parent))
  return said


def _synthesis(
  entry: Entry,
  relatives: Relatives,
  credited: Sequence[tuple[Change, Effect | None]],
  results: Comparisons,
) -> list[str]:
  if relatives.base is None:
    return [f'{entry.proposal.name} sets the scale for what follows.']
  said = [f'It is {_verdict(results.base, _name(relatives.base))}.' if results.base else 'It cannot be compared.']
  keep = [str(change) for change, row in credited if row is not None and row.low > 0]
  drop = [str(change) for change, row in credited if row is not None and row.high < 0]
  open_questions = [str(change) for change, row in credited if row is None or not row.distinguishable]
  if keep:
    said.append(f'Worth keeping: {"; ".join(keep)}.')
  if drop:
    said.append(f'Worth undoing: {"; ".join(drop)}.')
  if open_questions:
    said.append(f'Still open: {"; ".join(open_questions)}.')
  if results.base is not None and results.base.low <= 0 <= results.base.high:
    said.append(_remedy(results.base))
  return said


def _lessons(
  entry: Entry,
  relatives: Relatives,
  credited: Sequence[tuple[Change, Effect | None]],
  results: Comparisons,
) -> tuple[str, ...]:
  """Returns short typed lessons, the surest first: helps, hurts, costs, unclear."""
  lessons = []
  for change, row in credited:
    if row is not None:
      size = f'({row.effect:+.3f} ± {(row.high - row.low) / 2:.3f} bits over {_count(row.pairs, "pair")})'
      lessons.append(f'{_kind(row.low, row.high)}: {change} {size}')
  against, evidence = (relatives.parent, results.parent) if relatives.parent else (relatives.base, results.base)
  if not credited and against is not None and evidence is not None:
    margin = f' ± {_half(evidence):.3f} bits' if math.isfinite(_half(evidence)) else ' bits, margin unknown,'
    size = f'({evidence.improvement:+.3f}{margin} over {_count(evidence.replicas, "pair")})'
    lessons.append(f'{_kind(evidence.low, evidence.high)}: {entry.proposal.name} against {_name(against)} {size}')
  diverged = sum(replica.diverged for replica in entry.training.chosen)
  if diverged:
    lessons.append(f'hurts: {entry.proposal.name} diverged on {diverged} of {len(entry.training.chosen)} seeds')
  if relatives.parent is not None and (results.parent is None or results.parent.low <= 0):
    ratio = _ratio(entry.cost.flops_per_token, relatives.parent.cost.flops_per_token)
    if ratio > NOTABLE:
      lessons.append(f'costs: {ratio:.2f}x the FLOPs of {_name(relatives.parent)} for no gain that could be shown')
  order = ('helps', 'hurts', 'costs', 'unclear')
  return tuple(sorted(lessons, key=lambda lesson: order.index(lesson.partition(':')[0])))[:LESSONS]


def _kind(low: float, high: float) -> str:
  return 'helps' if low > 0 else 'hurts' if high < 0 else 'unclear'


def _half(evidence: Evidence) -> float:
  return (evidence.high - evidence.low) / 2


def _sentence(evidence: Evidence | None, other: Entry) -> str:
  if evidence is None:
    return f'No replica finished on a seed shared with {_name(other)}.'
  verdict = _verdict(evidence, _name(other))
  return f'{verdict[0].upper()}{verdict[1:]}.'


def _verdict(evidence: Evidence, other: str) -> str:
  """Returns the comparison in words; better and worse only where the interval excludes zero."""
  interval = _interval(evidence, _count(evidence.replicas, 'pair'))
  if evidence.low > 0 or evidence.high < 0:
    side = 'better' if evidence.low > 0 else 'worse'
    return f'{abs(evidence.improvement):.4f} bits per byte {side} than {other} ({interval})'
  return f'not distinguishable from {other} (difference {evidence.improvement:+.4f} bits per byte, {interval})'


def _interval(evidence: Evidence, pairs_told: str) -> str:
  if math.isinf(evidence.low) and math.isinf(evidence.high):
    return (
      f'no interval: {pairs_told} without a measure of noise' if not evidence.dropped else f'no interval, {pairs_told}'
    )
  if math.isinf(evidence.low):
    return f'at most {evidence.high:+.4f}, {pairs_told}: where it diverged it is worth less'
  if math.isinf(evidence.high):
    return f'at least {evidence.low:+.4f}, {pairs_told}: where the other diverged it is worth more'
  return f'interval {evidence.low:+.4f} to {evidence.high:+.4f}, {pairs_told}'


def _tasks_told(results: Comparisons) -> list[str]:
  said = []
  for task, evidence in results.tasks.items():
    interval = f'{evidence.low:+.3f} to {evidence.high:+.3f}' if math.isfinite(_half(evidence)) else 'no interval'
    if evidence.low > 0 or evidence.high < 0:
      said.append(f'{task}: accuracy {evidence.improvement:+.3f} against the baseline ({interval}).')
    else:
      said.append(f'{task}: not distinguishable from the baseline ({evidence.improvement:+.3f}, {interval}).')
  return said


def _curves_told(relatives: Relatives, results: Comparisons) -> list[str]:
  nearest = relatives.parent or relatives.base
  if nearest is None or results.early is None or results.late is None:
    return []
  phases = []
  for phase, evidence in (('first', results.early), ('last', results.late)):
    where = 'ahead' if evidence.low > 0 else 'behind' if evidence.high < 0 else 'not distinguishable'
    interval = f'{evidence.low:+.4f} to {evidence.high:+.4f}' if math.isfinite(_half(evidence)) else 'no interval'
    phases.append(f'{where} in the {phase} third ({evidence.improvement:+.4f} nats a token, {interval})')
  return [f'Training loss against {_name(nearest)}: {", ".join(phases)}.']


def _remedy(evidence: Evidence) -> str:
  """Returns how many pairs would have been needed to see a difference of this size, if it is real."""
  half, count = _half(evidence), evidence.replicas
  if math.isinf(half):
    return (
      'More seeds would not change that while some diverge.'
      if evidence.dropped
      else 'At least two seeds are needed to say anything.'
    )
  if evidence.improvement == 0.0:
    return 'It reproduces the baseline.'
  quantile = distributions.t_quantile(0.975, count - 1) if count > 1 else Z95  # of one pair the floor's, which is many
  try:
    needed = claims.pairs_needed(abs(evidence.improvement), half / quantile * math.sqrt(count), 0.05, most=MOST_SEEDS)
  except ValueError:
    return 'A difference this small is beyond what replicas can show.'
  return f'If the difference is real, about {max(needed, count + 1)} seeds would show it with 80 % power.'


def _costs(entry: Entry, other: Entry) -> str:
  cost = entry.cost
  if other.id == entry.id:
    return (
      f'Its mixer takes {cost.flops_per_token:.3g} FLOPs a token, {cost.mixer_parameters} parameters and '
      f'{cost.state_bytes} bytes of state; FLOPs grow as T^{cost.growth:.2f}.'
    )
  flops = _ratio(cost.flops_per_token, other.cost.flops_per_token)
  parameters = _ratio(cost.mixer_parameters, other.cost.mixer_parameters)
  state = _ratio(cost.state_bytes, other.cost.state_bytes)
  return (
    f'Against {_name(other)} its mixer takes {flops:.2f}x the FLOPs, {parameters:.2f}x the parameters and '
    f'{state:.2f}x the state; FLOPs grow as T^{cost.growth:.2f}.'
  )


def _ratio(ours: float, theirs: float) -> float:
  return ours / theirs if theirs else (1.0 if ours == theirs else math.inf)


def _name(entry: Entry) -> str:
  return f'{entry.proposal.name} (entry {entry.id})' if entry.role == 'candidate' else entry.proposal.name


def _count(number: int, noun: str) -> str:
  return f'{number} {noun}{"" if number == 1 else "s"}'
