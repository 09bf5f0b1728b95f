"""EleutherAI's harness with a model that answers elsewhere: a bigram table here, so that every number can be counted.

Runs where the extra `[eval]` is installed: `make harness`.
"""

import json
import math
import os

import numpy as np
import pytest

os.environ.setdefault('HF_HUB_OFFLINE', '1')  # read when the libraries are imported; nothing here needs a network
os.environ.setdefault('HF_DATASETS_OFFLINE', '1')
pytest.importorskip('lm_eval', reason='the extra [eval] is not installed; `make harness` runs these')

from lm_eval.api.instance import Instance

from asiarch_jax import config
from asiarch_jax.evidence import task_noise
from asiarch_jax.shell import harness, text_encoding
from asiarch_jax.shell.questions import Answer
from tests.cli import ROOT

BYTES = text_encoding.encoding('bytes')
TABLE_YY = np.random.default_rng(0).normal(0.0, 2.0, (256, 256))
TABLE_YY -= np.logaddexp.reduce(TABLE_YY, axis=1, keepdims=True)
FOLDER = str(ROOT / 'docs/zero_shot')
STAND_IN_ITEMS = 6


class Bigrams:
  """Answers from log p(next | last), and remembers what it was asked."""

  def __init__(self):
    self.asked = []

  def __call__(self, requests):
    self.asked += requests
    return [self.answer(request) for request in requests]

  def answer(self, request):
    if request.most is None:
      pairs = list(zip(request.ids, request.ids[1:], strict=False))[len(request.ids) - 1 - request.scored :]
      greedy = all(int(TABLE_YY[a].argmax()) == b for a, b in pairs)
      return Answer(float(sum(TABLE_YY[a, b] for a, b in pairs)), greedy)
    added = []
    while len(added) < request.most:
      added.append(int(TABLE_YY[(*request.ids, *added)[-1]].argmax()))
    return Answer(following=tuple(added))


class Oracle(Bigrams):
  """Knows the lines of ledgers that it was shown, for the half of them whose last line begins with a late letter."""

  def answer(self, request):
    text = BYTES.decode(request.ids)
    wanted = text.rpartition('\n')[2]
    line = next(line for line in text.splitlines() if line.startswith(f'{wanted} '))
    said = f'{line.removeprefix(wanted)}\nshells: 9' if wanted < 'm' else ' no idea\n'
    return Answer(following=tuple(said.encode()))


def model(ask=None, max_length=512):
  return harness.Model(BYTES, ask or Bigrams(), max_length)


def asked(kind, *arguments):
  return [Instance(kind, {}, one, 0, metadata=('t', 0, 1)) for one in arguments]


def nats(context, continuation):
  """The brute-force scorer: text in, one pair of bytes after the other."""
  whole = (context or '\0').encode() + continuation.encode()
  start = len((context or '\0').encode())
  return sum(TABLE_YY[whole[i - 1], whole[i]] for i in range(start, len(whole)))


def test_log_likelihoods_are_those_of_the_text_byte_by_byte():
  pairs = [
    ('a context', ' and more'),
    ('', 'no context'),
    ('trailing  ', 'blanks'),
    ('nothing', ''),
    ('', ''),
    ('é', 'ß€'),
  ]
  answers = model().loglikelihood(asked('loglikelihood', *pairs))
  expected = [nats(context, continuation) for context, continuation in pairs]
  expected[2] = nats('trailing', '  blanks')  # blanks belong to what follows, as the harness has it
  np.testing.assert_allclose([value for value, _ in answers], expected, atol=1e-9)
  assert answers[3] == answers[4] == (0.0, True)


def test_the_flag_says_what_greedy_decoding_gives():
  start = BYTES.encode('x')[-1]
  best = bytes([int(TABLE_YY[start, :128].argmax())]).decode()
  table_best = int(TABLE_YY[start].argmax()) < 128
  answers = model().loglikelihood(asked('loglikelihood', ('x', best), ('x', '\x01' if best != '\x01' else '\x02')))
  assert [flag for _, flag in answers] == [table_best, False]


def test_whole_texts_follow_an_end_token_whatever_their_length():
  texts = ['short', 'long ' * 400, '']
  answers = model().loglikelihood_rolling(asked('loglikelihood_rolling', *((text,) for text in texts)))
  np.testing.assert_allclose(answers, [nats('', text) for text in texts], atol=1e-9)


def test_what_is_generated_ends_before_the_first_stop_string():
  ask = Bigrams()
  whole = model(ask).generate_until(asked('generate_until', ('start', {'until': [], 'max_gen_toks': 40})))[0]
  middle = whole[3:5]
  stopped = model().generate_until(
    asked('generate_until', ('start', {'until': [middle, ''], 'max_gen_toks': 40}), ('start', {'until': whole[1]}))
  )
  assert stopped == [whole.split(middle)[0], whole.split(whole[1])[0]]
  assert ask.asked[0].most == 40 and harness.MOST == 256


