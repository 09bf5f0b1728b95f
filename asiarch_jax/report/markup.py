"""Pieces of the page: escaped text, numbers as people read them, tables, drawn intervals, source, diffs."""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Iterable, Sequence
from typing import Any

from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from asiarch_jax.records import Entry, Evidence, Outcome
from asiarch_jax.report.drawing import Drawing, label, svg
from asiarch_jax.report.text import source_diff

GLYPH, PAD = 180, 6  # width of a drawn interval and its margin, in its own units
WORDS = {'better': 'better', 'worse': 'worse', 'not distinguishable': 'cannot be told', 'reference': 'reference'}


def escape(text: Any) -> str:
  """Returns text that HTML shows as it is.

  >>> escape('<script>&"')
  '&lt;script&gt;&amp;&quot;'
  """
  return html.escape(str(text)).replace('\x00', '\ufffd')


def tone(said: str) -> str:
  """Returns the CSS class of a verdict; colour never stands without its word."""
  return said if said in ('better', 'worse') else 'unclear'


def link(outcome: Outcome) -> str:
  """Returns a link to everything about an outcome."""
  return f'<a href="#outcome-{outcome.id}">{escape(label(outcome.proposal.name, 60))}</a>'


def signed(value: float) -> str:
  """Returns a difference in bits per byte.

  >>> signed(-0.01234)
  '−0.0123'
  """
  return f'{value:+.4f}'.replace('-', '−')


def interval(evidence: Evidence | None) -> str:
  """Returns an improvement with its interval in words."""
  if evidence is None:
    return 'an unknown number of'
  if math.isinf(evidence.low) and math.isinf(evidence.high):
    why = 'replicas diverged' if evidence.dropped else 'a single pair says nothing of noise'
    return f'{signed(evidence.improvement)} (interval unknown: {why})'
  if math.isinf(evidence.low):
    return f'{signed(evidence.improvement)} (at most {signed(evidence.high)} at 95 %: a replica diverged)'
  if math.isinf(evidence.high):
    return f'{signed(evidence.improvement)} (at least {signed(evidence.low)} at 95 %: the other lost a replica)'
  return f'{signed(evidence.improvement)} (95 % interval {signed(evidence.low)} to {signed(evidence.high)})'


def count(number: int, singular: str, plural: str = '') -> str:
  """Returns a number with its noun.

  >>> count(1, 'entry', 'entries'), count(2, 'proposal')
  ('1 entry', '2 proposals')
  """
  return f'{number} {singular if number == 1 else plural or singular + "s"}'


def duration(seconds: float) -> str:
  """Returns seconds as people say them.

  >>> [duration(s) for s in (0.0, 12.34, 95, 7300, 200000)]
  ['0 s', '12 s', '1 min 35 s', '2 h 1 min', '2 d 7 h']
  """
  whole = round(seconds)
  for unit, name, part, part_name in ((86400, 'd', 3600, 'h'), (3600, 'h', 60, 'min'), (60, 'min', 1, 's')):
    if whole >= unit:
      return f'{whole // unit} {name} {whole % unit // part} {part_name}'
  return f'{whole} s'


def scaled(value: float) -> str:
  """Returns a number with three figures and a letter for thousands.

  >>> [scaled(v) for v in (0, 812, 8192, 210_000.0, 4.2e6, 3e9)]
  ['0', '812', '8.19 k', '210 k', '4.2 M', '3 G']
  """
  for factor, letter in ((1e12, 'T'), (1e9, 'G'), (1e6, 'M'), (1e3, 'k')):
    if abs(value) >= factor:
      return f'{value / factor:.3g} {letter}'
  return f'{value:.3g}'


@dataclasses.dataclass(frozen=True)
class Column:
  """A column's head. `first` is the order that a first click sorts by, empty where there is no order."""

  name: str
  first: str = 'descending'
  note: str = ''  # a second line, such as the unit; markup
  kind: str = ''  # CSS classes: text (left), wide (not on a phone), wrap, name


def table(columns: Sequence[Column], rows: Iterable[str], *, key: str = '', tall: bool = False) -> str:
  """Returns a table that scrolls inside its frame, from rows that are markup already."""
  heads = []
  for column in columns:
    name = f'<button type="button">{escape(column.name)}</button>' if column.first else escape(column.name)
    heads.append(f'<th scope="col" class="{column.kind}" data-first="{column.first}">{name}{column.note}</th>')
  sortable = ' class="sortable"' if any(column.first for column in columns) else ''
  named = f' id="{key}"' if key else ''
  head = f'<thead><tr>{"".join(heads)}</tr></thead>' if columns else ''
  return (
    f'<div class="scroll{" tall" if tall else ""}" tabindex="0"><table{sortable}{named}>{head}'
    f'<tbody>{"".join(rows)}</tbody></table></div>'
  )


def cell(value: float | None, text: str = '', kind: str = '') -> str:
  """Returns a cell that sorts by `value` and shows `text`; a dash where nothing was measured."""
  known = value is not None and math.isfinite(value)
  return f'<td class="{kind}" data-v="{value if known else ""}">{escape(text) if known else "–"}</td>'


def words(text: Any, kind: str = 'text') -> str:
  """Returns a cell of text."""
  return f'<td class="{kind}">{escape(text)}</td>'


