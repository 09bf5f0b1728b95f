"""Task scores on the page: what each task measured, how much of the task term is noise, and zero-shot suites."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from asiarch_jax import config
from asiarch_jax.evidence import task_noise
from asiarch_jax.records import Entry, Outcome, TaskScore, ZeroShot, ZeroShotScore, entries_of
from asiarch_jax.report.drawing import label
from asiarch_jax.report.markup import Column, cell, count, escape, head_cell, link, table, words
from asiarch_jax.report.text import ranked

ENTRIES = 8  # columns of a zero-shot table
BEST = 1000  # values from here on in powers of ten: the perplexity of a model that knows nothing yet


def section(outcomes: Sequence[Outcome], experiment: config.Experiment, measured: Sequence[ZeroShot] = ()) -> str:
  """Returns the tables of task scores with what is noise in them, empty where nothing was scored."""
  entries = entries_of(outcomes)
  baseline = experiment.search.baseline
  base = next((entry for entry in entries if entry.role == 'baseline' and entry.proposal.name == baseline), None)
  candidates = [entry for entry in entries if entry.role == 'candidate']
  parts = [_trained(base, candidates, experiment.fitness)] if base is not None else []
  conditions = dict.fromkeys(one.conditions for one in measured)
  by_id = {entry.id: entry for entry in entries}
  parts += [
    _zero_shot([one for one in measured if one.conditions == mine and one.entry in by_id], by_id, baseline, experiment)
    for mine in conditions
  ]
  return ''.join(parts)


def _trained(base: Entry, candidates: Sequence[Entry], rule: config.FitnessRule) -> str:
  """Returns the tasks of the fitness: the baseline beside the candidates."""
  theirs = [score for score in base.scores if score.unit == 'accuracy']
  if not theirs:
    return ''
  columns = (
    Column('task', '', kind='text'),
    Column('baseline', ''),
    Column('candidates', '', note='<small>mean</small>'),
    Column('spread', '', note='<small>between candidates</small>'),
    Column('standard error', '', note='<small>of one candidate</small>'),
    Column('best', '', kind='text'),
    Column('items', ''),
  )
  rows = [_row(score, candidates) for score in theirs]
  return _noise(base, candidates, rule) + table(columns, rows)


def _row(base: TaskScore, candidates: Sequence[Entry]) -> str:
  scored = [(entry, score) for entry in candidates for score in entry.scores if score.task == base.task]
  finite = [(entry, score) for entry, score in scored if math.isfinite(score.value)]
  values = [score.value for _, score in finite]
  best = max(finite, key=lambda pair: pair[1].value, default=None)
  spread = f'{statistics.stdev(values):.4f}' if len(values) > 1 else '–'
  error = f'{math.sqrt(statistics.fmean(score.stderr**2 for _, score in finite)):.4f}' if finite else '–'
  name = f'<td class="text">{link(best[0])} {best[1].value:.4f}</td>' if best else words('–')
  cells = (
    words(f'{base.value:.4f} ± {base.stderr:.4f}', ''),
    words(f'{statistics.fmean(values):.4f}' if values else '–', ''),
    words(spread, ''),
    words(error, ''),
    name,
    words(base.n, ''),
  )
  return f'<tr>{head_cell(base.task)}{"".join(cells)}</tr>'


def _noise(base: Entry, candidates: Sequence[Entry], rule: config.FitnessRule) -> str:
  """Returns in words how much of the task term is noise."""
  mean = task_noise.mean_accuracy(base.scores)
  if mean is None:
    return ''
  alone = task_noise.moved(mean.stderr, mean.value, rule)
  said = (
    f'The mean accuracy of {escape(base.proposal.name)} over {count(mean.tasks, "task")} is {mean.value:.4f} ± '
    f'{mean.stderr:.4f} (one standard error). A copy of it that is measured one standard error too high gets a task '
    f'term of <strong>{alone:.2f}</strong> where it deserves 0.50.'
  )
  found = task_noise.task_noise([entry.scores for entry in candidates], base.scores, rule)
  if found is None:
    return f'<p class="note">{said}</p>'
  return (
    f'<p class="note">{said} The mean accuracies of {found.candidates} candidates differ with a standard deviation of '
    f'{found.spread:.4f} and are each measured to {found.stderr:.4f}: '
    f'<strong>{found.share:.0%} of their variance is noise</strong> (95 % interval {found.low:.0%} to '
    f'{found.high:.0%}). Errors count the items as drawn anew for each candidate; all answer the same, so this tells '
    'the noise too high rather than too low.</p>'
  )


def _zero_shot(
  measured: Sequence[ZeroShot], by_id: Mapping[int, Entry], baseline: str, experiment: config.Experiment
) -> str:
  """Returns what entries were measured at under the same conditions: a row a metric, a column an entry."""
  if not measured:
    return ''
  order = {entry.id: rank for rank, entry in enumerate(ranked(list(by_id.values())))}
  roles = {entry.id: (entry.proposal.name != baseline, entry.role == 'candidate') for entry in by_id.values()}
  shown = sorted(measured, key=lambda one: (*roles[one.entry], order.get(one.entry, math.inf)))
  left_out = len(shown) - ENTRIES
  shown = shown[:ENTRIES]
  metrics = dict.fromkeys((score.task, score.metric) for one in shown for score in one.scores)
  columns = (
    Column('task', '', kind='text'),
    Column('metric', '', kind='text'),
    Column('chance', ''),
    *(Column(label(one.name, 24), '', note=f'<small>#{one.entry}</small>') for one in shown),
  )
  rows = [_metric(task, metric, shown) for task, metric in metrics]
  rows += _means(shown)
  first = shown[0]
  items = f'the first {first.limit} items' if first.limit else 'all items'
  more = f' {left_out} more entries were measured.' if left_out > 0 else ''
  return (
    f'<h3>Zero-shot, {items} of each task</h3>'
    f'<p class="note">By lm_eval {escape(first.harness)} on the best replica, which is shown {first.max_length} tokens '
    f'at most; ± one standard error over items.{more} {_worth(shown, by_id, baseline, experiment)}</p>'
    + table(columns, rows)
  )


def _metric(task: str, metric: str, shown: Sequence[ZeroShot]) -> str:
  found = [next((s for s in one.scores if (s.task, s.metric) == (task, metric)), None) for one in shown]
  chance = next((score.chance for score in found if score is not None), None)
  cells = ''.join(_score(score) for score in found)
  return (
    f'<tr>{head_cell(task)}{words(metric)}{cell(chance, f"{chance:.3f}" if chance is not None else "")}{cells}</tr>'
  )


def _score(score: ZeroShotScore | None) -> str:
  if score is None:
    return cell(None)
  error = f' ± {_number(score.stderr)}' if math.isfinite(score.stderr) else ''
  return cell(score.value, f'{_number(score.value)}{error}')


def _number(value: float) -> str:
  return f'{value:.4f}' if abs(value) < BEST else f'{value:.2e}'


def _means(shown: Sequence[ZeroShot]) -> list[str]:
  """Returns the row of mean accuracies over the tasks that all have."""
  every = [task_noise.accuracies(one) for one in shown]
  shared = [score.task for score in every[0] if all(score.task in {s.task for s in other} for other in every)]
  means = [task_noise.mean_accuracy(scores, shared) for scores in every]
  if len(shared) < 2:
    return []
  cells = ''.join(cell(m.value, f'{m.value:.4f} ± {m.stderr:.4f}') if m else cell(None) for m in means)
  return [f'<tr class="reference">{head_cell(f"mean of {len(shared)}")}{words("accuracy")}{cell(None)}{cells}</tr>']


def _worth(shown: Sequence[ZeroShot], by_id: Mapping[int, Entry], baseline: str, experiment: config.Experiment) -> str:
  base = next((one for one in shown if by_id[one.entry].proposal.name == baseline), None)
  mean = task_noise.mean_accuracy(task_noise.accuracies(base)) if base is not None else None
  if mean is None:
    return ''
  worth = task_noise.moved(mean.stderr, mean.value, experiment.fitness)
  return (
    f'As a task term of the fitness, one standard error of the mean of {escape(baseline)} would be worth {worth:.2f} '
    'instead of 0.50.'
  )
