"""`asiarch evaluate`: an archived entry answers in the jail, the harness (or a stand-in for it) counts."""

import dataclasses
import importlib.util
import json
import math
import shutil
import sys
import types

import jax
import pytest
from absl import flags as flagged

from asiarch_jax import commands, config, main, records
from asiarch_jax.arch import contract, lm
from asiarch_jax.commands import evaluating
from asiarch_jax.evidence import task_noise
from asiarch_jax.search import fitness
from asiarch_jax.shell import archive as archives
from asiarch_jax.shell import jobfolder, questions, sandbox, zero_shot
from asiarch_jax.shell import runner as runners
from tests import samples
from tests.cli import ROOT
from tests.planted import planted

MODEL = config.Model(width=8, layers=1, heads=2, mlp_width=8)
RUNNER = config.Runner(platform='cpu')
EXPERIMENT = dataclasses.replace(
  config.Experiment(), model=MODEL, runner=RUNNER, training=dataclasses.replace(config.Experiment().training, length=48)
)


@pytest.fixture(scope='module')
def written(tmp_path_factory):
  """An archive: the baseline, a candidate of another feed-forward width, one without parameters, and a rejection."""
  folder = tmp_path_factory.mktemp('written') / 'run'
  with archives.OrbaxArchive.open(folder, EXPERIMENT, 'text') as archive:
    for key, (name, width) in enumerate({'delta_net': 8, 'gated_mean': 6, 'empty': 8}.items()):
      role = {'delta_net': 'baseline'}.get(name, 'candidate')
      host = lm.LanguageModel(contract.load(samples.SOURCE), MODEL, width)
      arrays = {} if name == 'empty' else jobfolder.by_path(host.initial_parameters(jax.random.key(key)))
      archive.append(samples.entry(key, name=name, role=role, mlp_width=width), arrays)
    archive.append(samples.rejection(3), {})
  return folder


@pytest.fixture
def workdir(written, tmp_path):
  return shutil.copytree(written, tmp_path / 'run')


@dataclasses.dataclass(frozen=True)
class Row:
  task: str
  metric: str
  value: float
  items: tuple
  aggregate: object
  chance: float | None
  cut: int


def mean(items):
  return sum(items) / len(items)


@pytest.fixture
def stand_in(monkeypatch):
  """A harness with one task of two choices and one of free text, without the package."""
  module = types.ModuleType('asiarch_jax.shell.harness')
  module.VERSION = 'stand-in'
  module.Model = lambda encoding, ask, max_length: (encoding, ask, max_length)
  module.tasks = lambda names, include: dict.fromkeys(names, include)

  def measure(model, tasks, limit):
    encoding, ask, max_length = model
    contexts = [f'{name} {n}' for name in tasks for n in range(limit or 8)]
    texts = [context + choice for context in contexts for choice in (' a', ' b')]
    scored = [questions.Request(tuple(encoding.encode(text).tolist()), scored=2) for text in texts]
    *answers, said = ask([*scored, questions.Request((65,), most=3, stops=('\n',))])
    assert len(said.following) <= 3
    right = [float(a.nats > b.nats) for a, b in zip(answers[::2], answers[1::2], strict=True)]
    count = len(right) // len(tasks)
    items = [tuple(right[n * count : (n + 1) * count]) for n in range(len(tasks))]
    return [Row(name, 'acc', mean(mine), mine, mean, 0.5, max_length) for name, mine in zip(tasks, items, strict=True)]

  module.measure = measure
  monkeypatch.setitem(sys.modules, 'asiarch_jax.shell.harness', module)


@pytest.fixture
def jail():
  if not sandbox.available():
    pytest.skip('no jail works here')


def evaluate(*arguments):
  return main.main(['evaluate', *map(str, arguments)])


@pytest.mark.slow
@pytest.mark.jail
def test_an_entry_answers_and_is_compared_with_the_baseline(workdir, stand_in, jail, capsys):
  flags = (f'--workdir={workdir}', '--tasks=one,two', '--limit=6')
  assert evaluate('delta_net', *flags, '--json') == 0
  document = json.loads(capsys.readouterr().out)
  assert document['against'] is None and document['result']['entry'] == 0
  scores = document['result']['scores']
  assert [score['task'] for score in scores] == ['one', 'two'] and all(score['n'] == 6 for score in scores)
  assert all(score['stderr'] == pytest.approx(math.sqrt(score['value'] * (1 - score['value']) / 5)) for score in scores)
  assert scores[0]['cut'] == 48  # the stand-in says with it what the model is shown at most: what it was trained at
  assert evaluate('1', *flags, '--json') == 0
  against = json.loads(capsys.readouterr().out)['against']
  stderr = math.hypot(against['stderr'], against['base_stderr'])
  assert against['moved'] == pytest.approx(task_noise.moved(stderr, against['base'], config.FitnessRule()))
  assert evaluate('1', *flags) == 0  # the worker is not asked again
  said = capsys.readouterr()
  assert 'mean accuracy of 2 tasks' in said.out and 'delta_net on the same 2' in said.out
  assert 'score step' not in said.err and not list((workdir / 'zero_shot').glob('.questions*'))


