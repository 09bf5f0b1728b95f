"""`asiarch search`: cycles in flight, one writer, and an end at the number of cycles or at a budget."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import queue
import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from absl import flags

from asiarch_jax import commands, config, cycle
from asiarch_jax.commands import UsageError, examining, registry
from asiarch_jax.commands.staff import Staff, staff_of, team_of
from asiarch_jax.records import Entry, Job, JobResult, Outcome, Progress, Rejection
from asiarch_jax.report import text
from asiarch_jax.search import budget
from asiarch_jax.shell import archive as archives
from asiarch_jax.shell import journal as journals
from asiarch_jax.shell import places, zero_shot
from asiarch_jax.shell import runner as runners
from asiarch_jax.shell.calls import Unavailable
from asiarch_jax.shell.display import Display

DRAIN_SECONDS = 10.0  # that a stopped search waits for its workers to be gone


class Slots:
  """A runner with a number of places for jobs; it counts the seconds that each place was taken.

  What is left of a search is the controller's own, and what is left of the places is idle hardware.
  """

  def __init__(self, runner: runners.LocalRunner, places: int):
    self._runner = runner
    self._places = threading.BoundedSemaphore(places)
    self._lock = threading.Lock()
    self.places = places
    self._spans: list[float] = []

  def run(self, job: Job, on_progress: Callable[[Progress], None] | None = None) -> JobResult:
    with self._places:
      began = time.monotonic()
      try:
        return self._runner.run(job, on_progress)
      finally:
        with self._lock:
          self._spans.append(time.monotonic() - began)

  @property
  def seconds(self) -> float:
    with self._lock:
      return sum(self._spans)

  def reading(self, corpus_path: str | os.PathLike[str]) -> Slots:
    """Returns the same places for jobs that read another folder."""
    other = copy.copy(self)
    other._runner = self._runner.reading(corpus_path)
    return other

  def drain(self, seconds: float) -> None:
    """Waits until no job runs, at most so long for each place: a worker outlives no search."""
    for _ in range(self.places):
      self._places.acquire(timeout=seconds)

  def arrays(self, key: str) -> Mapping[str, Any]:
    return self._runner.arrays(key)


@dataclasses.dataclass
class Search:
  """One call of the command: what is in the archive, what is in flight, and why no more is begun."""

  experiment: config.Experiment
  staff: Staff
  runner: Slots
  journal: journals.JsonLines
  archive: archives.OrbaxArchive
  display: Display
  corpus: str
  began: float
  outcomes: list[Outcome]
  stopped: str = ''  # the budget that ended it

  def go(self) -> None:
    """Runs the cycles that are missing; each outcome is archived as it arrives."""
    done = {outcome.id for outcome in self.outcomes}
    search = self.experiment.search
    baselines = len(search.baselines)

    def take(numbers: range, in_flight: int) -> None:
      for outcome in self._flown([number for number in numbers if number not in done], in_flight):
        self._take(outcome)

    take(range(min(1, search.cycles)), 1)  # what all others are matched to, and measured against
    take(range(1, min(baselines, search.cycles)), search.in_flight)
    self._say_calibration()
    take(range(baselines, search.cycles), search.in_flight)

  def spent(self) -> budget.Spent:
    """Returns what the workdir has used, and the seconds of this call."""
    models = self.staff.ledger.total
    return budget.Spent(
      models.dollars,
      models.tokens,
      sum(outcome.timing.accelerator_seconds for outcome in self.outcomes),
      time.monotonic() - self.began,
    )

  def _flown(self, numbers: list[int], in_flight: int) -> Iterator[Outcome]:
    """Yields outcomes as they arrive, with at most `in_flight` cycles at a time."""
    if in_flight == 1:
      for number in numbers:
        if self._full(1):
          return
        yield self._cycle(number)
      return
    arrived: queue.SimpleQueue[Outcome | BaseException] = queue.SimpleQueue()

    def fly(number: int, seen: list[Outcome]) -> None:
      try:
        arrived.put(self._cycle(number, seen))
      except BaseException as error:  # handed to the main thread, which raises it
        arrived.put(error)

    waiting, flying = list(numbers), 0
    while waiting or flying:
      while waiting and flying < in_flight and not self._full(flying + 1):
        number = waiting.pop(0)
        # A daemon, so that Ctrl-C need not wait for a language model to answer.
        threading.Thread(target=fly, args=(number, list(self.outcomes)), name=f'cycle {number}', daemon=True).start()
        flying += 1
      if not flying:
        return
      outcome = arrived.get()
      flying -= 1
      if isinstance(outcome, BaseException):
        while not arrived.empty():
          other = arrived.get()
          if not isinstance(other, BaseException):
            yield other
        raise outcome
      yield outcome

  def _full(self, flying: int) -> bool:
    """Says whether a budget forbids another cycle, with `flying` of them, it included, not yet paid."""
    if self.stopped:
      return True
    limit = self.experiment.budget
    if limit == config.Budget():
      return False
    each = budget.expectation(self.experiment, self.outcomes, self.staff.prices)
    expected = dataclasses.replace(each.spent, wall_seconds=0.0)
    count = flying if each.measured else flying - 1  # a guess forbids no first cycle, but a crowd of them
    said = budget.exhausted(limit, self.spent(), budget.Spent(*(count * v for v in dataclasses.astuple(expected))))
    if flying == 1:  # else there may be room again when those in flight are paid
      self.stopped = said
    return bool(said)

  def _cycle(self, number: int, seen: list[Outcome] | None = None) -> Outcome:
    earlier = sorted((o for o in (self.outcomes if seen is None else seen) if o.id < number), key=lambda o: o.id)
    self.display.start_cycle(number, self.experiment.search.cycles, next(iter(text.ranked(earlier)), None))
    show = self.display.progress_of(number)
    team = team_of(number, self.staff, self.runner, self.journal, show)
    return cycle.run_cycle(earlier, number, self.experiment, team, corpus=self.corpus, on_progress=show)

  def _take(self, outcome: Outcome) -> None:
    """Archives an outcome and shows it."""
    if self.experiment.search.in_flight > 1:
      outcome = cycle.settled(outcome, self.outcomes, self.experiment)
    arrays = self.runner.arrays(outcome.job_key) if isinstance(outcome, Entry) else {}
    self.archive.append(outcome, arrays)
    self.outcomes.append(outcome)
    self.display.end_cycle(outcome)
    if outcome.id == 0 and isinstance(outcome, Rejection):
      raise UsageError(
        f'the baseline {self.experiment.search.baseline} was rejected at {outcome.stage}: {outcome.reason}\n'
        'without it nothing can be compared; change the setting that it names and use a new --workdir'
      )

  def _say_calibration(self) -> None:
    if self.experiment.judge.kind == 'llm':
      from asiarch_jax.agents import model_judge

      said = model_judge.calibration(self.outcomes, self.experiment.judge)
      self.display.line(said or 'judge: no baseline was marked, so no entry can be', 'dim')


def search(values: flags.FlagValues, _: list[str]) -> int:
  experiment = commands.experiment_of(values)
  if values.cycles:
    experiment = dataclasses.replace(experiment, search=dataclasses.replace(experiment.search, cycles=values.cycles))
  workdir = places.folder(values.workdir)
  began = time.monotonic()
  with Display() as display, commands.terminable():
    corpus_dir, corpus = commands.open_corpus(experiment, display)
    jail = commands.choose_jail(experiment, display)
    local = runners.of(commands.jobs_folder(workdir), dataclasses.replace(experiment.runner, jail=jail), corpus_dir)
    again = shlex.join(['asiarch', 'search', *sys.argv[2:]])
    try:
      done = conducted(experiment, workdir, local, corpus.card.content_hash, display, began, again)
    except KeyboardInterrupt:
      return commands.INTERRUPTED
  report = commands.write_report(
    done.run.outcomes,
    workdir / 'report',
    experiment,
    done.events,
    zero_shot.every(workdir),
    registry.confirmed(workdir, experiment.search),
  )
  _say_end(values, done.run, done.before, time.monotonic() - began, report, again)
  return 0


@dataclasses.dataclass(frozen=True)
class Conducted:
  """A search that went to its end: how many outcomes were there before, and the events of its journal."""

  run: Search
  before: int
  events: list[dict[str, Any]]


def conducted(
  experiment: config.Experiment,
  workdir: Any,
  local: runners.LocalRunner,
  corpus: str,
  display: Display,
  began: float,
  again: str,
) -> Conducted:
  """Runs or continues the search of a workdir. `again` is the command that resumes it, told where it stops.

  Raises:
    KeyboardInterrupt: after the workers were ended.
    UsageError: the baseline was rejected, or a language model cannot be reached.
  """
  slots = Slots(local, experiment.runner.workers)
  with (
    archives.OrbaxArchive.open(workdir, experiment, corpus) as archive,
    staff_of(
      experiment,
      workdir,
      display.line,
      os.environ,
      examining.examiner(experiment, workdir, corpus, slots.reading, display.line),
    ) as staff,
  ):
    journal = journals.JsonLines(workdir / 'journal.jsonl')
    run = Search(experiment, staff, slots, journal, archive, display, corpus, began, list(archive.outcomes()))
    before = len(run.outcomes)
    if before:
      display.line(f'{workdir}: continues after {before} outcomes')
    _say_estimate(run)
    try:
      run.go()
    except KeyboardInterrupt:
      local.stop()
      display.line(
        f'stopped with {len(run.outcomes)} of {experiment.search.cycles} outcomes, all of them kept. To resume: {again}'
      )
      end_workers(local, slots)
      raise
    except Unavailable as error:
      end_workers(local, slots)
      raise UsageError(f'{error}; {len(run.outcomes)} outcomes are kept. To resume: {again}') from error
    except BaseException:
      end_workers(local, slots)
      raise
    return Conducted(run, before, journal.events())


def end_workers(runner: runners.LocalRunner, slots: Slots) -> None:
  """Ends all workers, those of cycles in flight too, and sees them gone."""
  runner.stop()
  slots.drain(DRAIN_SECONDS)


def _say_estimate(run: Search) -> None:
  """Says before the first call what the rest will probably take."""
  to_come = run.experiment.search.cycles - len(run.outcomes)
  if run.staff.model is None or to_come <= 0:
    return
  estimate = budget.expectation(run.experiment, run.outcomes, run.staff.prices)
  run.display.line(budget.told(estimate, to_come))


def _say_end(values: flags.FlagValues, run: Search, before: int, wall: float, report: Any, again: str) -> None:
  added, spent = len(run.outcomes) - before, run.spent()
  if values.json:
    document = {
      'workdir': values.workdir,
      'added': added,
      'report': str(report),
      'spent': dataclasses.asdict(spent),
      'stopped': run.stopped,
      'outcomes': text.as_json(run.outcomes),
    }
    print(json.dumps(document))
    return
  console = commands.standard_output()
  console.print(text.leaderboard(run.outcomes, baseline=run.experiment.search.baseline))
  console.print(text.summary(run.outcomes, run.experiment))
  if added:
    busy = run.runner.seconds / (wall * run.runner.places)
    console.print(
      f'\n{added} outcomes in {wall / 60:.1f} min ({3600 * added / wall:.0f} an hour, '
      f'{max(0.0, 1 - busy):.0%} of the time outside workers)'
    )
  elif not run.stopped:
    count = len(run.outcomes)
    console.print(f'\nnothing to add: {count} outcomes are there; --cycles={count + 10} asks for more')
  if run.staff.model is not None:
    console.print(
      f'language models: {run.staff.ledger.total.calls} calls, {spent.tokens:,.0f} tokens, ${spent.dollars:.4f}'
    )
  if run.stopped:
    console.print(f'stopped: {run.stopped}. Raise it to go on: {again}', soft_wrap=True)
  console.print(f'report: {report}', soft_wrap=True)
