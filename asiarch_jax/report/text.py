"""The archive in words: leaderboard, tree, one outcome, what was learned. Pure functions from outcomes to renderables.

Everything that a proposal or a model wrote (name, motivation, source, reasons) is shown as plain text: never as markup,
and without the characters that steer a terminal.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich import box
from rich.console import Console, ConsoleOptions, Group, OverflowMethod, RenderableType, RenderResult
from rich.panel import Panel
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from asiarch_jax.config import JUDGE_WEIGHTS, Experiment
from asiarch_jax.dialogue import total as sum_of
from asiarch_jax.evidence import distributions, placebo, posterior, promotion
from asiarch_jax.records import Entry, Judgement, Outcome, Rejection, entries_of, to_json
from asiarch_jax.report.origins import idea
from asiarch_jax.report.series import verdict
from asiarch_jax.report.spending import amount, spent

TOLD = ('role', 'model', 'usage', 'dollars', 'seconds', 'attempts', 'fault', 'detail', 'reply', 'system', 'prompt')
SHORTEST_NAME, FEWEST_COLUMNS, GAP = 20, 3, 3  # of a leaderboard on a narrow terminal


def visible(text: str) -> str:
  """Returns text that a terminal shows and does not obey: no control character but line ends and tabs.

  >>> visible('red \\x1b[31m')
  'red �[31m'
  """
  return re.sub(r'[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]', '\ufffd', text)


def plain(text: str, style: str = '', overflow: OverflowMethod | None = None) -> Text:
  """Returns a text of any origin, ready to print."""
  return Text(visible(text), style=style, overflow=overflow)


def test_bits(entry: Entry) -> float:
  """Returns the mean test bits per byte over the chosen replicas; nan when none was measured."""
  bits = [replica.test_bits for replica in entry.training.chosen if np.isfinite(replica.test_bits)]
  return float(np.mean(bits)) if bits else float('nan')


def ranked(outcomes: Sequence[Outcome]) -> list[Entry]:
  """Returns the entries by test bits per byte, best first."""
  return sorted(entries_of(outcomes), key=lambda entry: (np.isnan(test_bits(entry)), test_bits(entry), entry.id))


def leaderboard(outcomes: Sequence[Outcome], limit: int = 20, baseline: str = '') -> RenderableType:
  """Returns the table of the best entries, with the interval of each improvement over the baseline.

  With the name of the `baseline`, what is believed of each stands beside what was measured.
  """
  beliefs = posterior.believed(outcomes, baseline)
  names = ('#', 'mixer', 'bits/byte', 'better by', '95 % interval', 'believed', 'verdict', 'fitness', 'params')
  rows: list[dict[str, Text]] = []
  for entry in ranked(outcomes)[:limit]:
    evidence, said = entry.evidence, verdict(entry)
    label = entry.proposal.name if entry.role == 'candidate' else f'{entry.proposal.name} ({entry.role})'
    cells = (
      str(entry.id),
      label,
      f'{test_bits(entry):.4f}',
      f'{evidence.improvement:+.4f}' if evidence else '',
      f'{evidence.low:+.4f} .. {evidence.high:+.4f}' if evidence else '',
      f'{beliefs[entry.id].mean:+.4f}' if beliefs and entry.id in beliefs else '',
      said,
      f'{entry.fitness.total:.3f}' if entry.fitness else '',
      f'{entry.training.parameters:,}',
      f'{entry.training.flops_per_token:,.0f}',
    )
    row = {name: plain(cell) for name, cell in zip((*names, 'FLOPs/token'), cells, strict=True)}
    row['mixer'] = plain(label, overflow='ellipsis')
    row['verdict'] = plain(said, style={'better': 'green', 'worse': 'red'}.get(said, 'dim'))
    rows.append(row)
  shown = [name for name in (*names, 'FLOPs/token') if beliefs or name != 'believed']
  return _Columns(tuple(shown), tuple(rows))


@dataclasses.dataclass(frozen=True)
class _Columns:
  """A table whose last columns stay away on a narrow terminal: no number is cut, a name may be."""

  names: tuple[str, ...]
  rows: tuple[dict[str, Text], ...]

  def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
    wide = {name: max(len(name), *(row[name].cell_len for row in self.rows), 0) + GAP for name in self.names}
    label, kept = wide.pop('mixer'), list(self.names)
    while len(kept) > FEWEST_COLUMNS and SHORTEST_NAME + sum(wide.get(name, 0) for name in kept) > options.max_width:
      kept.pop()
    left = options.max_width - sum(wide.get(name, 0) for name in kept)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in kept:
      justify: Any = {'mixer': 'left', 'verdict': 'left', '95 % interval': 'center'}.get(name, 'right')
      width = max(min(label, left), FEWEST_COLUMNS + GAP) if name == 'mixer' else wide[name]
      table.add_column(name, justify=justify, no_wrap=True, width=width - GAP)
    for row in self.rows:
      table.add_row(*(row[name] for name in kept))
    yield table


def tree(outcomes: Sequence[Outcome]) -> RenderableType:
  """Returns the lineage: every entry under its parent, rejections as leaves."""
  root = Tree('archive')
  nodes: dict[int, Tree] = {}
  for outcome in sorted(outcomes, key=lambda outcome: outcome.id):
    label = plain(f'#{outcome.id} {outcome.proposal.name}')
    if isinstance(outcome, Rejection):
      label.append(f'  {visible(outcome.stage)}', style='dim')
    elif outcome.evidence is not None:
      said = verdict(outcome)
      style = {'better': 'green', 'worse': 'red'}.get(said, '')
      label.append(f'  {outcome.evidence.improvement:+.4f}', style=style)
    parent = nodes.get(outcome.proposal.parent_id) if outcome.proposal.parent_id is not None else None
    nodes[outcome.id] = (parent or root).add(label)
  return root


def outcome_page(outcome: Outcome, outcomes: Sequence[Outcome], *, source: bool = False, diff: bool = False):
  """Returns everything about one outcome; `source` adds its text, `diff` the difference to its parent."""
  by_id = {other.id: other for other in outcomes}
  proposal = outcome.proposal
  parts: list[RenderableType] = [
    plain(f'#{outcome.id} {proposal.name}', style='bold'),
    plain(f'{type(outcome).__name__.lower()} · {proposal.author} · {proposal.operator}', style='dim'),
  ]
  if proposal.parent_id is not None:
    borrowed = ', '.join(f'#{other}' for other in proposal.reference_ids) or 'nothing'
    parent = by_id.get(proposal.parent_id)
    parts.append(plain(f'child of #{proposal.parent_id} {parent.proposal.name if parent else ""}; saw {borrowed}'))
  parts.append(Panel(plain(proposal.motivation), title='motivation', title_align='left'))
  parts += [plain(f'idea: {idea(origin)}') for origin in proposal.origins]
  parts += [plain(f'earlier attempt, {attempt.stage}: {attempt.reason}', 'dim') for attempt in outcome.earlier]
  if isinstance(outcome, Rejection):
    parts.append(plain(f'rejected at {outcome.stage}: {outcome.reason}', style='red'))
  else:
    parts += _measurements(outcome)
  parts += [
    plain(
      f'{"ok  " if finding.passed else "FAIL"} {finding.check}: {finding.detail}', style='' if finding.passed else 'red'
    )
    for finding in outcome.findings
  ]
  if isinstance(outcome, Entry) and outcome.analysis:
    analysis = outcome.analysis
    for name in ('design', 'results', 'expectation', 'explanation', 'synthesis', 'weaknesses'):
      if section := getattr(analysis, name):
        parts.append(Panel(plain(section), title=name, title_align='left'))
    parts += [plain(f'lesson: {lesson}') for lesson in analysis.lessons]
    if analysis.retrieved:
      parts.append(plain(f'papers found for it: {", ".join(analysis.retrieved)}'))
    if analyst := analysed_by(outcome):
      parts.append(plain(f'analysis by {analyst}'))
  if spend := spent(outcome.spend):
    parts.append(plain(f'language models took {spend}'))
  if source:
    parts.append(Syntax(visible(proposal.source), 'python', background_color='default'))
  if diff:
    parent = by_id.get(proposal.parent_id) if proposal.parent_id is not None else None
    parts.append(Syntax(visible(source_diff(outcome, parent)), 'diff', background_color='default'))
  return Group(*parts)


def source_diff(outcome: Outcome, parent: Outcome | None) -> str:
  """Returns the unified diff from the parent's source, or a line that says there is no parent."""
  if parent is None:
    return f'# #{outcome.id} has no parent in the archive\n'
  return ''.join(
    difflib.unified_diff(
      parent.proposal.source.splitlines(keepends=True),
      outcome.proposal.source.splitlines(keepends=True),
      f'#{parent.id} {parent.proposal.name}',
      f'#{outcome.id} {outcome.proposal.name}',
    )
  )


