"""The report: one HTML page that needs no network, and its figures as PNG files beside it, from the archive alone.

Everything that came from a proposal, an analysis or a log is text: it enters the page through `markup.escape` (or the
highlighter, which escapes too) and nowhere else.
"""

from __future__ import annotations

import json
import math
import os
import pathlib
import string
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from importlib import resources
from typing import Any

from asiarch_jax import config
from asiarch_jax.dialogue import total
from asiarch_jax.evidence import placebo
from asiarch_jax.evidence.effects import Effect, effects
from asiarch_jax.records import Entry, Outcome, Rejection, ZeroShot, entries_of
from asiarch_jax.report import board, curve, details, figures, models, scores, series
from asiarch_jax.report.drawing import Drawing, png
from asiarch_jax.report.markup import (
  Column,
  Scale,
  axis,
  cell,
  count,
  diff,
  duration,
  escape,
  figure,
  folded,
  glyph,
  head_cell,
  interval,
  link,
  scaled,
  signed,
  source,
  table,
  words,
)
from asiarch_jax.report.series import verdict
from asiarch_jax.report.spending import dollars
from asiarch_jax.report.text import copies, learned, ranked

EFFECTS = 20  # rows of the effect table
LESSONS = 12


def write(
  outcomes: Sequence[Outcome],
  out_dir: str | os.PathLike[str],
  *,
  experiment: config.Experiment,
  journal_events: Sequence[Mapping[str, Any]] = (),
  effect_rows: Sequence[Effect] | None = None,
  zero_shot: Sequence[ZeroShot] = (),
  confirmed: Collection[int] | None = None,
) -> pathlib.Path:
  """Writes `index.html` and a PNG a figure into `out_dir`, and returns the path of the page.

  `effect_rows` are what choices in a design are worth; without them they are estimated from the genomes in `outcomes`.
  `zero_shot` is what `asiarch evaluate` measured.
  `confirmed` holds the ids of candidates that a claim confirmed; without it the discovery curve counts those that were
  measured better, and says so.

  Raises:
    ValueError: an id in `confirmed` is not that of a measured candidate.
    OSError: the folder cannot be written, such as on a full disk; a page that was there before is left as it was.
  """
  folder = pathlib.Path(out_dir)
  folder.mkdir(parents=True, exist_ok=True)
  outcomes = sorted(outcomes, key=lambda outcome: outcome.id)
  found = curve.curves(outcomes, confirmed, {copy.id for copy in placebo.placebos(outcomes, experiment)})
  drawings = draw(outcomes, experiment, found)
  rows = effects(outcomes) if effect_rows is None else effect_rows
  text = render(
    outcomes,
    drawings,
    found,
    experiment=experiment,
    journal_events=journal_events,
    effect_rows=rows,
    zero_shot=zero_shot,
  )
  for drawing in drawings.values():
    _replace(folder / f'{drawing.name}.png', png(drawing))
  _replace(folder / 'index.html', text.encode('utf-8', 'replace'))
  return folder / 'index.html'


def draw(
  outcomes: Sequence[Outcome], experiment: config.Experiment, found: Mapping[str, curve.Curve]
) -> dict[str, Drawing]:
  """Returns every figure of the report by name."""
  baseline = experiment.search.baseline
  band = series.noise_band(outcomes, baseline)
  drawings = (
    figures.leaderboard(outcomes, baseline, band),
    figures.progress(outcomes, baseline, experiment.search.pool, band),
    *(figures.discoveries(each, baseline, band=band, best=len(found) > 1) for each in found.values()),
    figures.lineage(outcomes, baseline),
    figures.losses(outcomes, baseline),
    figures.failures(outcomes),
  )
  return {drawing.name: drawing for drawing in drawings}


