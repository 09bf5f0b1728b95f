"""A search without training: the cycle itself runs, its proposals and measurements come from a table."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from asiarch_jax import config, cycle
from asiarch_jax.agents import given
from asiarch_jax.agents.judge import MeasuredJudge
from asiarch_jax.records import (
  Declined,
  Drawn,
  Entry,
  Failure,
  Job,
  JobResult,
  Outcome,
  Progress,
  Proposal,
  Replica,
  Selection,
  chosen_rate,
  entries_of,
)
from asiarch_jax.replay.table import Table, design_of


@dataclasses.dataclass(frozen=True)
class TableResearcher:
  """Proposes designs of a table that were not drawn yet: most likely those near the parent. A `ports.Researcher`.

  Chances are those of the offline researcher: `rule.fresh` for any design at all, `rule.combine` for one that lies
  between the parent and a reference. Nearness counts as exp(-d / (step / 2)), d the distance of genomes and step the
  mean distance of children in the table, so that a child of a replay is about as far away as one of a search.
  """

  table: Table
  rule: config.Researcher

  def propose(
    self, selection: Selection, outcomes: Sequence[Outcome], rng: Any, drawn: Sequence[Drawn] = ()
  ) -> Proposal | Declined:
    taken = {outcome.proposal.name for outcome in outcomes} | {draw.proposal.name for draw in drawn}
    left = [outcome for outcome in self.table.candidates if outcome.proposal.name not in taken]
    draw, partner = rng.random(), int(rng.integers(len(selection.references))) if selection.references else 0
    if not left:
      return Declined('repeat', f'all {len(self.table.candidates)} designs of the table were drawn')
    if selection.parent is None or draw < self.rule.fresh:
      chosen = left[int(rng.integers(len(left)))]
      return dataclasses.replace(chosen.proposal, parent_id=None, reference_ids=(), operator='fresh')
    near = [self._place(selection.parent)]
    if draw < self.rule.fresh + self.rule.combine and selection.references:
      near.append(self._place(selection.references[partner]))
    far_N = np.array([[self.table.apart(place, other.id) for other in left] for place in near]).mean(0)
    weight_N = np.exp(-(far_N - far_N.min()) / (self.table.step / 2))
    chosen = left[int(rng.choice(len(left), p=weight_N / weight_N.sum()))]
    return dataclasses.replace(
      chosen.proposal,
      parent_id=selection.parent.id,
      reference_ids=(selection.references[partner].id,) if len(near) > 1 else (),
      operator='combine' if len(near) > 1 else 'mutate',
    )

  def repeats(self, proposal: Proposal, outcomes: Sequence[Outcome]) -> str | None:
    return None

  def repair(
    self, proposal: Proposal, findings: Sequence[Any], rng: Any, earlier: Sequence[Any] = ()
  ) -> Proposal | None:
    return None

  def _place(self, entry: Entry) -> int:
    """Returns the id in the table of an entry of the replay."""
    return self.table.rows[entry.proposal.name].id


@dataclasses.dataclass(frozen=True)
class TableRunner:
  """Answers a job with the row of its name; a `ports.Runner`. `seeds` says which seed of the table stands for which.

  Scores of tasks are left out: a row has those of all its seeds together, and a policy that asks for one seed is not to
  see what four would cost.
  """

  table: Table
  seeds: Mapping[int, int]

  def run(self, job: Job, on_progress: Callable[[Progress], None] | None = None) -> JobResult:
    outcome = self.table.rows[job.name]
    if not isinstance(outcome, Entry):
      failure = Failure(outcome.stage, outcome.reason)
      return JobResult(job.key, fingerprint=outcome.fingerprint, failure=failure, timing=outcome.timing)
    training = job.experiment['training']
    wanted = range(training['first_seed'], training['first_seed'] + training['seeds'])
    rates = set(training['learning_rates'])
    replicas = replayed(outcome.training.replicas, {self.seeds.get(seed, seed): seed for seed in wanted}, rates)
    if len(replicas) < len(wanted) * len(rates):
      reason = f'the table has {len(replicas)} of {len(wanted)} seeds x {len(rates)} learning rates of {job.name}'
      return JobResult(job.key, failure=Failure('error', reason))
    summary = dataclasses.replace(outcome.training, replicas=replicas, learning_rate=chosen_rate(replicas))
    return JobResult(job.key, (), outcome.fingerprint, outcome.cost, summary, (), timing=outcome.timing)

  def arrays(self, key: str) -> Mapping[str, Any]:
    return {}


def replayed(replicas: Sequence[Replica], seeds: Mapping[int, int], rates: set[float]) -> tuple[Replica, ...]:
  """Returns the replicas of the seeds of a table that are keys of `seeds`, under the seeds that they stand for."""
  return tuple(
    dataclasses.replace(replica, seed=seeds[replica.seed])
    for replica in replicas
    if replica.seed in seeds and replica.learning_rate in rates
  )


class _Silent:
  def write(self, event: str, **fields: Any) -> None:
    pass


def seeds_of(table: Table) -> tuple[int, ...]:
  """Returns the seeds that candidates of a table were trained on."""
  return tuple(sorted({r.seed for o in table.candidates if isinstance(o, Entry) for r in o.training.replicas}))


def on_table(table: Table, experiment: config.Experiment) -> config.Experiment:
  """Returns the experiment with all that concerns training taken from the table: sizes, baselines, checks.

  Its own are the number of seeds and cycles, who breeds, how fitness is made, and the chances of the researcher.

  Raises:
    ValueError: it asks for more seeds than the designs of the table have.
  """
  ours, known = table.experiment, seeds_of(table)
  if experiment.training.seeds > len(known):
    raise ValueError(f'{experiment.training.seeds} seeds are asked for; designs of the table have {len(known)}')
  given_by_table = {name: getattr(ours.search, name) for name in ('baselines', 'baseline', 'anchors')}
  return dataclasses.replace(
    ours,
    search=dataclasses.replace(experiment.search, **given_by_table),
    training=dataclasses.replace(ours.training, seeds=experiment.training.seeds),
    fitness=experiment.fitness,
    judge=dataclasses.replace(experiment.judge, kind='measured'),
    researcher=dataclasses.replace(experiment.researcher, kind='evolution', samples=1, repairs=0),
    evidence=config.Evidence(floor=1, placebo=0.0),
  )


def play(table: Table, experiment: config.Experiment, seed: int) -> tuple[Outcome, ...]:
  """Returns the outcomes of a search after `experiment` on a table. `seed` draws its luck: of choices and of replicas.

  Raises:
    ValueError: it asks for more seeds than the designs of the table have.
  """
  ours = table.experiment
  experiment = dataclasses.replace(on_table(table, experiment), seed=seed)
  known = seeds_of(table)
  drawn = np.random.default_rng([seed, len(known)]).permutation(known)
  runner = TableRunner(table, {place: int(other) for place, other in enumerate(drawn)})
  designs = {_key(design): outcome.id for outcome in table.lower if (design := design_of(outcome)) is not None}
  judge = MeasuredJudge(
    experiment.judge, lambda a, b: table.apart(designs[_key(a)], designs[_key(b)]), ours.search.baseline
  )
  outcomes: list[Outcome] = []
  for number in range(experiment.search.cycles):
    first = number < len(ours.search.baselines)
    proposal = table.rows[ours.search.baselines[number]].proposal if first else None
    team = cycle.Team(
      given.Given(proposal) if proposal else TableResearcher(table, experiment.researcher),
      judge,
      lambda entry, outcomes: None,
      runner,
      _Silent(),
    )
    outcomes.append(cycle.run_cycle(outcomes, number, experiment, team, corpus=''))
  return tuple(outcomes)


def _key(design: Mapping[str, Any]) -> frozenset[tuple[str, Any]]:
  return frozenset(design.items())


def best(outcomes: Sequence[Outcome], table: Table, count: int) -> tuple[int, ...]:
  """Returns the ids in the table of the entries that measured best, which a user of the search would take.

  All have the same number of replicas, so that belief would rank them as measurement does.
  """
  candidates = [entry for entry in entries_of(outcomes) if entry.role == 'candidate' and entry.evidence is not None]
  finite = [entry for entry in candidates if math.isfinite(entry.evidence.improvement)]  # type: ignore[union-attr]
  ordered = sorted(finite, key=lambda entry: (-entry.evidence.improvement, entry.id))  # type: ignore[union-attr]
  return tuple(table.rows[entry.proposal.name].id for entry in ordered[:count])
