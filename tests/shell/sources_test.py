"""Each source on a small real file of its format, whole and damaged."""

import gzip
import json
import lzma
import os
import subprocess
import sys

import pytest

from asiarch_jax.shell import docstrings, text_sources

TEXTS = [f'Document {i} says: the quick brown fox — naïve, 日本 — jumps {i * 7919} times.\n' for i in range(40)]


def texts(where, text_field='text', split=None, name=None):
  source = text_sources.source(str(where), text_field=text_field, split=split, name=name)
  return [document.text for document in source.documents()]


def write_json_lines(path, rows, field='text'):
  body = '\n'.join(json.dumps({'id': i, field: text}) for i, text in enumerate(rows)).encode() + b'\n'
  if path.suffix == '.gz':
    body = gzip.compress(body)
  elif path.suffix == '.xz':
    body = lzma.compress(body)
  elif path.suffix == '.zst':
    zstandard = pytest.importorskip('zstandard')
    half = len(body) // 2
    body = b''.join(zstandard.ZstdCompressor().compress(part) for part in (body[:half], body[half:]))  # two frames
  path.write_bytes(body)
  return path


def write_parquet(path, rows, field='text'):
  pa = pytest.importorskip('pyarrow')
  import pyarrow.parquet as pq

  path.parent.mkdir(parents=True, exist_ok=True)
  pq.write_table(pa.table({'id': list(range(len(rows))), field: rows}), path, row_group_size=7)
  return path


def write_array_record(path, rows):
  module = pytest.importorskip('array_record.python.array_record_module')
  writer = module.ArrayRecordWriter(str(path), 'group_size:1')
  for row in rows:
    writer.write(row)
  writer.close()
  return path


def example(**features):
  """A serialised tf.train.Example, written by the wire format's own rules."""

  def field(number, body):
    size, head = len(body), bytearray()
    while True:
      head.append((size & 127) | (128 if size > 127 else 0))
      size >>= 7
      if not size:
        return bytes([number << 3 | 2]) + bytes(head) + body

  entries = b''
  for key, value in features.items():
    feature = field(1, field(1, value)) if isinstance(value, bytes) else field(3, field(1, bytes([value])))
    entries += field(1, field(1, key.encode()) + field(2, feature))
  return field(1, entries)


@pytest.mark.parametrize('ending', ['.jsonl', '.jsonl.gz', '.jsonl.xz', '.jsonl.zst'])
def test_json_lines_are_read_packed_or_not(tmp_path, ending):
  path = write_json_lines(tmp_path / f'a{ending}', TEXTS)
  assert texts(path) == TEXTS
  assert texts(tmp_path) == TEXTS
  assert texts(tmp_path / '*.jsonl*') == TEXTS


@pytest.mark.parametrize('ending', ['.jsonl.gz', '.jsonl.xz', '.jsonl.zst', '.txt.gz'])
def test_a_packed_file_cut_short_is_refused(tmp_path, ending):
  path = write_json_lines(tmp_path / f'a{ending}', TEXTS)
  path.write_bytes(path.read_bytes()[:-9])
  with pytest.raises(ValueError, match=r'truncated|damaged'):
    texts(path)
  path.write_bytes(b'this is not packed at all')
  with pytest.raises(ValueError, match='damaged'):
    texts(path)


def test_parquet_is_read_by_column(tmp_path):
  path = write_parquet(tmp_path / 'a.parquet', TEXTS, 'body')
  assert texts(path, 'body') == TEXTS
  with pytest.raises(ValueError, match=r"no field 'text'; it has id, body"):
    texts(path)
  with pytest.raises(ValueError, match='holds int, not text'):
    texts(path, 'id')


def test_parquet_cut_short_is_refused(tmp_path):
  path = write_parquet(tmp_path / 'a.parquet', TEXTS)
  path.write_bytes(path.read_bytes()[:-20])
  with pytest.raises(ValueError, match='truncated, or not parquet'):
    texts(path)


@pytest.mark.parametrize('kind', ['text', 'json', 'example'])
def test_array_records_hold_text_json_or_examples(tmp_path, kind):
  encode = {
    'text': lambda text: text.encode(),
    'json': lambda text: json.dumps({'text': text}).encode(),
    'example': lambda text: example(label=7, text=text.encode()),
  }[kind]
  write_array_record(tmp_path / 'a-train.array_record-00000-of-00001', map(encode, TEXTS))
  assert texts(tmp_path) == TEXTS


