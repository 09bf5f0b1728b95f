"""A corpus: complete or not there at all, its splits apart, its batches a function of (seed, step)."""

import collections
import dataclasses
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc

import numpy as np
import pytest
from etils import epath

from asiarch_jax.shell import corpus, text_sources, token_array

LENGTH = 16


def novel(paragraphs=1500, seed=0):
  """Text in which every paragraph says its number, so that what is read tells where it stood."""
  rng = np.random.default_rng(seed)
  words = ['the', 'delta', 'rule', 'writes', 'what', 'is', 'new', 'and', 'keeps', 'the', 'rest', 'as', 'it', 'was']
  return '\n\n'.join(f'[{i:05}] ' + ' '.join(rng.choice(words, 12)) + '.' for i in range(paragraphs))


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  root = tmp_path_factory.mktemp('corpus')
  (root / 'novel.txt').write_text(novel())
  corpus.prepare(str(root / 'novel.txt'), root / 'out')
  return root / 'out'


@pytest.fixture
def copy(made, tmp_path):
  shutil.copytree(made, tmp_path / 'copy')
  return tmp_path / 'copy'


def decoded(tokens):
  return bytes(np.asarray(tokens, np.uint8)).decode('utf-8')


def split_text(text, name):
  start, stop = text.card.splits[name]
  return decoded(text._memory[start:stop])


def test_what_was_written_is_what_is_read(made):
  text = corpus.load(made, verify=True)
  card = text.card
  assert card.tokens == card.bytes == len(novel()) + card.documents
  assert text.bytes_per_token == text.split_bytes_per_token('test') == 1
  documents = [d for name in card.splits for d in split_text(text, name).split('\0')[:-1]]
  assert len(documents) == card.documents == sum(card.split_documents.values())
  assert sorted(documents) == sorted(
    d.text
    for d in text_sources.source(str(made.parent / 'novel.txt'), text_field='text', split=None, name=None).documents()
  )
  assert list(card.splits) == ['train', 'validation', 'test', 'vault']
  assert card.source.endswith('novel.txt') and card.libraries == {}


def test_splits_share_no_document_and_their_sizes_are_about_as_said(made):
  text = corpus.load(made)
  documents = {name: set(split_text(text, name).split('\0')[:-1]) for name in corpus.SHARES}
  for name, mine in documents.items():
    others = set().union(*(theirs for other, theirs in documents.items() if other != name))
    assert mine and not mine & others
  assert 0.8 < text.card.split_documents['train'] / text.card.documents < 0.95


def test_equal_documents_go_to_the_same_split():
  drawn = collections.Counter(corpus.split_of(f'group {i}') for i in range(4000))
  for name, share in corpus.SHARES.items():
    assert abs(drawn[name] / 4000 - share) < 0.02
  assert len({corpus.split_of('numpy.linalg') for _ in range(3)}) == 1


def test_preparing_twice_gives_the_same_content_and_one_token_changes_the_hash(made, tmp_path):
  written = novel()
  (tmp_path / 'same.txt').write_text(written)
  (tmp_path / 'other.txt').write_text(written.replace('[00700]', '[00701]'))
  first = corpus.read_card(made)
  same = corpus.prepare(str(tmp_path / 'same.txt'), tmp_path / 'same')
  assert dataclasses.replace(same, source='') == dataclasses.replace(first, source='')
  other = corpus.prepare(str(tmp_path / 'other.txt'), tmp_path / 'other')
  assert other.tokens == same.tokens and other.content_hash != same.content_hash


def batches(text, steps, seeds=(0, 1), batch=4):
  return [text.training_batch(step, seeds, batch, LENGTH) for step in steps]


def test_a_batch_is_a_function_of_seed_and_step(made):
  text, again = corpus.load(made), corpus.load(made)
  forward = batches(text, range(6))
  backward = batches(again, reversed(range(6)))[::-1]
  for one, other in zip(forward, backward, strict=True):
    np.testing.assert_array_equal(one.tokens, other.tokens)
  alone = text.training_batch(3, [1], 4, LENGTH)
  np.testing.assert_array_equal(alone.tokens[0], forward[3].tokens[1])
  assert (forward[0].tokens[0] != forward[0].tokens[1]).any()
  assert (forward[0].tokens != forward[1].tokens).any()


