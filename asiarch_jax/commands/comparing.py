"""`asiarch arms`: several ways of searching under one budget, and what each brings over another.

WORKDIR/arms/NAME/0/      the search of an arm, run 0: a workdir like any other
WORKDIR/arms/jobs/        the jobs of all arms: a baseline or a design that two arms share is trained once
"""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
import statistics
import sys
import time
from collections.abc import Mapping, Sequence

from absl import flags

from asiarch_jax import commands, config
from asiarch_jax.commands import UsageError
from asiarch_jax.commands.searching import conducted
from asiarch_jax.commands.trials import Trials
from asiarch_jax.evidence import lift, pairing, placebo, posterior, promotion
from asiarch_jax.records import Entry, Outcome, entries_of, to_json
from asiarch_jax.report import arms as told
from asiarch_jax.search import arms
from asiarch_jax.shell import places
from asiarch_jax.shell import runner as runners
from asiarch_jax.shell.display import Display

FOLDER = 'arms'
APART = 1_000  # seeds between runs, so that no two share the data order of a replica
FIRST_SEED = 500_000  # of the fresh replicas: beyond every search, short of every claim


def compare(values: flags.FlagValues, _: list[str]) -> int:
  experiment = commands.experiment_of(values)
  if values.cycles:
    experiment = dataclasses.replace(experiment, search=dataclasses.replace(experiment.search, cycles=values.cycles))
  names = list(dict.fromkeys(values.arms))
  if len(names) < 2:
    raise UsageError(f'--arms={",".join(names)}; name two or more of {", ".join(arms.ARMS)}')
  for name in names:
    try:
      config.validate(arms.arm(experiment, name))
    except ValueError as error:
      raise UsageError(str(error)) from error
  root = places.folder(values.workdir) / FOLDER
  again = shlex.join(['asiarch', 'arms', *sys.argv[2:]])
  with Display() as display, commands.terminable():
    corpus_dir, corpus = commands.open_corpus(experiment, display)
    content = corpus.card.content_hash
    jail = commands.choose_jail(experiment, display)
    local = runners.of(commands.jobs_folder(root), dataclasses.replace(experiment.runner, jail=jail), corpus_dir)
    found: dict[str, list[told.ArmRun]] = {name: [] for name in names}
    chosen: dict[str, list[list[Mapping[int, float]]]] = {name: [] for name in names}
    try:
      for number in range(values.repeats):
        for name in names:
          here = dataclasses.replace(arms.arm(experiment, name), seed=experiment.seed + APART * number)
          display.line(f'arm {name}, run {number}: {arms.ARMS[name][1]}')
          done = conducted(here, root / name / str(number), local, content, display, time.monotonic(), again)
          found[name].append(_summary(name, number, done.run.outcomes, here))
          best = _best(done.run.outcomes, here, values.top)
          display.start_cycle(len(done.run.outcomes), 0, None)
          trials = Trials(here, local, content, FIRST_SEED, here.claims.replicas, display.progress, display.line, here)
          chosen[name].append(_fresh(best, done.run.outcomes, trials))
          commands.write_report(done.run.outcomes, root / name / str(number) / 'report', here, done.events)
    except KeyboardInterrupt:
      local.stop()
      return commands.INTERRUPTED
  page = told.ArmsPage(
    tuple(
      dataclasses.replace(run, fresh=_yield(entries), confirmed=len(entries))
      for name in names
      for run, entries in zip(found[name], chosen[name], strict=True)
    ),
    tuple(_lifts(names, chosen)),
    {name: arms.ARMS[name][1] for name in names},
  )
  places.put_json(root / 'arms.json', to_json(page))
  print(json.dumps(to_json(page))) if values.json else commands.standard_output().print(told.arms_page(page))
  return 0


def _summary(name: str, number: int, outcomes: Sequence[Outcome], experiment: config.Experiment) -> told.ArmRun:
  candidates = [entry for entry in entries_of(outcomes) if entry.role == 'candidate']
  proposals = sum(outcome.id >= len(experiment.search.baselines) for outcome in outcomes)
  beliefs = posterior.believed(outcomes, experiment.search.baseline)
  rate = min((rung.false_discoveries for rung in experiment.rungs.values()), default=0.05)
  promoted = promotion.promoted(tuple(beliefs.values()), rate=rate) if beliefs else ()
  measured = [e.evidence.improvement for e in candidates if e.evidence and math.isfinite(e.evidence.improvement)]
  return told.ArmRun(
    name,
    number,
    proposals=proposals,
    measured=len(candidates),
    promoted=len(promoted),
    placebos=len(placebo.placebos(candidates, experiment)),
    placebos_promoted=sum(placebo.is_placebo(one.id, experiment) for one in promoted),
    mean=statistics.fmean(measured) if measured else math.nan,
    best=max(measured, default=math.nan),
    believed=max((one.mean for one in beliefs.values()), default=math.nan),
    accelerator_seconds=sum(outcome.timing.accelerator_seconds for outcome in outcomes),
    tokens=sum(outcome.spend.tokens for outcome in outcomes),
  )


def _best(outcomes: Sequence[Outcome], experiment: config.Experiment, top: int) -> list[Entry]:
  """Returns the entries that a user of this run would take: the best by believed improvement."""
  beliefs = posterior.believed(outcomes, experiment.search.baseline)
  entries = {entry.id: entry for entry in entries_of(outcomes)}
  ordered = sorted(beliefs.values(), key=lambda one: (-one.mean, one.id))
  return [entries[one.id] for one in ordered[:top]]


def _fresh(best: Sequence[Entry], outcomes: Sequence[Outcome], trials: Trials) -> list[Mapping[int, float]]:
  """Returns for each entry its paired improvements by fresh seed.

  A replica that failed counts as no improvement over the baseline: whoever took that design would fall back to it.
  """
  baseline = next(entry for entry in entries_of(outcomes) if entry.id == 0)
  base, failure = trials.trained(baseline)
  if base is None:
    raise UsageError(f'the baseline {baseline.proposal.name} fails on fresh seeds: {failure}')
  results: list[Mapping[int, float]] = []
  for entry in best:
    trained, _ = trials.trained(entry, parameters=base.parameters)
    paired = pairing.pairs(trained, base) if trained else pairing.Pairs((), ())
    gains = dict(zip(paired.seeds, paired.differences, strict=True))
    results.append({replica.seed: gains.get(replica.seed, 0.0) for replica in base.chosen if not replica.diverged})
  return results


def _yield(entries: Sequence[Mapping[int, float]]) -> float:
  gains = [gain for entry in entries for gain in entry.values()]
  return statistics.fmean(gains) if gains else math.nan


def _lifts(names: Sequence[str], chosen: Mapping[str, Sequence[Sequence[Mapping[int, float]]]]) -> list[lift.Lift]:
  """Returns the lift of the first arm over each other one."""
  first, *others = names
  found = []
  for other in others:
    if len(chosen[first]) > 1:
      yields = [[_yield(run) for run in chosen[name]] for name in (first, other)]
      if all(math.isfinite(value) for one in yields for value in one):
        found.append(lift.of_runs(first, other, *yields))
    elif chosen[first][0] and chosen[other][0]:
      found.append(lift.of_one_run(first, other, chosen[first][0], chosen[other][0]))
  return found
