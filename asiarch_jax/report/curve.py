"""The discovery curve of an archive: what was found against each kind of compute, and the shapes that fit it.

Confirmed are the entries that are named so. Without names they are those whose interval lies above zero, which is a
measurement and no claim, and the page says so.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from asiarch_jax.evidence.discovery import Band, Discovery, Fit, Parameter, fit, of_trials
from asiarch_jax.records import Outcome
from asiarch_jax.report import series
from asiarch_jax.report.markup import Column, escape, head_cell, table, words

DRAWS = 200  # of each bootstrap: a p of 0.05 is known to 0.015


@dataclasses.dataclass(frozen=True)
class Compute:
  """A kind of compute that discoveries are drawn against: a field of `series.Discoveries` and the figure's words."""

  field: str
  name: str
  title: str
  spent: str
  units: tuple[
    tuple[float, str, str], ...
  ]  # size, names of many and one, smallest first; the largest spent twice is used
  nothing: str


COMPUTE = {
  'seconds': Compute(
    'seconds',
    'discoveries',
    'Discoveries against accelerator time',
    'Compute includes rejected proposals and baselines.',
    ((1.0, 'accelerator-seconds', 'accelerator-second'), (3600.0, 'accelerator-hours', 'accelerator-hour')),
    'no accelerator time spent yet',
  ),
  'tokens': Compute(
    'tokens',
    'discoveries_by_tokens',
    'Discoveries against tokens',
    'The same against the tokens of language models in every role, thoughts included. Rejected proposals and baselines '
    'count too.',
    (
      (1.0, 'tokens', 'token'),
      (1e3, 'thousand tokens', 'thousand tokens'),
      (1e6, 'million tokens', 'million tokens'),
      (1e9, 'billion tokens', 'billion tokens'),
    ),
    'no token spent yet',
  ),
  'dollars': Compute(
    'dollars',
    'discoveries_by_dollars',
    'Discoveries against dollars',
    'The same against what language models cost by the prices in the settings; a model without a price counts as free.',
    ((1.0, 'dollars for language models', 'dollar'),),
    'no dollar spent yet',
  ),
}


@dataclasses.dataclass(frozen=True)
class Curve:
  """What was found against one kind of compute, with the fits.

  The fits' clock stands still while a baseline or an anchor is measured: nothing can be found then. `clock` is its
  reading after each outcome, beginning at 0.
  """

  compute: Compute
  counts: series.Discoveries
  clock: tuple[float, ...]
  fitted: Discovery
  claimed: bool

  @property
  def spent(self) -> tuple[float, ...]:
    """What was spent after each outcome, beginning at 0."""
    return getattr(self.counts, self.compute.field)

  @property
  def unit(self) -> tuple[float, str]:
    """The unit that the figure uses: its size and its name."""
    size, name, _ = self._unit
    return size, name

  @property
  def each(self) -> str:
    """The name of one unit."""
    return self._unit[2]

  @property
  def _unit(self) -> tuple[float, str, str]:
    rows = self.compute.units
    return next(row for row in reversed(rows) if self.spent[-1] >= 2 * row[0] or row is rows[0])

  @property
  def word(self) -> str:
    """What those are that count."""
    return 'confirmed' if self.claimed else 'measured better (95 % interval above zero; not yet claimed)'

  @property
  def brief(self) -> str:
    """The same, short."""
    return 'confirmed' if self.claimed else 'measured better'

  @property
  def drawn(self) -> tuple[Fit, ...]:
    """The fits worth a line: the best, and those that are not excluded; none where no shape was compared."""
    fits = () if self.fitted.note else self.fitted.fits
    return tuple(row for index, row in enumerate(fits) if not index or not row.excluded)

  def along(self, band: Band) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Returns what was spent, in the figure's unit, at each point of a band, and its middle, low and high line."""
    clock_N, spent_N = np.array(self.clock), np.array(self.spent)
    start = np.searchsorted(clock_N, 0.0, side='right') - 1
    reached = np.searchsorted(clock_N, np.array(band.spent) * (1 - 1e-9))
    at = np.minimum(np.concatenate([[start], reached]), len(spent_N) - 1)
    lines = tuple(np.concatenate([[0.0], line]) for line in (band.expected, band.low, band.high))
    return spent_N[at] / self.unit[0], lines  # type: ignore[return-value]


