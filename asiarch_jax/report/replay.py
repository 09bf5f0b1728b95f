"""Policies compared on a frozen table, as tables in words."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table

from asiarch_jax.replay.comparing import Estimator, Mean, Promotion, Sampler, Stopping
from asiarch_jax.report.text import plain


@dataclasses.dataclass(frozen=True)
class ReplayPage:
  """What `asiarch replay` found. `designs` stand in the table on both rungs, `drawn` of them in each replay."""

  table: str
  made: Mapping[str, str]
  experiment: str
  rung: str
  designs: int
  seeds: int
  replays: int
  drawn: int
  samplers: Sequence[Sampler] = ()
  promotions: Sequence[Promotion] = ()
  estimators: Sequence[Estimator] = ()
  stoppings: Sequence[Stopping] = ()


def replay_page(page: ReplayPage) -> RenderableType:
  """Returns the comparisons that were made, each with a sentence on how to read it."""
  made = ', '.join(f'{name} {value}' for name, value in page.made.items())
  parts: list[RenderableType] = [
    plain(f'Table {page.table} ({made}): {page.designs} designs with {page.seeds} seeds on two rungs, '
          f'{page.experiment} and {page.rung}. Means over {page.replays} replays, 95 % intervals, bits/byte.')
  ]  # fmt: skip
  if page.samplers:
    parts += [
      plain(f'\nSearch. Worth: what the best three by measurement are worth on rung {page.rung}.'),
      _table(
        ('policy', 'outcomes x seeds', 'worth', 'lift over the first', 'as measured', 'what it is'),
        (
          (one.name, f'{one.cycles} x {one.seeds}', _signed(one.worth), _signed(one.lift) if one.lift else '',
           f'{one.measured.value:+.4f}', one.about)
          for one in page.samplers
        ),
      ),
    ]  # fmt: skip
  if page.promotions:
    parts += [
      plain(f'Promotion from {page.drawn} designs. Not better: share of the promoted, on rung {page.rung}.'),
      _table(
        ('rule', 'promoted', 'not better', 'of the copies', 'best there', 'mean there', 'what it is'),
        (
          (one.name, f'{one.promoted.value:.1f}', _share(one.worse), _share(one.placebos), f'{one.best.value:+.4f}',
           f'{one.mean.value:+.4f}', one.about)
          for one in page.promotions
        ),
      ),
    ]  # fmt: skip
  if page.estimators:
    parts += [
      plain('Belief from half of the seeds, held against the other half. Optimism: of the best three.'),
      _table(
        ('estimate', 'error', 'optimism', '95 % interval covers', 'what it is'),
        (
          (one.name, f'{one.error.value:.4f}', _signed(one.optimism), _share(one.covers), one.about)
          for one in page.estimators
        ),
      ),
    ]
  if page.stoppings:
    parts += [
      plain('Stopping (monitor.hopeless): best replica that far above the baseline at that share of the steps.'),
      _table(
        ('rule', 'runs ended', 'steps saved', 'of the best tenth ended', 'best lost'),
        (
          (one.name, f'{one.stopped:.0%}', f'{one.saved:.0%}', f'{one.lost:.0%}', f'{one.regret:.4f}')
          for one in page.stoppings
        ),
      ),
    ]
  return Group(*parts)


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
  table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
  for place, name in enumerate(columns):
    words = place == 0 or name == 'what it is'
    table.add_column(name, justify='left' if words else 'right', no_wrap=name != 'what it is')
  for row in rows:
    table.add_row(*map(plain, row))
  return table


def _signed(mean: Mean) -> str:
  if not math.isfinite(mean.value):
    return ''
  return f'{mean.value:+.4f}' + (f' [{mean.low:+.4f}, {mean.high:+.4f}]' if math.isfinite(mean.low) else '')


def _share(mean: Mean) -> str:
  if not math.isfinite(mean.value):
    return ''
  if not math.isfinite(mean.low):
    return f'{mean.value:.1%}'
  return f'{mean.value:.1%} [{max(0.0, mean.low):.1%}, {min(1.0, mean.high):.1%}]'
