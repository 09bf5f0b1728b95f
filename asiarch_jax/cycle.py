"""One cycle of the search, from selection to outcome, as one straight line against ports.

    sample -> propose -> check -> train (replicas) -> measure -> judge -> fitness -> analyse -> archive
                ^           |  findings go back to the proposer, a set number of times
                +-----------+

The first cycles send the baselines through the same line, so fitness and evidence are taken against values measured
here. All randomness of a cycle is `default_rng([seed, cycle])`: outcomes and a cycle number are the loop's whole state.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from asiarch_jax import config
from asiarch_jax.checks import source
from asiarch_jax.evidence import improvement, noise
from asiarch_jax.ports import Analyst, Journal, Judge, Researcher, Runner
from asiarch_jax.records import (
  Entry,
  Evidence,
  Finding,
  Fitness,
  Job,
  JobResult,
  Limits,
  Outcome,
  Progress,
  Proposal,
  Rejection,
  entries_of,
)
from asiarch_jax.search import fitness, novelty, sampling
from asiarch_jax.search.pool import baseline_of

REPAIRABLE = ('checks', 'error', 'non_finite')  # failures that a researcher can answer


@dataclasses.dataclass(frozen=True)
class Team:
  """Who does the work of a cycle: adapters of the ports."""

  researcher: Researcher
  judge: Judge
  analyst: Analyst
  runner: Runner
  journal: Journal


def run_cycle(
  outcomes: Sequence[Outcome],
  cycle: int,
  experiment: config.Experiment,
  team: Team,
  *,
  corpus: str,
  on_progress: Callable[[Progress], None] | None = None,
) -> Outcome:
  """Returns what cycle number `cycle` came to, given the outcomes before it.

  `corpus` is the content hash of the text. The result is not yet in the archive: appending it is the caller's.
  """
  rng = np.random.default_rng([experiment.seed, cycle])
  selection = sampling.select(outcomes, experiment.search, experiment.fitness, rng)
  proposal = team.researcher.propose(selection, outcomes, rng)
  team.journal.write('proposed', cycle=cycle, name=proposal.name, operator=proposal.operator, parent=proposal.parent_id)

  result = _attempt(proposal, outcomes, cycle, experiment, team.runner, corpus, on_progress)
  for _ in range(experiment.researcher.repairs):
    if result.failure is None or result.failure.kind not in REPAIRABLE:
      break
    mended = team.researcher.repair(proposal, _complaints(result), rng)
    if mended is None:
      break
    team.journal.write('repaired', cycle=cycle, name=mended.name, reason=result.failure.reason)
    proposal = dataclasses.replace(mended, parent_id=proposal.parent_id, reference_ids=proposal.reference_ids)
    result = _attempt(proposal, outcomes, cycle, experiment, team.runner, corpus, on_progress)

  outcome = _outcome(cycle, proposal, result, outcomes, experiment)
  if isinstance(outcome, Rejection):
    team.journal.write('rejected', cycle=cycle, name=proposal.name, stage=outcome.stage, reason=outcome.reason)
    return outcome
  entry = dataclasses.replace(outcome, evidence=_evidence(outcome, outcomes, experiment))
  entry = dataclasses.replace(entry, judgement=team.judge(entry, outcomes))
  entry = dataclasses.replace(entry, fitness=_fitness(entry, outcomes, experiment))
  entry = dataclasses.replace(entry, analysis=team.analyst(entry, outcomes))
  team.journal.write('measured', cycle=cycle, name=proposal.name, fitness=entry.fitness and entry.fitness.total)
  return entry


def job_of(
  proposal: Proposal, outcomes: Sequence[Outcome], cycle: int, experiment: config.Experiment, corpus: str
) -> Job:
  """Returns the job that gates, trains and measures a proposal against the baseline among `outcomes`."""
  entries = entries_of(outcomes)
  baseline = baseline_of(entries, experiment.search)
  parent = next((entry for entry in entries if entry.id == proposal.parent_id), baseline)
  too_slow = experiment.monitor.too_slow
  return Job(
    name=proposal.name,
    source=proposal.source,
    experiment=config.worker_part(experiment),
    corpus=corpus,
    waived=('growth',) if role_of(cycle, experiment) == 'anchor' else (),
    parameters=baseline.training.parameters if baseline and experiment.search.match_parameters else None,
    baseline_losses=mean_losses(baseline) if baseline else (),
    known={} if cycle < len(experiment.search.baselines) else novelty.known(outcomes),
    limits=Limits(
      wall_seconds=experiment.runner.wall_seconds,
      seconds_per_step=too_slow * parent.training.seconds_per_step if parent and too_slow else None,
    ),
  )


def role_of(cycle: int, experiment: config.Experiment) -> str:
  """Returns what the outcome of this cycle is in the archive: baseline, anchor or candidate."""
  if cycle >= len(experiment.search.baselines):
    return 'candidate'
  return 'anchor' if experiment.search.baselines[cycle] in experiment.search.anchors else 'baseline'


def mean_losses(entry: Entry) -> tuple[float, ...]:
  """Returns the training curve of an entry: the mean over its chosen replicas that did not diverge."""
  curves = [replica.losses for replica in entry.training.chosen if not replica.diverged]
  return tuple(float(loss) for loss in np.mean(curves, axis=0)) if curves else ()


def _attempt(
  proposal: Proposal,
  outcomes: Sequence[Outcome],
  cycle: int,
  experiment: config.Experiment,
  runner: Runner,
  corpus: str,
  on_progress: Callable[[Progress], None] | None,
) -> JobResult:
  """Returns the result of one job; what the text alone shows is refused without starting a worker."""
  job = job_of(proposal, outcomes, cycle, experiment, corpus)
  findings = source.check(proposal.source)
  refused = source.failure(findings)
  if refused:
    return JobResult(job.key, findings=findings, failure=refused)
  return runner.run(job, on_progress)


def _complaints(result: JobResult) -> tuple[Finding, ...]:
  """Returns what a researcher has to answer: the failed checks, or the failure itself with its log."""
  failed = tuple(finding for finding in result.findings if not finding.passed)
  if failed or result.failure is None:
    return failed
  return (Finding(result.failure.kind, False, f'{result.failure.reason}\n{result.failure.log}'.strip()),)


def _outcome(
  cycle: int, proposal: Proposal, result: JobResult, outcomes: Sequence[Outcome], experiment: config.Experiment
) -> Outcome:
  """Returns a result as an entry without its judgements, or as a rejection with its stage."""
  twin = novelty.known(outcomes).get(result.fingerprint) if cycle >= len(experiment.search.baselines) else None
  rejected = Rejection(
    id=cycle,
    stage='',
    reason='',
    proposal=proposal,
    findings=result.findings,
    fingerprint=result.fingerprint,
    training=result.training,
    job_key=result.key,
    timing=result.timing,
  )
  if twin is not None and result.fingerprint:
    return dataclasses.replace(rejected, stage='duplicate', reason=f'computes the same function as entry {twin}')
  if result.failure is not None:
    return dataclasses.replace(rejected, stage=result.failure.kind, reason=result.failure.reason)
  if result.training is None or result.cost is None:
    return dataclasses.replace(rejected, stage='killed', reason='the worker gave no measurement')
  return Entry(
    id=cycle,
    proposal=proposal,
    role=role_of(cycle, experiment),  # type: ignore[arg-type]
    findings=result.findings,
    fingerprint=result.fingerprint,
    cost=result.cost,
    training=result.training,
    scores=result.scores,
    job_key=result.key,
    timing=result.timing,
  )


def _evidence(entry: Entry, outcomes: Sequence[Outcome], experiment: config.Experiment) -> Evidence | None:
  """Returns the paired improvement (one pair leans on the baselines' noise floor); None for the baseline itself."""
  entries = entries_of(outcomes)
  baseline = baseline_of(entries, experiment.search)
  if baseline is None:
    return None
  floor = noise.floor(*(other.training for other in entries if other.role == 'baseline'))
  return improvement.improvement(entry.training, baseline.training, noise=floor)


def _fitness(entry: Entry, outcomes: Sequence[Outcome], experiment: config.Experiment) -> Fitness:
  return fitness.composite(entry, baseline_of(entries_of(outcomes), experiment.search) or entry, experiment.fitness)
