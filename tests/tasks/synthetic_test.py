"""The two synthetic tasks: answerable to the last position, at chance for who does not look."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asiarch_jax import config
from asiarch_jax.batch import Batch
from asiarch_jax.tasks import TASKS, mqar, selective_copying, summary

Y = 64
SIZES = [config.Tasks(), config.Tasks(pairs=7, length=33), config.Tasks(pairs=2, symbols=7, copies=9, length=19)]
make = {
  name: jax.jit(TASKS[name].make, static_argnums=(1, 2, 3, 4)) for name in TASKS if TASKS[name].kind == 'synthetic'
}


def made(name, tasks, batch=64, length=40, seed=0) -> Batch:
  return jax.tree.map(np.asarray, make[name](jax.random.key(seed), tasks, batch, length, Y))


def recalled(tokens_BT):
  """An oracle that answers every position with what followed the same token first, or 0."""
  answers_BT = np.zeros_like(tokens_BT)
  for row, tokens in enumerate(tokens_BT):
    followed = {}
    for t, token in enumerate(tokens):
      if token in followed:
        answers_BT[row, t] = followed[token]
      elif t + 1 < len(tokens):
        followed[token] = tokens[t + 1]
  return answers_BT


def copied(tokens_BT, symbols):
  """An oracle that, from the mark on, names the symbols seen before it, in order."""
  answers_BT = np.zeros_like(tokens_BT)
  for row, tokens in enumerate(tokens_BT):
    seen, given = [], 0
    for t, token in enumerate(tokens):
      if token == symbols - 1:
        given = 1
      elif not given and token:
        seen.append(token)
      if given and given <= len(seen):
        answers_BT[row, t] = seen[given - 1]
        given += 1
  return answers_BT


def accuracy(name, answers_BT, batch):
  logits_BTY = jax.nn.one_hot(answers_BT, Y)
  sums_B, counts_B = TASKS[name].score(logits_BTY, batch)
  return summary.summarise(np.asarray(sums_B), np.asarray(counts_B))


@pytest.mark.parametrize('tasks', SIZES)
def test_an_oracle_solves_both_tasks_exactly(tasks):
  batch = made('mqar', tasks)
  assert accuracy('mqar', recalled(batch.tokens), batch)[0] == 1
  batch = made('selective_copying', tasks)
  assert accuracy('selective_copying', copied(batch.tokens, tasks.symbols), batch)[0] == 1


@pytest.mark.parametrize('name', make)
@pytest.mark.parametrize('tasks', SIZES[:2])
def test_a_constant_answer_is_at_chance(name, tasks):
  batch = made(name, tasks, batch=1024)
  answer = tasks.symbols // 2 + 1 if name == 'mqar' else 1
  value, stderr, n = accuracy(name, np.full_like(batch.tokens, answer), batch)
  assert n == 1024
  assert abs(value - TASKS[name].chance(tasks, Y)) < 5 * stderr


def test_remembering_values_without_keys_reaches_one_in_pairs():
  tasks = config.Tasks()
  batch = made('mqar', tasks, batch=1024)
  first_value = np.broadcast_to(batch.tokens[:, 1:2], batch.tokens.shape)
  value, stderr, _ = accuracy('mqar', first_value, batch)
  assert abs(value - 1 / tasks.pairs) < 1e-6 + 5 * stderr


@pytest.mark.parametrize('tasks', SIZES)
def test_keys_and_values_are_distinct_and_nothing_else_stands_between_queries(tasks):
  batch = made('mqar', tasks)
  P = tasks.pairs
  for tokens, targets, weights in zip(*batch, strict=True):
    keys, values = tokens[: 2 * P : 2], tokens[1 : 2 * P : 2]
    assert len(set(keys)) == len(set(values)) == P
    assert keys.min() >= 1 and keys.max() < tasks.symbols // 2 <= values.min() and values.max() < tasks.symbols
    assert sorted(tokens[2 * P :][tokens[2 * P :] > 0]) == sorted(keys)
    assert weights.sum() == P and not weights[: 2 * P].any()
    assert all(targets[t] == values[list(keys).index(tokens[t])] for t in np.flatnonzero(weights))


def test_short_gaps_are_likelier_as_the_power_law_says():
  tasks = config.Tasks(pairs=1, length=22, symbols=16)
  batch = made('mqar', tasks, batch=4096)
  gaps = (np.argmax(batch.weights, axis=1) - 2) // 2
  seen = np.bincount(gaps, minlength=10) / len(gaps)
  law = np.arange(1, 11) ** (mqar.POWER - 1)
  np.testing.assert_allclose(seen, law / law.sum(), atol=0.03)


@pytest.mark.parametrize('name', make)
def test_a_batch_is_a_function_of_the_key_alone(name):
  np.random.seed(0)
  first = made(name, config.Tasks())
  np.random.seed(1)
  jax.tree.map(np.testing.assert_array_equal, first, made(name, config.Tasks()))
  assert (made(name, config.Tasks(), seed=1).tokens != first.tokens).any()
  assert len({row.tobytes() for row in first.tokens}) == len(first.tokens)


@pytest.mark.parametrize('name', make)
def test_padding_has_no_weight_and_types_are_those_of_a_batch(name):
  tasks = config.Tasks()
  batch = made(name, tasks, batch=8)
  assert [leaf.shape for leaf in batch] == [(8, 40)] * 3
  assert [leaf.dtype for leaf in batch] == [np.int32, np.int32, np.float32]
  assert not batch.weights[:, tasks.length :].any() and not batch.tokens[:, tasks.length :].any()
  assert batch.tokens.min() >= 0 and batch.tokens.max() < tasks.symbols


@pytest.mark.parametrize(
  'name, change, both',
  [
    ('mqar', {'symbols': 65}, ('65', '64')),
    ('selective_copying', {'symbols': 65}, ('65', '64')),
    ('mqar', {'length': 41}, ('41', '40')),
    ('mqar', {'pairs': 8}, ('8', '7')),
    ('mqar', {'pairs': 7, 'length': 27}, ('27', '28')),
    ('selective_copying', {'symbols': 3}, ('3', '4')),
    ('selective_copying', {'copies': 17}, ('17', '34')),
  ],
)
def test_sizes_that_contradict_each_other_are_refused_with_both_numbers(name, change, both):
  with pytest.raises(ValueError) as error:
    TASKS[name].make(jax.random.key(0), dataclasses.replace(config.Tasks(), **change), 2, 40, Y)
  assert all(number in str(error.value) for number in both)


@pytest.mark.parametrize('name', make)
def test_the_tightest_sizes_that_are_allowed_work(name):
  tasks = config.Tasks(pairs=7, symbols=16, copies=14, length=28)
  batch = made(name, tasks, length=28)
  assert batch.weights.sum(1).tolist() == [7.0 if name == 'mqar' else 14.0] * 64


def test_the_copying_mark_stands_once_and_symbols_keep_their_order():
  tasks = config.Tasks()
  batch = made('selective_copying', tasks)
  for tokens, targets, weights in zip(*batch, strict=True):
    mark = np.flatnonzero(tokens == tasks.symbols - 1)
    assert mark.tolist() == [tasks.length - tasks.copies]
    shown = tokens[: mark[0]]
    np.testing.assert_array_equal(shown[shown > 0], targets[weights > 0])
    assert not tokens[mark[0] + 1 :].any()
  places = [tuple(np.flatnonzero(row[: tasks.length - tasks.copies])) for row in batch.tokens]
  assert len(set(places)) > 60  # drawn anew for each sequence


def test_a_model_that_says_nothing_finite_is_wrong_everywhere():
  batch = made('mqar', config.Tasks())
  zero = Batch(batch.tokens, np.zeros_like(batch.targets), batch.weights)
  sums_B, _ = TASKS['mqar'].score(jnp.full((*batch.tokens.shape, Y), jnp.nan), zero)
  assert not np.asarray(sums_B).any()


def test_special_symbols_are_not_copied():
  batch = made('selective_copying', config.Tasks(symbols=4), batch=256)
  assert set(batch.targets[batch.weights > 0]) == {1, 2}
  assert selective_copying.chance(config.Tasks(symbols=4), Y) == 0.5
