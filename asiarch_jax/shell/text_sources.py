"""Where text comes from: files of several formats and Hugging Face data sets, as a stream of documents.

Nothing is held but the document at hand. Packages of the `data` extra are imported where they are used.
"""

from __future__ import annotations

import codecs
import dataclasses
import gc
import gzip
import importlib
import itertools
import json
import lzma
import pathlib
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from etils import epath

BLOCK = 1 << 20  # bytes read at a time
PIECES = 512  # a few text files are cut into about this many documents
SMALLEST, LARGEST = 256, 1 << 14  # characters of such a document
FILES = 100  # so many text files are not cut: each is one document
SAMPLED_FILES = 4096  # of whose sizes the total is made, for the display
COMPRESSED = ('.gz', '.xz', '.zst')
TEXT = ('.txt', '.md', '.rst', '.text')
JSON_LINES = ('.jsonl', '.ndjson')
FORMATS = {'text': TEXT, 'JSON lines': JSON_LINES, 'parquet': ('.parquet',), 'ArrayRecord': ('.array_record',)}


class Document(NamedTuple):
  """A text. All texts of one group go to the same split; `last` says that an end marker follows."""

  group: str
  text: str
  where: str
  last: bool = True


@dataclasses.dataclass(frozen=True)
class Source:
  """A stream of documents. `bytes` is their size where it is known beforehand, else 0."""

  name: str
  documents: Callable[[], Iterator[Document]]
  bytes: int = 0


def source(where: str, *, text_field: str, split: str | None, name: str | None) -> Source:
  """Returns the source that `where` names: `hf:DATA_SET[:CONFIG]`, a file, a folder, or a glob.

  Raises:
    FileNotFoundError: nothing is there.
    ImportError: a package of the `data` extra is missing; the message names it.
    ValueError: formats are mixed or unknown. Reading the documents raises it for what is inside.
  """
  if where.startswith('hf:'):
    return _hugging_face(where, text_field, split, name)
  if split is not None or name is not None:
    raise ValueError(f'split and config belong to Hugging Face sources (hf:NAME); {where} is read as files')
  kind, paths = _files(where)
  if kind == 'text':
    return _text(where, paths)
  reader = {'JSON lines': _json_lines, 'parquet': _parquet, 'ArrayRecord': _array_record}[kind]

  def documents() -> Iterator[Document]:
    for path in paths:
      for number, text in reader(path, text_field):
        yield Document(text, text, f'{path}: record {number}')

  return Source(where, documents)


def _needed(module: str, what: str) -> Any:
  try:
    return importlib.import_module(module)
  except ImportError as error:
    package = module.partition('.')[0]
    raise ImportError(
      f"{package} is needed to read {what} and is not installed; pip install 'asiarch-jax[data]'"
    ) from error


def _files(where: str) -> tuple[str, list[epath.Path]]:
  """Returns the format and the files, sorted. A folder's own notes (text beside data files) are left out."""
  path = epath.Path(where)
  if path.exists():
    if not path.is_dir():
      _require_file(path)
      return _format(path) or 'text', [path]
    found = [file for file in files_under(path) if not _hidden(file.relative_to(path).parts)]
  elif re.search(r'[*?\[]', where):
    parts = epath.Path(where).parts
    plain = list(itertools.takewhile(lambda part: not re.search(r'[*?\[]', part), parts))
    root = epath.Path(*plain) if plain else epath.Path('.')
    pattern = '/'.join(parts[len(plain) :])
    matches = root.glob(pattern) if '://' in where else map(epath.Path, pathlib.Path(root).glob(pattern))
    found = [file for file in matches if not file.is_dir()]
  else:
    raise FileNotFoundError(f'{where}: no such file or folder; give docs, a file, a folder, a glob, or hf:NAME')
  if not found:
    raise FileNotFoundError(f'{where}: no files there')
  for file in found:
    _require_file(file)
  by_format: dict[str, list[epath.Path]] = {}
  for file in sorted(found, key=str):
    by_format.setdefault(_format(file), []).append(file)
  data = [kind for kind in by_format if kind not in ('', 'text')]
  if len(data) > 1:
    raise ValueError(f'{where} holds {" and ".join(sorted(data))} files; choose one kind with a glob')
  kind = data[0] if data else 'text'
  if path.exists() and kind not in by_format:
    endings = sorted({file.suffix or file.name for file in found})[:8]
    known = ', '.join(ending for kinds in FORMATS.values() for ending in kinds)
    raise ValueError(
      f'{where} holds no file that is text by its name ({", ".join(endings)}); known: {known}, or a glob'
    )
  chosen = by_format.get(kind, []) + (by_format.get('', []) if not data and not path.exists() else [])
  return kind, sorted(chosen, key=str)


