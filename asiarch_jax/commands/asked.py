"""An archived model, with its own parameters, asked in the jail: a job whose corpus is the questions."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from asiarch_jax import commands, config
from asiarch_jax.commands import UsageError
from asiarch_jax.records import Entry, Job, JobResult, Limits, Outcome, Rejection
from asiarch_jax.shell import questions, text_encoding, zero_shot
from asiarch_jax.shell import runner as runners
from asiarch_jax.shell.display import Display

Asked = tuple[Sequence[questions.Request], questions.Terms, text_encoding.Encoding, Mapping[str, Any]]


def asked(
  workdir: str,
  entry: Entry,
  experiment: config.Experiment,
  kind: Literal['answer', 'decode'],
  asks: Asked,
  jail: str,
  display: Display,
) -> tuple[JobResult, Mapping[str, Any]]:
  """Returns what a worker made of requests, terms, tokenizer and parameters; what was asked before is not run again.

  Raises:
    UsageError: the worker failed; says in what.
  """
  home = commands.jobs_folder(workdir)
  folder = home.resolve() / zero_shot.FOLDER / f'.questions-{os.getpid()}'
  settings = dataclasses.replace(experiment.runner, jail=jail)
  model = dataclasses.replace(experiment.model, mlp_width=entry.training.mlp_width)
  try:
    content = questions.write(folder, *asks)
    job = Job(
      entry.proposal.name,
      entry.proposal.source,
      config.worker_part(dataclasses.replace(experiment, model=model)),
      kind=kind,
      corpus=content,
      limits=Limits(settings.wall_seconds),
    )
    runner = runners.of(home, settings, folder)
    result = runner.run(job, display.progress)
    if result.failure is not None:
      raise UsageError(
        f'entry {entry.id} gave no answers: {result.failure.kind}: {result.failure.reason}\n'
        + (result.failure.log if result.failure.kind == 'error' else _remedy(result.failure.kind))
      )
    return result, runner.arrays(job.key)
  finally:
    shutil.rmtree(folder, ignore_errors=True)


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
