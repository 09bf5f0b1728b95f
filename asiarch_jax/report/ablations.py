"""What each part of a design is worth: the loss without it, less the loss with it."""

from __future__ import annotations

import dataclasses

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table

from asiarch_jax.report.text import plain

LEVEL = 0.05  # adjusted p up to which a part is said to matter


@dataclasses.dataclass(frozen=True)
class Part:
  """One part taken away: what the design is better with it, bits per byte, its 95 % interval and p values.

  `adjusted` is Holm's over all parts of the design. `reason` says why it was not measured.
  """

  part: str
  worth: float
  low: float
  high: float
  p: float
  adjusted: float
  pairs: int
  reason: str = ''

  @property
  def verdict(self) -> str:
    """Says whether the part earns its place."""
    if self.reason:
      return 'cannot be taken away alone'
    if self.adjusted > LEVEL:
      return 'no effect shown'
    return 'helps' if self.worth > 0 else 'hurts'


@dataclasses.dataclass(frozen=True)
class Ablation:
  """All parts of one entry."""

  id: int
  name: str
  parts: tuple[Part, ...]


def ablation_page(page: Ablation) -> RenderableType:
  """Returns the table of parts, the most valuable first."""
  table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=f'#{page.id} {page.name}', title_justify='left')
  for name, justify in (
    ('part', 'left'), ('worth', 'right'), ('95 % interval', 'center'), ('p (Holm)', 'right'), ('verdict', 'left')
  ):  # fmt: skip
    table.add_column(name, justify=justify, overflow='fold')  # type: ignore[arg-type]
  for part in sorted(page.parts, key=lambda part: (bool(part.reason), -part.worth if not part.reason else 0.0)):
    if part.reason:
      table.add_row(plain(part.part), '', plain(part.reason[:160]), '', part.verdict)
    else:
      table.add_row(
        plain(part.part),
        f'{part.worth:+.4f}',
        f'{part.low:+.4f} .. {part.high:+.4f}',
        f'{part.adjusted:.2g}',
        plain(part.verdict, {'helps': 'green', 'hurts': 'red'}.get(part.verdict, 'dim')),
      )
  return Group(
    table,
    plain('worth: bits/byte that the design is better with the part than without it, at matched parameters.'),
    plain('A part without an effect earns no credit, whatever the motivation says.'),
  )
