"""A drawing: a matplotlib figure with what one needs to read it, its look, and how it becomes SVG or PNG.

Colours are roles (INK, MUTED, ...): in a PNG they are the light palette, in the page's SVG each becomes a CSS variable,
so that one drawing serves light and dark mode. Nothing here uses pyplot: no state is left behind.
"""

from __future__ import annotations

import contextlib
import dataclasses
import html
import io
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import matplotlib
from matplotlib import colors
from matplotlib.figure import Figure

INK, MUTED, GRID, BAND, PAPER = '#1b2331', '#5b6575', '#dde2e9', '#e9edf2', '#fffffe'
BLUE, ORANGE, VIOLET, TEAL = '#1a62a9', '#b4500e', '#6b4c9b', '#23776f'
ROLES = {
  INK: 'ink',
  MUTED: 'muted',
  GRID: 'grid',
  BAND: 'band',
  PAPER: 'paper',
  BLUE: 'blue',
  ORANGE: 'orange',
  VIOLET: 'violet',
  TEAL: 'teal',
}
# Orange to grey to blue, told apart with every common colour blindness; grey is seen on white and on black.
DIVERGING = colors.LinearSegmentedColormap.from_list(
  'worse_better', ('#a8430a', '#de8f4a', '#b4b9c1', '#5f9ed6', '#155a9f')
)
STYLE = {
  'font.family': 'DejaVu Sans',
  'font.size': 8.5,
  'text.color': INK,
  'text.parse_math': False,
  'axes.edgecolor': MUTED,
  'axes.labelcolor': MUTED,
  'axes.linewidth': 0.7,
  'axes.spines.top': False,
  'axes.spines.right': False,
  'axes.grid': True,
  'axes.axisbelow': True,
  'axes.titlelocation': 'left',
  'axes.titlesize': 8.5,
  'axes.titlecolor': MUTED,
  'axes.formatter.useoffset': False,
  'grid.color': GRID,
  'grid.linewidth': 0.6,
  'xtick.color': MUTED,
  'ytick.color': MUTED,
  'xtick.major.size': 3,
  'ytick.major.size': 0,
  'xtick.major.width': 0.6,
  'svg.fonttype': 'none',
  'svg.hashsalt': 'asiarch',
}
HALF, WHOLE = 6.2, 12.6  # inches across: one of two columns, or both


@dataclasses.dataclass(frozen=True)
class Drawing:
  """A figure with what one needs to read it. `tips` are the notes that appear over the mark of an outcome."""

  name: str
  title: str
  caption: str
  alternative: str
  figure: Figure
  tips: Mapping[int, str] = dataclasses.field(default_factory=dict)


@contextlib.contextmanager
def style() -> Iterator[None]:
  """The look of every figure; names that are not in the font stay silent."""
  with matplotlib.rc_context(STYLE), warnings.catch_warnings():  # type: ignore[arg-type]
    warnings.filterwarnings('ignore', message='Glyph .* missing')
    yield


def label(text: str, limit: int = 28) -> str:
  """Returns a name as it may stand in a figure: one line, printable, not long.

  >>> label('two\\nlines and more than that', 12)
  'two lines a…'
  """
  line = ' '.join(''.join(c if c.isprintable() else ' ' for c in text).split()) or '(no name)'
  return line if len(line) <= limit else line[: limit - 1] + '…'


def saved(figure: Figure, **how: Any) -> bytes:
  """Returns what `savefig` writes, in the look of the report."""
  buffer = io.BytesIO()
  with style():
    figure.savefig(buffer, **how)
  return buffer.getvalue()


def svg(drawing: Drawing) -> str:
  """Returns the figure as an inline SVG element that takes its colours and font from the page."""
  written = saved(drawing.figure, format='svg', transparent=True, metadata={'Date': None, 'Creator': None})
  text = written.decode()
  text = text[text.index('<svg') :]
  text = re.sub(r'<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<!--.*?-->', '', text, flags=re.S)
  text = re.sub(r'font-family: [^;\"]*;?', '', text)
  text = re.sub(r'#[0-9a-f]{6}\b', lambda found: _themed(found.group()), text)
  used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
  text = re.sub(r' id="([^"]*)"', lambda found: found.group() if found.group(1) in used else '', text)
  text = re.sub(r'(<a xlink:href="#outcome-(\d+)"[^>]*>)', lambda found: _tip(found, drawing.tips), text)
  head = f'<svg role="img" aria-label="{html.escape(drawing.alternative)}" class="figure"'
  _, _, width, height = re.search(r'viewBox="([\d.]+) ([\d.]+) ([\d.]+) ([\d.]+)"', text).groups()  # type: ignore[union-attr]
  return re.sub(r'^<svg [^>]*>', f'{head} viewBox="0 0 {width} {height}">', text).replace('xlink:href', 'href')


def _themed(color: str) -> str:
  return f'var(--{ROLES[color]})' if color in ROLES else color


def _tip(found: re.Match[str], tips: Mapping[int, str]) -> str:
  tip = tips.get(int(found.group(2)))
  return found.group(1) + (f'<title>{html.escape(tip)}</title>' if tip else '')


def png(drawing: Drawing) -> bytes:
  """Returns the figure as a PNG in the light palette."""
  return saved(drawing.figure, format='png', dpi=160, facecolor=PAPER, metadata={'Software': None})
