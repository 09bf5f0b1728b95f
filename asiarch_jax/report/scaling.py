"""A scaling fit in words and numbers."""

from __future__ import annotations

import dataclasses
import statistics

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table

from asiarch_jax.evidence.scaling import Scaling, Size
from asiarch_jax.report.text import plain


@dataclasses.dataclass(frozen=True)
class ScalingPage:
  """An entry and its baseline at several sizes, smallest first, and what was fitted."""

  id: int
  name: str
  against: str
  baseline: tuple[Size, ...]
  entry: tuple[Size, ...]
  found: Scaling


def scaling_page(page: ScalingPage) -> RenderableType:
  """Returns the measured sizes, the three models by AICc, and the headline."""
  sizes = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=f'#{page.id} {page.name}', title_justify='left')
  for name in ('forward FLOPs', page.against, 'forward FLOPs', page.name, 'better by'):
    sizes.add_column(name, justify='right')
  for base, entry in zip(page.baseline, page.entry, strict=True):
    theirs, ours = statistics.fmean(base.losses), statistics.fmean(entry.losses)
    sizes.add_row(
      f'{base.compute:.3g}', f'{theirs:.4f}', f'{entry.compute:.3g}', f'{ours:.4f}', f'{theirs - ours:+.4f}'
    )
  fits = Table(box=box.SIMPLE_HEAD, pad_edge=False)
  for name, justify in (
    ('model', 'left'), ('behind (AICc)', 'right'), ('weight', 'right'), ('error at the largest, held out', 'right'),
    ('multiplier at the largest', 'left'),
  ):  # fmt: skip
    fits.add_column(name, justify=justify)  # type: ignore[arg-type]
  for fit in page.found.fits:
    fits.add_row(fit.model, f'{fit.behind:.1f}', f'{fit.weight:.0%}', f'{fit.held_out:.4f}', str(fit.multiplier))
  return Group(sizes, fits, plain(page.found.verdict))
