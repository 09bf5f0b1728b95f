"""The tasks of the suites against plain readings of their definitions; nothing is asked that was not shown."""

import dataclasses

import jax
import numpy as np
import pytest

from asiarch_jax.batch import Batch
from asiarch_jax.suites import SUITES, Sequences
from asiarch_jax.tasks import fuzzy_recall, generators, memorisation

RECALL = Sequences('in-context-recall', 16, 64, 200)
NOISY = Sequences('in-context-recall', 32, 64, 200, noise=0.4, noise_symbols=16)
FUZZY = Sequences('fuzzy-recall', 16, 64, 200, motif=3)
COPYING = Sequences('selective-copying', 16, 64, 200, copies=12)
COMPRESSION = Sequences('compression', 16, 32, 200)
MEMORISATION = Sequences('memorisation', 64, 32, 200)
MQAR = Sequences('mqar', 64, 64, 200, pairs=8)
FORGETTING = Sequences('mqar', 64, 64, 200, pairs=8, updates=4)
ROOT = jax.random.key(7)


def made(kind, training=False, split='test', member=0):
  return generators.sequences(generators.stream(ROOT, split, member), kind, training)


def asked(tokens, kind):
  """Returns {position: answer} of one in-context recall sequence, read pair by pair."""
  plain, known, answers = kind.vocabulary - kind.noise_symbols, {}, {}
  for t in range(0, len(tokens), 2):
    key, value = tokens[t], tokens[t + 1]
    if key >= plain:
      assert value >= plain, 'noise comes in pairs'
      continue
    assert key < plain // 2 <= value < plain
    if key in known:
      answers[t] = known[key]
    assert known.setdefault(key, value) == value, 'a key keeps its value'
  return answers


def asked_fuzzy(tokens, kind):
  """Returns {position: answer}, motifs told apart by which half of the vocabulary their tokens are of."""
  pad = kind.vocabulary - 1
  keys = pad // 2
  start = next(t for t, token in enumerate(tokens) if token != pad)
  known, answers, t = {}, {}, start
  assert pad not in tokens[start:]
  while t < len(tokens):
    begin = t
    while tokens[t] < keys:
      t += 1
    key, at = tuple(tokens[begin:t]), t
    while t < len(tokens) and tokens[t] >= keys:
      t += 1
    value = tuple(tokens[at:t])
    assert 1 <= len(key) == len(set(key)) <= kind.motif and 1 <= len(value) == len(set(value)) <= kind.motif
    if key in known:
      answers |= {at - 1 + n: token for n, token in enumerate(known[key])}
    assert known.setdefault(key, value) == value
  return answers


def asked_copying(tokens, kind):
  blank, mark = kind.vocabulary - 2, kind.vocabulary - 1
  begin = list(tokens).index(mark)
  shown = [token for token in tokens[:begin] if token != blank]
  assert len(shown) == kind.copies and max(shown) < blank and tokens[begin - 1] == shown[-1]
  assert set(tokens[begin + 1 :]) == {blank}
  return {begin + 1 + n: token for n, token in enumerate(shown)}


def asked_mqar(tokens, kind):
  shown = 2 * (kind.pairs + kind.updates)
  keys, values = tokens[:shown:2], tokens[1:shown:2]
  assert len(set(keys[: kind.pairs])) == kind.pairs and len(set(values)) == len(values)
  assert len(set(keys[kind.pairs :])) == kind.updates and set(keys) == set(keys[: kind.pairs])
  last = dict(zip(keys, values, strict=True))  # a later pair replaces an earlier one
  answers = {t: last[tokens[t]] for t in range(shown, len(tokens)) if tokens[t]}
  assert len(answers) == kind.pairs
  return answers


def check(kind, batch, read):
  """Compares weights and targets of all sequences with a reading of their tokens."""
  for tokens, targets, weights in zip(*batch, strict=True):
    answers = read(tokens, kind)
    assert sorted(answers) == np.flatnonzero(weights).tolist(), 'asked elsewhere'
    assert all(targets[t] == answer for t, answer in answers.items()), 'asked for something else'


def sequence_of(tokens, targets):
  """Returns the tokens with the last one, which the model is not given, behind them."""
  return np.append(tokens[: len(targets)], targets[-1])


READINGS = {
  'recall': (RECALL, asked),
  'noisy': (NOISY, asked),
  'copying': (COPYING, asked_copying),
  'mqar': (MQAR, asked_mqar),
  'forgetting': (FORGETTING, asked_mqar),
}