def files_under(folder: epath.Path) -> Iterator[epath.Path]:
  """Yields the files below a folder, by name; works in buckets, where a recursive glob does not."""
  for path in sorted(folder.iterdir(), key=str):
    if path.is_dir():
      yield from files_under(path)
    else:
      yield path


def _require_file(path: epath.Path) -> None:
  if '://' not in str(path) and path.exists() and not pathlib.Path(path).is_file():  # epath calls a pipe a file
    raise ValueError(f'{path} is a pipe or a device, which would be waited for; save what it gives as a file')


def _hidden(parts: tuple[str, ...]) -> bool:
  return any(part.startswith(('.', '__pycache__')) for part in parts)


def _format(path: epath.Path) -> str:
  """Returns the row of FORMATS that a file's name belongs to, or ''. Shards may be numbered after the ending."""
  name = path.name
  for ending in COMPRESSED:
    name = name.removesuffix(ending)
  name = re.sub(r'-\d+-of-\d+$', '', name)
  return next((kind for kind, endings in FORMATS.items() if name.endswith(endings)), '')


def _blocks(path: epath.Path) -> Iterator[bytes]:
  """Yields a file's bytes, unpacked where its name ends in .gz, .xz or .zst."""
  with path.open('rb') as file:
    raw = iter(lambda: file.read(BLOCK), b'')
    yield from _unpacked(path, raw) if path.name.endswith(COMPRESSED) else raw


def _unpacked(path: epath.Path, blocks: Iterator[bytes]) -> Iterator[bytes]:
  suffix = path.suffix
  makers: Mapping[str, Callable[[], Any]] = {
    '.gz': lambda: zlib.decompressobj(wbits=31),
    '.xz': lzma.LZMADecompressor,
    '.zst': lambda: _needed('zstandard', str(path)).ZstdDecompressor().decompressobj(),
  }
  state = None
  try:
    for block in blocks:
      while block:
        state = state or makers[suffix]()
        yield state.decompress(block)
        block = state.unused_data if state.eof else b''
        state = None if state.eof else state
  except (zlib.error, gzip.BadGzipFile, lzma.LZMAError) as error:
    raise ValueError(f'{path}: not a {suffix} file, or damaged ({error})') from error
  except Exception as error:  # zstandard's own error type is known only where it is installed
    if type(error).__name__ != 'ZstdError':
      raise
    raise ValueError(f'{path}: not a {suffix} file, or damaged ({error})') from error
  if state is not None:
    raise ValueError(f'{path}: truncated: the compressed stream has no end; copy it again')


def _decoded(path: epath.Path, blocks: Iterator[bytes]) -> Iterator[str]:
  """Yields text without a leading byte order mark.

  Raises:
    ValueError: bytes that are not UTF-8, or zeros, which no text has; the message has file and offset.
  """
  offset, held = 0, b''
  for block in itertools.chain(blocks, [None]):
    data = held + (block or b'')
    zero = data.find(b'\0')
    if zero >= 0:
      raise ValueError(f'{path}: byte 0 at offset {offset + zero}: not UTF-8 text (UTF-16, or a binary file?)')
    try:
      text, held = data.decode('utf-8'), b''
    except UnicodeDecodeError as error:
      if block is None or error.reason != 'unexpected end of data':
        raise ValueError(
          f'{path}: not UTF-8 at byte {offset + error.start} (0x{data[error.start]:02x}); '
          'convert it, for example with iconv -f latin1 -t utf-8'
        ) from error
      text, held = data[: error.start].decode('utf-8'), data[error.start :]
    if offset == 0:
      text = text.removeprefix(codecs.BOM_UTF8.decode('utf-8'))
    offset += len(data) - len(held)
    if text:
      yield text