def marks(judgement: Judgement) -> str:
  """Returns a model's own marks, before they were calibrated, and the score of each call; '' for measured marks."""
  given = ', '.join(f'{name} {mark:g}' for name, mark in zip(JUDGE_WEIGHTS, judgement.raw, strict=False))
  calls = ', '.join(f'{score:.2f}' for score in judgement.calls)
  return '; '.join(part for part in (given, f'score of each call {calls}' if calls else '') if part)


def analysed_by(entry: Entry) -> str:
  """Returns who wrote the analysis where a language model could have: its name, or that it is from measurements."""
  author = entry.analysis.author if entry.analysis else 'measured'
  if author == 'measured':
    return 'the measurements alone' if entry.analysis and entry.spend.calls else ''
  return author


def _measurements(entry: Entry) -> list[RenderableType]:
  table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
  for name in ('seed', 'learning rate', 'validation', 'test', 'last loss'):
    table.add_column(name, justify='right')
  for replica in entry.training.replicas:
    table.add_row(
      str(replica.seed),
      f'{replica.learning_rate:g}',
      f'{replica.validation_bits:.4f}',
      f'{replica.test_bits:.4f}',
      'diverged' if replica.diverged else f'{replica.losses[-1]:.4f}' if replica.losses else '',
    )
  training, lines = entry.training, [f'{score.task} {score.value:.4f} ± {score.stderr:.4f}' for score in entry.scores]
  if entry.evidence:
    e = entry.evidence
    lines.insert(
      0,
      f'better than the baseline by {e.improvement:+.4f} bits/byte, 95 % interval {e.low:+.4f} .. {e.high:+.4f} '
      f'over {e.replicas} pairs: {verdict(entry)}',
    )
  if entry.fitness:
    terms = ', '.join(
      f'{name} {value:.3f}'
      for name in ('loss', 'tasks', 'judge')
      if (value := getattr(entry.fitness, name)) is not None
    )
    lines.append(f'fitness {entry.fitness.total:.3f} ({terms})')
  if entry.judgement:
    lines.append(f'judged {entry.judgement.score:.2f}/10: {entry.judgement.reason}')
    lines += [f'marks as the model gave them: {given}'] if (given := marks(entry.judgement)) else []
  lines.append(
    f'{training.parameters:,} parameters (feed-forward {training.mlp_width}), {training.flops_per_token:,.0f} '
    f'FLOPs/token, {training.state_bytes:,} state bytes, {training.tokens_per_second:,.0f} tokens/s'
  )
  return [table, *(plain(line) for line in lines)]


