"""The journal of a run: one JSON object a line (time, event, fields), for people and for the report.

A line is written by one call and ends with its newline, so a killed writer can leave at most its last line cut short:
readers pass over it and the next writer starts on a fresh line. Object stores cannot append: there a run writes parts,
each at most PART lines, and rewrites only the newest.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from typing import Any

from etils import epath

from asiarch_jax import records

PART = 64  # lines that are written again at most, where a file cannot be appended to


class JsonLines:
  """The journal at `path` (a file, or gs://...), as `ports.Journal` says; several threads may write."""

  def __init__(self, path: str | os.PathLike[str], *, read_only: bool = False, clock: Callable[[], float] = time.time):
    self._path = epath.Path(path)
    self._clock = clock
    self._lines: AppendedFile | Parts | None = None
    if not read_only:
      self._lines = Parts(self._path) if '://' in os.fspath(path) else AppendedFile(self._path)

  def write(self, event: str, **fields: Any) -> None:
    """Appends one event.

    Raises:
      ValueError: the journal was opened for reading.
      OSError: it could not be written, such as on a full disk.
    """
    if self._lines is None:
      raise ValueError(f'{self._path} was opened for reading; open it with read_only=False to write events')
    self._lines.append(event_line(self._clock(), event, fields))

  def events(self) -> list[dict[str, Any]]:
    """Returns the events in the order written, each {'time': seconds, 'event': name, ...fields}.

    A line that was cut short is passed over; where there is no journal yet there are no events.
    """
    parts = [path for path in (self._path, *parts_of(self._path)) if path.exists()]
    events = []
    for line in (line for path in parts for line in path.read_bytes().split(b'\n')):
      try:
        event = json.loads(line)
      except ValueError:
        continue
      if isinstance(event, dict) and 'event' in event:
        events.append(event)
    return events

  def close(self) -> None:
    if self._lines is not None:
      self._lines.close()
      self._lines = None


class AppendedFile:
  """Lines in one local file, each by a single write at its end."""

  def __init__(self, path: epath.Path):
    path.parent.mkdir(parents=True, exist_ok=True)
    self._path = path
    self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    size = os.fstat(self._descriptor).st_size
    if size and os.pread(self._descriptor, 1, size - 1) != b'\n':
      os.write(self._descriptor, b'\n')

  def append(self, line: str) -> None:
    content = line.encode() + b'\n'
    written = os.write(self._descriptor, content)
    if written < len(content):
      raise OSError(f'{self._path} took {written} of {len(content)} bytes of an event; free space on that disk')

  def close(self) -> None:
    os.close(self._descriptor)


class Parts:
  """Lines in numbered objects beside `path`, for stores that cannot append. A new writer begins a new part."""

  def __init__(self, path: epath.Path):
    self._folder = _folder_of(path)
    self._folder.mkdir(parents=True, exist_ok=True)
    self._number = max((int(part.stem) for part in parts_of(path)), default=-1) + 1
    self._lines: list[str] = []

  def append(self, line: str) -> None:
    if len(self._lines) == PART:
      self._number, self._lines = self._number + 1, []
    self._lines.append(line + '\n')
    (self._folder / f'{self._number:08d}.jsonl').write_text(''.join(self._lines))

  def close(self) -> None:
    pass


def parts_of(path: epath.Path) -> list[epath.Path]:
  """Returns the numbered parts of the journal at `path`, oldest first."""
  folder = _folder_of(path)
  return sorted(folder.glob('[0-9]*.jsonl')) if folder.exists() else []


def event_line(seconds: float, event: str, fields: dict[str, Any]) -> str:
  """Returns an event as one line of JSON without its newline.

  >>> event_line(1.5, 'archived', {'id': 3, 'loss': float('nan')})
  '{"time": 1.5, "event": "archived", "id": 3, "loss": "nan"}'
  """
  body = {'time': round(seconds, 3), 'event': event, **records.to_json(fields)}
  return json.dumps(body, default=str, allow_nan=False)


def _folder_of(path: epath.Path) -> epath.Path:
  return path.parent / f'{path.name}.parts'
