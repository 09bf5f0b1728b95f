"""An archived model, with its own parameters, asked in the jail: a job whose corpus is the questions."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from asiarch_jax import commands, config
from asiarch_jax.commands import UsageError
from asiarch_jax.ports import Runner
from asiarch_jax.records import Entry, Failure, Job, JobResult, Limits, Outcome, Progress, Rejection
from asiarch_jax.shell import questions, text_encoding, zero_shot
from asiarch_jax.shell import runner as runners
from asiarch_jax.shell.display import Display

Asked = tuple[Sequence[questions.Request], questions.Terms, text_encoding.Encoding, Mapping[str, Any]]
Reading = Callable[[pathlib.Path], Runner]  # gives a runner whose jobs read a folder
OnProgress = Callable[[Progress], None]


def put(
  workdir: str | os.PathLike[str],
  entry: Entry,
  experiment: config.Experiment,
  kind: Literal['answer', 'decode'],
  asks: Asked,
  reading: Reading,
  on_progress: OnProgress | None,
) -> tuple[JobResult, Mapping[str, Any]]:
  """Returns what a worker made of requests, terms, tokenizer and parameters: result, or failure, and arrays."""
  folder = commands.jobs_folder(workdir).resolve() / zero_shot.FOLDER / f'.questions-{os.getpid()}-{entry.id}'
  model = dataclasses.replace(experiment.model, mlp_width=entry.training.mlp_width)
  try:
    content = questions.write(folder, *asks)
    job = Job(
      entry.proposal.name,
      entry.proposal.source,
      config.worker_part(dataclasses.replace(experiment, model=model)),
      kind=kind,
      corpus=content,
      limits=Limits(experiment.runner.wall_seconds),
    )
    runner = reading(folder)
    result = runner.run(job, on_progress)
    return result, runner.arrays(job.key) if result.failure is None else {}
  finally:
    shutil.rmtree(folder, ignore_errors=True)


def asked(
  workdir: str,
  entry: Entry,
  experiment: config.Experiment,
  kind: Literal['answer', 'decode'],
  asks: Asked,
  jail: str,
  display: Display,
) -> tuple[JobResult, Mapping[str, Any]]:
  """Returns what `put` gives with a runner of its own; what was asked before is not run again.

  Raises:
    UsageError: the worker failed; says in what.
  """
  result, arrays = put(workdir, entry, experiment, kind, asks, reader(workdir, experiment, jail), display.progress)
  if result.failure is not None:
    raise unanswered(entry, result.failure)
  return result, arrays


def unanswered(entry: Entry, failure: Failure) -> UsageError:
  """Returns the error of an entry whose worker failed, with the remedy."""
  return UsageError(
    f'entry {entry.id} gave no answers: {failure.kind}: {failure.reason}\n'
    + (failure.log if failure.kind == 'error' else _remedy(failure.kind))
  )


def reader(workdir: str | os.PathLike[str], experiment: config.Experiment, jail: str) -> Reading:
  """Returns what gives runners for a command that runs no other jobs."""
  home, settings = commands.jobs_folder(workdir), dataclasses.replace(experiment.runner, jail=jail)
  return lambda folder: runners.of(home, settings, folder)


def trained(outcome: Outcome) -> Entry:
  """Returns an outcome that was trained.

  Raises:
    UsageError: it was rejected.
  """
  if isinstance(outcome, Rejection):
    raise UsageError(
      f'outcome {outcome.id} ({outcome.proposal.name}) was rejected at {outcome.stage}: nothing was trained'
    )
  return outcome


def _remedy(kind: str) -> str:
  remedies = {
    'time': 'give it longer: --config=FILE.py --config.runner.wall_seconds=7200, or ask less: --limit=100',
    'memory': 'give it more: --config=FILE.py --config.runner.memory_gib=16, or show it less: --max_length',
  }
  return remedies.get(kind, 'run the command again')