def _text(where: str, paths: list[epath.Path]) -> Source:
  """Text files: one document each when there are many, else documents of a size that lets every split have some."""
  total = sum(path.stat().length for path in paths[:SAMPLED_FILES])
  many = len(paths) >= FILES
  size = LARGEST if many else min(max(total // PIECES, SMALLEST), LARGEST)

  def documents() -> Iterator[Document]:
    for path in paths:
      group = ''
      pieces = _pieces(_decoded(path, _blocks(path)), size)
      for text, last in pieces:
        group = group or text  # equal files, and equal pieces, stay together
        yield Document(group if many else text, text, str(path), last or not many)

  packed = any(path.name.endswith(COMPRESSED) for path in paths)
  return Source(where, documents, 0 if packed or len(paths) > SAMPLED_FILES else total)


def _pieces(blocks: Iterator[str], size: int) -> Iterator[tuple[str, bool]]:
  """Yields (text, whether it is the last) cut after a paragraph, a line or a word, each at most `size` characters."""
  held, start = '', 0
  for block in itertools.chain(blocks, ['']):
    held, start = held[start:] + block, 0
    while len(held) - start > size:
      end = _cut(held, start, start + size)
      yield held[start:end], False
      start = end
  if held[start:]:
    yield held[start:], True


def _cut(text: str, start: int, stop: int) -> int:
  for mark in ('\n\n', '\n', ' '):
    at = text.rfind(mark, (start + stop) // 2, stop)
    if at >= 0:
      return at + len(mark)
  return stop


def _field(record: Mapping[str, Any], text_field: str, where: str) -> str:
  """Returns a record's text; None is no text."""
  if text_field not in record:
    raise ValueError(
      f'{where} has no field {text_field!r}; it has {", ".join(map(str, record)) or "none"}: choose with text_field'
    )
  text = record[text_field]
  if isinstance(text, bytes):
    try:
      text = text.decode('utf-8')
    except UnicodeDecodeError as error:
      raise ValueError(f'{where}: field {text_field!r} is not UTF-8 at byte {error.start}') from error
  if text is not None and not isinstance(text, str):
    raise ValueError(f'{where}: field {text_field!r} holds {type(text).__name__}, not text; choose with text_field')
  return text or ''


def _json_lines(path: epath.Path, text_field: str) -> Iterator[tuple[int, str]]:
  for number, line in enumerate(_lines(_blocks(path)), start=1):
    if line.strip():
      where = f'{path}: line {number}'
      try:
        record = json.loads(line)
      except UnicodeDecodeError as error:
        raise ValueError(f'{where}: not UTF-8 at byte {error.start} of the line') from error
      except ValueError as error:
        raise ValueError(f'{where}: not JSON ({error}); truncated?') from error
      if not isinstance(record, dict):
        raise ValueError(f'{where}: a JSON {type(record).__name__}, not an object with a field {text_field!r}')
      yield number, _field(record, text_field, where)


def _lines(blocks: Iterator[bytes]) -> Iterator[bytes]:
  held: list[bytes] = []
  for block in blocks:
    first, *rest = block.split(b'\n')
    held.append(first)
    for line in rest:
      yield b''.join(held)
      held = [line]
  yield b''.join(held)


def _parquet(path: epath.Path, text_field: str) -> Iterator[tuple[int, str]]:
  parquet = _needed('pyarrow.parquet', str(path))
  with path.open('rb') as file:
    try:
      table = parquet.ParquetFile(file)
      names = table.schema_arrow.names
      if text_field not in names:
        _field(dict.fromkeys(names), text_field, str(path))
      rows = itertools.count(1)
      for batch in table.iter_batches(batch_size=256, columns=[text_field]):
        for text in batch.column(0).to_pylist():
          number = next(rows)
          yield number, _field({text_field: text}, text_field, f'{path}: row {number}')
    except _needed('pyarrow', str(path)).ArrowException as error:
      raise ValueError(f'{path}: truncated, or not parquet ({error})') from error


def _array_record(path: epath.Path, text_field: str) -> Iterator[tuple[int, str]]:
  """Records are texts, JSON objects or tf.train.Examples; the first one of the file tells."""
  module = _needed('array_record.python.array_record_module', str(path))
  reader = module.ArrayRecordReader(str(path))
  count = reader.num_records()
  if not count:  # the index stands at the end of the file, so this is what truncation looks like
    raise ValueError(f'{path}: no records: truncated, empty, or not an ArrayRecord file')
  try:
    parse: Callable[[bytes], Mapping[str, Any] | None] | None = None
    for start in range(0, count, 256):
      for number, record in enumerate(reader.read(start, min(start + 256, count)), start=start + 1):
        where = f'{path}: record {number}'
        if number == 1:
          parse = next((parse for parse in (_json_object, _example) if parse(record) is not None), None)
        fields = parse(record) if parse else {text_field: record}
        if fields is None:
          raise ValueError(f'{where}: another kind of record than the first')
        yield number, _field(fields, text_field, where)
  finally:
    reader.close()


def _json_object(record: bytes) -> Mapping[str, Any] | None:
  if not record.lstrip().startswith(b'{'):
    return None
  try:
    return json.loads(record)
  except ValueError:
    return None


def _example(record: bytes) -> Mapping[str, Any] | None:
  """Returns the byte features of a serialised tf.train.Example, first value of each; None if it is not one.

  Example.features = 1, Features.feature = 1 (map: key = 1, value = 2), Feature.bytes_list = 1, BytesList.value = 1.
  """
  try:
    (features,) = [value for number, value in _protobuf(record) if number == 1]
    found: dict[str, Any] = {}
    for _, entry in _protobuf(features):
      pair = dict(_protobuf(entry))
      lists = list(_protobuf(pair.get(2, b'')))
      values = [value for number, kind in lists if number == 1 for _, value in _protobuf(kind)]
      found[pair[1].decode('utf-8')] = values[0] if values else None
    return found or None
  except (ValueError, KeyError, IndexError):
    return None


def _protobuf(message: bytes) -> Iterator[tuple[int, bytes]]:
  """Yields (field number, bytes) of a message whose fields are all length-delimited."""
  at = 0
  while at < len(message):
    tag, at = _varint(message, at)
    if tag & 7 != 2:
      raise ValueError(f'wire type {tag & 7}')
    size, at = _varint(message, at)
    if at + size > len(message):
      raise ValueError('truncated')
    yield tag >> 3, message[at : at + size]
    at += size


def _varint(message: bytes, at: int) -> tuple[int, int]:
  number = shift = 0
  while True:
    byte = message[at]
    number |= (byte & 127) << shift
    at, shift = at + 1, shift + 7
    if byte < 128:
      return number, at


def _hugging_face(where: str, text_field: str, split: str | None, name: str | None) -> Source:
  """A data set of the hub, or a local folder in its layout, streamed."""
  datasets = _needed('datasets', where)
  repository = where.removeprefix('hf:')
  if not epath.Path(repository).exists() and ':' in repository:
    repository, _, config = repository.rpartition(':')
    if name not in (None, config):
      raise ValueError(f'{where} names the config {config!r} and name = {name!r}; give one of them')
    name = config
  split = split or 'train'
  try:
    stream = datasets.load_dataset(repository, name=name, split=split, streaming=True)
  except (FileNotFoundError, ConnectionError) as error:  # the library's own "not found" and offline errors are these
    raise FileNotFoundError(f'{where}: no such data set here or on the hub, or no network ({error})') from error
  except Exception as error:
    raise ValueError(f'{where} (config {name}, split {split}): {type(error).__name__}: {error}') from error

  def documents() -> Iterator[Document]:
    records: Any = iter(stream)
    try:
      for number in itertools.count(1):
        try:
          record = next(records)
        except StopIteration:
          return
        except Exception as error:
          raise ValueError(f'{where}: record {number}: {type(error).__name__}: {error}') from error
        text = _field(record, text_field, f'{where}: record {number}')
        yield Document(text, text, f'{where}: record {number}')
    finally:  # Arrow's scanner has threads: one still there when the interpreter ends aborts the process (arrow 45214)
      records.close()
      del records
      gc.collect()

  return Source(f'hf:{repository}' + (f':{name}' if name else '') + f' [{split}]', documents)
