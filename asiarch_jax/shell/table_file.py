"""A table of the replay bench as one file: JSON, compressed with xz."""

from __future__ import annotations

import importlib.resources
import json
import lzma
import os
import pathlib
from typing import Any

LARGEST = 1 << 28  # bytes of JSON that are read: no table is a hundredth of it
SUFFIX = '.json.xz'


def packaged() -> pathlib.Path:
  """Returns the table that comes with the package."""
  return pathlib.Path(str(importlib.resources.files('asiarch_jax.replay') / f'table{SUFFIX}'))


def read(path: str | os.PathLike[str]) -> Any:
  """Returns the JSON document in a file.

  Raises:
    OSError: it cannot be read.
    ValueError: it is no such file, cut short, or larger than any table.
  """
  try:
    with lzma.open(path) as file:
      text = file.read(LARGEST + 1)
    if len(text) > LARGEST:
      raise ValueError(f'more than {LARGEST >> 20} MiB once unpacked')
    return json.loads(text)
  except (lzma.LZMAError, EOFError, ValueError) as error:
    raise ValueError(f'{path} is no table (*{SUFFIX} of asiarch tabulate): {error or "it is cut short"}') from error


def write(path: str | os.PathLike[str], document: Any) -> int:
  """Writes a document and returns the size of the file in bytes. It is there whole or not at all."""
  place = pathlib.Path(path)
  place.parent.mkdir(parents=True, exist_ok=True)
  packed = lzma.compress(json.dumps(document, separators=(',', ':'), sort_keys=True).encode(), preset=9)
  unfinished = place.with_name(f'.{place.name}.{os.getpid()}')
  try:
    unfinished.write_bytes(packed)
    unfinished.replace(place)
  finally:
    unfinished.unlink(missing_ok=True)
  return len(packed)
