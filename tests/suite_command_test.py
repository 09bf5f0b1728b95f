"""`asiarch suite`: what it prints, that a setting is a job, and that nothing measured is lost or made up."""

import io
import json
import types

import pytest
from rich.console import Console

from asiarch_jax import config, main
from asiarch_jax.commands import suite
from asiarch_jax.records import Accuracy, Failure, JobResult, Proposal, SuiteResult, SuiteRun
from asiarch_jax.shell.display import Display
from asiarch_jax.suites import SUITES, settings
from tests import fakes
from tests.cli import asiarch

TINY = SUITES['mad-tiny']
PROPOSAL = Proposal('fake', '', fakes.MIXER)


class Runner(fakes.FakeRunner):
  def __init__(self, results):
    super().__init__(results)
    self.stopped = False

  def stop(self):
    self.stopped = True


def answer(job, ends=None):
  """Returns a result in which every accuracy is a half; `ends` gives the failures, or raises."""
  if job.kind == 'check':
    return JobResult(job.key)
  setting = settings.parsed(job.suite)
  if ends and setting.task in ends:
    if isinstance(ends[setting.task], BaseException):
      raise ends[setting.task]
    return JobResult(job.key, failure=ends[setting.task])
  half = (Accuracy('', 0.5, 0.25),)
  runs = tuple(
    SuiteRun(seed, *pair, 10, half, half, half) for seed in range(setting.recipe.seeds) for pair in setting.recipe.pairs
  )
  return JobResult(job.key, suite=SuiteResult(setting.name, setting.task, 'macro', runs, 1000))


def measured(runner, as_json=False, chosen=TINY, experiment=None):
  said = io.StringIO()
  display = Display(Console(file=said, width=200), plain=True)
  status = suite.measure(
    types.SimpleNamespace(json=as_json), chosen, PROPOSAL, experiment or config.Experiment(), runner, display
  )
  return status, said.getvalue()


def test_a_setting_is_a_job_and_the_gate_is_one_for_all(capsys):
  runner = Runner(answer)
  status, said = measured(runner)
  out = capsys.readouterr().out
  assert status == 0 and [job.kind for job in runner.jobs] == ['check', *6 * ['suite']]
  assert len({job.key for job in runner.jobs}) == 7 and runner.jobs[0].waived == ('growth',)
  gate = config.from_dict(runner.jobs[0].experiment)
  assert gate.model.width == 32 and gate.training.length == max(s.train[0].length for s in TINY.settings)
  assert all(setting.name in out and setting.name in said for setting in TINY.settings)
  assert 'mean' in out and '0.500 ± 0.000' in out and '24 runs' in out


def test_a_repeat_trains_nothing_and_suites_share_what_they_share(capsys):
  runner = Runner(answer)
  measured(runner, chosen=SUITES['mad-base'])
  measured(runner, chosen=SUITES['mad-base'], experiment=config.Experiment(name='another', budget=config.Budget(1.0)))
  assert len(runner.jobs) == 7
  measured(runner, chosen=SUITES['mad'])
  assert sum(job.kind == 'suite' for job in runner.jobs) == 66
  measured(runner, chosen=SUITES['mad-base'], experiment=config.Experiment(seed=1))
  assert sum(job.kind == 'suite' for job in runner.jobs) == 72


def test_a_failed_setting_leaves_no_score_and_says_why(capsys):
  status, _ = measured(Runner(lambda job: answer(job, {'compression': Failure('time', 'ran for more than 900 s')})))
  out = capsys.readouterr().out
  assert status == 1 and 'compression/tiny: time: ran for more than 900 s' in out
  assert 'no score: 1 of 6 settings failed' in out and 'memorisation/tiny' in out and 'mean' not in out


def test_json_is_one_document_with_every_run(capsys):
  status, _ = measured(Runner(lambda job: answer(job, {'compression': Failure('time', 'slow')})), as_json=True)
  document = json.loads(capsys.readouterr().out)
  assert status == 1 and document['score'] is None and document['failures']['compression/tiny']['kind'] == 'time'
  assert len(document['results']) == 5 and len(document['results'][0]['runs']) == 4
  measured(Runner(answer), as_json=True)
  assert json.loads(capsys.readouterr().out)['score']['total']['mean'] == 0.5


def test_an_interrupted_suite_keeps_what_was_measured_and_says_how_to_go_on(capsys):
  runner = Runner(lambda job: answer(job, {'selective-copying': KeyboardInterrupt()}))
  status, said = measured(runner)
  out = capsys.readouterr().out
  assert status == 130 and runner.stopped
  assert 'stopped with 3 of 6 settings, all of them kept. To resume: asiarch suite' in said
  assert 'noisy-recall/tiny' in out and 'no score' not in out and 'memorisation/tiny' not in out


def test_a_mixer_outside_the_contract_is_not_trained(capsys):
  failure = Failure('checks', 'causality: token 3 depends on token 9')
  runner = Runner(lambda job: JobResult(job.key, failure=failure))
  assert measured(runner)[0] == 1 and [job.kind for job in runner.jobs] == ['check']
  assert 'token 3 depends on token 9' in capsys.readouterr().out


def test_every_width_of_a_suite_is_gated():
  jobs = suite.gate_jobs(SUITES['mqar'], PROPOSAL, config.Experiment())
  assert [config.from_dict(job.experiment).model.width for job in jobs] == [32, 64, 128]


def test_the_list_says_names_sizes_and_runs(capsys):
  assert main.main(['suite', '--suite=list']) == 0
  out = capsys.readouterr().out
  assert all(name in out for name in SUITES) and '1,188' in out and '66' in out
  assert main.main(['suite', '--suite=list', '--json']) == 0
  assert json.loads(capsys.readouterr().out)['mad']['runs'] == 1188


def test_seeds_can_be_set():
  assert suite.with_seeds(SUITES['mad'], 1).runs == 396
  assert suite.with_seeds(SUITES['mad'], None) == SUITES['mad']


@pytest.mark.sweep
def test_a_small_suite_in_the_jail_and_its_repeat(tmp_path):
  arguments = ['suite', 'delta_net', '--suite=mad-tiny', f'--workdir={tmp_path}', '--json']
  first = asiarch(*arguments, timeout=1200)
  assert first.returncode == 0, first.stderr
  score = json.loads(first.stdout)['score']
  assert score['total']['mean'] > 0.6 and score['by_task']['in-context-recall'][0]['mean'] > 0.9
  again = asiarch(*arguments, timeout=60)
  assert again.returncode == 0, again.stderr
  assert again.stdout == first.stdout