def test_a_real_example_message_is_read_as_tensorflow_wrote_it():
  # tf.train.Example with text=b'hi' and an int64 label, as serialised by protobuf
  message = bytes.fromhex('0a210a0e0a0474657874120 60a040a0268690a0f0a056c6162656c12061a040a020702'.replace(' ', ''))
  assert text_sources._example(message) == {'text': b'hi', 'label': None}


def test_array_record_cut_short_or_other_is_refused(tmp_path):
  path = write_array_record(tmp_path / 'a.array_record', [text.encode() for text in TEXTS])
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  with pytest.raises(ValueError, match=r'no records: truncated'):
    texts(path)
  path = write_array_record(tmp_path / 'b.array_record', [b'{"text": "a"}', b'plain'])
  with pytest.raises(ValueError, match='another kind of record'):
    texts(path)


def hub_folder(root):
  """A folder as the hub lays out a data set: front matter that names the configs, parquet beneath."""
  for config in ('tiny', 'other'):
    rows = [text.replace('Document', config) for text in TEXTS]
    write_parquet(root / 'sample' / config / 'train-00000-of-00002.parquet', rows[:20])
    write_parquet(root / 'sample' / config / 'train-00001-of-00002.parquet', rows[20:])
  rows = '\n'.join(
    f'- config_name: {config}\n  data_files:\n  - split: train\n    path: sample/{config}/*'
    for config in ('tiny', 'other')
  )
  (root / 'README.md').write_text(f'---\nconfigs:\n{rows}\n---\n# Tiny\n')
  return root


HUB = """
import json, sys
from asiarch_jax.shell import text_sources
where, name = sys.argv[1], sys.argv[2] or None
try:
  source = text_sources.source(where, text_field='text', split=None, name=name)
  print(json.dumps([document.text for document in source.documents()]))
except (FileNotFoundError, ValueError) as error:
  print(json.dumps(f'{type(error).__name__}: {error}'))
"""


def from_hub(monkeypatch, tmp_path, where, name=''):
  monkeypatch.setenv('HF_HUB_OFFLINE', '1')
  monkeypatch.setenv('HF_HOME', str(tmp_path / 'home'))
  done = subprocess.run([sys.executable, '-c', HUB, where, name], capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout)


@pytest.mark.slow
def test_a_local_folder_in_the_layout_of_the_hub_streams_offline(monkeypatch, tmp_path):
  pytest.importorskip('datasets')
  root = hub_folder(tmp_path / 'data')
  assert from_hub(monkeypatch, tmp_path, f'hf:{root}:tiny') == [text.replace('Document', 'tiny') for text in TEXTS]
  assert from_hub(monkeypatch, tmp_path, f'hf:{root}', 'other') == [text.replace('Document', 'other') for text in TEXTS]
  assert from_hub(monkeypatch, tmp_path, f'hf:{root}:tiny', 'other').startswith('ValueError')
  assert 'absent' in from_hub(monkeypatch, tmp_path, f'hf:{root}:absent')
  assert from_hub(monkeypatch, tmp_path, f'hf:{tmp_path}/nowhere').startswith('FileNotFoundError')


def test_text_files_lose_nothing_and_cut_at_paragraphs(tmp_path):
  whole = ''.join(text + ('\n' if i % 3 == 0 else '') for i, text in enumerate(TEXTS * 50))
  (tmp_path / 'b.txt').write_text(whole, encoding='utf-8')
  (tmp_path / 'a.md').write_bytes(b'\xef\xbb\xbf' + b'first\n')
  (tmp_path / '.hidden.txt').write_text('no')
  (tmp_path / 'image.png').write_bytes(b'\x89PNG')
  found = texts(tmp_path)
  assert ''.join(found) == 'first\n' + whole
  assert len(found) > 300 and max(map(len, found)) <= text_sources.LARGEST
  assert sum(text.endswith('\n') for text in found) > 0.9 * len(found)


def test_many_text_files_are_one_document_each(tmp_path):
  for i in range(text_sources.FILES):
    (tmp_path / f'{i:03}.txt').write_text(TEXTS[i % 40] * (1 + i % 3 * 400))
  source = text_sources.source(str(tmp_path), text_field='text', split=None, name=None)
  documents = list(source.documents())
  assert sum(document.last for document in documents) == text_sources.FILES < len(documents)
  by_file = {}
  for document in documents:
    by_file.setdefault(document.where, set()).add(document.group)
  assert all(len(groups) == 1 for groups in by_file.values())


