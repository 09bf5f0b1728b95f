"""What `asiarch evaluate` measured, kept beside the archive: WORKDIR/zero_shot/00000012.json, one file an entry.

An archive's outcomes are never changed, and an entry may be asked again and again: by other tasks, longer, after years.
"""

from __future__ import annotations

import dataclasses
import json
import os

from asiarch_jax.records import ZeroShot, from_json, to_json
from asiarch_jax.shell import places

FOLDER = 'zero_shot'  # in the workdir


def keep(workdir: str | os.PathLike[str], result: ZeroShot) -> None:
  """Writes a result beside those of earlier calls; a metric that was measured alike before is replaced."""
  folder = places.folder(workdir) / FOLDER
  fresh = {(score.task, score.metric) for score in result.scores}
  kept = []
  for other in of(workdir, result.entry):
    if other.conditions == result.conditions:
      old = tuple(score for score in other.scores if (score.task, score.metric) not in fresh)
      result = dataclasses.replace(result, scores=(*old, *result.scores))
    else:
      kept.append(other)
  body = [to_json(one) for one in (*kept, result)]
  places.put(folder / f'{result.entry:08d}.json', json.dumps(body, indent=1).encode())


def of(workdir: str | os.PathLike[str], entry: int) -> list[ZeroShot]:
  """Returns what an entry was measured at, one record for each limit, length and version of the harness.

  Raises:
    ValueError: the file was damaged, or written by another version.
  """
  path = places.folder(workdir) / FOLDER / f'{entry:08d}.json'
  try:
    return [from_json(ZeroShot, one) for one in json.loads(path.read_bytes())]
  except FileNotFoundError:
    return []
  except (ValueError, TypeError) as error:
    raise ValueError(f'{path} cannot be read: {error}; delete it, the entry can be evaluated again') from error


def every(workdir: str | os.PathLike[str]) -> list[ZeroShot]:
  """Returns what all entries were measured at, by entry."""
  paths = sorted((places.folder(workdir) / FOLDER).glob('[0-9]*.json'), key=str)
  return [one for path in paths if path.stem.isdecimal() for one in of(workdir, int(path.stem))]