def head_cell(text: Any) -> str:
  """Returns the cell that names its row."""
  return f'<th scope="row" class="text">{escape(text)}</th>'


def pairs(items: Iterable[tuple[str, str]]) -> str:
  """Returns names with their values, which are markup already; empty ones are left out."""
  return '<dl class="pairs">' + ''.join(f'<dt>{name}</dt><dd>{value}</dd>' for name, value in items if value) + '</dl>'


def folded(summary: str, body: str, *, opened: bool = False) -> str:
  """Returns a part that opens on a click."""
  return f'<details class="inner"{" open" if opened else ""}><summary>{escape(summary)}</summary>{body}</details>'


def figure(drawing: Drawing, kind: str = '') -> str:
  """Returns a drawing with the caption that says how to read it."""
  return (
    f'<figure class="{kind}"><div class="frame" tabindex="0">{svg(drawing)}</div>'
    f'<figcaption>{escape(drawing.caption)}</figcaption></figure>'
  )


@dataclasses.dataclass(frozen=True)
class Scale:
  """The span in bits per byte that the drawn intervals of a table share."""

  low: float
  high: float

  def at(self, value: float) -> float:
    """Returns where a value lies across the drawing, its edge for one beyond the scale."""
    inside = min(max(value, self.low), self.high)
    return PAD + (GLYPH - 2 * PAD) * (inside - self.low) / (self.high - self.low)


def glyph(middle: float, low: float, high: float, said: str, scale: Scale, band: float | None = None) -> str:
  """Returns an interval, drawn; an end beyond the scale is an arrow, one without limit is dashed."""
  parts = []
  if band:
    left, right = scale.at(-band), scale.at(band)
    parts.append(f'<rect class="zone" x="{left:.1f}" y="0" width="{right - left:.1f}" height="20"/>')
  zero = scale.at(0.0)
  parts.append(f'<line class="zero" x1="{zero:.1f}" x2="{zero:.1f}" y1="0" y2="20"/>')
  unknown = ' open' if math.isinf(low) or math.isinf(high) else ''
  parts.append(f'<line class="span{unknown}" x1="{scale.at(low):.1f}" x2="{scale.at(high):.1f}" y1="10" y2="10"/>')
  if low < scale.low:
    parts.append('<path class="more" d="M0 10l6-4v8z"/>')
  if high > scale.high:
    parts.append(f'<path class="more" d="M{GLYPH} 10l-6-4v8z"/>')
  if scale.low <= middle <= scale.high:
    parts.append(f'<circle class="dot" cx="{scale.at(middle):.1f}" cy="10" r="3.6"/>')
  text = escape(f'{signed(middle)}, 95 % interval {signed(low)} to {signed(high)}')
  return (
    f'<svg class="glyph {tone(said)}" viewBox="0 0 {GLYPH} 20" role="img" aria-label="{text}">'
    f'<title>{text}</title>{"".join(parts)}</svg>'
  )


def axis(scale: Scale) -> str:
  """Returns the numbers that stand over a column of drawn intervals."""
  step = _round_step((scale.high - scale.low) / 4)
  digits = max(0, -math.floor(math.log10(step) + 1e-9))
  ticks = range(math.ceil(scale.low / step), math.floor(scale.high / step) + 1)
  marks = ''.join(
    f'<text x="{scale.at(tick * step):.1f}" y="14" text-anchor="middle">'
    f'{f"{tick * step:+.{digits}f}".replace("-", "−") if tick else "0"}</text>'
    for tick in ticks
  )
  return f'<svg class="glyph axis" viewBox="0 0 {GLYPH} 20" aria-hidden="true">{marks}</svg>'


def _round_step(step: float) -> float:
  power = 10.0 ** math.floor(math.log10(step))
  return power * next(factor for factor in (1, 2, 5, 10) if factor * power >= step * 0.999)


def source(text: str, *, colored: bool) -> str:
  """Returns Python source, coloured where asked for: colours make the text five times as long."""
  clean = text.replace('\x00', '\ufffd')
  if not colored:
    return f'<pre tabindex="0"><code>{escape(clean)}</code></pre>'
  body = highlight(clean, PythonLexer(stripnl=False), HtmlFormatter(nowrap=True, classprefix='h-'))
  return f'<pre tabindex="0"><code>{body}</code></pre>'


def diff(outcome: Outcome, parent: Outcome) -> str:
  """Returns what changed in the source from the parent's."""
  kinds = {'+': 'add', '-': 'del', '@': 'hunk'}
  lines = source_diff(outcome, parent).splitlines()
  if not lines:
    return '<p class="muted">Nothing: the text is the same.</p>'
  marked = (f'<span class="{kinds.get(line[:1], "")}">{escape(line) or " "}</span>' for line in lines)
  return f'<pre class="diff" tabindex="0">{"".join(marked)}</pre>'


def fitness_terms(entry: Entry) -> str:
  """Returns the fitness and its terms; a term that was not measured is said to be missing."""
  if entry.fitness is None:
    return ''
  terms = ((name, getattr(entry.fitness, name)) for name in ('loss', 'tasks', 'judge'))
  said = (f'{name} {value:.3f}' if value is not None else f'{name} not measured' for name, value in terms)
  return f'{entry.fitness.total:.3f} ({", ".join(said)})'