@pytest.mark.jail
def test_the_real_harness_measures_its_local_tasks(workdir, jail, capsys, monkeypatch, tmp_path):
  if importlib.util.find_spec('lm_eval') is None:
    pytest.skip('the extra [eval] is not installed; `make harness` runs this')
  monkeypatch.chdir(ROOT)
  tasks = 'colours,market_word,market_page,ledger'
  assert (
    evaluate('1', f'--workdir={workdir}', f'--tasks={tasks}', '--include=docs/zero_shot', '--limit=4', '--json') == 0
  )
  scores = json.loads(capsys.readouterr().out)['result']['scores']
  assert {score['task'] for score in scores} == set(tasks.split(','))
  bits = next(score for score in scores if score['metric'] == 'bits_per_byte')
  assert 0 < bits['stderr'] < bits['value'] < 12


def test_what_is_asked_is_what_was_set():
  """A flag goes before the setting, the setting before what the model was trained at."""

  def whole(*flags, **settings):
    values = flagged.FlagValues()
    for define in main.COMMANDS['evaluate'].define:
      define(values, ())
    values(['asiarch', '--workdir=w', *flags])
    return evaluating.wanted(values, dataclasses.replace(EXPERIMENT, zero_shot=config.ZeroShot(**settings)))

  def wanted(*flags, **settings):
    chosen = whole(*flags, **settings)
    return chosen.tasks, chosen.limit, chosen.max_length

  def included(*flags, **settings):
    return whole(*flags, **settings).include

  assert wanted() == (config.ZeroShot().tasks, 500, 48) and len(config.ZeroShot().tasks) == 13
  assert wanted(tasks=('piqa',), limit=7, max_length=96) == (('piqa',), 7, 96)
  flags = ('--tasks=boolq,swde', '--limit=0', '--max_length=64')
  assert wanted(*flags, tasks=('piqa',), limit=7, max_length=96) == (('boolq', 'swde'), 0, 64)
  assert included() == '' and included(include='mine') == 'mine' and included('--include=x', include='mine') == 'x'
  with pytest.raises(commands.UsageError, match='no task is named'):
    wanted(tasks=())


def test_without_the_extra_the_remedy_is_said(workdir, monkeypatch, capsys):
  monkeypatch.setitem(sys.modules, 'lm_eval', None)
  monkeypatch.delitem(sys.modules, 'asiarch_jax.shell.harness', raising=False)
  assert evaluate('0', f'--workdir={workdir}') == 2
  assert "pip install 'asiarch-jax[eval]'" in capsys.readouterr().err


REFUSED = {
  'no parameters': (['empty'], 'no parameters in the archive'),
  'a rejection': (['3'], 'was rejected'),
  'an unknown name': (['nobody'], 'neither an id nor a name'),
  'another tokenizer': (['0', '--tokenizer={tokenizer}'], 'trained with bytes'),
  'no tokenizer file': (['0', '--tokenizer=none.json'], 'no such tokenizer'),
}


@pytest.mark.parametrize('name', REFUSED)
def test_what_cannot_be_evaluated_is_refused(name, workdir, stand_in, capsys, tmp_path):
  tokenizers = pytest.importorskip('tokenizers')
  model = tokenizers.Tokenizer(tokenizers.models.WordLevel({'a': 0, 'b': 1}, unk_token='a'))
  model.save(str(tmp_path / 'tokenizer.json'))
  arguments, said = REFUSED[name]
  arguments = [one.format(tokenizer=tmp_path / 'tokenizer.json') for one in arguments]
  assert evaluate(*arguments, f'--workdir={workdir}') == 2
  assert said in capsys.readouterr().err


def test_a_corpus_that_is_gone_wants_its_tokenizer_named(tmp_path, stand_in, capsys):
  gone = dataclasses.replace(EXPERIMENT, corpus=config.Corpus(str(tmp_path / 'gone')))
  with archives.OrbaxArchive.open(tmp_path / 'run', gone, 'text') as archive:
    archive.append(samples.entry(0), {'w': jax.numpy.zeros(3)})
  assert evaluate('0', f'--workdir={tmp_path / "run"}') == 2
  assert '--tokenizer=tokenizer.json, or bytes' in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.jail
def test_a_model_that_is_not_the_archives_says_so(workdir, stand_in, jail, capsys):
  """The parameters of another width: the worker refuses, and the command passes on why."""
  with archives.OrbaxArchive.open(workdir, EXPERIMENT, 'text') as archive:
    host = lm.LanguageModel(contract.load(samples.SOURCE), MODEL, 12)
    arrays = jobfolder.by_path(host.initial_parameters(jax.random.key(0)))
    archive.append(samples.entry(9, mlp_width=8), arrays)
  assert evaluate('9', f'--workdir={workdir}', '--tasks=one') == 2
  assert 'has shape (12, 8) in the archive and (8, 8)' in capsys.readouterr().err


ASKED = ('--config=configs/smoke.py', '--config.zero_shot.in_search=True', "--config.zero_shot.tasks=('one','two')",
         '--config.zero_shot.limit=6')  # fmt: skip