def test_sampling_is_refused_and_a_temperature_of_zero_is_not():
  kwargs = {'until': ['\n'], 'do_sample': True, 'temperature': 0.8, 'max_gen_toks': 2}
  with pytest.raises(ValueError, match='greedy'):
    model().generate_until(asked('generate_until', ('start', kwargs)))
  model().generate_until(asked('generate_until', ('start', {**kwargs, 'temperature': 0.0})))


def test_requests_that_are_alike_are_asked_once_and_no_requests_are_not_asked():
  ask = Bigrams()
  answers = model(ask).loglikelihood(asked('loglikelihood', ('a', 'b'), ('a', 'b'), ('a', 'c')))
  assert len(ask.asked) == 2 and answers[0] == answers[1] != answers[2]
  nobody = model(ask)
  assert nobody.loglikelihood([]) == nobody.loglikelihood_rolling([]) == nobody.generate_until([]) == []
  assert len(ask.asked) == 2


def test_what_is_longer_than_the_model_is_shown_is_counted():
  ours = model(max_length=8)
  ours.loglikelihood(asked('loglikelihood', ('a' * 6, 'bcd'), ('a' * 6, 'bcde')))
  ours.generate_until(asked('generate_until', ('a' * 6, {'max_gen_toks': 2}), ('a' * 7, {'max_gen_toks': 2})))
  assert ours.cut == {'t': 2}


@pytest.fixture
def here(monkeypatch):
  monkeypatch.chdir(ROOT)  # the task files name their data from there


def items(name):
  return [json.loads(line) for line in (ROOT / f'docs/zero_shot/{name}.jsonl').read_text().splitlines()]


def by_metric(rows):
  return {(row.task, row.metric): row for row in rows}


def test_local_tasks_give_what_counting_by_hand_gives(here):
  names = ['colours', 'market_word', 'market_page']
  rows = by_metric(harness.measure(model(), harness.tasks(names, FOLDER), None))
  right = {'acc': 0, 'acc_norm': 0}
  for item in items('colours'):
    prompt = f'Question: {item["question"]}\nAnswer:'
    scores = [nats(prompt, f' {choice}') for choice in item['choices']]
    lengths = [len(choice) for choice in item['choices']]
    right['acc'] += int(np.argmax(scores)) == item['label']
    right['acc_norm'] += int(np.argmax(np.divide(scores, lengths))) == item['label']
  for metric, count in right.items():
    row = rows['colours', metric]
    assert row.value == pytest.approx(count / 24) and row.chance == 0.25 and len(row.items) == 24
    error = task_noise.jackknife(row.aggregate, row.items)
    assert error == pytest.approx(math.sqrt(row.value * (1 - row.value) / 23))
  words = [nats(item['text'], item['word']) for item in items('market')]
  assert rows['market_word', 'perplexity'].value == pytest.approx(math.exp(-np.mean(words)), rel=1e-6)
  assert rows['market_word', 'perplexity'].chance is None and rows['market_word', 'acc'].chance == 0.0
  pages = [item['page'] for item in items('market')]
  bits = -sum(nats('', page) for page in pages) / sum(len(page.encode()) for page in pages) / math.log(2)
  row = rows['market_page', 'bits_per_byte']
  assert row.value == pytest.approx(bits, rel=1e-6)
  assert 0 < task_noise.jackknife(row.aggregate, row.items) < 0.2


def test_a_task_that_generates_counts_what_comes_before_the_stop(here):
  rows = harness.measure(model(Oracle()), harness.tasks(['ledger'], FOLDER), None)
  known = [item['text'].rpartition('\n')[2] < 'm' for item in items('ledger')]
  assert [row.metric for row in rows] == ['exact_match']
  assert 0 < rows[0].value < 1 and rows[0].value == pytest.approx(np.mean(known)) and rows[0].chance == 0.0


def test_a_limit_takes_the_first_items(here):
  rows = harness.measure(model(), harness.tasks(['colours'], FOLDER), 5)
  assert [len(row.items) for row in rows] == [5, 5]


