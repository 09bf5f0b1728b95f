"""`asiarch verify`: the best of a search climb its ladder, a rung at a time, each into an archive of its own.

    WORKDIR/rungs/NAME/archive/      the outcomes on this rung; an entry keeps the id that it has in the search
    WORKDIR/rungs/NAME/climbs.jsonl  who was chosen to climb to it, and by which numbers: each choice is made once
    WORKDIR/rungs/NAME/rounds.jsonl  who of them got more replicas: likewise
    WORKDIR/rungs/NAME/report/       the report of the rung

Each rung is a workdir of its own: `asiarch top --workdir=WORKDIR/rungs/NAME` reads it like any other.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import math
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags

from asiarch_jax import commands, config, cycle
from asiarch_jax.agents import given
from asiarch_jax.commands import UsageError, examining
from asiarch_jax.commands.searching import Slots, end_workers
from asiarch_jax.commands.staff import Staff, staff_of, team_of
from asiarch_jax.evidence import ladder, pairing, posterior
from asiarch_jax.records import Entry, Outcome, Rejection, entries_of, to_json
from asiarch_jax.report import rungs as told
from asiarch_jax.shell import archive as archives
from asiarch_jax.shell import journal as journals
from asiarch_jax.shell import places, zero_shot
from asiarch_jax.shell import runner as runners
from asiarch_jax.shell.display import Display

FOLDER = 'rungs'


@dataclasses.dataclass
class Stage:
  """One rung while it is worked on."""

  experiment: config.Experiment  # as it is on this rung
  rung: config.Rung
  staff: Staff
  runner: Slots
  stop: Callable[[], None]  # ends the workers
  journal: journals.JsonLines
  rounds: journals.JsonLines  # who got more replicas, of whom
  archive: archives.OrbaxArchive
  display: Display
  corpus: str
  outcomes: list[Outcome]

  def baselines(self) -> None:
    """Measures the baselines that are missing, the first of them with the replicas of the noise floor."""
    done = {outcome.id for outcome in self.outcomes}
    for number, name in enumerate(self._baselines):
      if number not in done:
        self._keep(self._cycle(number, None))
        if number == 0 and isinstance(self.outcomes[-1], Rejection):
          raise UsageError(
            f'the baseline {name} was rejected on this rung at {self.outcomes[-1].stage}: {self.outcomes[-1].reason}\n'
            "without it nothing can be compared; change the setting that it names, and remove this rung's folder"
          )

  def measure(self, climbing: Sequence[Entry]) -> None:
    """Measures entries of the rung below in rounds: after each the less promising half gets no more replicas.

    Who goes on is written down before anything else is done about it: a resumed climb does not choose again.
    """
    done = {outcome.id for outcome in self.outcomes}
    waiting = [entry for entry in climbing if entry.id not in done]
    measured = self._round(self._all(lambda entry: self._cycle(entry.id, entry), waiting), self.rung.rounds == 1)
    for number in range(2, self.rung.rounds + 1):
      chosen = self._chosen(number, measured)
      for entry in measured:
        if entry.id not in chosen:
          self._keep(entry)
      going_on = [entry for entry in measured if entry.id in chosen]
      measured = self._round(self._all(self._replicated, going_on), number == self.rung.rounds)

  def _chosen(self, number: int, measured: Sequence[Entry]) -> set[int]:
    among = {entry.id for entry in measured}
    for event in self.rounds.events():
      if event['number'] == number and among <= set(event['among']):
        return set(event['chosen'])
    beliefs = posterior.believed([*self.outcomes, *measured], self.experiment.search.baseline)
    chosen = ladder.promising([beliefs[entry.id] for entry in measured if entry.id in beliefs])
    if among:
      self.rounds.write('round', number=number, among=sorted(among), chosen=sorted(chosen))
    return set(chosen)

  def _all(self, work: Callable[[Entry], Outcome], entries: Sequence[Entry]) -> Iterator[Outcome]:
    with concurrent.futures.ThreadPoolExecutor(max(1, self.experiment.runner.workers)) as pool:
      try:
        yield from pool.map(work, entries)
      except BaseException:
        self.stop()
        pool.shutdown(wait=False, cancel_futures=True)
        raise

  def _round(self, outcomes: Iterator[Outcome], last: bool) -> list[Entry]:
    """Archives what is final as it arrives, in the last round everything, and returns the entries that may go on."""
    entries = []
    for outcome in outcomes:
      if isinstance(outcome, Entry) and not last:
        entries.append(outcome)
      else:
        self._keep(outcome)
    return entries

  def _cycle(self, number: int, entry: Entry | None) -> Outcome:
    self.display.start_cycle(number, 0, None)
    show = self.display.progress_of(number)
    team = team_of(number, self.staff, self.runner, self.journal, show)
    if entry is not None:
      team = dataclasses.replace(team, researcher=given.Given(entry.proposal))
    return cycle.run_cycle(
      self._measured_baselines(), number, self.experiment, team, corpus=self.corpus, on_progress=show
    )

  @property
  def _baselines(self) -> tuple[str, ...]:
    return self.experiment.search.baselines

  def _measured_baselines(self) -> list[Outcome]:
    """Entries of a rung are compared with its baselines only, so that their order changes nothing."""
    return [outcome for outcome in self.outcomes if outcome.id < len(self._baselines)]

  def _replicated(self, entry: Entry) -> Outcome:
    self.display.start_cycle(entry.id, 0, None)
    show = self.display.progress_of(entry.id)
    team = team_of(entry.id, self.staff, self.runner, self.journal, show)
    return cycle.replicated(
      entry, self._measured_baselines(), self.experiment, team, corpus=self.corpus, on_progress=show
    )

  def _keep(self, outcome: Outcome) -> None:
    self.archive.append(outcome, self.runner.arrays(outcome.job_key) if isinstance(outcome, Entry) else {})
    self.outcomes.append(outcome)
    self.display.end_cycle(outcome)


def verify(values: flags.FlagValues, _: list[str]) -> int:
  workdir = places.folder(values.workdir)
  begun = archives.read_header(workdir).experiment
  experiment = commands.experiment_of(values) if values.config is not None else begun
  names = _rungs_to_climb(experiment, values.rung)
  with Display() as display, commands.terminable():
    corpus_dir, corpus = commands.open_corpus(experiment, display)
    content = corpus.card.content_hash
    with archives.OrbaxArchive.open(workdir, experiment, content, read_only=True) as archive:
      below: Sequence[Outcome] = archive.outcomes()
    jail = commands.choose_jail(experiment, display)
    pages = []
    for name in names:
      stage_dir = workdir / FOLDER / name
      here = config.at_rung(experiment, name)
      commands.require_vocabulary(here.model, corpus, f'rungs.{name}.model')
      local = runners.of(commands.jobs_folder(stage_dir), dataclasses.replace(here.runner, jail=jail), corpus_dir)
      slots = Slots(local, here.runner.workers)
      with (
        archives.OrbaxArchive.open(stage_dir, here, content) as rung_archive,
        staff_of(
          here,
          stage_dir,
          display.line,
          examiner=examining.examiner(here, stage_dir, content, slots.reading, display.line),
        ) as staff,
      ):
        stage = Stage(
          here,
          experiment.rungs[name],
          staff,
          slots,
          local.stop,
          journals.JsonLines(stage_dir / 'journal.jsonl'),
          journals.JsonLines(stage_dir / 'rounds.jsonl'),
          rung_archive,
          display,
          content,
          list(rung_archive.outcomes()),
        )
        try:
          page = _climbed(stage, name, below, stage_dir)
        except KeyboardInterrupt:
          end_workers(local, slots)
          again = shlex.join(['asiarch', 'verify', *sys.argv[2:]])
          display.line(
            f'stopped on rung {name} with {len(stage.outcomes)} outcomes, and every finished job is kept. '
            f'To resume: {again}'
          )
          return commands.INTERRUPTED
        except BaseException:
          end_workers(local, slots)
          raise
        pages.append(page)
        below = stage.outcomes
      commands.write_report(
        stage.outcomes, stage_dir / 'report', here, stage.journal.events(), zero_shot.every(stage_dir)
      )
  if values.json:
    print(json.dumps({'rungs': [to_json(page) for page in pages]}))
  else:
    for page in pages:
      commands.standard_output().print(told.rung_page(page))
  return 0


def _rungs_to_climb(experiment: config.Experiment, last: str | None) -> tuple[str, ...]:
  if not experiment.ladder:
    raise UsageError('ladder is empty: this experiment has no rung above the search; name some in its config file')
  if last is None:
    return experiment.ladder
  if last not in experiment.ladder:
    raise UsageError(f'{last!r} is not on the ladder, which has {", ".join(experiment.ladder)}')
  return experiment.ladder[: experiment.ladder.index(last) + 1]


def _climbed(stage: Stage, name: str, below: Sequence[Outcome], folder: Any) -> told.RungPage:
  """Chooses who climbs, measures them, and returns what there is to tell."""
  beliefs = posterior.believed(below, stage.experiment.search.baseline)
  if not beliefs:
    raise UsageError(f'nobody can climb to rung {name}: no candidate below is measured against the baseline')
  choices = journals.JsonLines(folder / 'climbs.jsonl')
  entries = {entry.id: entry for entry in entries_of(below)}
  on_it = {outcome.id for outcome in stage.outcomes}
  left = {id for event in choices.events() for id in (*event['promoted'], *event['audited']) if id not in on_it}
  before = ladder.agreement(improvements(below), improvements(stage.outcomes))
  grounds = {'newest': max(beliefs), 'limits': [stage.rung.share, stage.rung.false_discoveries, stage.rung.audit]}
  decided = any(event.items() >= grounds.items() for event in choices.events())
  # A choice that a kill interrupted is not made anew, and neither is one among the same candidates by the same limits.
  if not left and not decided:
    audited = {id for event in choices.events() for id in event['audited']}
    undecided = [one for id, one in sorted(beliefs.items()) if id not in on_it]
    rng = np.random.default_rng([stage.experiment.seed, stage.experiment.training.steps, len(on_it)])
    climb = ladder.climbers(undecided, stage.rung, before.believed, rng, climbed=len(beliefs.keys() & on_it - audited))
    chosen = {
      'promoted': [one.id for one in climb.promoted],
      'audited': [one.id for one in climb.audited],
      'candidates': len(undecided),
      **grounds,
      'share': climb.share,
      'doubt': climb.doubt,
      'shrinkage': ladder.shrinkage(climb.promoted),
      'agreement': to_json(before),
    }
    if chosen['promoted'] or chosen['audited']:
      choices.write('climb', **chosen)
    left = {*chosen['promoted'], *chosen['audited']}
    stage.display.line(
      f'rung {name}: {len(climb.promoted)} of {len(undecided)} climb '
      f'(at most {climb.share:.0%}; {climb.doubt:.0%} of them expected not to be better), '
      f'{len(climb.audited)} by lot'
    )
  stage.baselines()
  stage.measure([entries[id] for id in sorted(left) if id in entries])
  here = posterior.believed(stage.outcomes, stage.experiment.search.baseline)
  outcomes = {outcome.id: outcome for outcome in stage.outcomes}
  audited = {id for event in choices.events() for id in event['audited']}
  return told.RungPage(
    name,
    tuple(
      _row(entries[id], outcomes[id], id in audited, beliefs.get(id), here.get(id))
      for id in sorted(_on_both(entries, stage.outcomes))
    ),
    ladder.agreement(improvements(below), improvements(stage.outcomes)),
    choices.events()[-1] if choices.events() else {},
  )


def improvements(outcomes: Sequence[Outcome]) -> dict[int, float]:
  """Returns the measured improvement, bits per byte, of every candidate that lost no seed, by id."""
  return {
    entry.id: entry.evidence.improvement
    for entry in entries_of(outcomes)
    if entry.role == 'candidate'
    and entry.evidence is not None
    and math.isfinite(entry.evidence.improvement)
    and not pairing.lost(entry.training)
  }


def _on_both(entries: Mapping[int, Entry], outcomes: Sequence[Outcome]) -> set[int]:
  return {o.id for o in outcomes if o.id in entries and entries[o.id].role == 'candidate'}


def _row(
  below: Entry,
  above: Outcome,
  audited: bool,
  believed_below: posterior.Posterior | None,
  believed_above: posterior.Posterior | None,
) -> told.RungRow:
  return told.RungRow(
    below.id,
    below.proposal.name,
    'by lot' if audited else 'promoted',
    believed_below,
    believed_above,
    above.evidence if isinstance(above, Entry) else None,
    '' if isinstance(above, Entry) else f'rejected at {above.stage}: {above.reason}',
  )
