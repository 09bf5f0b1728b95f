"""Archived designs trained anew: on seeds that took no part in their choice, at their own learning rate."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

from asiarch_jax import commands, config
from asiarch_jax.evidence import blocks
from asiarch_jax.records import Entry, Job, Limits, Progress, TrainSummary
from asiarch_jax.shell import archive as archives
from asiarch_jax.shell import runner as runners
from asiarch_jax.shell.display import Display

NO_LIMIT = 1e9  # seconds
NEVER = config.Monitor(too_slow=0.0, suspicious=0.0, hopeless=0.0)  # ends no run early: what fails is counted


@dataclasses.dataclass(frozen=True)
class Trials:
  """What all trainings of one comparison share. `vault` reads the windows that are kept for claims."""

  experiment: config.Experiment
  runner: runners.LocalRunner
  corpus: str
  first_seed: int
  replicas: int
  on_progress: Callable[[Progress], None]
  say: Callable[[str], None]
  allowed: config.Experiment  # whose `runner.wall_seconds` are for its own training; more work may take longer
  vault: bool = False

  def trained(
    self,
    entry: Entry,
    *,
    source: str | None = None,
    steps: int | None = None,
    parameters: int | None = None,
    flops: float | None = None,
    learning_rates: tuple[float, ...] | None = None,
  ) -> tuple[TrainSummary | None, str]:
    """Returns the replicas of an entry, or of another `source` in its place, or why there are none.

    `learning_rates` are tried instead of the entry's own, where it may be another at this size. All are trained in
    blocks no larger than those of the search, so that they fit where it did.
    """
    training = self.experiment.training
    rates = learning_rates or (entry.training.learning_rate,)
    size = max(1, min(self.replicas, training.seeds * len(training.learning_rates) // len(rates)))
    summary: TrainSummary | None = None
    for start in range(0, self.replicas, size):
      block = dataclasses.replace(
        training,
        steps=steps or training.steps,
        seeds=min(size, self.replicas - start),
        learning_rates=rates,
        first_seed=self.first_seed + start,
      )
      trial = dataclasses.replace(
        self.experiment,
        training=block,
        monitor=NEVER,
        tasks=dataclasses.replace(self.experiment.tasks, names=()),
        evaluation=self._windows(),
      )
      job = Job(
        name=entry.proposal.name,
        source=source or entry.proposal.source,
        experiment=config.worker_part(trial),
        corpus=self.corpus,
        waived=('growth',) if entry.role == 'anchor' else (),
        parameters=parameters,
        flops=flops,
        split='vault' if self.vault else 'test',
        limits=Limits(self.allowed.runner.wall_seconds * max(1.0, _work(trial) / _work(self.allowed))),
      )
      self.say(
        f'{entry.proposal.name}: seeds {start + 1} to {start + block.seeds} of {self.replicas}, {block.steps} steps'
      )
      result = self.runner.run(job, self.on_progress)
      if result.failure is not None or result.training is None:
        return None, f'{result.failure.kind}: {result.failure.reason}' if result.failure else 'no measurement'
      summary = blocks.merged(summary, result.training) if summary else result.training
    return summary, ''

  def _windows(self) -> config.Evaluation:
    evaluation = self.experiment.evaluation
    return dataclasses.replace(evaluation, test_windows=self.experiment.claims.windows) if self.vault else evaluation


@dataclasses.dataclass(frozen=True)
class Bench:
  """Where entries of one workdir are trained anew: its corpus, the jail of this host, and the display."""

  display: Display
  corpus_dir: pathlib.Path
  corpus: str
  jail: str

  def trials(
    self, folder: Any, experiment: config.Experiment, first_seed: int, replicas: int, *, vault: bool = False
  ) -> Trials:
    """Returns trainings at the sizes of `experiment`, whose jobs lie in `folder`."""
    # A training says its own limit.
    settings = dataclasses.replace(experiment.runner, jail=self.jail, wall_seconds=NO_LIMIT)
    runner = runners.of(commands.jobs_folder(folder), settings, self.corpus_dir)
    self.display.start_cycle(0, 0, None)
    return Trials(
      experiment, runner, self.corpus, first_seed, replicas, self.display.progress, self.display.line, experiment, vault
    )


def _work(experiment: config.Experiment) -> float:
  """Returns what training a replica costs, in no particular unit: tokens times the weights of the blocks."""
  training, model = experiment.training, experiment.model
  return training.steps * training.batch * training.length * model.layers * model.width**2


@contextlib.contextmanager
def bench(workdir: Any, experiment: config.Experiment) -> Iterator[Bench]:
  """Opens what trainings of a workdir's entries need.

  Raises:
    ValueError: the corpus is not the one of the search.
  """
  with Display() as display, commands.terminable():
    corpus_dir, corpus = commands.open_corpus(experiment, display)
    content = corpus.card.content_hash
    with archives.OrbaxArchive.open(workdir, experiment, content, read_only=True):
      pass
    yield Bench(display, corpus_dir, content, commands.choose_jail(experiment, display))