def render(
  outcomes: Sequence[Outcome],
  drawings: Mapping[str, Drawing],
  found: Mapping[str, curve.Curve],
  *,
  experiment: config.Experiment,
  journal_events: Sequence[Mapping[str, Any]] = (),
  effect_rows: Sequence[Effect] = (),
  zero_shot: Sequence[ZeroShot] = (),
) -> str:
  """Returns the page as text: a pure function of its arguments."""
  baseline = experiment.search.baseline
  drawn = {each.compute.name: figure(drawings[each.compute.name]) for each in found.values()}
  origins = models.origins(outcomes)
  tasks = scores.section(outcomes, experiment, zero_shot)
  sections = (
    ('leaderboard', 'Leaderboard', board.leaderboard(outcomes, baseline)),
    ('progress', 'Progress', figure(drawings['progress'], 'whole')),
    ('discovery', 'Discovery curve', curve.section(found, drawn, copies(outcomes, experiment))),
    ('lineage', 'Lineage', figure(drawings['lineage'], 'whole tall')),
    ('losses', 'Loss curves', figure(drawings['losses'], 'whole')),
    *([('tasks', 'Tasks', tasks)] if tasks else []),
    ('best', 'The best', _best(outcomes, baseline)),
    ('learned', 'What was learned', _learned(outcomes, effect_rows)),
    *([('origins', 'Origin of ideas', origins)] if origins else []),
    ('failures', 'Failures', _failures(outcomes, drawings['failures'])),
    ('cost', 'Cost', _cost(outcomes, journal_events)),
    ('outcomes', 'Every outcome', details.every(outcomes)),
    ('settings', 'Settings', _settings(experiment)),
  )
  parts = resources.files('asiarch_jax.report')
  return string.Template(parts.joinpath('page.html').read_text('utf-8')).substitute(
    css=parts.joinpath('page.css').read_text('utf-8'),
    title=escape(f'{experiment.name} · asiarch'),
    heading=escape(f'Search {experiment.name}'),
    setting=escape(_setting(experiment)),
    headline=_headline(outcomes, baseline),
    tiles=_tiles(outcomes),
    nav=''.join(f'<a href="#{key}">{name}</a>' for key, name, _ in sections),
    sections='\n'.join(f'<section><h2 id="{key}">{name}</h2>\n{body}</section>' for key, name, body in sections),
    footer='Written from the archive by <code>asiarch report</code>. Its figures lie beside this page as PNG files.',
  )


def _replace(path: pathlib.Path, content: bytes) -> None:
  """Writes a file whole or not at all."""
  beside = path.with_name(f'.{path.name}.{os.getpid()}')
  try:
    beside.write_bytes(content)
    beside.replace(path)
  except OSError as error:
    raise OSError(
      error.errno,
      f'{path} ({len(content):,} bytes) could not be written: {error.strerror}. What the report shows is safe in the '
      'archive; free space or restore the right to write there, then asiarch report writes it',
    ) from error
  finally:
    beside.unlink(missing_ok=True)


def _setting(experiment: config.Experiment) -> str:
  model, training = experiment.model, experiment.training
  rates = f' × {len(training.learning_rates)} learning rates' if len(training.learning_rates) > 1 else ''
  return (
    f'Language model of width {model.width}, {count(model.layers, "layer")}, {count(model.heads, "head")}; '
    f'{training.steps} steps of {training.batch} × {training.length} tokens; {count(training.seeds, "seed")}{rates} '
    f'a candidate; seed {experiment.seed}; corpus {experiment.corpus.path}.'
  )


def _candidates(outcomes: Iterable[Outcome]) -> list[Entry]:
  return [entry for entry in entries_of(outcomes) if entry.role == 'candidate']


def _headline(outcomes: Sequence[Outcome], baseline: str) -> str:
  candidates = _candidates(outcomes)
  rejected = sum(isinstance(outcome, Rejection) for outcome in outcomes)
  if not outcomes:
    return 'The archive is empty: nothing has been measured yet.'
  if not candidates and not rejected:
    return f'Only baselines have been measured so far. Candidates will be compared with {escape(baseline)}.'
  said = [f'{count(len(candidates) + rejected, "proposal")}: {len(candidates)} measured, {rejected} rejected.']
  judged = [entry for entry in ranked(candidates) if entry.evidence is not None]
  shown = [entry for entry in judged if verdict(entry) == 'better']
  if judged and not shown:
    said.append(f'<strong>None measured better than {escape(baseline)}</strong>: no interval lies wholly above zero.')
  elif shown:
    verb = 'is' if len(shown) == 1 else 'are'
    said.append(
      f'<strong>{len(shown)} of {len(judged)} {verb} better than {escape(baseline)}</strong> with a 95 % interval that '
      f'excludes zero; chance alone would give {0.025 * len(judged):.1f}.'
    )
  if judged:
    leader = (shown or judged)[0]
    verb = 'improves on it' if shown else 'differs from it'
    said.append(f'The best on held-out text, {link(leader)}, {verb} by {interval(leader.evidence)} bits per byte.')
  return ' '.join(said)


