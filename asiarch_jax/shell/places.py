"""Where a workdir's things lie: on this machine, or in a bucket with what only this machine can hold beside it.

Archive, journal, traces, claims and reports go to the workdir, whichever it is. Jobs are run by processes of this
machine and lie on its disk: for a workdir in a bucket, under the cache. What is lost with the disk is run again.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import shutil
import tempfile
from typing import Any

from etils import epath

from asiarch_jax.shell import jobfolder


def is_address(place: str | os.PathLike[str]) -> bool:
  """Says whether a place is in a bucket, such as gs://bucket/run."""
  return '://' in os.fspath(place)


def folder(place: str | os.PathLike[str]) -> Any:
  """Returns a place as a path: pathlib's on this machine, etils' in a bucket."""
  return epath.Path(place) if is_address(place) else pathlib.Path(place)


def disk(place: str | os.PathLike[str], cache: pathlib.Path) -> pathlib.Path:
  """Returns the folder of this machine for what processes read and write: the place itself, or one under `cache`."""
  if not is_address(place):
    return pathlib.Path(place)
  return cache / 'workdirs' / hashlib.sha256(os.fspath(place).rstrip('/').encode()).hexdigest()[:16]


def put(place: Any, content: bytes) -> None:
  """Writes a file whole or not at all. A bucket's objects are so by nature."""
  place.parent.mkdir(parents=True, exist_ok=True)
  if is_address(place):
    place.write_bytes(content)
  else:
    jobfolder.replace(place, content)


def put_json(place: Any, document: Any) -> None:
  """Writes a JSON document whole or not at all."""
  put(place, (json.dumps(document, indent=2) + '\n').encode())


def published(made: pathlib.Path, out: Any) -> None:
  """Copies the files of a flat folder of this machine to a place."""
  for file in sorted(made.iterdir()):
    put(out / file.name, file.read_bytes())


def copied(source: Any, target: Any) -> None:
  """Copies a folder with all that is in it."""
  for entry in source.iterdir():
    if entry.is_dir():
      copied(entry, target / entry.name)
    else:
      put(target / entry.name, entry.read_bytes())


def fetched_folder(cache: pathlib.Path, content: str) -> pathlib.Path:
  """Returns where content of this hash lies on this machine once it was fetched."""
  return cache / 'fetched' / content[:32]


def fetched(address: str, cache: pathlib.Path, content: str) -> pathlib.Path:
  """Returns a folder of this machine with what lies at an address; `content` is its hash, and it is fetched once.

  Raises:
    OSError: it cannot be read, or the disk is full.
  """
  here = fetched_folder(cache, content)
  if here.exists():
    return here
  here.parent.mkdir(parents=True, exist_ok=True)
  part = pathlib.Path(tempfile.mkdtemp(dir=here.parent, prefix='.part-'))
  try:
    copied(epath.Path(address), part)
    try:
      part.rename(here)
    except OSError:  # another process was quicker
      if not here.exists():
        raise
  finally:
    shutil.rmtree(part, ignore_errors=True)
  return here