@pytest.mark.parametrize('name', READINGS)
def test_what_is_asked_follows_from_what_was_shown(name):
  kind, read = READINGS[name]
  batch = made(kind)
  check(kind, batch, read)
  assert batch.weights.sum(1).min() >= 1 and batch.tokens.min() >= 0 and batch.tokens.max() < kind.vocabulary
  assert [leaf.dtype for leaf in batch] == [np.int32, np.int32, np.float32]


@pytest.mark.slow
@pytest.mark.parametrize('motif, length', [(3, 64), (2, 40), (1, 32)])
def test_fuzzy_recall_asks_for_the_tokens_of_values_that_were_shown(motif, length):
  kind = dataclasses.replace(FUZZY, motif=motif, length=length)
  batch = made(kind)
  for tokens, targets, weights in zip(*batch, strict=True):
    whole = sequence_of(tokens, targets)
    answers = asked_fuzzy(whole, kind)
    assert sorted(answers) == np.flatnonzero(weights).tolist()
    assert all(targets[t] == answer for t, answer in answers.items())
    assert weights[-1] == 1, 'the last key was shown before'
  np.testing.assert_array_equal(batch.tokens[:, 1:], batch.targets[:, :-1])


@pytest.mark.slow
def test_held_out_fuzzy_keys_are_of_the_largest_size_and_training_has_all():
  def sizes(batch):
    pad = FUZZY.vocabulary - 1
    found = set()
    for tokens, targets in zip(batch.tokens, batch.targets, strict=True):
      text = ''.join('p' if t == pad else 'k' if t < pad // 2 else 'v' for t in sequence_of(tokens, targets))
      found |= {len(run) for run in text.strip('p').replace('v', ' ').split()}
    return found

  assert sizes(made(FUZZY)) == {3} and sizes(made(FUZZY, training=True)) == {1, 2, 3}


def test_motifs_are_uniform_over_arrangements():
  whole, sizes = jax.tree.map(np.asarray, fuzzy_recall.motifs(ROOT, (6000,), 4, 2, 1))
  assert set(sizes) == {1, 2} and abs(np.mean(sizes == 1) - 0.5) < 0.03
  pairs = whole[sizes == 2] @ [4, 1]
  counts = np.bincount(pairs, minlength=16).reshape(4, 4)
  assert not np.diag(counts).any() and np.allclose(counts[~np.eye(4, dtype=bool)] / len(pairs), 1 / 12, atol=0.02)


@pytest.mark.parametrize('kind', [RECALL, NOISY, FUZZY], ids=['recall', 'noisy', 'fuzzy'])
def test_training_on_recall_asks_for_every_next_token(kind):
  batch = made(kind, training=True)
  np.testing.assert_array_equal(batch.targets[:, :-1], batch.tokens[:, 1:])
  assert batch.weights[:, :-1].all()
  assert batch.weights[:, -1].all() == (kind is FUZZY)  # the others have nothing behind their last token


def test_noise_is_as_frequent_as_said_and_never_asked_for():
  batch = made(dataclasses.replace(NOISY, examples=1000))
  noisy = batch.tokens >= 16
  assert abs(noisy.mean() - 0.4 * (31 - 1) / 32) < 0.01  # of 32 pairs the last and one other are never noise
  assert not (noisy & (batch.weights > 0)).any() and batch.targets[batch.weights > 0].max() < 16
  assert len(set(batch.tokens[noisy])) == 16


def test_blanks_stand_before_tokens_evenly():
  batch = made(dataclasses.replace(COPYING, examples=1000))
  places = np.stack([np.flatnonzero(row[: 64 - 13] < 14) for row in batch.tokens])
  gaps = np.diff(places, axis=1, prepend=-1) - 1
  assert gaps.sum(1).tolist() == [64 - 25] * 1000
  np.testing.assert_allclose(gaps.mean(0), (64 - 25) / 12, atol=0.2)


def test_compression_asks_for_every_token_and_ends_with_the_mark():
  batch = made(COMPRESSION)
  np.testing.assert_array_equal(batch.tokens, batch.targets)
  assert batch.weights.all() and set(batch.tokens[:, -1]) == {15} and batch.tokens[:, :-1].max() == 14


def test_the_dictionary_is_one_for_all_splits_and_has_no_value_twice():
  values = np.asarray(memorisation.dictionary(64))
  assert len(set(values)) == len(values) == 31 and values.min() >= 31 and values.max() < 63
  for split in generators.SPLITS:
    batch = made(MEMORISATION, split=split, member=3)
    keys, marks = batch.tokens[:, ::2], batch.tokens[:, 1::2]
    assert (marks == 63).all() and not batch.weights[:, ::2].any() and batch.weights[:, 1::2].all()
    np.testing.assert_array_equal(batch.targets[:, 1::2], values[keys])


def test_forgetting_asks_for_the_last_value_and_never_for_the_first():
  batch = made(FORGETTING)
  for tokens, targets, weights in zip(*batch, strict=True):
    updated = set(tokens[16:24:2])
    first = dict(zip(tokens[:16:2], tokens[1:16:2], strict=True))
    stale = [t for t in np.flatnonzero(weights) if tokens[t] in updated and targets[t] == first[tokens[t]]]
    assert len(updated) == 4 and stale == []


GUILTY = {
  'another answer': lambda b: Batch(b.tokens, b.targets + (b.weights > 0), b.weights),
  'asked too early': lambda b: Batch(b.tokens, b.targets, np.roll(b.weights, -1, axis=1)),
  'everything asked': lambda b: Batch(b.tokens, b.targets, np.ones_like(b.weights)),
  'a value rebound': lambda b: Batch(np.where(np.arange(64) == 1, 15 + b.tokens * 0, b.tokens), b.targets, b.weights),
}


@pytest.mark.parametrize('name', GUILTY)
def test_the_readings_catch_a_guilty_generator(name):
  with pytest.raises(AssertionError):
    check(RECALL, GUILTY[name](made(RECALL)), asked)


def test_a_probe_that_was_never_shown_is_caught():
  """What MAD's own generator may make: the last key stands there for the first time."""
  kind = dataclasses.replace(FUZZY, motif=1, length=8)
  tokens = np.array([0, 8, 1, 9, 0, 8, 2, 10])  # key 2 was not shown
  assert 6 not in asked_fuzzy(tokens, kind)


@pytest.mark.parametrize('kind', [RECALL, FUZZY, COPYING, COMPRESSION, MEMORISATION, MQAR], ids=lambda kind: kind.task)
def test_splits_and_members_share_no_sequence_and_a_smaller_set_begins_a_larger(kind):
  parts = [('train', 0), ('train', 1), ('validation', 0), ('test', 0)]
  rows = [{row.tobytes() for row in made(kind, False, *part).tokens} for part in parts]
  assert len(set.union(*rows)) == sum(map(len, rows)) == 200 * len(parts)
  few = made(dataclasses.replace(kind, examples=50))
  np.testing.assert_array_equal(few.tokens, made(kind).tokens[:50])


def test_a_set_is_a_function_of_its_key_alone():
  np.random.seed(0)
  first = made(COPYING)
  np.random.seed(1)
  jax.tree.map(np.testing.assert_array_equal, first, made(COPYING))


REFUSED = {
  'odd recall': (dataclasses.replace(RECALL, length=63), ('63', 'even')),
  'no key': (dataclasses.replace(NOISY, noise_symbols=31), ('31', '1 for keys')),
  'noise of nothing': (dataclasses.replace(RECALL, noise=0.2), ('0.2', 'noise_symbols')),
  'long motif': (dataclasses.replace(FUZZY, motif=8), ('8', '17')),
  'short fuzzy': (dataclasses.replace(FUZZY, length=18), ('18', '19')),
  'many copies': (dataclasses.replace(COPYING, copies=32), ('32', '66')),
  'nothing to copy': (dataclasses.replace(COPYING, vocabulary=3), ('3', '4')),
  'no code': (dataclasses.replace(COMPRESSION, vocabulary=2), ('2', '3')),
  'odd dictionary': (dataclasses.replace(MEMORISATION, length=31), ('31',)),
  'few symbols': (dataclasses.replace(MQAR, vocabulary=16), ('16', '18')),
  'short mqar': (dataclasses.replace(FORGETTING, length=39), ('39', '40')),
  'many updates': (dataclasses.replace(MQAR, updates=9), ('9', '8')),
  'unknown': (dataclasses.replace(MQAR, task='mqra'), ('mqra', 'mqar')),
}


@pytest.mark.parametrize('name', REFUSED)
def test_sizes_that_contradict_each_other_are_refused_with_the_numbers(name):
  kind, said = REFUSED[name]
  with pytest.raises(ValueError) as error:
    made(kind)
  assert all(number in str(error.value) for number in said)


KINDS = {
  f'{suite.name} {setting.name} {number}': kind
  for suite in SUITES.values()
  for setting in suite.settings
  for number, kind in enumerate((*setting.train, *setting.tests))
}


@pytest.mark.sweep
@pytest.mark.parametrize('name', KINDS)
def test_every_size_of_every_suite_can_be_made(name):
  kind = dataclasses.replace(KINDS[name], examples=20)
  batch = made(kind)
  assert batch.tokens.shape == (20, kind.length) and batch.tokens.max() < kind.vocabulary
  assert batch.weights.sum(1).min() >= 1