def _tiles(outcomes: Sequence[Outcome]) -> str:
  candidates = _candidates(outcomes)
  rejected = sum(isinstance(outcome, Rejection) for outcome in outcomes)
  shown = sum(verdict(entry) == 'better' for entry in candidates)
  gain = next((entry.evidence.improvement for entry in ranked(candidates) if entry.evidence), None)
  wall = sum(outcome.timing.wall_seconds for outcome in outcomes)
  accelerator = sum(outcome.timing.accelerator_seconds for outcome in outcomes)
  proposals = len(candidates) + rejected
  tiles = [
    ('Proposals', f'{proposals}', f'{len(candidates)} measured, {rejected} rejected'),
    ('Measured better', f'{shown}', f'of {len(candidates)} measured'),
    ('Best improvement', signed(gain) if gain is not None else '–', 'bits per byte, held out'),
    ('Accelerator time', duration(accelerator), 'devices × time they were held'),
    ('Time in workers', duration(wall), f'{duration(wall / len(outcomes))} an outcome' if outcomes else 'none yet'),
  ]
  spend = total(outcome.spend for outcome in outcomes)
  if spend.calls:
    tokens, calls = f'{scaled(spend.tokens)} tokens', count(spend.calls, 'call')
    known = (dollars(spend.dollars), f'{tokens} in {calls}') if spend.dollars else (tokens, f'in {calls}')
    tiles.append(('Language models', *known))
  cells = (
    f'<div><dt>{name}</dt><dd>{escape(value)}<small>{escape(note)}</small></dd></div>' for name, value, note in tiles
  )
  return f'<dl class="tiles">{"".join(cells)}</dl>'


def _best(outcomes: Sequence[Outcome], baseline: str) -> str:
  leader = next(iter(ranked(_candidates(outcomes))), None)
  if leader is None:
    return '<p class="muted">No candidate has been measured yet.</p>'
  parents = [outcome for outcome in outcomes if outcome.id == leader.proposal.parent_id]
  sure = {
    'better': 'Its interval excludes zero.',
    'not distinguishable': f'Its interval contains zero: it did not measure better than {baseline}.',
    'worse': f'It measured worse than {baseline}.',
  }.get(verdict(leader), '')
  text = (
    f'<p>Of the candidates, {link(leader)} is best on held-out text: {interval(leader.evidence)} bits per byte over '
    f'{escape(baseline)}. {escape(sure)} {"Bred from" if parents else "It has no parent."} '
    f'{" ".join(f"{link(parent)}." for parent in parents)}</p>'
    f'<p class="prose">{escape(leader.proposal.motivation)}</p>'
  )
  for parent in parents:
    text += f'<h3>What changed from its parent</h3>{diff(leader, parent)}'
  return text + f'<h3>Source</h3>{source(leader.proposal.source, colored=True)}'


def _learned(outcomes: Sequence[Outcome], rows: Sequence[Effect]) -> str:
  lessons = ''.join(f'<li>{escape(lesson)}</li>' for lesson in learned(outcomes, LESSONS))
  text = f'<ul class="lessons">{lessons}</ul>' if lessons else '<p class="muted">No lesson has been drawn yet.</p>'
  return text + (_effects(rows) if rows else '')