def summary(outcomes: Sequence[Outcome], experiment: Experiment) -> RenderableType:
  """Returns what a search came to: counts, rejections by stage, how many are better, placebos, what was learned."""
  baseline = experiment.search.baseline
  entries = [entry for entry in entries_of(outcomes) if entry.role == 'candidate']
  rejected = [one for one in outcomes if isinstance(one, Rejection) and one.proposal.author != 'baseline']
  rejections = Counter(outcome.stage for outcome in rejected)
  shown = [entry for entry in entries if verdict(entry) == 'better']
  total = len(entries) + sum(rejections.values())
  lines = [
    f'{total} proposals: {len(entries)} measured, '
    + (', '.join(f'{count} {stage}' for stage, count in rejections.most_common()) or 'none rejected')
    + '.',
    f'{len(shown)} of {len(entries)} better than {baseline} with an interval that excludes zero '
    '(each interval by itself; the best of many looks better than it is).',
    *_beliefs(outcomes, experiment),
  ]
  whole = sum_of(outcome.spend for outcome in outcomes)
  if said := spent(whole):
    each = ', '.join(
      f'{amount(whole, number)} for each {what}'
      for number, what in ((len(entries), 'measured'), (len(shown), 'better'))
      if number
    )
    lines.append(f'Language models took {said}' + (f': {each}.' if each else '.'))
  lessons = learned(outcomes)
  parts: list[RenderableType] = [plain(line) for line in lines]
  if lessons:
    parts.append(plain('\nWhat was learned', style='bold'))
    parts += [plain(f'  {lesson}') for lesson in lessons]
  return Group(*parts)


def _beliefs(outcomes: Sequence[Outcome], experiment: Experiment) -> list[str]:
  """Returns what is believed of all candidates together, and what copies of the baseline would have been taken for."""
  beliefs = posterior.believed(outcomes, experiment.search.baseline)
  if not beliefs:
    return []
  chosen = promotion.promoted(tuple(beliefs.values()))
  lines = [
    f'Taken together, {len(chosen)} are believed better with at most 5 % of them expected not to be ("believed": the '
    'measurement, drawn in by what luck can explain; docs/EVIDENCE.md).'
  ]
  told = copies(outcomes, experiment)
  if told:
    taken = sum(copy.id in {one.id for one in chosen} for copy in placebo.placebos(entries_of(outcomes), experiment))
    lines.append(f'{told} Among the believed are {taken} of them.')
  return lines