CHOICES = {'text': ['one', 'two', 'three', 'four'], 'label': ['A', 'B', 'C', 'D']}
# data set -> (config, split, an item in its own format): what the paper's tasks read.
STAND_INS = {
  'allenai/ai2_arc:ARC-Challenge': ('test', {'question': 'Which?', 'choices': CHOICES, 'answerKey': 'B'}),
  'allenai/ai2_arc:ARC-Easy': ('test', {'question': 'What?', 'choices': CHOICES, 'answerKey': 'C'}),
  'aps/super_glue:boolq': ('validation', {'passage': 'Snow is white.', 'question': 'is snow white', 'label': 1}),
  'hazyresearch/based-fda:default': ('validation', {'text': 'Name: Q12. Name:', 'value': 'Q12'}),
  'Rowan/hellaswag:default': (
    'validation',
    {
      'activity_label': 'Cook',
      'ctx_a': 'A pan.',
      'ctx_b': 'he',
      'endings': ['fries', 'sits', 'sings', 'ends'],
      'label': '0',
    },
  ),
  'EleutherAI/lambada_openai:default': ('test', {'text': 'She gave the dog its bone'}),
  'allenai/openbookqa:main': ('test', {'question_stem': 'Ice is', 'choices': CHOICES, 'answerKey': 'D'}),
  'baber/piqa:default': ('validation', {'goal': 'Open a jar', 'sol1': 'turn it', 'sol2': 'eat it', 'label': 0}),
  'lighteval/siqa:default': (
    'validation',
    {'context': 'Al ran.', 'question': 'Why?', 'answerA': 'late', 'answerB': 'sad', 'answerC': 'old', 'label': '1'},
  ),
  'hazyresearch/based-squad:default': ('validation', {'text': 'Rome is in Italy. Rome is in', 'value': 'Italy'}),
  'hazyresearch/based-swde-v2:default': ('validation', {'text': 'Genre: jazz. Genre:', 'value': 'jazz'}),
  'allenai/winogrande:winogrande_xl': (
    'validation',
    {'sentence': 'The cup fell since _ was wet.', 'option1': 'the cup', 'option2': 'the hand', 'answer': '2'},
  ),
  'EleutherAI/wikitext_document_level:wikitext-2-raw-v1': ('test', {'page': ' = Rome = \n Rome is a city . \n'}),
}
CHANCE = {  # of the first metric; that of lambada_openai and wikitext is a perplexity
  'arc_challenge': 0.25,
  'arc_easy': 0.25,
  'boolq': 0.5,
  'fda': 0.0,
  'hellaswag': 0.25,
  'openbookqa': 0.25,
  'piqa': 0.5,
  'social_iqa': 1 / 3,
  'squad_completion': 0.0,
  'swde': 0.0,
  'winogrande': 0.5,
}


@pytest.fixture
def hub(tmp_path, monkeypatch):
  """A folder laid out like the hub's repositories, with a few items of each data set in its own format."""
  cards = {}
  for name, (split, item) in STAND_INS.items():
    repository, _, part = name.partition(':')
    folder = tmp_path / repository / part
    folder.mkdir(parents=True)
    # Some tasks want a training split to be there.
    for one in dict.fromkeys(('train', 'validation', 'test', split)):
      (folder / f'{one}.jsonl').write_text('\n'.join(json.dumps(item) for _ in range(STAND_IN_ITEMS)))
    files = ''.join(f'  - split: {one}\n    path: {part}/{one}.jsonl\n' for one in ('train', 'validation', 'test'))
    cards.setdefault(repository, []).append(f'- config_name: {part}\n  data_files:\n{files}')
  for repository, parts in cards.items():
    (tmp_path / repository / 'README.md').write_text(f'---\nconfigs:\n{"".join(parts)}---\n')
  monkeypatch.chdir(tmp_path)


def test_the_thirteen_tasks_of_the_paper_run_on_items_in_their_own_format(hub):
  names = config.ZeroShot().tasks
  ask = Bigrams()
  rows = harness.measure(model(ask), harness.tasks(names), 4)
  first = {}
  for row in rows:
    assert len(row.items) == 4 and math.isfinite(row.value)
    first.setdefault(row.task, row.chance)
  assert list(first) == list(names) and len(names) == 13
  assert {task: chance for task, chance in first.items() if chance is not None} == pytest.approx(CHANCE)
  assert {request.most for request in ask.asked} >= {None, 48}  # fda and swde generate 48 tokens at most


def test_a_task_that_is_not_there_is_named_with_the_nearest(here):
  with pytest.raises(ValueError, match=r"'colour' is not a task.*colours"):
    harness.tasks(['colours', 'colour'], FOLDER)


def test_data_that_cannot_be_read_says_why_and_what_to_do(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(ValueError, match=r'(?s)the data of colours cannot be read.*--include'):
    harness.tasks(['colours'], FOLDER)  # its file is named from another folder


def test_a_folder_that_is_not_there_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match='no such folder'):
    harness.tasks(['colours'], str(tmp_path / 'none'))
