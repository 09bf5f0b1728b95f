"""Log-likelihoods and greedy continuations in buckets, against a scorer that asks for one token at a time."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from asiarch_jax import config
from asiarch_jax.arch import lm
from asiarch_jax.training import likelihood
from asiarch_jax.training.likelihood import Prompt, Question

MODEL = config.Model(width=8, layers=1, heads=2, mlp_width=8, vocabulary=64, init_stddev=0.5)
MAX_LENGTH = 12


class CausalMean(nn.Module):
  """A mixer that compiles in no time: the brute-force scorer needs a program for each length."""

  width: int
  heads: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x_BTD):
    mean_BTD = jnp.cumsum(x_BTD, axis=1) / (1 + jnp.arange(x_BTD.shape[1]))[:, None]
    return nn.Dense(self.width, name='mix')(jnp.concatenate([x_BTD, mean_BTD], -1))


HOST = lm.LanguageModel(CausalMean, MODEL)


@functools.cache
def parameters_of_host():
  return HOST.initial_parameters(jax.random.key(3))


LENGTHS = [(2, 1), (3, 2), (6, 3), (12, 11), (13, 1), (13, 12), (30, 7), (31, 30), (28, 13), (7, 0)]


def scorer(**changes):
  sizes = {'max_length': MAX_LENGTH, 'tokens_per_call': 48, 'smallest': 4}
  return likelihood.Scorer(HOST, parameters_of_host(), **{**sizes, **changes})


@pytest.fixture(scope='module')
def shared():
  """A scorer whose programs are compiled once for all tests that ask it."""
  return scorer()


def ids_of(length, seed=0):
  return np.random.default_rng([seed, length]).integers(0, MODEL.vocabulary, length).tolist()


@pytest.fixture(scope='module')
def alone():
  """log p(next | ids) of one text by itself, without padding."""

  apply = jax.jit(HOST.apply)

  def nats(ids):
    logits_BTY = apply({'params': parameters_of_host()}, jnp.asarray(ids, jnp.int32)[None])
    logits_Y = np.asarray(logits_BTY[0, -1], np.float64)
    return logits_Y - np.logaddexp.reduce(logits_Y)

  return nats


def brute(question, alone):
  """The sum over the scored ids, each predicted alone from the inputs that the harness would let it see."""
  total, greedy, ids = 0.0, True, question.ids
  first = len(ids) - question.scored
  for position in range(first, len(ids)):
    if question.scored <= MAX_LENGTH:
      start = max(0, len(ids) - MAX_LENGTH - 1)
    else:
      end = min(len(ids), first + MAX_LENGTH * ((position - first) // MAX_LENGTH + 1))
      start = end - MAX_LENGTH - 1
    nats_Y = alone(ids[start:position])
    total += nats_Y[ids[position]]
    greedy &= int(nats_Y.argmax()) == ids[position]
  return total, greedy


def test_answers_are_those_of_a_scorer_that_asks_one_token_at_a_time(shared, alone):
  questions = [Question(ids_of(length), scored) for length, scored in LENGTHS]
  # And some that greedy decoding does give, so that the flag is seen both ways.
  given = shared.continuations([Prompt(ids_of(5), 4)], end=-1)[0]
  questions += [Question([*ids_of(5), *given], 4), Question([*ids_of(5), *given[:3], (given[3] + 1) % 64], 4)]
  sums_N, greedy_N = shared.loglikelihoods(questions)
  expected = [brute(question, alone) for question in questions]
  np.testing.assert_allclose(sums_N, [total for total, _ in expected], atol=1e-4, rtol=0)
  assert greedy_N.tolist() == [greedy for _, greedy in expected]
  assert greedy_N[-2] and not greedy_N[-1]


def test_continuations_are_those_of_a_decoder_that_runs_each_prefix_alone(shared, alone):
  prompts = [Prompt(ids_of(length), most) for length, most in [(1, 6), (2, 2), (11, 3), (40, 4), (6, 11), (3, 0)]]
  answers = shared.continuations(prompts, end=-1)
  for prompt, answer in zip(prompts, answers, strict=True):
    ids = list(prompt.ids[-(MAX_LENGTH - prompt.most) :])
    for _ in range(prompt.most):
      ids.append(int(alone(ids).argmax()))
    assert answer == ids[len(ids) - prompt.most :]


def test_a_prompt_that_asks_for_more_than_fits_is_seen_through_a_sliding_window(shared, alone):
  prompt = Prompt(ids_of(9), 20)
  ids = list(prompt.ids)
  for _ in range(prompt.most):
    ids.append(int(alone(ids[-MAX_LENGTH:]).argmax()))
  assert shared.continuations([prompt], end=-1) == [ids[9:]]


def test_a_continuation_ends_at_the_end_token_and_where_it_is_told_to(shared):
  prompt = Prompt(ids_of(4), 7)
  whole = shared.continuations([prompt], end=-1)[0]
  assert shared.continuations([prompt], end=whole[5])[0] == whole[: whole.index(whole[5])]
  stopped = shared.continuations([prompt, prompt], end=-1, stop=lambda index, added: index == 1 and len(added) == 2)
  assert stopped == [whole, whole[:2]]


def test_ids_beyond_the_tokenizer_are_never_generated(shared):
  prompts = [Prompt(ids_of(8, seed), 4) for seed in range(6)]
  answers = scorer(vocabulary=10).continuations(prompts, end=-1)
  assert max(max(answer) for answer in answers) < 10
  assert max(max(answer) for answer in shared.continuations(prompts, end=-1)) >= 10


def test_each_bucket_is_compiled_once_however_many_requests_come():
  ours = scorer()
  for seed in range(3):
    ours.loglikelihoods([Question(ids_of(length, seed), 1) for length in (2, 4, 10, 11, 12, 40)])
    ours.continuations([Prompt(ids_of(length, seed), 2) for length in (2, 9, 11)], end=-1)
  assert sorted(ours.compiled) == [('continue', 4), ('continue', 12), ('score', 4), ('score', 12)]


def test_how_many_go_through_at_once_and_in_which_order_changes_nothing(shared):
  questions = [Question(ids_of(length), scored) for length, scored in LENGTHS]
  together = shared.loglikelihoods(questions)
  alone = scorer(tokens_per_call=1).loglikelihoods(questions[::-1])
  np.testing.assert_allclose(together[0], alone[0][::-1], atol=1e-4)
  assert together[1].tolist() == alone[1][::-1].tolist()


def test_progress_counts_up_to_all_requests(shared):
  seen = []
  shared.loglikelihoods([Question(ids_of(n), 1) for n in (3, 4, 12)], lambda *counts: seen.append(counts))
  assert seen == [(2, 3), (3, 3)]
  seen.clear()
  shared.continuations([Prompt(ids_of(3), 2)] * 3, end=-1, on_call=lambda *counts: seen.append(counts))
  assert seen[-1] == (3, 3)


def test_nothing_asked_is_nothing_compiled():
  ours = scorer()
  sums_N, greedy_N = ours.loglikelihoods([])
  assert sums_N.shape == greedy_N.shape == (0,) and ours.continuations([], end=0) == [] and ours.compiled == ()
  assert ours.loglikelihoods([Question([5], 0)])[0].tolist() == [0.0] and ours.compiled == ()


@pytest.mark.parametrize(
  'question, said',
  [
    (Question([], 0), 'at least one has to come before'),
    (Question([3, 4], 2), '2 of 2 ids'),
    (Question([3, 64], 1), 'another tokenizer'),
    (Question([-1, 3], 1), 'another tokenizer'),
  ],
)
def test_questions_that_cannot_be_asked_are_refused(question, said, shared):
  with pytest.raises(ValueError, match=said):
    shared.loglikelihoods([Question([1, 2], 1), question])


def test_an_empty_prompt_is_refused(shared):
  with pytest.raises(ValueError, match='prompt 1 is empty'):
    shared.continuations([Prompt([1], 1), Prompt([], 1)], end=0)


def test_an_answer_that_is_not_finite_is_no_answer():
  broken = jax.tree.map(lambda leaf: leaf * np.nan, parameters_of_host())
  ours = likelihood.Scorer(HOST, broken, max_length=8, tokens_per_call=16)
  with pytest.raises(ValueError, match='request 0 is nan'):
    ours.loglikelihoods([Question([1, 2, 3], 2)])


@pytest.mark.parametrize('length, scored, most', [(1, 0, 4), (9, 8, 4), (9, 3, 4), (5, 4, 4), (13, 12, 4), (20, 9, 4)])
def test_windows_score_every_id_once_and_never_see_more_than_fits(length, scored, most):
  found = likelihood.windows(Question(list(range(length)), scored), most)
  told = [id for window in found for id in window.ids[len(window.ids) - window.scored :]]
  assert told == list(range(length - scored, length))
  assert all(len(window.ids) <= most + 1 and len(window.ids) > window.scored for window in found)
