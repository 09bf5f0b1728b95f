"""Questions to a trained model through files, and a worker's answers against a scorer that asks one by one."""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asiarch_jax import config, worker
from asiarch_jax.arch import contract, lm
from asiarch_jax.records import Job
from asiarch_jax.shell import jobfolder, questions, runner, sandbox, text_encoding
from asiarch_jax.shell.questions import Answer, Request, Terms
from tests import samples

BASELINES = pathlib.Path(contract.__file__).parent / 'baselines'

BYTES = text_encoding.encoding('bytes')
MODEL = config.Model(width=8, layers=1, heads=2, mlp_width=8, init_stddev=0.5)
EXPERIMENT = dataclasses.replace(config.Experiment(), model=MODEL)
HOST = lm.LanguageModel(contract.load(samples.SOURCE), MODEL)


@functools.cache
def parameters_of_host():
  return HOST.initial_parameters(jax.random.key(1))


def logits_of(tokens_BT):
  return jax.jit(HOST.apply)({'params': parameters_of_host()}, tokens_BT)


TERMS = Terms(max_length=24, tokens_per_call=96, vocabulary=256, end=0)


def ids(text):
  return tuple(BYTES.encode(text).tolist())


REQUESTS = (
  Request(ids('the key opens'), scored=6),
  Request(ids('a gate'), most=5, stops=('\n', 'xyz')),
  Request((0, *ids('whole text that is longer than what the model is shown at once')), scored=62),
  Request(ids('q'), scored=0),
  Request(ids('the key opens'), most=3),
)


def job(content, **changes):
  part = config.worker_part(EXPERIMENT)
  return dataclasses.replace(Job('gated_mean', samples.SOURCE, part, kind='answer', corpus=content), **changes)


@pytest.fixture
def folder(tmp_path):
  content = questions.write(tmp_path / 'asked', REQUESTS, TERMS, BYTES, jobfolder.by_path(parameters_of_host()))
  return tmp_path / 'asked', content


def test_what_is_read_is_what_was_written(folder):
  requests, terms, encoding, parameters = questions.read(folder[0])
  assert tuple(requests) == REQUESTS and terms == TERMS and encoding.name == BYTES.name
  for path, array in jobfolder.by_path(parameters_of_host()).items():
    np.testing.assert_array_equal(parameters[path], array)


def test_the_name_of_a_folder_is_that_of_its_content(tmp_path, folder):
  parameters = jobfolder.by_path(parameters_of_host())
  asked = [
    (REQUESTS, TERMS, parameters),
    (REQUESTS[1:], TERMS, parameters),
    (REQUESTS, dataclasses.replace(TERMS, max_length=23), parameters),
    (REQUESTS, TERMS, {path: array + 1 for path, array in parameters.items()}),
  ]
  names = [
    questions.write(tmp_path / str(n), requests, terms, BYTES, arrays)
    for n, (requests, terms, arrays) in enumerate(asked)
  ]
  assert names[0] == folder[1] and len(set(names)) == len(names)


def test_a_tokenizer_goes_along_and_another_one_is_refused(tmp_path):
  tokenizers = pytest.importorskip('tokenizers')
  model = tokenizers.Tokenizer(tokenizers.models.WordLevel({'a': 0, 'b': 1, '<eos>': 2}, unk_token='a'))
  model.save(str(tmp_path / 'tokenizer.json'))
  encoding = text_encoding.encoding(str(tmp_path / 'tokenizer.json'))
  questions.write(tmp_path / 'asked', [Request((1, 0), scored=1)], TERMS, encoding, {})
  assert questions.read(tmp_path / 'asked')[2].name == encoding.name
  (tmp_path / 'asked' / questions.TOKENIZER).unlink()
  with pytest.raises(ValueError, match='was written with the tokenizer sha256'):
    questions.read(tmp_path / 'asked')


def test_answers_go_through_arrays():
  answers = [Answer(-1.5, False), Answer(following=(4, 5, 6)), Answer(), Answer(following=())]
  assert questions.unpack(questions.pack(answers), 4) == answers
  assert questions.unpack(questions.pack([]), 0) == []


@pytest.mark.parametrize(
  'change',
  [
    {'nats': np.zeros(2)},
    {'lengths': np.array([3, -1, 0])},
    {'lengths': np.array([9, 0, 0])},
    {'greedy': None},
    {'lengths': np.array([0.0, 0.0, 1.0])},
  ],
)
def test_arrays_that_are_no_answers_are_refused(change):
  arrays = {**questions.pack([Answer(), Answer(), Answer(following=(1,))]), **change}
  arrays = {name: array for name, array in arrays.items() if array is not None}
  with pytest.raises(ValueError, match='the worker gave'):
    questions.unpack(arrays, 3)


