"""`asiarch suite`: a mixer on a named suite of synthetic tasks, a job for each setting."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import shlex
import sys
from collections.abc import Mapping
from typing import Protocol

from absl import flags

from asiarch_jax import commands, config
from asiarch_jax.checks import source
from asiarch_jax.commands import UsageError
from asiarch_jax.ports import Runner
from asiarch_jax.records import Failure, Job, JobResult, Limits, Proposal, SuiteResult, to_json
from asiarch_jax.report import suites as told
from asiarch_jax.shell import runner as runners
from asiarch_jax.shell.display import Display
from asiarch_jax.suites import SUITES, Setting, Suite, score
from asiarch_jax.suites.settings import model_of

LIST = 'list'


class Stoppable(Runner, Protocol):
  """A runner whose workers can be ended."""

  def stop(self) -> None: ...


def suite(values: flags.FlagValues, arguments: list[str]) -> int:
  if values.suite == LIST:
    return _list(values)
  if not arguments:
    raise UsageError('names no mixer; give a baseline or a file, as in: asiarch suite delta_net --suite=mad-tiny')
  chosen = with_seeds(_chosen(values.suite), values.seeds)
  experiment, proposal = commands.experiment_of(values), commands.proposal_of(arguments[0])
  refused = source.failure(source.check(proposal.source))
  if refused:
    return _say_refused(values, refused)
  workdir = commands.jobs_folder(values.workdir)
  with Display() as display, commands.terminable():
    jail = commands.choose_jail(experiment, display)
    wall = max(experiment.runner.wall_seconds, chosen.wall_seconds)
    runner = runners.of(workdir, dataclasses.replace(experiment.runner, jail=jail, wall_seconds=wall))
    return measure(values, chosen, proposal, experiment, runner, display)


def measure(
  values: flags.FlagValues,
  chosen: Suite,
  proposal: Proposal,
  experiment: config.Experiment,
  runner: Stoppable,
  display: Display,
) -> int:
  """Gates the mixer, measures all settings, prints what came of it and returns the exit status."""
  results: dict[str, JobResult] = {}
  try:
    for job in gate_jobs(chosen, proposal, experiment):
      display.start_cycle(0, 0, None)
      failure = runner.run(job, display.progress).failure
      if failure:
        return _say_refused(values, failure)
    _run(chosen, proposal, experiment, runner, display, results)
  except KeyboardInterrupt:
    runner.stop()
    display.line(
      f'stopped with {len(results)} of {len(chosen.settings)} settings, all of them kept. '
      f'To resume: {shlex.join(["asiarch", "suite", *sys.argv[2:]])}'
    )
    _say(values, chosen, results, whole=False)
    return commands.INTERRUPTED
  return _say(values, chosen, results, whole=True)


def gate_jobs(chosen: Suite, proposal: Proposal, experiment: config.Experiment) -> list[Job]:
  """Returns the jobs that run the mixer against its contract, at each size that the suite has.

  Cost may grow as it likes: a suite measures attention too.
  """
  longest = max(kind.length for one in chosen.settings for kind in (*one.train, *one.tests))
  # The vocabulary is the host's, so it changes nothing here.
  models = dict.fromkeys(model_of(setting.recipe, config.Model().vocabulary) for setting in chosen.settings)
  return [
    Job(
      proposal.name,
      proposal.source,
      config.worker_part(
        dataclasses.replace(
          config.Experiment(),
          seed=experiment.seed,
          model=model,
          training=config.Training(length=longest),
          checks=experiment.checks,
        )
      ),
      kind='check',
      waived=('growth',),
      limits=Limits(experiment.runner.wall_seconds),
    )
    for model in models
  ]


def job_of(setting: Setting, proposal: Proposal, seed: int, wall_seconds: float) -> Job:
  """Returns the job of a setting: of the experiment its seed alone counts, so that suites share what they share."""
  return Job(
    proposal.name,
    proposal.source,
    {'seed': seed},
    kind='suite',
    limits=Limits(wall_seconds),
    suite=to_json(setting),
  )


def _run(
  chosen: Suite,
  proposal: Proposal,
  experiment: config.Experiment,
  runner: Stoppable,
  display: Display,
  results: dict[str, JobResult],
) -> None:
  """Fills `results` by name of the setting, as they arrive."""
  wall = max(experiment.runner.wall_seconds, chosen.wall_seconds)

  def one(number: int, setting: Setting) -> JobResult:
    display.start_cycle(number, len(chosen.settings), None)
    return runner.run(job_of(setting, proposal, experiment.seed, wall), display.progress_of(number))

  with concurrent.futures.ThreadPoolExecutor(experiment.runner.workers) as pool:
    waiting = {pool.submit(one, number, setting): setting for number, setting in enumerate(chosen.settings)}
    try:
      for future in concurrent.futures.as_completed(waiting):
        name = waiting[future].name
        results[name] = future.result()
        display.line(_line(name, results[name]))
    except BaseException:
      runner.stop()
      pool.shutdown(cancel_futures=True)
      raise


def _chosen(name: str) -> Suite:
  if name not in SUITES:
    raise UsageError(f'--suite={name} is not a suite; there are {", ".join(SUITES)} (--suite={LIST} says more)')
  return SUITES[name]


def with_seeds(chosen: Suite, seeds: int | None) -> Suite:
  """Returns the suite with another number of seeds; None leaves it."""
  if seeds is None:
    return chosen
  recipes = (dataclasses.replace(setting.recipe, seeds=seeds) for setting in chosen.settings)
  settings = zip(chosen.settings, recipes, strict=True)
  return dataclasses.replace(
    chosen, settings=tuple(dataclasses.replace(setting, recipe=recipe) for setting, recipe in settings)
  )


def _list(values: flags.FlagValues) -> int:
  if values.json:
    document = {
      name: {'settings': to_json(one.settings), 'runs': one.runs, 'summary': one.summary}
      for name, one in SUITES.items()
    }
    print(json.dumps(document))
    return 0
  console = commands.standard_output()
  console.print(told.known(SUITES.values()))
  console.print('a run is one training of one model; --seeds=N changes their number')
  return 0


def _line(name: str, result: JobResult) -> str:
  seconds = f'({result.timing.wall_seconds:.0f} s)'
  if result.failure or result.suite is None:
    return f'{name}: {result.failure.kind if result.failure else "no result"} {seconds}'
  values = ', '.join(told.said(getattr(row, result.suite.metric)) for row in score.rows_of(result.suite))
  return f'{name}: {values} {seconds}'


def _say(values: flags.FlagValues, chosen: Suite, results: Mapping[str, JobResult], whole: bool) -> int:
  """Prints what was measured, and a score only where every setting of the suite was."""
  ordered = {setting.name: results[setting.name] for setting in chosen.settings if setting.name in results}
  measured: list[SuiteResult] = [result.suite for result in ordered.values() if result.suite is not None]
  failures = {name: result.failure for name, result in ordered.items() if result.failure is not None}
  complete = len(measured) == len(chosen.settings)
  scored = score.score(measured) if complete else None
  if values.json:
    document = {'suite': chosen.name, 'results': measured, 'failures': failures, 'score': scored}
    print(json.dumps({name: to_json(value) for name, value in document.items()}))
    return 0 if complete else 1
  console = commands.standard_output()
  if measured:
    console.print(told.rows(row for result in measured for row in score.rows_of(result)))
  for name, failure in failures.items():
    console.print(f'{name}: {failure.kind}: {failure.reason}\n{failure.log}', markup=False, soft_wrap=True)
  if scored is not None:
    console.print(told.score(scored, measured[0].metric))
    seconds = sum(result.timing.wall_seconds for result in ordered.values())
    console.print(
      f'{chosen.name}: {chosen.runs} runs of {measured[0].parameters:,} to '
      f'{max(one.parameters for one in measured):,} parameters, {seconds:.0f} s in workers'
    )
  elif whole:
    console.print(f'no score: {len(failures)} of {len(chosen.settings)} settings failed')
  return 0 if complete else 1


def _say_refused(values: flags.FlagValues, failure: Failure) -> int:
  if values.json:
    print(json.dumps({'failure': to_json(failure)}))
  else:
    commands.standard_output().print(f'{failure.kind}: {failure.reason}\n{failure.log}', markup=False, soft_wrap=True)
  return 1
