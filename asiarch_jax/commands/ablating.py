"""`asiarch ablate`: an entry trained again without each of its parts in turn.

WORKDIR/ablations/ID/jobs/          the jobs, so that an interrupted ablation goes on
WORKDIR/ablations/ID/ablation.json  what came of it
"""

from __future__ import annotations

import dataclasses
import json
import math

from absl import flags

from asiarch_jax import commands
from asiarch_jax.agents import ablation
from asiarch_jax.commands import UsageError
from asiarch_jax.commands.trials import bench
from asiarch_jax.evidence import claims, pairing
from asiarch_jax.records import Entry, TrainSummary, to_json
from asiarch_jax.report import ablations as told
from asiarch_jax.shell import archive as archives
from asiarch_jax.shell import places

FOLDER = 'ablations'
FIRST_SEED = 750_000  # of its replicas: none that a search or a comparison of arms used


def ablate(values: flags.FlagValues, arguments: list[str]) -> int:
  workdir = places.folder(values.workdir)
  with archives.OrbaxArchive.open_read_only(workdir) as archive:
    outcomes, experiment = archive.outcomes(), archive.experiment
  entry = commands.named(arguments[0], outcomes)
  if not isinstance(entry, Entry):
    raise UsageError(f'#{entry.id} {entry.proposal.name} was rejected at {entry.stage}: it has nothing to ablate')
  removals = _removals(entry, {o.id: o for o in outcomes if isinstance(o, Entry)}, values.by)
  folder = workdir / FOLDER / str(entry.id)
  with bench(workdir, experiment) as here:
    trials = here.trials(folder, experiment, FIRST_SEED, experiment.claims.replicas)
    try:
      whole, failure = trials.trained(entry, parameters=entry.training.parameters)
      if whole is None:
        raise UsageError(f'{entry.proposal.name} itself fails on fresh seeds: {failure}')
      rows = []
      for removal in removals:
        here.display.line(f'without {removal.part}')
        without, failure = trials.trained(entry, source=removal.source, parameters=whole.parameters)
        rows.append(_row(removal.part, whole, without, failure))
    except KeyboardInterrupt:
      trials.runner.stop()
      here.display.line('stopped; every finished training is kept. To resume, give the same command again')
      return commands.INTERRUPTED
  adjusted = claims.holm([1.0 if row.reason else row.p for row in rows])
  page = told.Ablation(
    entry.id,
    entry.proposal.name,
    tuple(dataclasses.replace(row, adjusted=p) for row, p in zip(rows, adjusted, strict=True)),
  )
  places.put_json(folder / 'ablation.json', to_json(page))
  print(json.dumps(to_json(page))) if values.json else commands.standard_output().print(told.ablation_page(page))
  return 0


def _removals(entry: Entry, entries: dict[int, Entry], by: str) -> tuple[ablation.Removal, ...]:
  """Returns the entry without each part: fields of its genome, or hunks of its difference to its parent."""
  genome, parent = (
    entry.proposal.genome,
    entries.get(entry.proposal.parent_id if entry.proposal.parent_id is not None else -1),
  )
  if by == 'genome' and genome is None:
    raise UsageError(f'#{entry.id} {entry.proposal.name} has no genome; --by=diff takes away what it changed')
  if by == 'diff' and parent is None:
    raise UsageError(f'#{entry.id} {entry.proposal.name} has no parent to differ from; --by=genome, where it has one')
  if genome is not None and by != 'diff':
    removals = ablation.of_genome(genome)
  elif parent is not None:
    removals = ablation.of_difference(entry.proposal.source, parent.proposal.source)
  else:
    raise UsageError(
      f'#{entry.id} {entry.proposal.name} has neither genome nor parent: nothing says what its parts are'
    )
  if not removals:
    raise UsageError(f'#{entry.id} {entry.proposal.name} differs in nothing: there is no part to take away')
  return removals


def _row(part: str, whole: TrainSummary, without: TrainSummary | None, failure: str) -> told.Part:
  nothing = told.Part(part, math.nan, math.nan, math.nan, 1.0, 1.0, 0, failure)
  if without is None:
    return nothing
  paired = pairing.pairs(whole, without)  # what stands without the part, less what stands with it
  if len(paired.differences) < 2:
    return dataclasses.replace(nothing, reason=f'{len(paired.dropped)} replicas diverged without it')
  if gone := pairing.lost(without):  # the pairs that are left leave out what the part is good for
    reason = f'{len(gone)} of {len(without.chosen)} diverge without it'
    return dataclasses.replace(nothing, pairs=len(paired.differences), reason=reason)
  effect, low, high, p = claims.paired_test(paired.differences)
  return told.Part(part, effect, low, high, p, p, len(paired.differences))
