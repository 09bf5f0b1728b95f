"""Arms side by side: what each tried, what it promoted, what its best are worth on fresh replicas."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table

from asiarch_jax.evidence.lift import Lift
from asiarch_jax.report.text import plain


@dataclasses.dataclass(frozen=True)
class ArmRun:
  """One run of an arm. Improvements in bits per byte over the baseline; `fresh` is the mean over its best entries."""

  arm: str
  run: int
  proposals: int
  measured: int
  promoted: int
  placebos: int
  placebos_promoted: int
  mean: float
  best: float
  believed: float
  accelerator_seconds: float
  tokens: float
  fresh: float = math.nan
  confirmed: int = 0


@dataclasses.dataclass(frozen=True)
class ArmsPage:
  """All runs of all arms, the lifts of the first arm over the others, and what each arm is."""

  runs: tuple[ArmRun, ...]
  lifts: tuple[Lift, ...]
  meaning: Mapping[str, str]


def arms_page(page: ArmsPage) -> RenderableType:
  """Returns the table of runs, the lifts, and what the intervals do and do not say."""
  table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
  for name, justify in (
    ('arm', 'left'),
    ('run', 'right'),
    ('proposals', 'right'),
    ('measured', 'right'),
    ('promoted', 'right'),
    ('placebos promoted', 'right'),
    ('mean', 'right'),
    ('best measured', 'right'),
    ('best believed', 'right'),
    ('best, fresh', 'right'),
    ('device s', 'right'),
    ('LM tokens', 'right'),
  ):
    table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
  for run in page.runs:
    table.add_row(
      run.arm,
      str(run.run),
      str(run.proposals),
      str(run.measured),
      str(run.promoted),
      f'{run.placebos_promoted} of {run.placebos}' if run.placebos else '',
      *(f'{value:+.4f}' if math.isfinite(value) else '' for value in (run.mean, run.best, run.believed)),
      f'{run.fresh:+.4f} ({run.confirmed})' if math.isfinite(run.fresh) else '',
      f'{run.accelerator_seconds:,.0f}',
      f'{run.tokens:,.0f}',
    )
  lines = [f'{name}: {meaning}.' for name, meaning in page.meaning.items()]
  for one in page.lifts:
    scope = f'over {one.runs} pairs of runs' if one.runs > 1 else 'for these two runs'
    lines.append(
      f'Lift of {one.arm} over {one.against}: {one.lift:+.4f} bits/byte, 95 % interval {one.low:+.4f} .. '
      f'{one.high:+.4f} {scope}.'
    )
  if any(one.runs == 1 for one in page.lifts):
    lines.append('One run of an arm says nothing of how runs differ; --repeats=3 or more does.')
  lines.append('"best, fresh": the best by belief, trained anew on seeds that took no part in their choice.')
  return Group(table, *(plain(line) for line in lines))
