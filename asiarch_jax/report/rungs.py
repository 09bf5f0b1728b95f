"""What a rung of the ladder showed: who climbed, what was believed below, what was measured above."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table

from asiarch_jax.evidence.ladder import Agreement
from asiarch_jax.evidence.posterior import Posterior
from asiarch_jax.records import Evidence
from asiarch_jax.report.text import plain


@dataclasses.dataclass(frozen=True)
class RungRow:
  """One entry on a rung: beliefs on both rungs and what was measured above, or why it was not."""

  id: int
  name: str
  climbed: str  # promoted, or by lot
  below: Posterior | None
  above: Posterior | None
  evidence: Evidence | None
  failure: str = ''


@dataclasses.dataclass(frozen=True)
class RungPage:
  """A rung as `asiarch verify` tells it. `choice` is the latest record of who was chosen and by which numbers."""

  name: str
  rows: tuple[RungRow, ...]
  agreement: Agreement
  choice: Mapping[str, Any]


def rung_page(page: RungPage) -> RenderableType:
  """Returns the table of a rung, and in words how far it agrees with the one below."""
  table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=f'rung {page.name}', title_justify='left')
  for name, justify in (
    ('#', 'right'),
    ('mixer', 'left'),
    ('climbed', 'left'),
    ('measured below', 'right'),
    ('believed below', 'right'),
    ('measured here', 'right'),
    ('95 % interval', 'center'),
    ('pairs', 'right'),
    ('believed here', 'right'),
    ('P(better)', 'right'),
  ):
    table.add_column(name, justify=justify, no_wrap=name != 'mixer')  # type: ignore[arg-type]
  for row in sorted(page.rows, key=lambda row: (-(row.above.mean if row.above else -math.inf), row.id)):
    e = row.evidence
    table.add_row(
      str(row.id),
      plain(row.name),
      row.climbed,
      f'{row.below.measured:+.4f}' if row.below else '',
      f'{row.below.mean:+.4f}' if row.below else '',
      f'{e.improvement:+.4f}' if e else plain(row.failure or 'no pair with the baseline'),
      f'{e.low:+.4f} .. {e.high:+.4f}' if e else '',
      str(e.replicas) if e else '',
      f'{row.above.mean:+.4f}' if row.above else '',
      f'{row.above.probability_better:.2f}' if row.above else '',
    )
  return Group(table, *(plain(line) for line in told(page)))


def told(page: RungPage) -> list[str]:
  """Returns in sentences who climbed and what the two rungs have to do with each other."""
  lines = []
  choice, found = page.choice, page.agreement
  if choice:
    climbed = len(choice['promoted'])
    said = (
      f'Latest choice: {climbed} of {choice["candidates"]} climbed '
      f'(the agreement of the rungs allowed {choice["share"]:.0%}) and {len(choice["audited"])} by lot'
    )
    if climbed:
      said += f'; {choice["doubt"]:.0%} of the chosen are expected not to be better'
    if choice.get('shrinkage') is not None:
      said += f', and {choice["shrinkage"]:.0%} of their measured improvement is believed'
    lines.append(said + '.')
  if math.isfinite(found.measured):
    lines.append(
      f'Improvements below and here correlate by {found.measured:+.2f}, 95 % interval {found.low:+.2f} .. '
      f'{found.high:+.2f} over {found.pairs} entries; promotion goes by {found.believed:+.2f}.'
    )
  else:
    lines.append(
      f'{found.pairs} entries stand on both rungs: too few for a correlation; promotion goes by {found.believed:+.2f}.'
    )
  kept = [(row.below, row.above) for row in page.rows if row.climbed == 'promoted' and row.below and row.above]
  if kept:
    below = sum(row.mean for row, _ in kept) / len(kept)
    above = sum(row.mean for _, row in kept) / len(kept)
    lines.append(
      f'The {len(kept)} that were promoted were believed better by {below:+.4f} bits/byte below and are believed '
      f'better by {above:+.4f} here.'
    )
  return lines