def _effects(rows: Sequence[Effect]) -> str:
  shown = rows[:EFFECTS]
  ends = [abs(end) for row in shown for end in (row.low, row.high) if math.isfinite(end)]
  reach = 1.05 * max(ends, default=0.0) or 1e-4
  scale = Scale(-reach, reach)
  lines = []
  for row in shown:
    said = 'better' if row.low > 0 else 'worse' if row.high < 0 else ''
    lines.append(
      f'<tr>{head_cell(row.field)}{words(f"{_value(row.before)} → {_value(row.after)}")}'
      f'{cell(row.effect, signed(row.effect))}'
      f'<td class="text">{glyph(row.effect, row.low, row.high, said, scale)}</td>{cell(row.pairs, str(row.pairs))}</tr>'
    )
  columns = (
    Column('field', 'ascending', kind='text'),
    Column('change', '', kind='text'),
    Column('effect', note='<small>bits per byte</small>'),
    Column('95 % interval', '', note=axis(scale), kind='text'),
    Column('tried', note='<small>times</small>'),
  )
  more = f' The largest {EFFECTS} of {len(rows)}.' if len(rows) > EFFECTS else ''
  return (
    '<h3>What choices in a design are worth</h3><p class="note">Held-out bits per byte gained by turning one field of '
    'a design from one value to another, all else equal: estimated over the whole archive, shrunk towards zero where '
    f'little is known. Right of the line is better.{more}</p>{table(columns, lines)}'
  )


def _value(value: Any) -> str:
  return value if isinstance(value, str) else json.dumps(value, default=str)


def _failures(outcomes: Sequence[Outcome], drawing: Drawing) -> str:
  stages, checks = series.stages(outcomes), series.failed_checks(outcomes)
  if not stages:
    return '<p class="muted">No proposal was rejected.</p>'
  rejected = sum(isinstance(outcome, Rejection) for outcome in outcomes)
  ended = (Column('ended at', '', kind='text'), Column('of those so far', ''), Column('because', '', kind='text wrap'))
  tables = table(
    ended,
    (
      f'<tr>{head_cell(stage.name)}{words(f"{stage.count} of {stage.reached}", "")}'
      f'{words(stage.meaning, "text wrap")}</tr>'
      for stage in stages
    ),
  )
  if checks:
    failed = (Column('check not passed', '', kind='text'), Column(f'of {count(rejected, "rejected proposal")}', ''))
    tables += table(failed, (f'<tr>{head_cell(name)}{words(number, "")}</tr>' for name, number in checks))
  return f'<div class="columns">{figure(drawing)}<div class="stack">{tables}</div></div>'


def _cost(outcomes: Sequence[Outcome], events: Sequence[Mapping[str, Any]]) -> str:
  groups: dict[str, list[Outcome]] = {'baselines and anchors': [], 'candidates': [], 'rejected': [], 'all': []}
  for outcome in outcomes:
    role = outcome.role if isinstance(outcome, Entry) else 'rejected'
    kind = {'rejected': 'rejected', 'candidate': 'candidates'}.get(role, 'baselines and anchors')
    groups[kind].append(outcome)
    groups['all'].append(outcome)
  names = ('', 'number', 'time in workers', 'of it checking', 'accelerator time', 'mean of one', 'tokens trained')
  columns = [Column(name, '', kind='' if name else 'text') for name in names]
  rows = (_cost_row(name, members) for name, members in groups.items())
  happened = Counter(str(event.get('event', '')) for event in events).most_common(12)
  journal = ', '.join(f'{escape(name)} {number}' for name, number in happened)
  return (
    '<p class="note">Time in workers runs from the start to the end of each job; accelerator time is devices times the '
    'seconds they were held; tokens are those of all replicas.</p>'
    + table(columns, rows)
    + models.spend(outcomes, events)
    + (f'<p class="note">Events in the journal: {journal}.</p>' if journal else '')
  )


def _cost_row(name: str, members: Sequence[Outcome]) -> str:
  wall = sum(member.timing.wall_seconds for member in members)
  tokens = sum(member.training.tokens * len(member.training.replicas) for member in members if member.training)
  values = (
    f'{len(members)}',
    duration(wall),
    duration(sum(member.timing.check_seconds for member in members)),
    duration(sum(member.timing.accelerator_seconds for member in members)),
    duration(wall / len(members)) if members else '–',
    scaled(tokens),
  )
  return f'<tr>{head_cell(name)}{"".join(words(value, "") for value in values)}</tr>'


def _settings(experiment: config.Experiment) -> str:
  settings = config.flat(experiment)
  rows = (f'<tr>{head_cell(name)}{words(_value(value), "text wrap")}</tr>' for name, value in settings.items())
  return folded(f'All {len(settings)} settings of this search', table((), rows))