def test_targets_are_the_next_tokens_of_the_training_split(made):
  text = corpus.load(made)
  batch = text.training_batch(5, [7], 4, LENGTH)
  assert [leaf.shape for leaf in batch] == [(1, 4, LENGTH)] * 3
  assert [leaf.dtype for leaf in batch] == [np.int32, np.int32, np.float32]
  np.testing.assert_array_equal(batch.tokens[..., 1:], batch.targets[..., :-1])
  train = split_text(text, 'train')
  for tokens, targets in zip(batch.tokens[0], batch.targets[0], strict=True):
    assert decoded([*tokens, targets[-1]]) in train
  assert (batch.weights == 1).all()


def test_an_epoch_is_a_permutation_and_the_next_is_another(made):
  text = corpus.load(made)
  count = text.training_windows(LENGTH)
  order = text._order(3, LENGTH, count)
  first, second = ([order[place] for place in range(start, start + count)] for start in (0, count))
  assert sorted(first) == sorted(second) == list(range(count))
  assert first != second
  start, _ = text.card.splits['train']
  rows = np.concatenate([text.training_batch(step, [3], 8, LENGTH).tokens[0] for step in range(count // 8)])
  expected = np.stack([text._memory[start + place * LENGTH :][:LENGTH] for place in first[: len(rows)]])
  np.testing.assert_array_equal(rows, expected)


@pytest.mark.parametrize('hosts', [1, 2, 4, 8])
def test_hosts_that_read_their_rows_read_the_whole_batch_together(made, hosts):
  whole = corpus.load(made).training_batch(9, [0, 5], 8, LENGTH)
  size = 8 // hosts
  parts = [
    corpus.load(made).training_batch(9, [0, 5], 8, LENGTH, rows=slice(host * size, (host + 1) * size))
    for host in range(hosts)
  ]
  for name in whole._fields:
    joined = np.concatenate([getattr(part, name) for part in parts], axis=1)
    np.testing.assert_array_equal(joined, getattr(whole, name))


def test_reading_by_window_gives_what_reading_from_memory_gives(made):
  memory, disk = corpus.load(made), corpus.load(made)
  disk.__dict__['_memory'] = None
  for one, other in zip(memory.windows('test', 4, LENGTH, 2), disk.windows('test', 4, LENGTH, 2), strict=True):
    np.testing.assert_array_equal(one.tokens, other.tokens)
  one, other = (text.training_batch(2, [0, 1], 4, LENGTH) for text in (memory, disk))
  np.testing.assert_array_equal(one.targets, other.targets)
  assert disk.training_batch(2, [0], 4, LENGTH, rows=slice(0, 0)).tokens.shape == (1, 0, LENGTH)


def test_windows_are_even_apart_and_inside_their_split(made):
  text = corpus.load(made)
  start, stop = text.card.splits['vault']
  most = (stop - start - 1) // LENGTH
  rows = np.concatenate([batch.tokens for batch in text.windows('vault', most, LENGTH, 1)])
  assert len(rows) == most
  np.testing.assert_array_equal(rows[0], text._memory[start : start + LENGTH])
  last = next(iter(text.windows('vault', 3, LENGTH, 3)))
  np.testing.assert_array_equal(last.targets[-1], text._memory[stop - LENGTH : stop])
  with pytest.raises(ValueError, match=rf'{most + 1} windows .* ask for {most} windows at most'):
    text.windows('vault', most + 1, LENGTH, 1)
  with pytest.raises(ValueError, match='2 does not divide 3'):
    text.windows('vault', 3, LENGTH, 2)
  with pytest.raises(ValueError, match='no split of a corpus'):
    text.windows('secret', 2, LENGTH, 2)


def test_a_corpus_too_small_for_the_batch_and_seeds_out_of_range_are_refused(made):
  text = corpus.load(made)
  with pytest.raises(ValueError, match='fewer than a batch of 4'):
    text.training_batch(0, [0], 4, text.card.tokens)
  with pytest.raises(ValueError, match=r'seed -1 .* \[0, 2\^32\)'):
    text.training_batch(0, [-1], 4, LENGTH)


def test_batches_are_quick(made):
  text = corpus.load(made)
  text.training_batch(0, range(4), 8, 128)
  began = time.perf_counter()
  for step in range(20):
    text.training_batch(step, range(4), 8, 128)
  assert (time.perf_counter() - began) / 20 < 0.02  # 0.4 ms alone; the bound leaves room for a loaded machine


# What does not load


def shard_of(folder):
  return max((folder / 'tokens' / 'c').iterdir(), key=lambda path: path.stat().st_size)


def test_a_truncated_array_is_refused(copy):
  shard = shard_of(copy)
  shard.write_bytes(shard.read_bytes()[:-1000])
  with pytest.raises(ValueError, match=r'c/0: \d+ bytes, and the card says \d+ bytes: it was truncated'):
    corpus.load(copy)


def test_a_missing_or_added_file_is_refused(copy):
  shard = shard_of(copy)
  shard.rename(shard.with_name('1'))
  with pytest.raises(ValueError, match=r'c/0: no file, and the card says'):
    corpus.load(copy)


def test_changed_bytes_and_changed_tokens_are_refused(copy):
  card = json.loads((copy / 'card.json').read_text())
  store = token_array.ts.open(
    {'driver': 'zarr3', 'kvstore': token_array.kvstore(str(copy / 'tokens'))}, open=True
  ).result()
  store[0].write(np.uint8(255)).result()
  card['files'] = {name: (copy / 'tokens' / name).stat().st_size for name in card['files']}
  (copy / 'card.json').write_text(json.dumps(card))
  with pytest.raises(ValueError, match=r'not those that the card was written for \(sampled\)'):
    corpus.load(copy)
  card['sampled_hash'] = token_array.sampled_hash(store)
  (copy / 'card.json').write_text(json.dumps(card))
  corpus.load(copy)  # what no sample meets only the full hash can see
  with pytest.raises(ValueError, match='not those that the card was written for:'):
    corpus.load(copy, verify=True)


@pytest.mark.parametrize(
  'change, message',
  [
    ({'version': 99}, 'format version 99 and this program reads 1'),
    ({'tokens': 12}, 'do not divide 12 tokens'),
    ({'splits': {'train': [0, 5]}}, 'do not divide'),
    ({'dtype': 'uint16'}, 'the card says .* of uint16'),
    ({'tokenizer': 'sha256:0'}, r'tokenizer\.json is missing'),
    ({'surprise': 1}, "no field 'surprise'"),
  ],
)
def test_a_card_that_does_not_fit_is_refused(copy, change, message):
  card = json.loads((copy / 'card.json').read_text())
  (copy / 'card.json').write_text(json.dumps(card | change))
  with pytest.raises(ValueError, match=message):
    corpus.load(copy)


def test_no_folder_no_card_and_no_json_are_told_apart(copy, tmp_path):
  with pytest.raises(FileNotFoundError, match=r'no such folder.*asiarch prepare'):
    corpus.load(tmp_path / 'absent')
  (copy / 'card.json').write_text('{')
  with pytest.raises(ValueError, match='is not a card'):
    corpus.load(copy)
  (copy / 'card.json').unlink()
  with pytest.raises(FileNotFoundError, match='never finished'):
    corpus.load(copy)


# What is not prepared


@pytest.mark.parametrize(
  'content, message', [(b'', 'holds no text'), (b'too short', 'too few, or too much alike'), (b'a\xff', 'UTF-8')]
)
def test_after_an_error_nothing_is_left(tmp_path, content, message):
  (tmp_path / 'in.txt').write_bytes(content)
  with pytest.raises(ValueError, match=message):
    corpus.prepare(str(tmp_path / 'in.txt'), tmp_path / 'deep' / 'out')
  assert not list((tmp_path / 'deep').iterdir())


def test_what_is_there_is_never_overwritten(made, tmp_path):
  with pytest.raises(FileExistsError, match='holds a corpus already'):
    corpus.prepare(str(made.parent / 'novel.txt'), made)
  (tmp_path / 'mine').mkdir()
  (tmp_path / 'mine' / 'thesis.tex').write_text('years of work')
  with pytest.raises(FileExistsError, match='is not a corpus'):
    corpus.prepare(str(made.parent / 'novel.txt'), tmp_path / 'mine')
  (tmp_path / 'empty').mkdir()
  corpus.prepare(str(made.parent / 'novel.txt'), tmp_path / 'empty')
  corpus.load(tmp_path / 'empty')


KILLED = """
import os, signal, sys
from asiarch_jax.shell import corpus
seen = 0
plain = corpus.split_of
def counted(group):
  global seen
  seen += 1
  if str(seen) == sys.argv[3]:
    os.kill(os.getpid(), signal.SIGKILL)
  return plain(group)
corpus.split_of = counted
if sys.argv[3] == 'rename':
  os.rename = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
corpus.prepare(sys.argv[1], sys.argv[2])
"""


@pytest.mark.parametrize('when', ['1', '400', 'rename'])
def test_a_killed_prepare_leaves_nothing_that_loads_and_the_next_one_clears_up(made, tmp_path, when):
  source, out = str(made.parent / 'novel.txt'), tmp_path / 'out'
  done = subprocess.run([sys.executable, '-c', KILLED, source, str(out), when], check=False)
  assert done.returncode == -signal.SIGKILL
  (left,) = tmp_path.iterdir()
  assert left.name.startswith('.out.unfinished-')
  with pytest.raises(FileNotFoundError):
    corpus.load(out)
  living = tmp_path / left.name.replace(left.name.rsplit('-', 1)[0].rsplit('-', 1)[1], str(os.getpid()), 1)
  living.mkdir()
  corpus.prepare(source, out)
  assert {path.name for path in tmp_path.iterdir()} == {'out', living.name}
  corpus.load(out, verify=True)


def test_of_two_who_prepare_the_same_the_first_one_stands(made, tmp_path):
  source, out = str(made.parent / 'novel.txt'), tmp_path / 'out'
  calls = []

  def another_is_quicker(progress):
    if not calls:
      calls.append(progress)
      corpus.prepare(source, out)

  card = corpus.prepare(source, out, on_progress=another_is_quicker)
  assert calls and card == corpus.load(out, verify=True).card
  assert [path.name for path in tmp_path.iterdir()] == ['out']


# What text becomes


def test_a_tokenizer_file_is_used_copied_and_checked(made, tmp_path):
  tokenizers = pytest.importorskip('tokenizers')
  model = tokenizers.Tokenizer(tokenizers.models.BPE())
  model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  model.decoder = tokenizers.decoders.ByteLevel()
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=400, special_tokens=['<|endoftext|>'], initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()
  )
  model.train_from_iterator([novel(200)], trainer)
  model.save(str(tmp_path / 'bpe.json'))
  source = str(made.parent / 'novel.txt')
  card = corpus.prepare(source, tmp_path / 'out', tokenizer=str(tmp_path / 'bpe.json'))
  text = corpus.load(tmp_path / 'out', verify=True)
  assert (card.dtype, card.vocabulary, card.end) == ('uint16', model.get_vocab_size(), 0)
  assert card.bytes == corpus.read_card(made).bytes and 1.5 < text.bytes_per_token == card.bytes / card.tokens
  tokens = text._memory
  assert (tokens == card.end).sum() == card.documents
  pieces = [model.decode(part.tolist()) for part in np.split(tokens, np.flatnonzero(tokens == card.end) + 1)]
  plain = corpus.load(made)._memory
  assert sorted(pieces)[1:] == sorted(bytes(plain).decode().split('\0'))[1:]
  assert text.training_batch(0, [0], 2, LENGTH).tokens.max() < card.vocabulary
  (tmp_path / 'out' / 'tokenizer.json').write_text('{}')
  with pytest.raises(ValueError, match='not the tokenizer of the card'):
    corpus.load(tmp_path / 'out')


def test_long_texts_are_tokenised_in_pieces_that_lose_nothing():
  tokenizers = pytest.importorskip('tokenizers')
  from asiarch_jax.shell import text_encoding

  del tokenizers
  for text in (novel(3000), 'x' * 200_000, ' ' * 100_000, ''):
    assert ''.join(text_encoding._pieces(text)) == text
    assert max(map(len, text_encoding._pieces(text))) <= 2 * text_encoding.PIECE


def test_a_tokenizer_that_is_none_is_refused(made, tmp_path):
  source = str(made.parent / 'novel.txt')
  with pytest.raises(FileNotFoundError, match='no such tokenizer'):
    corpus.prepare(source, tmp_path / 'out', tokenizer='gpt2')
  (tmp_path / 'bad.json').write_text('{"model": 3}')
  pytest.importorskip('tokenizers')
  with pytest.raises(ValueError, match='not a Hugging Face tokenizers JSON'):
    corpus.prepare(source, tmp_path / 'out', tokenizer=str(tmp_path / 'bad.json'))
  assert not (tmp_path / 'out').exists()


def json_lines(path, rows):
  path.write_text('\n'.join(json.dumps({'text': text}) for text in rows))
  return str(path)


def test_zeros_are_taken_out_and_empty_documents_left_out_and_both_are_counted(tmp_path):
  rows = [f'text {i}' for i in range(300)]
  plain = corpus.prepare(json_lines(tmp_path / 'a.jsonl', rows), tmp_path / 'a')
  rows[7] = ''
  odd = ['te\0xt 0', *rows[1:], '\0\0', 'text 7']
  card = corpus.prepare(json_lines(tmp_path / 'b.jsonl', odd), tmp_path / 'b')
  assert (card.empty, card.removed_zeros, card.documents) == (2, 3, 300)
  assert card.tokens == plain.tokens


def test_half_a_surrogate_pair_is_named(tmp_path):
  (tmp_path / 'a.jsonl').write_text('{"text": "fine"}\n{"text": "\\ud800"}\n')
  with pytest.raises(ValueError, match=r'record 2: character 0 is half of a surrogate pair'):
    corpus.prepare(str(tmp_path / 'a.jsonl'), tmp_path / 'out')


def test_a_limit_takes_the_first_documents(made, tmp_path):
  rows = [f'document {i:04}' for i in range(600)]
  card = corpus.prepare(json_lines(tmp_path / 'a.jsonl', rows), tmp_path / 'a', limit_bytes=400 * 13)
  assert card.documents == 400
  whole = corpus.prepare(json_lines(tmp_path / 'b.jsonl', rows[:400]), tmp_path / 'b')
  assert card.content_hash == whole.content_hash


def test_text_streams_through_in_bounded_memory(tmp_path, monkeypatch):
  """What is held at once must not grow with the text: one shard, one block, one document."""
  monkeypatch.setattr(token_array, 'SHARD', 1 << 20)
  line = json.dumps({'text': 'All happy families are alike. ' * 330})[:-2]
  peaks = []
  for size in (400, 2400):
    path = tmp_path / f'{size}.jsonl'
    path.write_text('\n'.join(f'{line}{i}"}}' for i in range(size)))
    seen = []
    tracemalloc.start()
    card = corpus.prepare(str(path), tmp_path / str(size), on_progress=seen.append)
    peaks.append(tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
    assert card.bytes > size * 9_900 and len(seen) >= card.bytes // corpus.REPORT_EVERY
  assert peaks[1] < 1.2 * peaks[0] < 12e6


def test_an_array_of_many_shards_is_written_in_order(tmp_path, monkeypatch):
  monkeypatch.setattr(token_array, 'SHARD', 4 * token_array.CHUNK)
  rng = np.random.default_rng(0)
  parts = [rng.integers(0, 60_000, size) for size in (1, 0, 5 * token_array.SHARD + 3, 17, token_array.SHARD)]
  writer = token_array.Writer(str(tmp_path / 'tokens'), 'uint16')
  for part in parts:
    writer.append(part)
  whole = np.concatenate(parts).astype(np.uint16)
  assert writer.close() == len(whole)
  store = token_array.opened(str(tmp_path / 'tokens'))
  np.testing.assert_array_equal(store.read().result(), whole)
  np.testing.assert_array_equal(np.concatenate(list(token_array.blocks(store))), whole)
  assert len(list((tmp_path / 'tokens' / 'c').iterdir())) == 7
  assert token_array.full_hash(store).digest() == hashlib.sha256(whole.tobytes()).digest()


def test_addresses_of_buckets():
  assert token_array.kvstore('gs://b/x/y/') == {'driver': 'gcs', 'bucket': 'b', 'path': 'x/y/'}
  assert token_array.kvstore('s3://b/x') == {'driver': 's3', 'bucket': 'b', 'path': 'x/'}
  assert token_array.kvstore('/tmp/x') == {'driver': 'file', 'path': '/tmp/x/'}
  with pytest.raises(ValueError, match='ftp:// is not a place'):
    corpus.prepare('docs', 'ftp://b/x')
  assert os.fspath(epath.Path('gs://b/x') / 'tokens') == 'gs://b/x/tokens'


def test_the_folder_of_the_docs_is_named_by_what_is_installed(tmp_path):
  folder = corpus.docs_folder(tmp_path)
  assert folder == corpus.docs_folder(tmp_path) and folder.parent == tmp_path / 'corpora'


@pytest.mark.slow
def test_docs_make_a_corpus_divided_by_module(tmp_path):
  card = corpus.prepare('docs', tmp_path / 'docs', limit_bytes=1_500_000)
  text = corpus.load(tmp_path / 'docs')
  assert card.libraries['numpy'] == np.__version__
  assert card.source == 'docs' and 1.5e6 <= card.bytes < 2.5e6
  assert split_text(text, 'train').count(' the ') > 5_000
  with pytest.raises(ValueError, match='not to docs'):
    corpus.prepare('docs', tmp_path / 'other', split='train')