@pytest.mark.parametrize('at', [0, 5, text_sources.BLOCK - 1, text_sources.BLOCK + 3])
def test_bytes_that_are_not_utf8_are_named_by_file_and_offset(tmp_path, at):
  path = tmp_path / 'latin.txt'
  path.write_bytes(b'a' * at + b'\xe9' + b'b' * 100)
  with pytest.raises(ValueError, match=rf'latin\.txt: not UTF-8 at byte {at} \(0xe9\)'):
    texts(path)


def test_characters_that_lie_across_two_blocks_are_whole(tmp_path):
  path = tmp_path / 'wide.txt'
  path.write_text('a' + '日' * text_sources.BLOCK, encoding='utf-8')
  assert ''.join(texts(path)) == 'a' + '日' * text_sources.BLOCK
  path.write_bytes(path.read_bytes()[:-1])
  with pytest.raises(ValueError, match='not UTF-8 at byte'):
    texts(path)


def test_utf16_is_not_taken_for_text(tmp_path):
  (tmp_path / 'wide.txt').write_bytes('plain words'.encode('utf-16-le'))
  with pytest.raises(ValueError, match='byte 0 at offset 1'):
    texts(tmp_path / 'wide.txt')


@pytest.mark.parametrize(
  'line, message',
  [
    ('{"text": "a"', r'line 2: not JSON'),
    ('["a"]', r'line 2: a JSON list, not an object'),
    ('{"body": "a"}', r"line 2 has no field 'text'; it has body"),
    ('{"text": 3}', r"line 2: field 'text' holds int"),
    ('{"text": "\xe9"}', r'line 2: not UTF-8 at byte 10'),
  ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
  path = tmp_path / 'a.jsonl'
  path.write_bytes(b'{"text": "fine"}\n' + line.encode('latin-1'))
  with pytest.raises(ValueError, match=message):
    texts(path)


def test_nothing_there_is_said_so(tmp_path):
  with pytest.raises(FileNotFoundError, match='no such file'):
    texts(tmp_path / 'absent.txt')
  with pytest.raises(FileNotFoundError, match='no files there'):
    texts(tmp_path)
  with pytest.raises(FileNotFoundError, match='no files there'):
    texts(tmp_path / '*.txt')
  (tmp_path / 'a.png').write_bytes(b'\x89PNG')
  with pytest.raises(ValueError, match=r'holds no file that is text by its name \(\.png\)'):
    texts(tmp_path)
  with pytest.raises(ValueError, match='belong to Hugging Face'):
    texts(tmp_path / 'a.png', split='train')


def test_a_pipe_is_refused_before_it_is_waited_for(tmp_path):
  os.mkfifo(tmp_path / 'pipe.txt')
  for where in (tmp_path / 'pipe.txt', tmp_path, tmp_path / '*.txt'):
    with pytest.raises(ValueError, match=r'pipe\.txt is a pipe or a device'):
      texts(where)


def test_two_kinds_of_data_in_a_folder_are_refused(tmp_path):
  write_json_lines(tmp_path / 'a.jsonl', TEXTS)
  write_parquet(tmp_path / 'b.parquet', TEXTS)
  (tmp_path / 'README.md').write_text('notes')
  with pytest.raises(ValueError, match='JSON lines and parquet'):
    texts(tmp_path)
  assert texts(tmp_path / '*.jsonl') == TEXTS


def test_a_missing_package_is_named_with_the_extra_that_brings_it():
  with pytest.raises(ImportError, match=r"no_such_package is needed .* pip install 'asiarch-jax\[data\]'"):
    text_sources._needed('no_such_package.reader', 'a.parquet')


def test_docstrings_are_prose_without_repeats_or_sessions_and_import_nothing():
  code = (
    'import sys; from asiarch_jax.shell import docstrings;'
    'import itertools; list(itertools.islice(docstrings.documents(), 40)); print("chex" in sys.modules)'
  )
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  assert done.stdout.strip() == 'False'
  seen = set()
  documents = list(docstrings.documents(['jaxtyping', 'numpy', 'optax', 'tensorstore']))
  for document in documents:
    assert '>>>' not in document.text
    for paragraph in docstrings.PARAGRAPHS.split(document.text.strip()):
      words = ' '.join(paragraph.split())
      assert words and words not in seen
      seen.add(words)
  modules = [document.group for document in documents]
  assert len(set(modules)) > 200 and {'numpy', 'optax._src.alias'} <= set(modules)
  assert sum(len(document.text) for document in documents) > 1.2e6
  assert not any('.tests.' in module for module in modules)
  text = '\n'.join(document.text for document in documents)
  assert text.count(' the ') > 5_000
  assert 'Create an array.' in text  # numpy attaches it to compiled code
  assert docstrings.versions().keys() == docstrings.LIBRARIES.keys()
