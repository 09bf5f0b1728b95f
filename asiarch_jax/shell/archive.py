"""The archive on disk or in a bucket: one atomic Orbax step an outcome, and an index that makes opening quick.

    WORKDIR/archive/header.json           schema version, experiment, corpus hash: what this archive belongs to
    WORKDIR/archive/writer.lock           who may append
    WORKDIR/archive/outcomes/00000012/    the truth: one Orbax step, `record` (JSON) and `arrays` (one packed leaf)
    WORKDIR/archive/index/00000003.gz     a cache of records, at most SEGMENT of them, gzipped JSON lines

Orbax makes a step visible at once or not at all, so a killed writer leaves what it appended and a temporary folder,
which readers pass over and the next writer removes. Arrays are packed into a single leaf of bytes, since Orbax pays by
the leaf. Segments of the index are written whole under a new name and never changed: appending costs the same at any
size, opening reads few files, and nothing depends on renaming, which object stores cannot do. A damaged or missing
segment costs time only: its records are read from their steps again.

Only appending, and reading a step that no segment holds yet, import Orbax and with it JAX. A process that appends
initialises a JAX backend: on an accelerator host, start the controller with JAX_PLATFORMS=cpu so that it does not take
the device from its workers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import gzip
import hashlib
import json
import logging
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes  # noqa: F401  # gives numpy the names bfloat16 and float8_*
import numpy as np
from etils import epath

from asiarch_jax import config, records
from asiarch_jax.shell.writer_lock import WriterLock

SEGMENT = 100  # records that one file of the index holds at most
FOLDER = 'archive'
_STEP = re.compile(r'\d{8,}')
_COMMIT = 'commit_success.txt'  # written last by Orbax, on object stores too
_MAY_HOLD = 'biufc'  # numpy kinds that travel as bytes; bfloat16 and its like have kind V and a name


@dataclasses.dataclass(frozen=True)
class Header:
  """What an archive belongs to: the experiment and the content hash of the corpus it was begun with."""

  experiment: config.Experiment
  corpus: str


class OrbaxArchive:
  """Append-only outcomes with their arrays, as `ports.Archive` says. Made by `open`; close it, or use it in a `with`.

  Exactly one process may append (`read_only=False`); any number may read at the same time.
  """

  def __init__(
    self, folder: epath.Path, experiment: config.Experiment, lock: WriterLock | None, segment: int = SEGMENT
  ):
    self.experiment = experiment
    self._folder = folder
    self._segment = segment
    self._lock = lock
    self._records: dict[int, records.Outcome] = {}
    self._tail: dict[int, str] = {}  # JSON of the records that no full segment holds
    self._partial: list[epath.Path] = []  # segments that the next one replaces
    self._serial = 0  # of the next segment
    self._steps: Any = None

  @classmethod
  def open(
    cls,
    workdir: str | os.PathLike[str],
    experiment: config.Experiment,
    corpus_hash: str,
    *,
    create: bool = True,
    read_only: bool = False,
    segment: int = SEGMENT,
  ) -> OrbaxArchive:
    """Returns the archive of `workdir` (a folder or gs://...), begun if there is none and `create` says so.

    `segment` is the number of records that a file of the index holds; any number reads what another wrote.

    Raises:
      ValueError: the archive holds another experiment (named: the keys and both values), another corpus or schema,
        or is damaged (named: the step).
      FileNotFoundError: there is none, and it may not be begun.
      BlockingIOError: another process is its writer (named: its pid).
      OSError: the folder cannot be written.
    """
    folder = _absolute(workdir) / FOLDER
    if read_only:
      archive = cls(folder, experiment, None)
      _agree(read_header(workdir), Header(experiment, corpus_hash), folder)
      archive._read()
      return archive
    if not create and not (folder / 'header.json').exists():
      raise _no_archive(workdir)
    try:
      for part in ('outcomes', 'index'):
        (folder / part).mkdir(parents=True, exist_ok=True)
      lock = WriterLock(folder / 'writer.lock')
    except BlockingIOError:
      raise
    except OSError as error:
      raise type(error)(error.errno, f'{workdir} cannot hold an archive; name a folder that can be written') from error
    archive = cls(folder, experiment, lock, segment)
    try:
      archive._begin(Header(experiment, corpus_hash))
      archive._clean()
      archive._read()
    except BaseException:
      lock.release()
      raise
    return archive

  @classmethod
  def open_read_only(cls, workdir: str | os.PathLike[str]) -> OrbaxArchive:
    """Returns the archive of `workdir` for reading, with the experiment it was begun with. Raises as `open` does."""
    header = read_header(workdir)
    return cls.open(workdir, header.experiment, header.corpus, read_only=True)

  def append(self, outcome: records.Outcome, arrays: Mapping[str, Any]) -> None:
    """Stores one outcome atomically: when this returns it is there, when it raises nothing of it is.

    Raises:
      FileExistsError: its id is in the archive.
      ValueError: the archive was opened for reading.
      TypeError: an array is not numeric (named).
      OSError: it could not be written, such as on a full disk.
    """
    if self._lock is None:
      raise ValueError('this archive was opened for reading; open it with read_only=False to append')
    if outcome.id in self._records:
      raise FileExistsError(errno.EEXIST, f'outcome {outcome.id} is in the archive already')
    if outcome.id < 0:
      raise ValueError(f'outcome id {outcome.id} is negative; ids count from 0')
    self._lock.confirm()
    text = _text(outcome)
    blob, layout = pack(arrays)
    body = {'schema': records.SCHEMA, 'outcome': text, 'sha256': _hash(text.encode()), 'layout': layout}
    self._save(outcome.id, body | {'arrays_sha256': _hash(blob.tobytes())}, blob)
    self._records[outcome.id] = outcome
    self._tail[outcome.id] = text
    if len(self._tail) >= self._segment:
      self._compact()

  def outcomes(self) -> tuple[records.Outcome, ...]:
    """Returns all that was appended, by id."""
    return tuple(outcome for _, outcome in sorted(self._records.items()))

  def arrays(self, outcome_id: int) -> Mapping[str, np.ndarray]:
    """Returns the arrays of one outcome by path.

    Raises:
      KeyError: no such id.
      ValueError: the step is damaged (named).
    """
    if outcome_id not in self._records:
      raise KeyError(f'no outcome {outcome_id} in {self._folder}; it holds {len(self._records)}')
    body, blob = self._load(outcome_id, with_arrays=True)
    return unpack(blob, body['layout'])

  def close(self) -> None:
    """Compacts the index and lets the next writer in."""
    if self._lock is None:
      return
    self._compact()
    self._lock.release()
    self._lock = None
    if self._steps is not None:
      self._steps.close()
      self._steps = None

  def __enter__(self) -> OrbaxArchive:
    return self

  def __exit__(self, *_: object) -> None:
    self.close()

  def _begin(self, header: Header) -> None:
    path = self._folder / 'header.json'
    with contextlib.suppress(FileNotFoundError, _TornError):
      _agree(_read_header(path), header, self._folder)
      return
    if self._step_ids():
      raise ValueError(f'{path} is missing or cut short, yet there are outcomes beside it; restore it from a copy')
    body = {'schema': records.SCHEMA, 'corpus': header.corpus, 'experiment': config.as_dict(header.experiment)}
    path.write_text(json.dumps(body, indent=2) + '\n')

  def _clean(self) -> None:
    """Removes what killed writers left: steps that were never committed."""
    folder = self._folder / 'outcomes'
    for path in folder.iterdir() if folder.exists() else ():  # a bucket has no empty folders
      if not _STEP.fullmatch(path.name):
        path.rmtree()

  def _read(self) -> None:
    known, partial = self._read_index()
    present = self._step_ids()
    gone = sorted(known.keys() - present)
    if gone:
      raise ValueError(
        f'the index lists outcome {gone[0]}, but its step {self._step(gone[0])} is gone'
        + (f' ({len(gone)} are)' if len(gone) > 1 else '')
        + f'; restore it from a copy, or delete {self._folder / "index"} to go on without it'
      )
    self._partial = partial
    self._records = {key: _outcome(text, self._step(key)) for key, (text, _) in known.items()}
    self._tail = {key: text for key, (text, full) in known.items() if not full}
    for key in sorted(present - known.keys()):
      if not (self._step(key) / _COMMIT).exists():  # only where a step is no rename away from its temporary folder
        if self._lock is not None:
          self._step(key).rmtree()
        continue
      text = self._load(key, with_arrays=False)[0]['outcome']
      self._records[key] = _outcome(text, self._step(key))
      self._tail[key] = text

  def _read_index(self) -> tuple[dict[int, tuple[str, bool]], list[epath.Path]]:
    """Returns the indexed texts by id, each with whether a full segment holds it, and the segments not full."""
    known: dict[int, tuple[str, bool]] = {}
    partial = []
    folder = self._folder / 'index'
    for path in sorted(folder.iterdir(), key=lambda path: path.name) if folder.exists() else ():
      name = path.name.removesuffix('.gz')
      if not name.isdigit():
        continue
      self._serial = max(self._serial, int(name) + 1)
      try:
        texts = _read_segment(path)
      except (FileNotFoundError, _TornError) as error:  # replaced while we listed, or cut short: the steps have it all
        logging.getLogger(__name__).info('passed over %s of the index: %s', path.name, error)
        texts = {}
      full = len(texts) >= self._segment
      if not full:
        partial.append(path)
      for key, text in texts.items():
        known[key] = (text, full or (key in known and known[key][1]))
    return known, partial

  def _compact(self) -> None:
    """Writes the tail as one segment. The index is a cache: when it cannot be written the archive is still whole."""
    if not self._tail and not self._partial:
      return
    if self._tail and len(self._partial) == 1 and len(self._tail) < self._segment:
      with contextlib.suppress(FileNotFoundError, _TornError):
        if _read_segment(self._partial[0]).keys() == self._tail.keys():
          return
    replaced, written = self._partial, []
    keys = list(self._tail)
    try:
      for start in range(0, len(keys), self._segment):
        part = {key: self._tail[key] for key in keys[start : start + self._segment]}
        path = self._folder / 'index' / f'{self._serial:08d}.gz'
        self._serial += 1
        written.append((path, len(part)))
        path.write_bytes(_segment_bytes(part))
        if len(part) >= self._segment:
          self._tail = {key: text for key, text in self._tail.items() if key not in part}
      for path in replaced:
        path.unlink(missing_ok=True)
    except OSError as error:
      logging.getLogger(__name__).warning(
        'the index of %s was not written (%s); opening will be slower', self._folder, error
      )
    self._partial = [path for path, size in written if size < self._segment] or [p for p in replaced if p.exists()]

  def _step(self, outcome_id: int) -> epath.Path:
    return self._folder / 'outcomes' / f'{outcome_id:08d}'

  def _step_ids(self) -> set[int]:
    folder = self._folder / 'outcomes'
    return {int(path.name) for path in folder.iterdir() if _STEP.fullmatch(path.name)} if folder.exists() else set()

  def _checkpointer(self) -> Any:
    if self._steps is None:
      import orbax.checkpoint as ocp

      self._steps = ocp.Checkpointer(ocp.CompositeCheckpointHandler())
    return self._steps

  def _save(self, outcome_id: int, body: dict[str, Any], blob: np.ndarray) -> None:
    import orbax.checkpoint as ocp

    items: dict[str, Any] = {'record': ocp.args.JsonSave(body)}
    if blob.size:
      items['arrays'] = ocp.args.StandardSave({'bytes': blob})
    step = self._step(outcome_id)
    try:
      with _quiet():
        self._checkpointer().save(step, ocp.args.Composite(**items))
    except Exception as error:  # Orbax and tensorstore each have their own for a full disk; the caller needs one
      with contextlib.suppress(OSError):
        self._clean()
        if step.exists() and not (step / _COMMIT).exists():
          step.rmtree()
      self._steps = None
      number = error.errno if isinstance(error, OSError) and error.errno else errno.EIO
      raise OSError(
        number,
        f'outcome {outcome_id} could not be written to {step.parent} and is not in the archive '
        f'({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ""}); '
        'free space or restore the right to write there, then run the same command again',
      ) from error

  def _load(self, outcome_id: int, *, with_arrays: bool) -> tuple[dict[str, Any], np.ndarray]:
    import orbax.checkpoint as ocp

    step, empty = self._step(outcome_id), np.zeros(0, np.uint8)
    items: dict[str, Any] = {'record': ocp.args.JsonRestore()}
    try:
      if with_arrays and (step / 'arrays').exists():
        items['arrays'] = ocp.args.StandardRestore()
      with _quiet():
        restored = self._checkpointer().restore(step, ocp.args.Composite(**items))
      body = restored['record']
      if body['schema'] != records.SCHEMA:
        raise ValueError(f'it has schema {body["schema"]}, not {records.SCHEMA}')
      if _hash(body['outcome'].encode()) != body['sha256']:
        raise ValueError('its record is not what was written')
      blob = np.asarray(restored['arrays']['bytes']) if 'arrays' in items else empty
      if with_arrays and _hash(blob.tobytes()) != body['arrays_sha256']:
        raise ValueError('its arrays are not what was written')
    except Exception as error:  # whatever the formats below make of damaged bytes
      reason = str(error).splitlines()[0] if str(error) else type(error).__name__
      raise ValueError(
        f'the archive step {step} is damaged ({reason}); restore it from a copy, '
        f'or delete it and {self._folder / "index"} to go on without outcome {outcome_id}'
      ) from error
    return body, blob


def read_header(workdir: str | os.PathLike[str]) -> Header:
  """Returns what the archive of `workdir` belongs to, so that it can be opened without its config file.

  Raises:
    FileNotFoundError: there is none.
    ValueError: it was written with another schema, or is damaged.
  """
  path = _absolute(workdir) / FOLDER / 'header.json'
  try:
    return _read_header(path)
  except FileNotFoundError:
    raise _no_archive(workdir) from None


def _no_archive(workdir: str | os.PathLike[str]) -> FileNotFoundError:
  return FileNotFoundError(
    errno.ENOENT, f'there is no archive in {os.fspath(workdir)}; begin one with `asiarch search --workdir=...`'
  )


def _read_header(path: epath.Path) -> Header:
  written = path.read_bytes()
  try:
    body = json.loads(written)
    schema, corpus, experiment = body['schema'], body['corpus'], body['experiment']
  except (KeyError, TypeError, ValueError) as error:
    raise _TornError(f'{path} is damaged ({error}); restore it from a copy') from error
  if schema != records.SCHEMA:
    raise ValueError(
      f'{path.parent} was written with schema {schema}, this program reads {records.SCHEMA}; '
      'use the version that wrote it, or another workdir'
    )
  try:
    return Header(config.from_dict(experiment), corpus)
  except ValueError as error:
    raise ValueError(f'{path} has settings that this version does not take: {error}') from error


def _agree(theirs: Header, ours: Header, folder: epath.Path) -> None:
  differences = config.differences(ours.experiment, theirs.experiment)
  if differences:
    named = '; '.join(f'{key} is {old!r} there and {new!r} here' for key, (new, old) in differences.items())
    raise ValueError(
      f'{folder} holds another experiment: {named}. Use the settings it was begun with, or another workdir'
    )
  if theirs.corpus != ours.corpus:
    raise ValueError(
      f'{folder} was begun on a corpus with content hash {theirs.corpus!r}, the corpus here has {ours.corpus!r}; '
      'bring back the text it was begun with, or use another workdir'
    )


def pack(arrays: Mapping[str, Any]) -> tuple[np.ndarray, list[dict[str, Any]]]:
  """Returns all arrays as one uint8 vector, and where each lies in it: path, dtype, shape, offset.

  Raises:
    TypeError: an array is not numeric (named).
  """
  parts, layout, offset = [], [], 0
  for path, value in arrays.items():
    array = np.asarray(value, order='C')
    if array.dtype.kind not in _MAY_HOLD and not _named(array.dtype):
      raise TypeError(f'array {path!r} has dtype {array.dtype}; the archive holds numbers and booleans only')
    if array.dtype.byteorder == '>':
      array = array.astype(array.dtype.newbyteorder('<'))
    parts.append(array.reshape(-1).view(np.uint8))
    layout.append({'path': path, 'dtype': array.dtype.name, 'shape': list(array.shape), 'offset': offset})
    offset += array.nbytes
  return np.concatenate(parts) if parts else np.zeros(0, np.uint8), layout


def unpack(blob: np.ndarray, layout: list[dict[str, Any]]) -> dict[str, np.ndarray]:
  """Returns the arrays that `pack` made `blob` and `layout` from."""
  arrays = {}
  for item in layout:
    dtype, shape = np.dtype(item['dtype']), tuple(item['shape'])
    size = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
    arrays[item['path']] = blob[item['offset'] : item['offset'] + size].view(dtype).reshape(shape)
  return arrays


def _named(dtype: np.dtype) -> bool:
  try:
    return np.dtype(dtype.name) == dtype and dtype.kind == 'V' and dtype.fields is None and dtype.name != 'void'
  except TypeError:
    return False


def _text(outcome: records.Outcome) -> str:
  return json.dumps(records.to_json(outcome), separators=(',', ':'), sort_keys=True, allow_nan=False)


def _outcome(text: str, step: epath.Path) -> records.Outcome:
  try:
    outcome = records.from_json(records.Outcome, json.loads(text))
  except ValueError as error:
    raise ValueError(f'the record of {step} cannot be read: {error}; was it written by another version?') from error
  if outcome.id != int(step.name):
    raise ValueError(f'{step} holds outcome {outcome.id}; was it moved by hand?')
  return outcome


def _hash(content: bytes) -> str:
  return hashlib.sha256(content).hexdigest()


class _TornError(ValueError):
  """A file that was cut short or altered."""


def _segment_bytes(texts: Mapping[int, str]) -> bytes:
  body = '\n'.join(texts.values()).encode()
  head = json.dumps({'ids': list(texts), 'sha256': _hash(body)}).encode()
  return gzip.compress(head + b'\n' + body, compresslevel=1, mtime=0)


def _read_segment(path: epath.Path) -> dict[int, str]:
  try:
    head_bytes, _, body = gzip.decompress(path.read_bytes()).partition(b'\n')
    head = json.loads(head_bytes)
  except (EOFError, gzip.BadGzipFile, zlib.error, ValueError) as error:
    raise _TornError(f'cannot be read: {error}') from error
  if _hash(body) != head['sha256']:
    raise _TornError('does not match its checksum')
  return dict(zip(head['ids'], body.decode().split('\n'), strict=True))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Keeps Orbax's notes about single steps, sent to absl's logger, out of a terminal."""
  logger = logging.getLogger('absl')
  level = logger.level
  logger.setLevel(max(level, logging.ERROR))
  try:
    yield
  finally:
    logger.setLevel(level)


def _absolute(workdir: str | os.PathLike[str]) -> epath.Path:
  """Returns the folder as Orbax wants it, absolute; an address is one already."""
  path = epath.Path(workdir)
  return epath.Path(os.path.abspath(path)) if _is_local(path) else path


def _is_local(path: epath.Path) -> bool:
  return '://' not in os.fspath(path)