def entries(workdir):
  with archives.OrbaxArchive.open_read_only(workdir) as archive:
    return {entry.id: entry for entry in records.entries_of(archive.outcomes())}


@pytest.fixture
def searched(stand_in, monkeypatch, tmp_path, capsys):
  """A search that asked its entries; its trainings and answers are planted."""
  monkeypatch.setattr(runners, 'LocalRunner', planted())
  assert main.main(['search', *ASKED, f'--workdir={tmp_path / "run"}', '--cycles=6']) == 0, capsys.readouterr().err
  return tmp_path / 'run'


def test_a_search_asks_every_trained_entry_and_breeds_on_the_answers(searched, capsys):
  found = entries(searched)
  base = found[0]
  assert len(found) == 6 and len({entry.scores for entry in found.values()}) > 1
  for entry in found.values():
    assert [score.task for score in entry.scores] == ['recall_slice', 'one', 'two']
    assert [score.n for score in entry.scores[1:]] == [6, 6] and entry.scores[1].stderr > 0
    means = [sum(score.value for score in one.scores) / 3 for one in (entry, base)]
    assert entry.fitness.tasks == pytest.approx(fitness.tasks_term(*means, config.FitnessRule()))
    (kept,) = zero_shot.of(searched, entry.id)  # all that was measured, for the report
    assert kept.limit == 6 and [score.value for score in kept.scores] == [s.value for s in entry.scores[1:]]
  assert found[5].timing.accelerator_seconds == 3.0  # training and answers
  page = (searched / 'report' / 'index.html').read_text()
  assert 'Zero-shot, the first 6 items of each task' in page
  assert main.main(['search', *ASKED[:-1], '--config.zero_shot.limit=7', f'--workdir={searched}']) == 2
  assert 'zero_shot.limit' in capsys.readouterr().err


def test_rungs_and_imports_of_such_a_search_are_asked_too(searched, capsys, tmp_path):
  assert main.main(['verify', f'--workdir={searched}']) == 0, capsys.readouterr().err
  climbed = entries(searched / 'rungs' / 'small')
  assert climbed and all([s.task for s in entry.scores][-2:] == ['one', 'two'] for entry in climbed.values())
  assert 'Zero-shot' in (searched / 'rungs' / 'small' / 'report' / 'index.html').read_text()
  mixer = tmp_path / 'gated_mean.py'
  mixer.write_text(samples.SOURCE)
  assert main.main(['import', str(mixer), f'--workdir={searched}']) == 0, capsys.readouterr().err
  newest = entries(searched)[max(entries(searched))]
  assert newest.proposal.name == 'gated_mean' and [s.task for s in newest.scores][-2:] == ['one', 'two']


def test_an_entry_that_gives_no_answers_is_rejected(stand_in, monkeypatch, tmp_path, capsys):
  """Left out of the task term it would be favoured; the baseline that fails ends the search."""

  def fails(job):
    return 'ValueError: an answer is not finite' if job.kind == 'answer' and job.name != 'delta_net' else ''

  monkeypatch.setattr(runners, 'LocalRunner', planted(fails=fails))
  flags = (*ASKED, '--config.researcher.repairs=0', f'--workdir={tmp_path}', '--cycles=4')
  assert main.main(['search', *flags]) == 0, capsys.readouterr().err
  with archives.OrbaxArchive.open_read_only(tmp_path) as archive:
    rejected = [one for one in archive.outcomes() if isinstance(one, records.Rejection)]
  assert set(entries(tmp_path)) == {0} and len(rejected) == 3
  assert {one.stage for one in rejected} == {'error'}
  assert all('gave no answers: ValueError: an answer is not finite' in one.reason for one in rejected)
  assert all(one.training is not None for one in rejected)


def test_answers_that_are_none_end_the_entry_and_not_the_search(stand_in, monkeypatch, tmp_path, capsys):
  kind = planted()
  given = kind.arrays

  def arrays(self, key):
    held = given(self, key)
    return {**held, 'nats': held['nats'][:-1]} if held and len(kind.answers) > 1 else held

  monkeypatch.setattr(kind, 'arrays', arrays)
  monkeypatch.setattr(runners, 'LocalRunner', kind)
  assert main.main(['search', *ASKED, f'--workdir={tmp_path}', '--cycles=2']) == 0, capsys.readouterr().err
  with archives.OrbaxArchive.open_read_only(tmp_path) as archive:
    _, second = archive.outcomes()
  assert isinstance(second, records.Rejection) and second.stage == 'forged' and 'answers of shape' in second.reason


def test_a_search_that_cannot_ask_does_not_begin(monkeypatch, tmp_path, capsys):
  if importlib.util.find_spec('lm_eval') is not None:
    pytest.skip('the harness is installed')
  kind = planted()
  monkeypatch.setattr(runners, 'LocalRunner', kind)
  assert main.main(['search', *ASKED, f'--workdir={tmp_path}', '--cycles=4']) == 2
  assert "pip install 'asiarch-jax[eval]'" in capsys.readouterr().err and not kind.jobs
