"""`asiarch claim`: a confirmatory test of entries on fresh seeds and on windows that were never read.

    WORKDIR/claims/0001/family.json    what is going to be tested, written before anything is trained
    WORKDIR/claims/0001/verdicts.json  what came of it, written once
    WORKDIR/claims/0001/jobs/          the jobs: a family that was interrupted goes on where it stopped

The vault is read once for an entry, whichever side it stands on: a second family with it is refused. Claims of all
rungs are registered in the workdir of the search, so that none can be made beside them.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from asiarch_jax import commands, config
from asiarch_jax.commands import UsageError, registry
from asiarch_jax.commands.trials import Trials, bench
from asiarch_jax.commands.verifying import FOLDER as RUNGS
from asiarch_jax.evidence import claims, pairing, scaling
from asiarch_jax.records import Entry, Outcome, TrainSummary, to_json
from asiarch_jax.report import claims as told
from asiarch_jax.shell import archive as archives
from asiarch_jax.shell import places

LATER = 0.1  # share by which a run that is matched by time may take longer than the baseline's
TIMED_CALLS = 4  # of the compiled program, the first of which is not timed
LENGTHS = 3  # of training, that a law of its length takes
CLOCK = 500_000  # seeds from a family's own to those of trainings that only tell the time
FIRST_SEED = 1_000_000  # of family 1, and as far apart are the families: no search comes near


def claim(values: flags.FlagValues, arguments: list[str]) -> int:
  workdir = places.folder(values.workdir)
  experiment = archives.read_header(workdir).experiment
  if not arguments:
    return _tell(values, registry.read_claims(workdir))
  if name := config.rung_of(experiment):
    raise UsageError(
      f'{workdir} is the rung {name} of a search, and the claims of a search are registered together, since a second '
      f'reading of the vault is refused; claim in the search: asiarch claim ID --rung={name} --workdir=SEARCH'
    )
  _outcomes(workdir, values.rung or '')  # refuses before anything is written
  with bench(workdir, experiment) as where:
    here = _overridden(_measured_by(workdir, values.rung, experiment), values)
    family, folder = _registered(workdir, here, values, arguments)
    where.display.line(
      f'family {family.number}: {len(family.entries)} entries, matched by {", ".join(family.matched)}, '
      f'{family.replicas} fresh seeds, error {family.error:.3g}; registered in {folder / "family.json"}'
    )
    outcomes = _outcomes(workdir, family.rung)
    # What was registered holds, also where the settings were changed since.
    here = dataclasses.replace(here, claims=dataclasses.replace(here.claims, windows=family.windows))
    trials = where.trials(folder, here, family.first_seed, family.replicas, vault=True)
    try:
      verdicts = claims.judged(_tests(trials, family, outcomes), family)
    except KeyboardInterrupt:
      trials.runner.stop()
      where.display.line(
        f'stopped: family {family.number} stays registered, and every finished training is kept. Run again.'
      )
      return commands.INTERRUPTED
    places.put_json(folder / 'verdicts.json', {'verdicts': [to_json(one) for one in verdicts]})
  return _tell(values, [(family, verdicts)])


def _measured_by(workdir: Any, rung: str | None, experiment: config.Experiment) -> config.Experiment:
  """Returns the settings that entries were measured by: on a rung those of its archive, which `verify` may have had
  from its own command line."""
  if not rung:
    return experiment
  return dataclasses.replace(archives.read_header(workdir / RUNGS / rung).experiment, claims=experiment.claims)


def _overridden(experiment: config.Experiment, values: flags.FlagValues) -> config.Experiment:
  if values.replicas:
    claimed = dataclasses.replace(experiment.claims, replicas=values.replicas)
    experiment = dataclasses.replace(experiment, claims=claimed)
  config.validate(experiment)  # also what an older search was begun with
  return experiment


def _registered(
  workdir: Any, experiment: config.Experiment, values: flags.FlagValues, arguments: Sequence[str]
) -> tuple[claims.Family, Any]:
  """Returns the family of these arguments, written down before anything is trained; an unfinished one goes on."""
  rung = values.rung or ''
  outcomes = _outcomes(workdir, rung)
  entries = [_entry(argument, outcomes) for argument in arguments]
  against = _entry(values.against or experiment.search.baseline, outcomes)
  matched = tuple(values.matched)
  unknown = set(matched) - set(claims.MATCHED)
  if unknown or not matched:
    raise UsageError(f'--matched={",".join(matched)}; name one or more of {", ".join(claims.MATCHED)}')
  ids = tuple(sorted({entry.id for entry in entries}))
  if against.id in ids:
    raise UsageError(f'#{against.id} {against.proposal.name} cannot be claimed against itself')
  reads = _read_for(ids, against.id, outcomes)
  before = registry.read_claims(workdir)
  wanted = (ids, against.id, rung, matched, experiment.claims.replicas)
  for family, verdicts in before:
    if not verdicts and wanted == (family.entries, family.against, family.rung, family.matched, family.replicas):
      return family, workdir / registry.FOLDER / f'{family.number:04d}'
    if again := sorted(reads & _read_for(family.entries, family.against, outcomes)):
      done = 'has read' if verdicts else 'is registered to read'
      raise UsageError(
        f'#{again[0]} was claimed before: family {family.number} {done} the vault for it. A second reading would let '
        'luck be tried twice; `asiarch claim --workdir=...` alone prints what came of it'
      )
  number = 1 + max((family.number for family, _ in before), default=0)
  family = claims.Family(
    number=number,
    entries=ids,
    against=against.id,
    rung=rung,
    matched=matched,  # type: ignore[arg-type]
    replicas=experiment.claims.replicas,
    windows=experiment.claims.windows,
    first_seed=FIRST_SEED * number,
    error=claims.family_error(number, experiment.claims.error),
  )
  folder = workdir / registry.FOLDER / f'{number:04d}'
  folder.mkdir(parents=True, exist_ok=True)
  places.put_json(folder / 'family.json', to_json(family))
  return family, folder


def _read_for(entries: Sequence[int], against: int, outcomes: Sequence[Outcome]) -> set[int]:
  """Returns for which candidates a family reads the vault: the other side is one, unless it is a baseline or anchor."""
  candidates = {outcome.id for outcome in outcomes if isinstance(outcome, Entry) and outcome.role == 'candidate'}
  return {*entries, *({against} & candidates)}


def _tests(trials: Trials, family: claims.Family, outcomes: Sequence[Outcome]) -> list[claims.Verdict]:
  """Trains both sides of every test of the family and returns the tests, not yet judged as a family."""
  entries = {outcome.id: outcome for outcome in outcomes if isinstance(outcome, Entry)}
  base, failure = trials.trained(entries[family.against])
  if base is None:
    raise UsageError(f'the baseline {entries[family.against].proposal.name} fails on fresh seeds: {failure}')
  budgets = _budgets(trials, entries[family.against], base)
  verdicts = []
  for id in family.entries:
    for matched in family.matched:
      steps, trained, beside = trials.experiment.training.steps, None, base
      if matched == 'flops':
        trained, failure = trials.trained(entries[id], flops=base.flops_per_token)
      else:
        trained, failure = trials.trained(entries[id], parameters=base.parameters)  # the second time it is there
      if matched == 'seconds' and trained is not None:
        timed, failure = _timed(trials, entries[family.against], base, id)
        if timed is None:
          failed = f'the baseline could not be timed beside it: {failure}'
          verdicts.append(_verdict(entries[id], matched, None, failed, base, base, budgets, steps, trials.experiment))
          continue
        beside, steps = timed, equal_time_steps(timed, trained, trials.experiment.training)
        trained, failure = trials.trained(entries[id], parameters=base.parameters, steps=steps)
      verdicts.append(_verdict(entries[id], matched, trained, failure, base, beside, budgets, steps, trials.experiment))
  return verdicts


def _timed(trials: Trials, entry: Entry, base: TrainSummary, beside: int) -> tuple[TrainSummary | None, str]:
  """Returns a short training of the baseline for its seconds, between the trainings of entry `beside`, or why there is
  none: a machine may have become faster or slower since the baseline was trained."""
  training = trials.experiment.training
  steps = min(training.steps, TIMED_CALLS * training.steps_per_call)
  block = min(trials.replicas, training.seeds * len(training.learning_rates))
  clock = dataclasses.replace(trials, first_seed=trials.first_seed + CLOCK + beside, replicas=block)
  return clock.trained(entry, steps=steps, parameters=base.parameters)


def equal_time_steps(base: TrainSummary, candidate: TrainSummary, training: config.Training) -> int:
  """Returns for how many steps the candidate trains in the seconds that the baseline takes, both timed side by side.

  Seconds are for all replicas of a block; blocks of one family have the same number.
  """
  if not (base.seconds_per_step > 0 and candidate.seconds_per_step > 0):  # one call only: nothing was timed
    return training.steps
  ratio = base.seconds_per_step / candidate.seconds_per_step
  # Rounded down, as far as one call is not too much already: what takes longer is not matched.
  return max(1, math.floor(training.steps * ratio / training.steps_per_call + 1e-9)) * training.steps_per_call


def _budgets(trials: Trials, entry: Entry, base: TrainSummary) -> Mapping[float, Sequence[float]]:
  """Returns the baseline's losses on the fresh seeds for each length of training, as a share of the whole one.

  A length is one that whole calls of the compiled program have. Empty where training fails at one, or where fewer than
  three differ. All have the learning rate of the whole one, which may not be the best of a shorter or a longer one.
  """
  training, losses = trials.experiment.training, {}
  for budget in trials.experiment.claims.budgets:
    steps = training.steps
    if budget != 1.0:
      steps = max(1, round(training.steps * budget / training.steps_per_call)) * training.steps_per_call
    summary: TrainSummary | None = base
    failure = ''
    if steps != training.steps:
      summary, failure = trials.trained(entry, steps=steps, parameters=base.parameters)
    if summary is not None and (gone := pairing.lost(summary)):
      failure = f'{len(gone)} of {len(summary.chosen)} seeds diverged'
    if summary is None or failure:
      trials.say(f'no compute multiplier: {entry.proposal.name} for {steps} steps: {failure}')
      return {}
    losses[steps / training.steps] = [replica.test_bits for replica in summary.chosen]
  if losses and len(losses) < LENGTHS:
    trials.say(
      f'no compute multiplier: claims.budgets = {trials.experiment.claims.budgets} of {training.steps} steps are '
      f'{len(losses)} different lengths in calls of {training.steps_per_call} steps, and it takes {LENGTHS}; set a '
      'smaller training.steps_per_call, or budgets further apart'
    )
    return {}
  return losses


def _verdict(
  entry: Entry,
  matched: claims.Matched,
  trained: TrainSummary | None,
  failure: str,
  base: TrainSummary,
  beside: TrainSummary,
  budgets: Mapping[float, Sequence[float]],
  steps: int,
  experiment: config.Experiment,
) -> claims.Verdict:
  nothing = claims.Verdict(
    entry.id, entry.proposal.name, matched, False, 0.0, -math.inf, math.inf, 1.0, 1.0, 0, 0, base.parameters, 0.0, 0.0,
    steps / experiment.training.steps, reason=failure,
  )  # fmt: skip
  if trained is None:
    return nothing
  paired = pairing.pairs(trained, base)
  mine = pairing.lost(trained)
  sized = dataclasses.replace(
    nothing,
    parameters=trained.parameters,
    flops_ratio=trained.flops_per_token / base.flops_per_token,
    seconds_ratio=trained.seconds_per_step / beside.seconds_per_step if beside.seconds_per_step else math.nan,
  )
  taken = sized.seconds_ratio * sized.steps_ratio
  if matched == 'seconds' and not taken <= 1.0 + LATER:
    reason = f'took {taken:.2f} times the seconds of the baseline: this machine is not quiet enough to match by time'
    return dataclasses.replace(sized, reason=reason)
  if mine:
    return dataclasses.replace(sized, reason=f'{len(mine)} of {len(trained.chosen)} fresh replicas diverged')
  if len(paired.differences) < 2:
    return dataclasses.replace(sized, reason=f'{len(paired.differences)} pairs are left to test')
  effect, low, high, p = claims.paired_test(paired.differences)
  multiplier = ''
  if budgets:
    losses = [replica.test_bits for replica in trained.chosen]
    multiplier = str(
      scaling.compute_multiplier(
        list(budgets), list(budgets.values()), losses, at=sized.steps_ratio * sized.flops_ratio
      )
    )
  return dataclasses.replace(
    sized, effect=effect, low=low, high=high, p=p, pairs=len(paired.differences), multiplier=multiplier
  )


def _outcomes(workdir: Any, rung: str) -> tuple[Outcome, ...]:
  folder = workdir / RUNGS / rung if rung else workdir
  if rung and not folder.exists():
    raise UsageError(f'nothing stands on rung {rung!r} yet; `asiarch verify --workdir={workdir}` lets the best climb')
  with archives.OrbaxArchive.open_read_only(folder) as archive:
    return archive.outcomes()


def _entry(argument: str, outcomes: Sequence[Outcome]) -> Entry:
  found = commands.named(argument, outcomes)
  if not isinstance(found, Entry):
    raise UsageError(f'#{found.id} {found.proposal.name} was rejected at {found.stage}: nothing was measured to claim')
  return found


def _tell(values: flags.FlagValues, found: Sequence[tuple[claims.Family, tuple[claims.Verdict, ...]]]) -> int:
  if values.json:
    document = [{'family': to_json(family), 'verdicts': [to_json(v) for v in verdicts]} for family, verdicts in found]
    print(json.dumps({'claims': document}))
  else:
    for family, verdicts in found:
      commands.standard_output().print(told.claims_page(family, verdicts))
    if not found:
      print('no claim was registered in this workdir; `asiarch claim ID --workdir=...` makes one')
  return 0
