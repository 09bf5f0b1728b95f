"""The files through which controller and worker meet, written by one half and read by the other.

    <job>/job.json, mixer.py    what to do; read only for the worker
    <out>/progress.jsonl        one record a line, appended while the worker runs: display and heartbeat
    <out>/checkpoint/           state to resume from, left to the next worker of the same job
    <out>/arrays.npz            arrays by path, stored plainly
    <out>/result.json           last, by rename: {'result', 'arrays_sha256', 'seal'}

The seal is an HMAC-SHA256 under a secret that the worker is told on its standard input before it loads the proposal: a
result that other code wrote does not carry it. All that comes out of a jail is read as hostile data: no links, no
devices, no pickles, bounded sizes.
"""

from __future__ import annotations

import hashlib
import hmac
import io
import json
import os
import pathlib
import stat
import struct
import tokenize
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from asiarch_jax.records import Job, JobResult, Progress, from_json, to_json

RESULT_BYTES = 16 << 20  # of result.json; 64 replicas with 10,000 losses each take under 8 MiB
ARRAYS_BYTES = 8 << 30  # of arrays.npz; the runner's own limit on what a job writes is usually smaller
LINE_BYTES = 4096  # of one progress line
ARRAY_KINDS = 'biufc'  # numbers only: an object array would be a pickle
CHECKPOINT = 'checkpoint'  # folder in <out>
SEPARATOR = '/'

Path = str | os.PathLike[str]


class ForgedResultError(ValueError):
  """What lies at the place of a result was not written by the worker for this job."""


def write_job(folder: Path, job: Job) -> None:
  """Writes `job` as job.json and mixer.py; `mixer.py` is last, so a folder that has it is complete."""
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  replace(folder / 'job.json', json.dumps(to_json(job)).encode())
  replace(folder / 'mixer.py', job.source.encode())


def read_job(folder: Path) -> Job:
  """Returns the job of a folder, whose mixer.py is the text that is run.

  Raises:
    ValueError: job.json is not a job, or mixer.py is another source than it says.
    OSError: a file cannot be read.
  """
  folder = pathlib.Path(folder)
  try:
    job: Job = from_json(Job, json.loads((folder / 'job.json').read_bytes()))
  except ValueError as error:
    raise ValueError(f'{folder / "job.json"} is not a job: {error}') from error
  # newline='' keeps a carriage return: the source is compared byte for byte.
  source = (folder / 'mixer.py').read_bytes().decode()
  if source != job.source:
    raise ValueError(f'{folder / "mixer.py"} differs from the source in job.json; write the job again')
  return job


def append_progress(out: Path, progress: Progress) -> None:
  """Appends one line to progress.jsonl; its arrival is the worker's heartbeat."""
  with open(os.path.join(out, 'progress.jsonl'), 'ab') as file:
    file.write(json.dumps(to_json(progress)).encode() + b'\n')


def parse_progress(line: bytes) -> Progress | None:
  """Returns the record on a line, or None where there is none: progress is for display and may be nonsense."""
  if len(line) > LINE_BYTES:
    return None
  try:
    return from_json(Progress, json.loads(line))
  except (ValueError, TypeError, OverflowError, RecursionError):
    return None


def by_path(tree: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Returns the arrays of nested mappings by path, sorted: {'params': {'w': x}} gives {'params/w': x}.

  Raises:
    ValueError: a key is empty or contains the separator, so that two trees would share a path.
  """
  flat: dict[str, np.ndarray] = {}

  def walk(node: Any, path: tuple[str, ...]) -> None:
    if not isinstance(node, Mapping):
      flat[SEPARATOR.join(path)] = np.asarray(node)
      return
    for key in sorted(node, key=str):
      name = str(key)
      if not name or SEPARATOR in name or name in ('.', '..'):
        raise ValueError(f'{name!r} under {SEPARATOR.join(path)!r} is no part of a path; rename the parameter')
      walk(node[key], (*path, name))

  walk(tree, ())
  return flat


def nested(arrays: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the tree that `by_path` flattened."""
  tree: dict[str, Any] = {}
  for path, array in arrays.items():
    *parents, name = path.split(SEPARATOR)
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[name] = array
  return tree


def write_result(out: Path, result: JobResult, arrays: Mapping[str, Any], secret: str) -> None:
  """Writes arrays.npz and, last and by rename, the sealed result.json.

  Raises:
    ValueError: an array holds other things than numbers.
  """
  out = pathlib.Path(out)
  packed = pack(arrays)
  replace(out / 'arrays.npz', packed)
  body = {'result': to_json(result), 'arrays_sha256': hashlib.sha256(packed).hexdigest()}
  replace(out / 'result.json', json.dumps({**body, 'seal': seal(body, secret)}).encode())


def read_result(out: Path, secret: str) -> tuple[JobResult, str]:
  """Returns a sealed result and the hash of the arrays that belong to it.

  Raises:
    FileNotFoundError: there is no result.
    ForgedResultError: the file is a link, a device, too large, not JSON, not a result, or its seal is not the worker's.
  """
  data = read_untrusted(os.path.join(out, 'result.json'), RESULT_BYTES)
  try:
    document = json.loads(data)
  except (ValueError, RecursionError) as error:
    raise ForgedResultError(f'result.json is not JSON: {error}') from error
  if not isinstance(document, dict) or set(document) != {'result', 'arrays_sha256', 'seal'}:
    raise ForgedResultError('result.json does not consist of result, arrays_sha256 and seal')
  claimed = document.pop('seal')
  try:
    sealed = isinstance(claimed, str) and hmac.compare_digest(claimed.encode(), seal(document, secret).encode())
  except (ValueError, RecursionError) as error:  # half a character, or depths that are read and not written again
    raise ForgedResultError(f'result.json cannot be sealed: {type(error).__name__}') from error
  if not sealed:
    raise ForgedResultError("the seal of result.json is not the worker's")
  try:
    return from_json(JobResult, document['result']), str(document['arrays_sha256'])
  except (ValueError, TypeError, AttributeError, OverflowError) as error:
    raise ForgedResultError(f'result.json is sealed, yet no result: {error}') from error


def seal(body: Mapping[str, Any], secret: str) -> str:
  """Returns the HMAC-SHA256, in hex, of the canonical JSON of `body` under a secret in hex."""
  canonical = json.dumps(body, sort_keys=True, separators=(',', ':')).encode()
  return hmac.new(bytes.fromhex(secret), canonical, hashlib.sha256).hexdigest()


def pack(arrays: Mapping[str, Any]) -> bytes:
  """Returns the bytes of an .npz of number arrays: the same bytes for the same arrays.

  Types that .npy cannot say (bfloat16, float8) are widened to float32, which holds all their values.

  Raises:
    ValueError: an array holds other things than numbers.
  """
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, 'w', zipfile.ZIP_STORED) as archive:
    for path in sorted(arrays):
      array = np.asarray(arrays[path])
      if array.dtype.kind == 'V' or array.dtype.name.startswith(('bfloat', 'float8', 'float4')):
        array = array.astype(np.float32)
      if array.dtype.kind not in ARRAY_KINDS:
        raise ValueError(f'array {path!r} has dtype {array.dtype}; store numbers or booleans')
      member = io.BytesIO()
      np.lib.format.write_array(member, np.ascontiguousarray(array).reshape(array.shape), allow_pickle=False)
      # A fixed date: the hash of a result depends on its content only.
      archive.writestr(zipfile.ZipInfo(f'{path}.npy'), member.getvalue())
  return buffer.getvalue()