def copies(outcomes: Sequence[Outcome], experiment: Experiment) -> str:
  """Returns how often a copy of the baseline was taken for better, with its exact interval; empty without copies."""
  found = placebo.placebos(entries_of(outcomes), experiment)
  if not found:
    return ''
  better = sum(verdict(copy) == 'better' for copy in found)
  low, high = distributions.proportion_interval(better, len(found))
  return (
    f'{len(found)} of the measured are copies of {experiment.search.baseline} that nobody was told of: {better} '
    f'measured better, {better / len(found):.0%} (95 % interval {low:.0%} to {high:.0%}, given the replicas of the '
    'baseline that all are compared with), as designs without effect do.'
  )


def learned(outcomes: Sequence[Outcome], limit: int = 8) -> list[str]:
  """Returns the newest distinct lessons of the analyses: what helps and hurts before what is unclear.

  Of one change, in either direction, the last word counts alone: what once helped may be unclear since.
  """
  order = {'helps': 0, 'hurts': 1}
  newest: dict[Any, str] = {}
  for entry in entries_of(outcomes):
    for lesson in entry.analysis.lessons if entry.analysis else ():
      newest[_subject(lesson)] = lesson
  return sorted(newest.values(), key=lambda lesson: order.get(lesson.partition(':')[0], 2))[:limit]


def _subject(lesson: str) -> Any:
  """Returns what a lesson is about: a field with its two values in any order, or its words without the verdict."""
  words = lesson.partition(' (')[0]
  told = re.fullmatch(r'(?:helps|hurts|unclear): (.+?) = (.+), not (.+)', words)
  if told:
    return told[1], frozenset(told.group(2, 3))
  return re.sub(r'^(helps|hurts|unclear): ', '', words)


def as_json(outcomes: Sequence[Outcome]) -> list[dict]:
  """Returns the outcomes as JSON values, best entries first, rejections last, each with its verdict."""
  rejected = [outcome for outcome in outcomes if isinstance(outcome, Rejection)]
  return [
    {**to_json(entry), 'test_bits': test_bits(entry), 'verdict': verdict(entry)} for entry in ranked(outcomes)
  ] + [to_json(outcome) for outcome in rejected]


def trace(exchanges: Sequence[Mapping[str, Any]]) -> RenderableType:
  """Returns every exchange with a language model behind an outcome, in order: who asked what, the answer, its cost."""
  if not exchanges:
    return plain('no language model was asked for it', style='dim')
  parts: list[RenderableType] = []
  whole = [call for call in exchanges if set(TOLD) <= set(call) and isinstance(call['usage'], Mapping)]
  if len(whole) < len(exchanges):
    parts.append(plain(f'{len(exchanges) - len(whole)} exchanges are damaged and not shown', style='dim'))
  for number, call in enumerate(whole, 1):
    usage = call['usage']
    head = (
      f'{number}. {call["role"]} asked {call["model"]}: {usage["prompt"]:,} prompt ({usage["cached"]:,} cached), '
      f'{usage["thoughts"]:,} thought and {usage["reply"]:,} reply tokens, ${call["dollars"]:.4f}, '
      f'{call["seconds"]:.1f} s, {call["attempts"]} attempt{"s" if call["attempts"] != 1 else ""}'
    )
    answer = f'{call["fault"]}: {call["detail"]}' if call['fault'] else call['reply']
    parts += [
      plain(head, style='bold'),
      Panel(plain(call['system']), title='system', title_align='left', style='dim'),
      Panel(plain(call['prompt']), title='prompt', title_align='left'),
      Panel(plain(_laid_out(answer)), title='fault' if call['fault'] else 'reply', title_align='left'),
    ]
  total = sum(call['dollars'] for call in whole)
  return Group(*parts, plain(f'{len(whole)} calls, ${total:.4f}'))


def _laid_out(reply: str) -> str:
  """Returns a JSON reply one field a paragraph, with its line breaks as such; any other text as it is."""
  try:
    fields = json.loads(reply)
  except (ValueError, RecursionError):
    return reply
  if not isinstance(fields, dict):
    return reply
  return '\n'.join(
    f'{name}: {value if isinstance(value, str) else json.dumps(value)}' for name, value in fields.items()
  )
