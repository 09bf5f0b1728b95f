"""An archive as one file of JSON lines: readable anywhere, and by `load` an archive again.

{"asiarch": {"schema", "experiment", "corpus", "outcomes": N}}    first
{"outcome": {...}, "layout": [...], "bytes": "base64"}            N lines, by id; arrays packed as in the archive
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import gzip
import json
import lzma
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, Any

import numpy as np

from asiarch_jax import config, records
from asiarch_jax.shell.archive import Header, pack, unpack

OPENERS = {'.gz': gzip.open, '.xz': lzma.open}
Row = tuple[records.Outcome, Mapping[str, Any]]


def write(path: str | os.PathLike[str], header: Header, count: int, rows: Iterable[Row]) -> int:
  """Writes an archive of `count` outcomes and returns the bytes that the file takes: whole, or not at all."""
  place = pathlib.Path(path)
  place.parent.mkdir(parents=True, exist_ok=True)
  unfinished = place.with_name(f'.{os.getpid()}.{place.name}')
  head = {'schema': records.SCHEMA, 'experiment': config.as_dict(header.experiment), 'corpus': header.corpus}
  try:
    with _opened(unfinished, 'wt') as file:
      file.write(json.dumps({'asiarch': {**head, 'outcomes': count}}) + '\n')
      for outcome, arrays in rows:
        blob, layout = pack(arrays)
        line = {
          'outcome': records.to_json(outcome),
          'layout': layout,
          'bytes': base64.b64encode(blob.tobytes()).decode(),
        }
        file.write(json.dumps(line, allow_nan=False) + '\n')
    unfinished.replace(place)
  finally:
    unfinished.unlink(missing_ok=True)
  return place.stat().st_size


@contextlib.contextmanager
def reading(path: str | os.PathLike[str]) -> Iterator[tuple[Header, int, Iterator[Row]]]:
  """Gives the header of a file, the number of its outcomes, and these one at a time.

  Raises:
    OSError: it cannot be read.
    ValueError: it is no dump, of another schema, damaged or cut short; the message names the line.
  """
  try:
    with _opened(pathlib.Path(path), 'rt') as file:
      header, count = _header(path, file.readline())
      yield header, count, _rows(path, file, count)
  except (EOFError, lzma.LZMAError, UnicodeDecodeError, gzip.BadGzipFile) as error:
    raise ValueError(f'{path} is damaged or cut short: {error or type(error).__name__}') from error


def _opened(path: pathlib.Path, mode: str) -> IO[Any]:
  return OPENERS.get(path.suffix, open)(path, mode, encoding='utf-8')  # type: ignore[operator]


def _header(path: str | os.PathLike[str], line: str) -> tuple[Header, int]:
  try:
    head = json.loads(line)['asiarch']
    schema, count, experiment, corpus = (head[name] for name in ('schema', 'outcomes', 'experiment', 'corpus'))
  except (ValueError, TypeError, KeyError) as error:
    raise ValueError(f'{path} is no dump of an archive; asiarch dump writes one') from error
  if schema != records.SCHEMA:
    raise ValueError(
      f'{path} has schema {schema!r}, this program reads {records.SCHEMA}; use the version that wrote it'
    )
  try:
    return Header(config.from_dict(experiment), str(corpus)), int(count)
  except (ValueError, TypeError) as error:
    raise ValueError(f'{path} has settings that this version does not take, or no count: {error}') from error


def _rows(path: str | os.PathLike[str], file: IO[str], count: int) -> Iterator[Row]:
  number, seen = 1, set()
  for number, line in enumerate(file, 2):
    try:
      row = json.loads(line)
      outcome = records.from_json(records.Outcome, row['outcome'])
      arrays = unpack(np.frombuffer(base64.b64decode(row['bytes'], validate=True), np.uint8), row['layout'])
    except (ValueError, TypeError, KeyError, binascii.Error) as error:
      raise ValueError(f'{path}, line {number}, is damaged: {error}') from error
    if outcome.id in seen:
      raise ValueError(f'{path}, line {number}, has outcome {outcome.id} once more')
    seen.add(outcome.id)
    yield outcome, arrays
  if number - 1 != count:
    raise ValueError(f'{path} is cut short: {number - 1} of {count} outcomes')
