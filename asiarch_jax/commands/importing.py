"""`asiarch import`: a mixer that a person wrote, brought into an archive as a proposal like any other."""

from __future__ import annotations

import dataclasses
import json
import os

from absl import flags

from asiarch_jax import commands, cycle
from asiarch_jax.agents import given
from asiarch_jax.commands import UsageError, examining
from asiarch_jax.commands.staff import staff_of, team_of
from asiarch_jax.evidence.placebo import is_placebo
from asiarch_jax.records import Entry, Outcome, entries_of, to_json
from asiarch_jax.report import text
from asiarch_jax.shell import archive as archives
from asiarch_jax.shell import calls, places
from asiarch_jax.shell import journal as journals
from asiarch_jax.shell import runner as runners
from asiarch_jax.shell.display import Display


def bring(values: flags.FlagValues, arguments: list[str]) -> int:
  """Runs one cycle whose proposal is the file, and archives what it came to. Status 1 when it was rejected."""
  workdir = places.folder(values.workdir)
  header = archives.read_header(workdir)
  experiment = header.experiment
  proposal = commands.proposal_of(arguments[0])
  with Display() as display, commands.terminable():
    corpus_dir, corpus = commands.open_corpus(experiment, display)
    with (
      archives.OrbaxArchive.open(workdir, experiment, corpus.card.content_hash) as archive,
      staff_of(experiment, workdir, display.line, os.environ) as staff,
    ):
      outcomes = list(archive.outcomes())
      if not any(entry.id == 0 for entry in entries_of(outcomes)):
        raise UsageError(
          f'{workdir} has no measured baseline yet, so nothing can be compared; asiarch search begins with it'
        )
      if values.parent is not None:
        proposal = dataclasses.replace(proposal, parent_id=_parent(values.parent, outcomes))
      number = 1 + max(outcome.id for outcome in outcomes)
      number = max(number, len(experiment.search.baselines))
      while is_placebo(number, experiment):  # such a cycle would send a copy of the baseline instead
        number += 1
      jail = commands.choose_jail(experiment, display)
      local = runners.of(commands.jobs_folder(workdir), dataclasses.replace(experiment.runner, jail=jail), corpus_dir)
      display.start_cycle(number, 0, None)
      show = display.progress_of(number)
      journal = journals.JsonLines(workdir / 'journal.jsonl')
      team = dataclasses.replace(
        team_of(number, staff, local, journal, show),
        researcher=given.Given(proposal),
        examiner=examining.examiner(experiment, workdir, corpus.card.content_hash, local.reading, display.line),
      )
      try:
        outcome = cycle.run_cycle(outcomes, number, experiment, team, corpus=corpus.card.content_hash, on_progress=show)
      except KeyboardInterrupt:
        local.stop()
        display.line(f'stopped: nothing of {proposal.name} was archived. Run again.')
        return commands.INTERRUPTED
      except calls.Unavailable as error:
        local.stop()
        raise UsageError(f'{error}; nothing of {proposal.name} was archived. Run again.') from error
      outcome = cycle.settled(outcome, outcomes, experiment)
      archive.append(outcome, local.arrays(outcome.job_key) if isinstance(outcome, Entry) else {})
      display.end_cycle(outcome)
  if values.json:
    print(json.dumps(to_json(outcome)))
  else:
    commands.standard_output().print(text.outcome_page(outcome, [*outcomes, outcome]))
  return 0 if isinstance(outcome, Entry) else 1


def _parent(argument: str, outcomes: list[Outcome]) -> int:
  found = commands.named(argument, outcomes)
  if not isinstance(found, Entry):
    raise UsageError(f'--parent={argument}: #{found.id} {found.proposal.name} was rejected at {found.stage}; a parent '
                     'is an entry that was measured')  # fmt: skip
  return found.id
