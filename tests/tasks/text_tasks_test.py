"""Bits per byte, the recall slice, and the error of a ratio."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asiarch_jax import config
from asiarch_jax.batch import Batch
from asiarch_jax.tasks import TASKS, bits_per_byte, recall_slice, summary

TEXT = b'the cat sat on the mat; the cat sat on the hat. the dog sat on the mat, the cat on the dog sat! '


def windows(B=3, T=64, seed=0, vocabulary=None):
  rng = np.random.default_rng(seed)
  if vocabulary:
    tokens = rng.integers(0, vocabulary, (B, T + 1))
  else:
    text = np.frombuffer(TEXT * 4, np.uint8)
    tokens = np.stack([text[start : start + T + 1] for start in rng.integers(0, len(text) - T - 1, B)])
  return Batch(tokens[:, :-1].astype(np.int32), tokens[:, 1:].astype(np.int32), np.ones((B, T), np.float32))


def by_hand(batch, n):
  """The definition, word for word."""
  seen_BT = np.zeros(batch.tokens.shape, bool)
  for row in range(batch.tokens.shape[0]):
    whole = [*batch.tokens[row].tolist(), int(batch.targets[row, -1])]
    grams = set()
    for t in range(batch.tokens.shape[1]):
      if t - n + 2 >= 0:
        gram = tuple(whole[t - n + 2 : t + 2])
        seen_BT[row, t] = gram in grams
        grams.add(gram)
  return seen_BT


@pytest.mark.parametrize('n', [2, 3, 6])
@pytest.mark.parametrize('vocabulary', [None, 2, 3])
def test_the_recall_slice_is_what_a_plain_loop_finds(n, vocabulary):
  batch = windows(vocabulary=vocabulary)
  found = np.asarray(recall_slice.repeated(jnp.asarray(batch.tokens), jnp.asarray(batch.targets), n))
  expected = by_hand(batch, n)
  np.testing.assert_array_equal(found, expected)
  assert expected.any() and not expected.all()


def test_the_slice_is_found_in_windows_shorter_than_the_gram():
  batch = windows(T=3)
  assert not np.asarray(recall_slice.repeated(batch.tokens, batch.targets, 6)).any()


def test_recall_accuracy_counts_the_slice_only():
  batch = windows()
  slice_BT = by_hand(batch, recall_slice.BYTE_GRAM)
  logits_BTY = jax.nn.one_hot(np.where(slice_BT, batch.targets, 0), 256)  # right in the slice, wrong elsewhere
  sums_B, counts_B = TASKS['recall_slice'].score(logits_BTY, batch)
  np.testing.assert_array_equal(sums_B, slice_BT.sum(1))
  np.testing.assert_array_equal(counts_B, slice_BT.sum(1))
  wrong = jax.nn.one_hot(np.where(slice_BT, 0, batch.targets), 256)
  assert not np.asarray(TASKS['recall_slice'].score(wrong, batch)[0]).any()


def test_subwords_are_recalled_by_bigram():
  assert recall_slice.gram(256) == recall_slice.BYTE_GRAM
  assert recall_slice.gram(257) == recall_slice.TOKEN_GRAM == 2


def test_unweighted_positions_are_in_no_score():
  batch = windows()
  half = batch._replace(weights=np.where(np.arange(64) < 32, 1, 0).astype(np.float32) * np.ones((3, 1), np.float32))
  logits_BTY = jax.random.normal(jax.random.key(0), (3, 64, 256))
  for name in ('bits_per_byte', 'recall_slice'):
    whole = TASKS[name].score(logits_BTY[:, :32], Batch(*(leaf[:, :32] for leaf in batch)))
    for ours, theirs in zip(TASKS[name].score(logits_BTY, half), whole, strict=True):
      np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_bits_per_byte_of_a_known_distribution():
  batch = windows(B=4)
  uniform = TASKS['bits_per_byte'].score(jnp.zeros((4, 64, 256)), batch)
  bits_B, bytes_B = bits_per_byte.bits(*map(np.asarray, uniform))
  assert summary.summarise(bits_B, bytes_B)[0] == pytest.approx(8) == bits_per_byte.chance(config.Tasks(), 256)
  known = jnp.log(jnp.where(jax.nn.one_hot(batch.targets, 256) > 0, 0.5, 0.5 / 255))
  bits_B, bytes_B = bits_per_byte.bits(*map(np.asarray, TASKS['bits_per_byte'].score(known, batch)), 2.0)
  assert summary.summarise(bits_B, bytes_B)[0] == pytest.approx(0.5)  # one bit a token of two bytes


def test_bits_stand_in_bfloat16_logits_too():
  batch = windows()
  nats_B, _ = TASKS['bits_per_byte'].score(jnp.zeros((3, 64, 256), jnp.bfloat16), batch)
  assert nats_B.dtype == jnp.float32
  np.testing.assert_allclose(nats_B, 64 * math.log(256), rtol=1e-5)


def test_the_standard_error_covers_as_often_as_it_says():
  """Sequences with their own accuracy and their own number of answers: clustered, as in text."""
  rng = np.random.default_rng(0)
  trials, N = 600, 100
  inside = naive = 0
  for _ in range(trials):
    accuracy_N = rng.beta(2, 3, N)
    counts_N = rng.poisson(4 + 12 * accuracy_N)  # easy sequences ask more: the ratio is not the mean of accuracies
    sums_N = rng.binomial(counts_N, accuracy_N)
    value, stderr, n = summary.summarise(sums_N.astype(float), counts_N.astype(float))
    assert n == (counts_N > 0).sum()
    truth = (4 * 0.4 + 12 * (0.04 + 0.16)) / (4 + 12 * 0.4)  # E[c a] / E[c], a ~ Beta(2, 3): mean 0.4, variance 0.04
    inside += abs(value - truth) < 1.96 * stderr
    naive += abs(value - truth) < 1.96 * math.sqrt(value * (1 - value) / counts_N.sum())
  assert 0.92 < inside / trials < 0.975
  assert naive / trials < 0.85, 'counting answers as independent should have looked too sure'


def test_sequences_that_ask_nothing_change_nothing():
  sums, counts = np.array([1.0, 3.0, 2.0]), np.array([4.0, 4.0, 2.0])
  padded = summary.summarise(np.append(sums, [0, 0]), np.append(counts, [0, 0]))
  assert padded == summary.summarise(sums, counts)


@pytest.mark.parametrize('counts', [[0.0, 0.0, 0.0], [0.0, 5.0, 0.0]])
def test_no_error_is_made_up_without_two_sequences(counts):
  with pytest.raises(ValueError, match='needs 2'):
    summary.summarise(np.zeros(3), np.array(counts))
  with pytest.raises(ValueError, match='not two vectors'):
    summary.summarise(np.zeros(3), np.zeros(4))


def test_every_task_says_how_it_is_made():
  for name, task in TASKS.items():
    assert task.name == name
    assert (task.make is None) == (task.kind == 'corpus')
    assert task.unit == ('bits_per_byte' if name == 'bits_per_byte' else 'accuracy')
    assert 0 < task.chance(config.Tasks(), 256) <= 8
  assert set(config.Tasks().names) <= TASKS.keys()