def brute(request):
  """The log-probability of the scored ids, whole texts without padding; what follows, a token at a time."""

  def unpadded(shown):
    return np.asarray(logits_of(jnp.asarray(shown, jnp.int32)[None])[0], np.float64)

  def nats(shown, scored):
    logits = unpadded(shown[:-1])
    return sum(
      logits[t, shown[t + 1]] - np.logaddexp.reduce(logits[t]) for t in range(len(shown) - 1 - scored, len(shown) - 1)
    )

  if request.most is not None:
    added = []
    while len(added) < request.most and not any(stop in BYTES.decode(added) for stop in request.stops):
      token = int(unpadded((*request.ids, *added)[-24:])[-1].argmax())
      if token == 0:
        break
      added.append(token)
    return Answer(following=tuple(added))
  if request.scored > 24:  # windows of 24 after the first id, the last of them with all the context that fits
    return Answer(sum(nats(request.ids[end - 25 : end], n) for end, n in ((25, 24), (49, 24), (63, 14))))
  return Answer(nats(request.ids, request.scored))


def agree(answers):
  for answer, request in zip(answers, REQUESTS, strict=True):
    expected = brute(request)
    assert answer.following == expected.following
    assert answer.nats == pytest.approx(expected.nats, abs=1e-4)


def test_a_worker_answers_as_one_who_asks_one_by_one(folder, tmp_path):
  result, arrays = worker.run(job(folder[1]), str(folder[0]), str(tmp_path), lambda progress: None)
  assert result.failure is None and result.training is None
  agree(questions.unpack(arrays, len(REQUESTS)))


@pytest.mark.jail
def test_it_answers_in_the_jail_and_once(folder, tmp_path):
  if not sandbox.available():
    pytest.skip('no jail works here')
  here = runner.LocalRunner(tmp_path, config.Runner(platform='cpu'), folder[0])
  seen = []
  result = here.run(job(folder[1]), seen.append)
  assert result.failure is None, result.failure
  agree(questions.unpack(here.arrays(result.key), len(REQUESTS)))
  assert 'load' in {progress.stage for progress in seen}
  seen.clear()
  assert here.run(job(folder[1]), seen.append) == result and seen == []


GUILTY = {
  'parameters of another width': ({}, {'model': dataclasses.replace(MODEL, width=16)}, 'has shape'),
  'a source with other parameters': (
    {'source': samples.SOURCE.replace('jax.nn.sigmoid', 'nn.RMSNorm()')},
    {},
    'RMSNorm',
  ),
  'a source outside the contract': ({'source': 'import os\n' + samples.SOURCE}, {}, 'os'),
}


@pytest.mark.parametrize('name', GUILTY)
def test_what_cannot_answer_says_why(name, folder, tmp_path):
  changes, settings, said = GUILTY[name]
  wrong = job(folder[1], **{'experiment': config.worker_part(dataclasses.replace(EXPERIMENT, **settings)), **changes})
  result, arrays = worker.run(wrong, str(folder[0]), str(tmp_path), lambda progress: None)
  assert result.failure is not None and said in result.failure.reason and not arrays


@pytest.mark.parametrize('text', ['plain', 'ß€ 文', '', ' two  blanks\n'])
def test_ids_become_text_again(text):
  assert BYTES.decode(BYTES.encode(text)) == text


def test_half_a_character_is_no_error():
  assert BYTES.decode(BYTES.encode('€')[:2]) == '\ufffd'


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize(
  'source, carried', [((BASELINES / 'gated_delta_net.py').read_text(), True), (samples.SOURCE, False)]
)
def test_states_are_judged_without_the_rounding_of_the_type(tmp_path, source, carried, dtype):
  model = dataclasses.replace(MODEL, width=16, dtype=dtype)
  parameters = lm.LanguageModel(contract.load(source), model).initial_parameters(jax.random.key(1))
  asked = [Request(ids('the key opens the door')), Request(ids('a gate is not any door'))]
  folder = tmp_path / 'asked'
  content = questions.write(folder, asked, TERMS, BYTES, jobfolder.by_path(parameters))
  experiment = dataclasses.replace(EXPERIMENT, model=model)
  asking = job(content, source=source, kind='decode', experiment=config.worker_part(experiment))
  result, arrays = worker.decode(asking, experiment, str(folder), lambda _: None)
  assert arrays['logits'].shape == (2, 22, 256) and not set(arrays) - {'tokens', 'logits'}
  steps = next(finding for finding in result.findings if finding.check == 'steps')
  assert steps.passed == carried, steps