def curves(
  outcomes: Sequence[Outcome], confirmed: Collection[int] | None = None, placebos: Collection[int] = ()
) -> dict[str, Curve]:
  """Returns the curve against accelerator time, and against tokens and dollars where any were spent.

  Raises:
    ValueError: an id in `confirmed` is not that of a measured candidate.
  """
  counts = series.discoveries(outcomes, confirmed=confirmed, placebos=placebos)
  kinds = [kind for kind in COMPUTE if kind == 'seconds' or getattr(counts, kind)[-1] > 0]
  return {kind: _curve(COMPUTE[kind], counts, confirmed is not None) for kind in kinds}


def _curve(compute: Compute, counts: series.Discoveries, claimed: bool) -> Curve:
  spent = getattr(counts, compute.field)
  steps = [after - before for before, after in itertools.pairwise(spent)]
  hits = [after > before for before, after in itertools.pairwise(counts.shown)]
  costs = [step if trial else 0.0 for step, trial in zip(steps, counts.trial, strict=True)]
  fitted = fit(of_trials(costs, hits), draws=DRAWS)
  return Curve(compute, counts, (0.0, *itertools.accumulate(costs)), fitted, claimed)


def section(found: Mapping[str, Curve], figures: Mapping[str, str], control: str = '') -> str:
  """Returns the section of the page: each figure, as markup by its name, beside what its fits say."""
  curve = found['seconds']
  meaning = (
    'Counted are the entries that a confirmatory run confirmed.'
    if curve.claimed
    else 'Counted is what was <strong>measured better (not yet claimed)</strong>: candidates whose 95 % interval lies '
    'wholly above zero, by the measurements that the search itself was led by.'
  )
  parts = [
    f'<p class="note">{meaning} Each proposal is one trial; the rate of finding is fitted by maximum likelihood, and '
    'time after the last discovery counts. A shape is excluded where a test at 5 % rejects it, by its likelihood '
    'against the best shape or by its distance from when the events came. Trials are taken as independent: children of '
    'one good parent are not, so a p near 0.05 decides nothing.</p>'
  ]
  if control:
    parts.append(f'<p>{escape(control)}</p>')
  for each in found.values():
    name = f'<h3>{escape(each.compute.title)}</h3>' if len(found) > 1 else ''
    parts.append(
      f'{name}<div class="columns">{figures[each.compute.name]}<div class="stack">'
      f'<p>{escape(each.fitted.verdict if any(each.counts.trial) else "No proposal was tried yet.")}</p>'
      f'{_fits(each)}</div></div>'
    )
  return ''.join(parts)


def _fits(curve: Curve) -> str:
  if not curve.fitted.fits:
    return ''
  compared = not curve.fitted.note
  tested = (
    Column('excluded', '', kind='text'),
    Column('AICc', '', note='<small>above best</small>', kind='wide'),
    Column('weight', '', kind='wide'),
  )
  columns = (
    Column('shape', '', kind='text'),
    *(tested if compared else ()),
    Column('parameters', '', kind='text', note='<small>95 % interval</small>'),
  )
  rows = []
  for row in curve.fitted.fits:
    cells = ''
    if compared:
      sign = '≤' if row.p <= 2.5 / DRAWS else '='  # no draw lay as far out
      cells = f'<td class="text">{"yes" if row.excluded else "no"}<small>p {sign} {row.p:.2g}</small></td>'
      cells += words(f'{row.behind:.1f}', 'wide') + words(f'{100 * row.weight:.0f} %', 'wide')
    told = ''.join(_parameter(parameter, curve) for parameter in row.parameters)
    rows.append(f'<tr>{head_cell(row.shape)}{cells}<td class="text wrap">{told}</td></tr>')
  return table(columns, rows)


def _parameter(parameter: Parameter, curve: Curve) -> str:
  """Returns a parameter with its interval, in the figure's unit: the wider of both bootstraps at each end."""
  size, many = curve.unit
  factor = {'rate': size, 'time constant': 1 / size}.get(parameter.name, 1.0)
  unit = {'rate': f' per {curve.each}', 'time constant': f' {many}', 'ceiling': ' in all'}.get(parameter.name, '')
  low, high = min(parameter.low, parameter.case_low), max(parameter.high, parameter.case_high)
  if math.isinf(low):
    return f'<div>{parameter.name}: no end in sight</div>'
  ends = f'{_number(low * factor)} to {_number(high * factor)}'
  value = f'{_number(parameter.value * factor)}{unit if math.isfinite(parameter.value) else ""}'
  return f'<div>{parameter.name} {escape(value)}<small>{escape(ends)}</small></div>'


def _number(value: float) -> str:
  return (
    f'{value:.3g}' if math.isfinite(value) and abs(value) < 1e5 else f'{value:,.0f}' if math.isfinite(value) else '∞'
  )
