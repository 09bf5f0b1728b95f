"""What a person sees while a search runs: a live panel on a terminal, plain lines elsewhere; on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from asiarch_jax.records import Entry, Outcome, Progress
from asiarch_jax.shell.runner import clean

STAGES = {
  'ask': 'asking the',
  'prepare': 'preparing',
  'check': 'checking',
  'compile': 'compiling',
  'train': 'training',
  'evaluate': 'evaluating',
}
PLAIN_EVERY = 5.0  # seconds between plain progress lines


class Display:
  """Shows cycle, stage, steps a second, loss against the baseline's at the same step, best so far and time left.

  Use as a context manager. `plain` forces lines instead of the live panel; the clock is an argument for tests.
  """

  def __init__(self, console: Console | None = None, *, plain: bool | None = None, clock=time.monotonic):
    self.console = console or Console(stderr=True, file=sys.stderr)
    self.plain = not self.console.is_terminal if plain is None else plain
    self._clock = clock
    self._live = None if self.plain else Live(console=self.console, refresh_per_second=4, transient=True)
    self._began, self._last_line = clock(), 0.0
    self._began_at: dict[int, float] = {}  # of the cycles in flight
    self._cycle, self._cycles, self._done = 0, 0, 0
    self._progress = Progress('start')
    self._best: Entry | None = None

  def __enter__(self) -> Display:
    if self._live:
      self._live.start()
    return self

  def __exit__(self, *_) -> None:
    if self._live:
      self._live.stop()

  def line(self, text: str, style: str = '') -> None:
    """Prints one lasting line."""
    self.console.print(Text(clean(text), style=style), soft_wrap=True)

  def start_cycle(self, cycle: int, cycles: int, best: Entry | None) -> None:
    """Begins outcome number `cycle` of `cycles`."""
    self._cycle, self._cycles, self._best = cycle, cycles, best
    self._began_at[cycle] = self._clock()
    self.progress(Progress('propose'))

  def progress_of(self, cycle: int) -> Callable[[Progress], None]:
    """Returns what shows the progress of one cycle, of several in flight."""

    def show(progress: Progress) -> None:
      self._cycle = cycle
      self.progress(progress)

    return show

  def progress(self, progress: Progress) -> None:
    """Shows where the worker is."""
    self._progress = progress
    if self._live:
      self._live.update(self._panel())
    elif self._clock() - self._last_line >= PLAIN_EVERY and progress.stage != 'propose':
      self._last_line = self._clock()
      where = f'{self._cycle + 1}/{self._cycles} ' if self._cycles else ''
      self.line(f'  {where}{self._now()}')

  def end_cycle(self, outcome: Outcome) -> None:
    """Prints one lasting line for an outcome."""
    self._done += 1
    seconds = self._clock() - self._began_at.pop(outcome.id, self._began)
    head = f'#{outcome.id} {outcome.proposal.name}'
    if isinstance(outcome, Entry):
      e = outcome.evidence
      gain = f'{e.improvement:+.4f} bits/byte [{e.low:+.4f}, {e.high:+.4f}]' if e else 'the reference'
      fitness = f'fitness {outcome.fitness.total:.3f}' if outcome.fitness else ''
      self.line(f'{head}: {gain}  {fitness}  ({seconds:.0f} s)', 'green' if e and e.low > 0 else '')
    else:
      self.line(f'{head}: rejected at {outcome.stage}: {outcome.reason[:160]}  ({seconds:.0f} s)', 'dim')

  def _now(self) -> str:
    p = self._progress
    words = [STAGES.get(p.stage, p.stage)]
    if p.note:
      words.append(p.note)
    if p.steps:
      words.append(f'step {p.step}/{p.steps}')
    if p.steps_per_second:
      words.append(f'{p.steps_per_second:.1f} steps/s')
    if p.loss is not None:
      words.append(f'loss {p.loss:.4f}')
    if p.loss is not None and p.baseline_loss is not None:
      words.append(f'({p.loss - p.baseline_loss:+.4f} to the baseline)')
    return ' '.join(words)

  def _left(self) -> str:
    if not self._cycles:
      return ''
    if not self._done:
      return 'time left: after the first outcome'
    seconds = (self._clock() - self._began) / self._done * (self._cycles - self._cycle)
    return f'about {seconds / 60:.0f} min left' if seconds > 90 else f'about {seconds:.0f} s left'

  def _panel(self) -> Group:
    p = self._progress
    grid = Table.grid(padding=(0, 1))
    grid.add_row(
      Text(f'{self._cycle + 1}/{self._cycles}' if self._cycles else '', style='bold'),
      ProgressBar(total=max(p.steps, 1), completed=p.step, width=24),
      Text(self._now()),
    )
    best = ''
    if self._best and self._best.evidence:
      best = (
        f'best so far #{self._best.id} {self._best.proposal.name} {self._best.evidence.improvement:+.4f} bits/byte · '
      )
    return Group(grid, Text(best + self._left(), style='dim'))
