"""A corpus: text as a token array with a card that says what is in it, and batches read from it by index.

A folder holds `tokens` (zarr3), `card.json`, and `tokenizer.json` where one was used. The array is four contiguous
ranges, train, validation, test, vault; every document lies in one of them whole, chosen by a hash. The card is written
last and the folder gets its name after that, so what can be loaded is complete.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import os
import pathlib
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from asiarch_jax import records
from asiarch_jax.batch import Batch
from asiarch_jax.records import Progress
from asiarch_jax.shell import docstrings, text_encoding, text_sources, token_array
from asiarch_jax.shell.text_sources import Document

FORMAT = 1  # version of the folder's layout
SHARES = {'train': 0.88, 'validation': 0.04, 'test': 0.04, 'vault': 0.04}  # of the documents, by hash
CARD, TOKENS, TOKENIZER = 'card.json', 'tokens', 'tokenizer.json'
IN_MEMORY = 256 << 20  # bytes; a smaller array is read whole
REPORT_EVERY = 1 << 20  # bytes of text between two reports of progress


@dataclasses.dataclass(frozen=True)
class Card:
  """What a corpus is. `bytes` are those of the UTF-8 text, an end marker counted as one; splits are [start, stop)."""

  version: int
  source: str
  tokenizer: str  # bytes, or sha256: and the hash of tokenizer.json beside the card
  vocabulary: int
  end: int  # the token after every document
  dtype: str
  tokens: int
  bytes: int
  bytes_per_token: float
  documents: int
  empty: int  # documents without text, left out
  removed_zeros: int  # zero characters taken out of texts: byte 0 ends a document
  splits: dict[str, tuple[int, ...]]
  split_bytes: dict[str, int]
  split_documents: dict[str, int]
  content_hash: str  # sha256 over all tokens and the splits
  sampled_hash: str  # over evenly spaced blocks, checked at every load
  files: dict[str, int]  # bytes of every file of the array
  libraries: dict[str, str]  # versions that docstrings were read from


def split_of(group: str) -> str:
  """Returns the split that documents of `group` belong to: a function of its hash alone, on every machine.

  >>> split_of('numpy.linalg')
  'train'
  """
  draw = int.from_bytes(hashlib.sha256(group.encode('utf-8')).digest()[:8], 'big') / 2**64
  above = itertools.accumulate(SHARES.values())
  return next((name for name, bound in zip(SHARES, above, strict=True) if draw < bound), 'vault')


def docs_folder(cache: str | os.PathLike[str]) -> pathlib.Path:
  """Returns the folder under `cache` where the corpus of the docstrings of these installed versions belongs."""
  what = json.dumps([FORMAT, docstrings.EXTRACTION, docstrings.versions()])
  return pathlib.Path(cache) / 'corpora' / f'docs-{hashlib.sha256(what.encode()).hexdigest()[:12]}'


def prepare(
  source: str,
  out: str | os.PathLike[str],
  *,
  tokenizer: str = text_encoding.BYTES,
  text_field: str = 'text',
  split: str | None = None,
  name: str | None = None,
  limit_bytes: int | None = None,
  on_progress: Callable[[Progress], None] | None = None,
) -> Card:
  """Writes the text of `source` as a corpus at `out` and returns its card.

  The text streams through: memory holds a document and one shard of the array. On a local disk everything is written
  beside `out` under another name first; in a bucket, which cannot rename, the card is written last.

  Args:
    source: docs, a file, a folder, a glob, or hf:NAME_OR_FOLDER[:CONFIG].
    out: a folder that does not exist or is empty; local, gs:// or s3://.
    tokenizer: bytes, or a Hugging Face tokenizers JSON file.
    text_field: the field or column of records that holds the text.
    split: of a Hugging Face data set; train by default.
    name: the config of a Hugging Face data set.
    limit_bytes: no document starts after so much text.
    on_progress: told every MiB of text.

  Raises:
    FileExistsError: something else is at `out`.
    FileNotFoundError: there is no such source.
    ImportError: an optional package is missing; the message names the extra.
    ValueError: the text cannot be read as said, or there is too little of it for four splits.
  """
  token_array.kvstore(os.fspath(out))  # refuses what is no place for arrays
  target = epath.Path(out)
  _refuse_existing(target)
  encoding = text_encoding.encoding(tokenizer)
  if source == 'docs':
    if split is not None or name is not None:
      raise ValueError('split and config belong to Hugging Face sources (hf:NAME), not to docs')
    text = text_sources.Source('docs', docstrings.documents)
    libraries = docstrings.versions()
  else:
    text = text_sources.source(source, text_field=text_field, split=split, name=name)
    libraries = {}
  report = on_progress or (lambda progress: None)
  with _unfinished(target) as folder:
    documents = _limited(text.documents(), limit_bytes)
    counts, hashed = _write_tokens(folder, documents, encoding, lambda done: report(_progress(done, text.bytes)))
    card = _card(folder, text.name, encoding, counts, hashed, libraries)
    if encoding.file is not None:
      (folder / TOKENIZER).write_bytes(encoding.file)
    (folder / CARD).write_text(json.dumps(records.to_json(card), indent=2) + '\n')
    if folder != target:
      _take_name(folder, target, card)
  return card


def _progress(done: int, total: int) -> Progress:
  note = f'{done / 1e6:.1f} MB of text' + (f' of {total / 1e6:.1f}' if total else '')
  return Progress('prepare', note=note)


def _remote(path: epath.Path) -> bool:
  return '://' in os.fspath(path)


def _refuse_existing(target: epath.Path) -> None:
  if (target / CARD).exists():
    raise FileExistsError(f'{target} holds a corpus already; use it, remove it, or choose another folder')
  if not _remote(target) and target.exists() and (not target.is_dir() or any(target.iterdir())):
    raise FileExistsError(f'{target} exists and is not a corpus; choose another folder')


@contextlib.contextmanager
def _unfinished(target: epath.Path) -> Iterator[epath.Path]:
  """Gives the folder to write in, and removes what is left of it after an error.

  Locally that is a hidden neighbour of `target` named by host and process, so that what a killed process left is known
  as such, and removed, by the next one. In a bucket it is `target` itself, which has no card yet.
  """
  if _remote(target):
    yield target
    return
  target.parent.mkdir(parents=True, exist_ok=True)
  prefix = f'.{target.name}.unfinished-{socket.gethostname()}-'
  for left in target.parent.glob(f'{prefix}*'):
    if not _runs(left.name.removeprefix(prefix).partition('-')[0]):
      shutil.rmtree(left, ignore_errors=True)
  folder = epath.Path(tempfile.mkdtemp(prefix=f'{prefix}{os.getpid()}-', dir=target.parent))
  try:
    os.chmod(folder, 0o777 & ~_umask())
    yield folder
  finally:
    shutil.rmtree(folder, ignore_errors=True)


def _umask() -> int:
  mask = os.umask(0)
  os.umask(mask)
  return mask


def _runs(process: str) -> bool:
  try:
    os.kill(int(process), 0)
  except ProcessLookupError:
    return False
  except (PermissionError, ValueError):
    return True
  return True


def _take_name(folder: epath.Path, target: epath.Path, card: Card) -> None:
  """Renames; where another process was first with the same content, its corpus stands."""
  _flush_to_disk(folder)
  try:
    os.rename(folder, target)
  except OSError as error:
    if not (target / CARD).exists():
      raise
    if read_card(target).content_hash != card.content_hash:
      raise FileExistsError(f'{target}: another process made a different corpus there meanwhile') from error


def _flush_to_disk(folder: epath.Path) -> None:
  """Makes the files durable before the name that vouches for them."""
  for path in [*pathlib.Path(folder).rglob('*'), pathlib.Path(folder)]:
    handle = os.open(path, os.O_RDONLY)
    try:
      os.fsync(handle)
    finally:
      os.close(handle)


def _limited(documents: Iterator[Document], limit_bytes: int | None) -> Iterator[Document]:
  done = 0
  for document in documents:
    if limit_bytes is not None and done >= limit_bytes:
      return
    yield document
    done += len(document.text.encode('utf-8', 'surrogatepass'))


@dataclasses.dataclass
class _Counts:
  tokens: dict[str, int] = dataclasses.field(default_factory=lambda: dict.fromkeys(SHARES, 0))
  bytes: dict[str, int] = dataclasses.field(default_factory=lambda: dict.fromkeys(SHARES, 0))
  documents: dict[str, int] = dataclasses.field(default_factory=lambda: dict.fromkeys(SHARES, 0))
  empty: int = 0
  removed_zeros: int = 0


def _write_tokens(
  folder: epath.Path,
  documents: Iterator[Document],
  encoding: text_encoding.Encoding,
  report: Callable[[int], None],
) -> tuple[_Counts, Any]:
  """Writes the array and returns what was counted, with sha256, still open, over its tokens.

  Training text goes straight into the array; the held-out splits, an eighth of it, wait in files without a name and
  follow at the end.
  """
  counts, digest, done, reported = _Counts(), hashlib.sha256(), 0, 0
  end_1 = np.asarray([encoding.end], encoding.dtype)
  writer = token_array.Writer(os.fspath(folder / TOKENS), encoding.dtype)

  def write(tokens_N: np.ndarray) -> None:
    digest.update(token_array.little_endian(tokens_N))
    writer.append(tokens_N)

  with contextlib.ExitStack() as stack:
    beside = None if _remote(folder) else os.fspath(folder)
    waiting = {name: stack.enter_context(tempfile.TemporaryFile(dir=beside)) for name in SHARES if name != 'train'}
    for document in documents:
      text = document.text.replace('\0', '')
      counts.removed_zeros += len(document.text) - len(text)
      if not text:
        counts.empty += 1
        continue
      try:
        size = len(text.encode('utf-8'))
        split = split_of(document.group)
      except UnicodeEncodeError as error:
        raise ValueError(
          f'{document.where}: character {error.start} is half of a surrogate pair, which is not UTF-8; mend the text'
        ) from error
      tokens_N = encoding.encode(text)
      if document.last:
        tokens_N = np.concatenate([tokens_N, end_1])
      if split == 'train':
        write(tokens_N)
      else:
        waiting[split].write(token_array.little_endian(tokens_N))
      counts.tokens[split] += len(tokens_N)
      counts.bytes[split] += size + document.last
      counts.documents[split] += document.last
      done += size
      if done - reported >= REPORT_EVERY:
        report(done)
        reported = done
    _require_all_splits(counts)
    little = np.dtype(encoding.dtype).newbyteorder('<')
    for file in waiting.values():
      file.seek(0)
      while block := file.read(text_sources.BLOCK):
        write(np.frombuffer(block, little))
  writer.close()
  report(done)
  return counts, digest


def _require_all_splits(counts: _Counts) -> None:
  documents = sum(counts.documents.values())
  if not documents:
    raise ValueError(f'the source holds no text ({counts.empty} empty documents)')
  missing = [name for name in SHARES if not counts.documents[name]]
  if missing:
    shares = ', '.join(f'{name} {share:.0%}' for name, share in SHARES.items())
    raise ValueError(
      f'{documents} documents are too few, or too much alike, to divide ({shares}): '
      f'none fell to {" and ".join(missing)}; give 200 documents or more, '
      'or one text file of 100 kB or more, which is cut into documents'
    )


def _card(
  folder: epath.Path,
  source: str,
  encoding: text_encoding.Encoding,
  counts: _Counts,
  digest: Any,
  libraries: dict[str, str],
) -> Card:
  """Returns the card of the array that was written, read back for its sampled hash."""
  ends = list(itertools.accumulate(counts.tokens.values()))
  splits: dict[str, tuple[int, ...]] = dict(zip(SHARES, itertools.pairwise([0, *ends]), strict=True))
  store = token_array.opened(os.fspath(folder / TOKENS))
  tokens, size = ends[-1], sum(counts.bytes.values())
  if store.shape != (tokens,):
    raise ValueError(f'{folder}: {tokens} tokens were written and the array has {store.shape[0]}; is the disk full?')
  return Card(
    version=FORMAT,
    source=source,
    tokenizer=encoding.name,
    vocabulary=encoding.vocabulary,
    end=encoding.end,
    dtype=encoding.dtype,
    tokens=tokens,
    bytes=size,
    bytes_per_token=size / tokens,
    documents=sum(counts.documents.values()),
    empty=counts.empty,
    removed_zeros=counts.removed_zeros,
    splits=splits,
    split_bytes=counts.bytes,
    split_documents=counts.documents,
    content_hash=_content_hash(digest, splits),
    sampled_hash=token_array.sampled_hash(store),
    files=_array_files(folder),
    libraries=libraries,
  )


def _content_hash(digest: Any, splits: Mapping[str, Sequence[int]]) -> str:
  digest = digest.copy()
  digest.update(json.dumps({name: list(bounds) for name, bounds in splits.items()}).encode())
  return digest.hexdigest()


def _array_files(folder: epath.Path) -> dict[str, int]:
  root = folder / TOKENS
  if not root.exists():
    return {}
  return {str(path.relative_to(root)): _size(path) for path in text_sources.files_under(root)}


def _size(path: epath.Path) -> int:
  # A local file's owner need not have a name here (a jail's user has none), and epath asks for it.
  return path.stat().length if _remote(path) else os.stat(path).st_size


def read_card(path: str | os.PathLike[str]) -> Card:
  """Returns the card of the corpus at `path`, without a look at the array.

  Raises:
    FileNotFoundError: there is no corpus.
    ValueError: the card is of another version, or is not a card.
  """
  folder = epath.Path(path)
  if not (folder / CARD).exists():
    why = 'has no card.json: not a corpus, or one that was never finished' if folder.exists() else 'no such folder'
    raise FileNotFoundError(f'{folder}: {why}; make one with: asiarch prepare SOURCE --out={folder}')
  try:
    body = json.loads((folder / CARD).read_text())
    version = body['version']
  except (ValueError, KeyError, TypeError) as error:
    raise ValueError(
      f'{folder / CARD} is not a card ({type(error).__name__}: {error}); prepare the corpus again'
    ) from error
  if version != FORMAT:
    raise ValueError(
      f'{folder} has format version {version!r} and this program reads {FORMAT}; prepare the corpus again, '
      'or use the program that wrote it'
    )
  try:
    card = records.from_json(Card, body)
  except ValueError as error:
    raise ValueError(f'{folder / CARD}: {error}; prepare the corpus again') from error
  ends = [0, *(card.splits.get(name, (0, -1))[-1] for name in SHARES)]
  expected = dict(zip(SHARES, itertools.pairwise(ends), strict=True))
  if card.splits != expected or ends != sorted(ends) or ends[-1] != card.tokens:
    raise ValueError(
      f'{folder / CARD}: splits {card.splits} do not divide {card.tokens} tokens; prepare the corpus again'
    )
  return card


def load(path: str | os.PathLike[str], *, verify: bool = False) -> Corpus:
  """Returns the corpus at `path`, after checking that the array is the one that its card describes.

  Always: size of every file, shape, type, and a hash of evenly spaced blocks. With `verify`: every token.

  Raises:
    FileNotFoundError: there is no corpus.
    ValueError: card and array disagree; the message says in what.
  """
  folder = epath.Path(path)
  card = read_card(folder)
  again = 'it was truncated, changed or not copied whole; prepare it again, or copy it again'
  found = _array_files(folder)
  for name in sorted(card.files.keys() | found.keys()):
    if card.files.get(name) != found.get(name):
      ours, theirs = (
        ('no file' if size is None else f'{size} bytes') for size in (found.get(name), card.files.get(name))
      )
      raise ValueError(f'{folder / TOKENS / name}: {ours}, and the card says {theirs}: {again}')
  try:
    store = token_array.opened(os.fspath(folder / TOKENS))
    if store.shape != (card.tokens,) or store.dtype.name != card.dtype:
      raise ValueError(
        f'{store.shape[0]} tokens of {store.dtype.name}, and the card says {card.tokens} of {card.dtype}'
      )
    if token_array.sampled_hash(store) != card.sampled_hash:
      raise ValueError('the tokens are not those that the card was written for (sampled)')
    if verify and _content_hash(token_array.full_hash(store), card.splits) != card.content_hash:
      raise ValueError('the tokens are not those that the card was written for')
  except ValueError as error:
    raise ValueError(f'{folder}: {error}: {again}') from error
  if TOKENIZER in {file.name for file in folder.iterdir()}:
    name = f'sha256:{hashlib.sha256((folder / TOKENIZER).read_bytes()).hexdigest()}'
    if name != card.tokenizer:
      raise ValueError(f'{folder / TOKENIZER} is not the tokenizer of the card: {again}')
  elif card.tokenizer != text_encoding.BYTES:
    raise ValueError(f'{folder / TOKENIZER} is missing: {again}')
  return Corpus(folder, card, store)


class Corpus:
  """A loaded corpus. Everything that it gives is a function of the arguments: reading changes nothing."""

  def __init__(self, path: epath.Path, card: Card, store: Any):
    self.path, self.card, self._store = path, card, store
    self._orders: dict[tuple[int, int], Any] = {}

  @property
  def bytes_per_token(self) -> float:
    """Bytes of text that a token stands for, over the whole corpus; 1 for byte tokens."""
    return self.card.bytes_per_token

  def split_bytes_per_token(self, split: str) -> float:
    """Returns the bytes of text that a token of this split stands for."""
    start, stop = self._bounds(split)
    return self.card.split_bytes[split] / (stop - start)

  @functools.cached_property
  def _memory(self) -> np.ndarray | None:
    small = self.card.tokens * np.dtype(self.card.dtype).itemsize <= IN_MEMORY
    return self._store.read().result() if small else None

  def training_windows(self, length: int) -> int:
    """Returns how many windows of `length` tokens an epoch has. Windows do not overlap but for the last target."""
    start, stop = self._bounds('train')
    return max((stop - start - 1) // length, 0)

  def training_batch(
    self, step: int, seeds: Sequence[int], batch: int, length: int, *, rows: slice = slice(None)
  ) -> Batch:
    """Returns numpy int32 [S, B, T] tokens and targets, with weights of one, of training step `step`.

    Every seed has its own order of the windows, drawn anew each epoch; row b of step i is the window at place
    i * batch + b, so no window comes twice before all have come, except in a batch that spans two epochs. A host that
    feeds a part of the rows asks for it with `rows`: the rows are those of the whole batch, whatever the hosts.

    Raises:
      ValueError: the training split has fewer windows than a batch has rows, or a seed is not in [0, 2^32).
    """
    count = self.training_windows(length)
    if count < batch:
      raise ValueError(
        f'{self.path}: the training split has {count} windows of {length} tokens, fewer than a batch of {batch}; '
        'use a larger corpus, or lower training.length or training.batch'
      )
    places = range(batch)[rows]
    orders = [self._order(seed, length, count) for seed in seeds]
    starts = [[order[step * batch + place] * length for place in places] for order in orders]
    windows = self._windows(np.asarray(starts, np.int64).reshape(-1) + self._bounds('train')[0], length + 1)
    return _as_batch(windows.reshape(len(seeds), len(places), length + 1))

  def windows(self, split: str, count: int, length: int, batch: int) -> Iterator[Batch]:
    """Yields `count` fixed windows of a split, evenly spaced from its start to its end, in batches [batch, length].

    The windows do not overlap. They are the same at every call.

    Raises:
      ValueError: the split is too short for so many, or `batch` does not divide `count`.
    """
    start, stop = self._bounds(split)
    if count % batch:
      raise ValueError(f'a batch of {batch} does not divide {count} windows; change one of them')
    if stop - start < count * length + 1:
      raise ValueError(
        f'{self.path}: {count} windows of {length} tokens need {count * length + 1} tokens and the {split} split '
        f'has {stop - start}; ask for {max((stop - start - 1) // length, 0)} windows at most, or use a larger corpus'
      )
    last = stop - start - length - 1
    starts_N = start + np.arange(count, dtype=np.int64) * last // max(count - 1, 1)
    return (_as_batch(self._windows(starts_N[first : first + batch], length + 1)) for first in range(0, count, batch))

  def _bounds(self, split: str) -> tuple[int, int]:
    if split not in self.card.splits:
      raise ValueError(f'{split!r} is no split of a corpus; it has {", ".join(self.card.splits)}')
    start, stop = self.card.splits[split]
    return start, stop

  def _order(self, seed: int, length: int, count: int) -> Any:
    """Returns the endless order of training windows of a seed, which is read by index."""
    import grain  # brings JAX, which the controller does without

    if (seed, length) not in self._orders:
      if not 0 <= seed < 2**32:
        raise ValueError(f'seed {seed} of a data order is not in [0, 2^32); choose another')
      self._orders[seed, length] = grain.MapDataset.range(count).shuffle(seed=seed).repeat(None)
    return self._orders[seed, length]

  def _windows(self, starts_N: np.ndarray, size: int) -> np.ndarray:
    """Returns int32 [N, size]: the tokens from each start on."""
    if self._memory is not None:
      return self._memory[starts_N[:, None] + np.arange(size)].astype(np.int32)
    pending = [self._store[start : start + size].read() for start in starts_N.tolist()]
    if not pending:
      return np.zeros((0, size), np.int32)
    return np.stack([window.result() for window in pending]).astype(np.int32)


def _as_batch(tokens: np.ndarray) -> Batch:
  """Returns the batch of windows [..., T + 1]: every token but the last, and what follows each."""
  inputs, targets = tokens[..., :-1], tokens[..., 1:]
  return Batch(np.ascontiguousarray(inputs), np.ascontiguousarray(targets), np.ones(inputs.shape, np.float32))
