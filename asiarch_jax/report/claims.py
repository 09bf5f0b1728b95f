"""What a family of claims came to: "shown" or "not shown", with the numbers behind it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table

from asiarch_jax.evidence import distributions
from asiarch_jax.evidence.claims import Family, Verdict, pairs_needed, power
from asiarch_jax.report.text import plain

EFFECTS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)  # bits per byte, of a power curve


def claims_page(family: Family, verdicts: Sequence[Verdict]) -> RenderableType:
  """Returns a family as a table, a row for each test."""
  where = f'rung {family.rung}' if family.rung else 'the fidelity of the search'
  head = (
    f'Family {family.number}: {len(family.entries)} entries against #{family.against} at {where}, '
    f'{family.replicas} fresh seeds, {family.windows} vault windows; chance of any false "shown" at most '
    f'{family.error:.3g} where differences are about symmetric'
  )
  if not verdicts:
    return plain(f'{head}. Registered and not finished: the same command again goes on.')
  table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
  for name, justify in (
    ('#', 'right'),
    ('mixer', 'left'),
    ('matched by', 'left'),
    ('verdict', 'left'),
    ('better by', 'right'),
    ('95 % interval', 'center'),
    ('p (Holm)', 'right'),
    ('pairs', 'right'),
    ('params', 'right'),
    ('FLOPs', 'right'),
    ('s/step', 'right'),
    ('steps', 'right'),
  ):
    table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
  for one in verdicts:
    if one.reason:
      table.add_row(
        str(one.id), plain(one.name), one.matched, plain('not shown', 'red'), plain(one.reason, overflow='fold')
      )
      continue
    table.add_row(
      str(one.id),
      plain(one.name),
      one.matched,
      plain('shown' if one.shown else 'not shown', 'green' if one.shown else ''),
      f'{one.effect:+.4f}',
      f'{one.low:+.4f} .. {one.high:+.4f}',
      f'{one.adjusted:.2g}',
      str(one.pairs),
      _ratio(one.parameters / one.baseline_parameters),
      _ratio(one.flops_ratio),
      _ratio(one.seconds_ratio),
      _ratio(one.steps_ratio),
    )
  worth = [
    f'#{one.id} {one.name}, matched by {one.matched}: the baseline needs {one.multiplier} its FLOPs for this loss.'
    for one in verdicts
    if one.multiplier
  ]
  return Group(plain(head + '.'), table, *(plain(line) for line in (*worth, *_reach(family, verdicts))))


def _reach(family: Family, verdicts: Sequence[Verdict]) -> list[str]:
  """Returns the power curve of each test, and how many fresh seeds one that was not shown would have taken if real."""
  lines, error = [], family.error / len(verdicts)
  for one in verdicts:
    if one.reason or one.high <= one.low:
      continue
    deviation = (one.high - one.low) / 2 / distributions.t_quantile(0.975, one.pairs - 1) * math.sqrt(one.pairs)
    curve = ', '.join(f'{effect:+g} with {power(effect, deviation, one.pairs, error):.0%}' for effect in EFFECTS)
    line = (
      f'#{one.id} {one.name}, matched by {one.matched}: pairs deviate by {deviation:.4f} bits/byte, so {one.pairs} of '
      f'them show {curve}.'
    )
    if not one.shown and one.effect > 0:
      try:
        needed = f'{pairs_needed(one.effect, deviation, error):,} fresh seeds'
      except ValueError:
        needed = 'over a hundred thousand fresh seeds'
      line += f' If {one.effect:+.4f} is real, {needed} of another such entry show it with 80 % power at this error.'
    lines.append(line)
  return lines


def _ratio(value: float) -> str:
  return f'x{value:.3f}' if math.isfinite(value) else ''