def unpack(data: bytes) -> dict[str, np.ndarray]:
  """Returns the arrays by path, of at most the size of `data` and without running anything that it says.

  Raises:
    ForgedResultError: a member is compressed (a bomb would unfold), no .npy file, a pickle, or shorter than its shape.
  """
  arrays: dict[str, np.ndarray] = {}
  try:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
      for entry in archive.infolist():
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > len(data):
          raise ForgedResultError(f'{entry.filename!r} of arrays.npz is compressed; store it plainly')
        path = entry.filename.removesuffix('.npy')
        if path == entry.filename or path in arrays:
          raise ForgedResultError(f'{entry.filename!r} of arrays.npz is no .npy file, or is there twice')
        arrays[path] = _array(path, archive.read(entry))
  except ForgedResultError:
    raise
  except (zipfile.BadZipFile, EOFError, KeyError, RuntimeError, OverflowError, ValueError, struct.error) as error:
    raise ForgedResultError(f'arrays.npz cannot be read: {error}') from error
  return arrays


def _array(path: str, member: bytes) -> np.ndarray:
  stream = io.BytesIO(member)
  try:
    version = np.lib.format.read_magic(stream)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read_header(stream)
  except (
    *(ValueError, TypeError, KeyError, IndexError, AttributeError),
    *(SyntaxError, tokenize.TokenError, RecursionError, MemoryError),
  ) as error:
    raise ForgedResultError(f'array {path!r} has no .npy header: {type(error).__name__}') from error
  if dtype.kind not in ARRAY_KINDS:
    raise ForgedResultError(f'array {path!r} has dtype {dtype}, which is not a number')
  body = member[stream.tell() :]
  size = dtype.itemsize
  for axis in shape:
    if isinstance(axis, bool) or axis < 0:
      raise ForgedResultError(f'array {path!r} has shape {shape}')
    size *= axis
  if size != len(body):
    raise ForgedResultError(f'array {path!r} of shape {shape} and {dtype} takes {size} bytes and has {len(body)}')
  return np.frombuffer(body, dtype).reshape(shape, order='F' if fortran else 'C')


def read_untrusted(path: Path, limit: int) -> bytes:
  """Returns the content of a regular file that an untrusted process may have put there.

  Raises:
    FileNotFoundError: nothing is there.
    ForgedResultError: it is a link, a folder, a pipe or a device, has other names, or more than `limit` bytes.
  """
  name = os.path.basename(path)
  try:
    # O_NONBLOCK: opening a pipe that nobody writes to would wait for ever.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
  except FileNotFoundError:
    raise
  except OSError as error:
    raise ForgedResultError(f'{name} is not a plain file that can be read: {error.strerror}') from error
  try:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
      raise ForgedResultError(f'{name} is not a plain file with one name')
    if status.st_size > limit:
      raise ForgedResultError(f'{name} has {status.st_size} bytes, more than {limit}')
    with open(descriptor, 'rb', closefd=False) as file:
      data = file.read(limit + 1)
  finally:
    os.close(descriptor)
  if len(data) > limit:
    raise ForgedResultError(f'{name} has more than {limit} bytes')
  return data


def replace(path: Path, data: bytes) -> None:
  """Writes a file so that a reader, or a crash, sees the old content or the whole of the new."""
  path = pathlib.Path(path)
  temporary = path.with_name(f'.{path.name}.{os.getpid()}')
  with open(temporary, 'wb') as file:
    file.write(data)
    file.flush()
    os.fsync(file.fileno())
  os.replace(temporary, path)
