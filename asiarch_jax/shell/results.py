"""Results of jobs as they are kept, so that none is run twice: <jobs>/<key>/done.json, arrays.npz, lock."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from asiarch_jax import config
from asiarch_jax.records import Job, JobResult, from_json, to_json
from asiarch_jax.shell import jobfolder

_OUTSIDE = ('wall_seconds', 'heartbeat_seconds', 'memory_gib', 'processes', 'file_mib')
CAUSES = {'too_slow': ('seconds_per_step',), 'time': _OUTSIDE, 'memory': _OUTSIDE, 'killed': _OUTSIDE}


def checked_arrays(path: pathlib.Path, sha256: str, limit: int) -> dict[str, Any]:
  data = jobfolder.read_untrusted(path, limit)
  if hashlib.sha256(data).hexdigest() != sha256:
    raise jobfolder.ForgedResultError(f'{path.name} is not the file that the result was sealed with')
  return jobfolder.unpack(data)


def _read_done(folder: pathlib.Path) -> dict[str, Any] | None:
  try:
    done = json.loads((folder / 'done.json').read_bytes())
    return {'result': from_json(JobResult, done['result']), **{k: done[k] for k in ('arrays_sha256', 'limits')}}
  except FileNotFoundError:
    return None
  except (ValueError, KeyError, TypeError):
    return None  # written by another version: the job is run again


def limits_of(job: Job, settings: config.Runner) -> dict[str, float]:
  """Returns the limits that a job runs under."""
  return {
    'wall_seconds': min(job.limits.wall_seconds, settings.wall_seconds),
    'heartbeat_seconds': settings.heartbeat_seconds,
    'memory_gib': settings.memory_gib,
    'processes': settings.processes,
    'file_mib': settings.file_mib,
    'seconds_per_step': math.inf if job.limits.seconds_per_step is None else job.limits.seconds_per_step,
  }


def keep(folder: pathlib.Path, result: JobResult, arrays_sha256: str, limits: Mapping[str, float]) -> None:
  """Keeps the result of a job, whose arrays lie in its folder already, so that it is not run again."""
  kind = result.failure.kind if result.failure is not None else ''
  names = CAUSES.get(kind)
  done = {
    'result': to_json(result),
    'arrays_sha256': arrays_sha256,
    'limits': {name: limits[name] for name in names} if names else None,
  }
  jobfolder.replace(folder / 'done.json', json.dumps(done).encode())


def kept_arrays(jobs: pathlib.Path, key: str) -> Mapping[str, Any]:
  """Returns the arrays that a finished job left, empty when it failed.

  Raises:
    KeyError: no finished job has this key.
    ValueError: the file was changed since.
  """
  done = _read_done(jobs / key)
  if not key or done is None:
    raise KeyError(f'no finished job {key!r} under {jobs}')
  if not done['arrays_sha256']:
    return {}
  return checked_arrays(jobs / key / 'arrays.npz', done['arrays_sha256'], jobfolder.ARRAYS_BYTES)


def stored(folder: pathlib.Path, limits: Mapping[str, float], known: Mapping[str, int]) -> JobResult | None:
  """Returns the result of an earlier run, or None where there is none that holds.

  A failure of too little time or memory, or of steps too slow, holds under its own limits only, that of a function that
  an archive had already only where this one has it: `known`, by fingerprint.
  """
  done = _read_done(folder)
  if done is None or any(limits.get(name) != value for name, value in (done['limits'] or {}).items()):
    return None
  result = done['result']
  if result.failure is not None and result.failure.kind == 'duplicate' and result.fingerprint not in known:
    return None
  return result


@contextlib.contextmanager
def locked(path: pathlib.Path) -> Iterator[None]:
  """Holds an advisory lock, which ends with this process however that ends; waits for another holder."""
  with open(path, 'w') as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    yield
