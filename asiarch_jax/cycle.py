"""One cycle of the search, from selection to outcome, as one straight line against ports.

    sample -> propose -> check -> train (replicas) -> measure -> judge -> fitness -> analyse -> archive
                ^           |  findings go back to the proposer, a set number of times
                +-----------+  so do repeats of what is archived; of several samples one is trained

The first cycles send the baselines through the same line, so fitness and evidence are taken against values measured
here. All randomness of a cycle is `default_rng([seed, cycle])`: outcomes and a cycle number are the loop's whole state.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from asiarch_jax import config
from asiarch_jax.agents import judge
from asiarch_jax.checks import source
from asiarch_jax.evidence import blocks, improvement, noise
from asiarch_jax.evidence.placebo import is_placebo
from asiarch_jax.ports import Analyst, Examiner, Journal, Judge, Researcher, Runner
from asiarch_jax.records import (
  Attempt,
  Declined,
  Drawn,
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
  Selection,
  Spend,
  Timing,
  entries_of,
  total,
)
from asiarch_jax.search import fitness, novelty, sampling, screening
from asiarch_jax.search.pool import baseline_of

NO_TIME = Timing()
SEEN = 64  # latest outcomes that the journal lists for a cycle; all earlier ones were seen too
# Failures that a researcher can answer.
REPAIRABLE = ('checks', 'error', 'non_finite', 'too_slow', 'suspiciously_low', 'time', 'memory', 'crashed')


@dataclasses.dataclass(frozen=True)
class Team:
  """Who does the work of a cycle: adapters of the ports. `spent` says what language models took for it so far.

  Without an `examiner` the task scores are those that the worker measured.
  """

  researcher: Researcher
  judge: Judge
  analyst: Analyst
  runner: Runner
  journal: Journal
  spent: Callable[[], Spend] = Spend
  examiner: Examiner | None = None


@dataclasses.dataclass(frozen=True)
class Setting:
  """What every stage of one cycle reads."""

  outcomes: Sequence[Outcome]
  cycle: int
  experiment: config.Experiment
  team: Team
  corpus: str
  on_progress: Callable[[Progress], None] | None


@dataclasses.dataclass(frozen=True)
class Tried:
  """A proposal as its last attempt left it, with the attempts before and the time of all its jobs."""

  proposal: Proposal
  result: JobResult
  earlier: tuple[Attempt, ...] = ()
  timing: Timing = NO_TIME


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
  here = Setting(outcomes, cycle, experiment, team, corpus, on_progress)
  selection = sampling.select(outcomes, experiment.search, experiment.fitness, rng)
  team.journal.write(
    'selected',
    cycle=cycle,
    seen=[outcome.id for outcome in outcomes][-SEEN:],
    parent=selection.parent.id if selection.parent else None,
    references=[reference.id for reference in selection.references],
  )
  chosen = _screened(here, selection, rng) if _screens(here) else _proposed(here, selection, rng, ())
  if isinstance(chosen, Rejection):
    team.journal.write('rejected', cycle=cycle, name=chosen.proposal.name, stage=chosen.stage, reason=chosen.reason)
    return dataclasses.replace(chosen, spend=team.spent())
  tried = chosen if chosen.result.failure else _run(here, chosen, 'train', rng)
  if not tried.result.failure and cycle == 0:
    tried = _floor(here, tried)

  outcome = _outcome(here, tried)
  if isinstance(outcome, Entry):
    outcome = _examined(here, tried, outcome)
  if isinstance(outcome, Rejection):
    team.journal.write('rejected', cycle=cycle, name=outcome.proposal.name, stage=outcome.stage, reason=outcome.reason)
    return dataclasses.replace(outcome, spend=team.spent())
  entry = dataclasses.replace(outcome, evidence=_evidence(outcome, outcomes, experiment))
  entry = dataclasses.replace(entry, judgement=team.judge(entry, outcomes))
  entry = dataclasses.replace(entry, fitness=_fitness(entry, outcomes, experiment))
  entry = dataclasses.replace(entry, analysis=team.analyst(entry, outcomes))
  entry = dataclasses.replace(entry, spend=team.spent())
  team.journal.write(
    'measured', cycle=cycle, name=entry.proposal.name, fitness=entry.fitness and entry.fitness.total, spend=entry.spend
  )
  return entry


def replicated(
  entry: Entry,
  outcomes: Sequence[Outcome],
  experiment: config.Experiment,
  team: Team,
  *,
  corpus: str,
  on_progress: Callable[[Progress], None] | None = None,
) -> Outcome:
  """Returns the entry with one more block of `training.seeds` replicas, its evidence and fitness taken anew.

  A block that fails makes it a rejection: replicas are not chosen by how they end.
  """
  here = Setting(outcomes, entry.id, experiment, team, corpus, on_progress)
  result = JobResult(entry.job_key, entry.findings, entry.fingerprint, entry.cost, entry.training, entry.scores)
  tried = _block(here, Tried(entry.proposal, result, entry.earlier, entry.timing))
  if tried.result.failure is not None:
    return _rejected(here, tried, tried.result.failure.kind, tried.result.failure.reason)
  assert tried.result.training is not None
  entry = dataclasses.replace(entry, training=tried.result.training, timing=tried.timing)
  entry = dataclasses.replace(entry, evidence=_evidence(entry, outcomes, experiment))
  return dataclasses.replace(entry, fitness=_fitness(entry, outcomes, experiment))


def settled(outcome: Outcome, outcomes: Sequence[Outcome], experiment: config.Experiment) -> Outcome:
  """Returns the outcome as the archive takes it: with several cycles in flight, two may have found one function.

  The later to arrive is a duplicate: its measurement would count twice. A name that was taken meanwhile gets the id.
  """
  if outcome.proposal.name in {other.proposal.name for other in outcomes if other.id != outcome.id}:
    renamed = dataclasses.replace(outcome.proposal, name=f'{outcome.proposal.name}_{outcome.id}')
    outcome = dataclasses.replace(outcome, proposal=renamed)
  twin = known(outcomes, outcome.id, experiment).get(outcome.fingerprint)
  if not isinstance(outcome, Entry) or twin is None or twin == outcome.id:
    return outcome
  return Rejection(
    id=outcome.id,
    stage='duplicate',
    reason=f'computes the same function as entry {twin}, which was measured meanwhile',
    proposal=outcome.proposal,
    findings=outcome.findings,
    fingerprint=outcome.fingerprint,
    training=outcome.training,
    job_key=outcome.job_key,
    timing=outcome.timing,
    spend=outcome.spend,
    earlier=outcome.earlier,
  )


def _screens(here: Setting) -> bool:
  """Says whether proposals are gated before one is trained: always where a language model writes them.

  The offline researcher compares genomes itself, and a job to train gates its proposal anyway; a baseline is given.
  """
  candidate = here.cycle >= len(here.experiment.search.baselines)
  return candidate and (here.experiment.researcher.kind == 'llm' or here.experiment.researcher.samples > 1)


def _proposed(
  here: Setting, selection: Selection, rng: np.random.Generator, drawn: Sequence[Drawn]
) -> Tried | Rejection:
  """Returns a new proposal on which nothing was run yet, or the rejection of a researcher that has none."""
  proposal = here.team.researcher.propose(selection, here.outcomes, rng, drawn)
  if isinstance(proposal, Declined):
    nothing = proposal.proposal or Proposal(f'none_{here.cycle}', '', '', author='none', operator='none')
    return Rejection(id=here.cycle, stage=proposal.stage, reason=proposal.reason, proposal=nothing)
  here.team.journal.write(
    'proposed', cycle=here.cycle, name=proposal.name, operator=proposal.operator, parent=proposal.parent_id
  )
  return Tried(proposal, JobResult(''))


def _screened(here: Setting, selection: Selection, rng: np.random.Generator) -> Tried | Rejection:
  """Returns the best of several gated proposals by a cheap score; one that failed the gate if none passed.

  A proposal that computes an archived function, or says an archived idea once more, is answered with the reason and
  drawn again, `researcher.redraws` times in all. Functions are compared first, since that is free.
  """
  rule = here.experiment.researcher
  drawn: list[Drawn] = []
  passed: list[Tried] = []
  ended: Tried | Rejection | None = None
  redraws, timing = 0, Timing()  # `timing` is of all that is drawn and not trained
  while len(passed) < rule.samples and redraws <= rule.redraws:
    proposed = _proposed(here, selection, rng, drawn)
    if isinstance(proposed, Rejection):
      ended = ended or proposed
      break
    gated = _run(here, proposed, 'check', rng)
    mark = gated.result.fingerprint
    twin = next((other for other in passed if mark and other.result.fingerprint == mark), None)
    same = ('duplicate', f'computes the same function as {twin.proposal.name}, drawn just now') if twin else None
    repeated = same or _repetition(here, gated)
    if repeated is not None:
      drawn.append(Drawn(gated.proposal, repeated[1]))
      here.team.journal.write('repeated', cycle=here.cycle, name=gated.proposal.name, reason=repeated[1])
      ended = _rejected(here, gated, *repeated)
      redraws, timing = redraws + 1, total(timing, gated.timing)
    elif gated.result.failure is not None:
      drawn.append(Drawn(gated.proposal, gated.result.failure.reason))
      here.team.journal.write('failed', cycle=here.cycle, name=gated.proposal.name, reason=gated.result.failure.reason)
      ended = gated
      redraws, timing = redraws + 1, total(timing, gated.timing)
      if rule.samples == 1:
        break
    else:
      drawn.append(Drawn(gated.proposal))
      passed.append(gated)
  if not passed:
    assert ended is not None
    return dataclasses.replace(ended, timing=timing)
  best = passed[0] if len(passed) == 1 else _best(here, passed)
  return dataclasses.replace(best, timing=total(timing, best.timing))


def _repetition(here: Setting, gated: Tried) -> tuple[str, str] | None:
  """Returns (stage, reason) where a gated proposal is in the archive already, by function or by idea."""
  twin = known(here.outcomes, here.cycle, here.experiment).get(gated.result.fingerprint)
  if twin is not None:
    return 'duplicate', f'computes the same function as entry {twin}'
  if gated.result.failure is not None:
    return None
  reason = here.team.researcher.repeats(gated.proposal, here.outcomes)
  return ('repeat', reason) if reason else None


def _best(here: Setting, passed: Sequence[Tried]) -> Tried:
  """Returns the gated proposal to train, with the time that all of them took."""
  entries = entries_of(here.outcomes)
  rows, timing = [], Timing()
  for tried in passed:
    probe = _probe(here, tried.proposal)
    apart = judge.source_distances(tried.proposal.source, entries).values()
    cost = tried.result.cost
    rows.append(screening.Screened(probe[0], min(apart, default=1.0), cost.flops_per_token if cost else math.inf))
    timing = total(timing, tried.timing, probe[1])
  chosen = screening.best(rows)
  here.team.journal.write(
    'sampled',
    cycle=here.cycle,
    chosen=passed[chosen].proposal.name,
    samples=[
      {'name': tried.proposal.name, 'rank': rank, **dataclasses.asdict(row)}
      for tried, row, rank in zip(passed, rows, screening.ranks(rows), strict=True)
    ],
  )
  return dataclasses.replace(passed[chosen], timing=timing)


def _probe(here: Setting, proposal: Proposal) -> tuple[float | None, Timing]:
  """Returns the training loss of one replica after `researcher.micro_steps` steps and what it took; None: no run."""
  steps = here.experiment.researcher.micro_steps
  if not steps:
    return None, Timing()
  training = here.experiment.training
  rates = sorted(training.learning_rates)
  short = dataclasses.replace(
    training,
    steps=math.ceil(steps / training.steps_per_call) * training.steps_per_call,
    seeds=1,
    learning_rates=(rates[len(rates) // 2],),
    data_parallel=1,
    checkpoint_every=0,
  )
  micro = dataclasses.replace(
    here.experiment, training=short, tasks=dataclasses.replace(here.experiment.tasks, names=())
  )
  job = dataclasses.replace(
    job_of(proposal, here.outcomes, here.cycle, micro, here.corpus), baseline_losses=(), known={}
  )
  result = here.team.runner.run(job, here.on_progress)
  losses = result.training.replicas[0].losses if result.training and not result.failure else ()
  return (losses[-1] if losses else None), result.timing


def job_of(
  proposal: Proposal,
  outcomes: Sequence[Outcome],
  cycle: int,
  experiment: config.Experiment,
  corpus: str,
  kind: Literal['check', 'train'] = 'train',
) -> Job:
  """Returns the job that gates a proposal and, of kind 'train', trains and measures it against the baseline."""
  entries = entries_of(outcomes)
  baseline = baseline_of(entries, experiment.search)
  parent = next((entry for entry in entries if entry.id == proposal.parent_id), baseline)
  too_slow = experiment.monitor.too_slow
  return Job(
    name=proposal.name,
    source=proposal.source,
    experiment=config.worker_part(experiment),
    kind=kind,
    corpus=corpus if kind == 'train' else '',
    waived=('growth',) if role_of(cycle, experiment) == 'anchor' else (),
    parameters=baseline.training.parameters if baseline and experiment.search.match_parameters else None,
    baseline_losses=mean_losses(baseline) if baseline else (),
    known=known(outcomes, cycle, experiment),
    limits=Limits(
      wall_seconds=experiment.runner.wall_seconds,
      seconds_per_step=too_slow * parent.training.seconds_per_step if parent and too_slow else None,
    ),
  )


def known(outcomes: Sequence[Outcome], cycle: int, experiment: config.Experiment) -> dict[str, int]:
  """Returns the functions that the outcome of this cycle must not compute once more, by fingerprint.

  None bind a baseline, which is given, or a placebo, which is a copy by intent.
  """
  if role_of(cycle, experiment) != 'candidate' or is_placebo(cycle, experiment):
    return {}
  return novelty.known(outcomes)


def role_of(cycle: int, experiment: config.Experiment) -> str:
  """Returns what the outcome of this cycle is in the archive: baseline, anchor or candidate."""
  if cycle >= len(experiment.search.baselines):
    return 'candidate'
  return 'anchor' if experiment.search.baselines[cycle] in experiment.search.anchors else 'baseline'


def mean_losses(entry: Entry) -> tuple[float, ...]:
  """Returns the training curve of an entry: the mean over its chosen replicas that did not diverge."""
  curves = [replica.losses for replica in entry.training.chosen if not replica.diverged]
  return tuple(float(loss) for loss in np.mean(curves, axis=0)) if curves else ()


def _run(here: Setting, tried: Tried, kind: Literal['check', 'train'], rng: np.random.Generator) -> Tried:
  """Returns the proposal after a job of `kind`, mended and tried again while repairs are left and its author can.

  What the text alone shows is refused without starting a worker.
  """
  while True:
    job = job_of(tried.proposal, here.outcomes, here.cycle, here.experiment, here.corpus, kind)
    findings = source.check(tried.proposal.source)
    refused = source.failure(findings)
    if refused:
      result = JobResult(job.key, findings=findings, failure=refused)
    else:
      result = here.team.runner.run(job, here.on_progress)
    tried = dataclasses.replace(tried, result=result, timing=total(tried.timing, result.timing))
    failure = result.failure
    left = here.experiment.researcher.repairs - len(tried.earlier)
    if failure is None or failure.kind not in REPAIRABLE or left <= 0:
      return tried
    mended = here.team.researcher.repair(tried.proposal, _complaints(result), rng, tried.earlier)
    if mended is None:
      return tried
    here.team.journal.write('repaired', cycle=here.cycle, name=mended.name, reason=failure.reason)
    tried = dataclasses.replace(
      tried,
      proposal=dataclasses.replace(
        mended, parent_id=tried.proposal.parent_id, reference_ids=tried.proposal.reference_ids
      ),
      earlier=(*tried.earlier, Attempt(tried.proposal, failure.kind, failure.reason)),
    )


def _floor(here: Setting, tried: Tried) -> Tried:
  """Returns the baseline with as many replicas as the noise floor asks for."""
  training = here.experiment.training
  for _ in range(math.ceil(here.experiment.evidence.floor / training.seeds) - 1):
    if tried.result.failure is None:
      tried = _block(here, tried)
  return tried


def _block(here: Setting, tried: Tried) -> Tried:
  """Returns a trained proposal with another block of seeds, the next that it has not; a block that fails fails it.

  Every block has the seeds of the first: the same program runs, so seconds compare between designs and blocks.
  """
  training = here.experiment.training
  assert tried.result.training is not None
  first = 1 + max(replica.seed for replica in tried.result.training.replicas)
  block = dataclasses.replace(here.experiment, training=dataclasses.replace(training, first_seed=first))
  job = dataclasses.replace(job_of(tried.proposal, here.outcomes, here.cycle, block, here.corpus), known={})
  result = here.team.runner.run(job, here.on_progress)
  timing = total(tried.timing, result.timing)
  if result.failure is not None or result.training is None:
    return dataclasses.replace(tried, result=result, timing=timing)
  summary = blocks.merged(tried.result.training, result.training)
  return dataclasses.replace(tried, result=dataclasses.replace(tried.result, training=summary), timing=timing)


def _complaints(result: JobResult) -> tuple[Finding, ...]:
  """Returns what a researcher has to answer: the failed checks, or the failure itself with its log."""
  failed = tuple(finding for finding in result.findings if not finding.passed)
  if failed or result.failure is None:
    return failed
  return (Finding(result.failure.kind, False, f'{result.failure.reason}\n{result.failure.log}'.strip()),)


def _rejected(here: Setting, tried: Tried, stage: str, reason: str) -> Rejection:
  result = tried.result
  return Rejection(
    id=here.cycle,
    stage=stage,
    reason=reason,
    proposal=tried.proposal,
    findings=result.findings,
    fingerprint=result.fingerprint,
    training=result.training,
    job_key=result.key,
    timing=tried.timing,
    earlier=tried.earlier,
  )


def _outcome(here: Setting, tried: Tried) -> Outcome:
  """Returns a result as an entry without its judgements, or as a rejection with its stage."""
  result = tried.result
  twin = known(here.outcomes, here.cycle, here.experiment).get(result.fingerprint)
  if twin is not None:
    return _rejected(here, tried, 'duplicate', f'computes the same function as entry {twin}')
  if result.failure is not None:
    return _rejected(here, tried, result.failure.kind, result.failure.reason)
  if result.training is None or result.cost is None:
    return _rejected(here, tried, 'killed', 'the worker gave no measurement')
  return Entry(
    id=here.cycle,
    proposal=tried.proposal,
    role=role_of(here.cycle, here.experiment),  # type: ignore[arg-type]
    findings=result.findings,
    fingerprint=result.fingerprint,
    cost=result.cost,
    training=result.training,
    scores=result.scores,
    job_key=result.key,
    timing=tried.timing,
    earlier=tried.earlier,
  )


def _examined(here: Setting, tried: Tried, entry: Entry) -> Outcome:
  """Returns the entry with the examiner's scores after its own; one that gives no answers is rejected for it.

  A missing score would leave the task term out of its fitness, and so favour whoever fails the hardest.
  """
  if here.team.examiner is None:
    return entry
  result = here.team.examiner(entry, here.team.runner.arrays(entry.job_key), here.on_progress)
  tried = dataclasses.replace(tried, timing=total(tried.timing, result.timing))
  if result.failure is not None:
    return _rejected(here, tried, result.failure.kind, f'trained, and gave no answers: {result.failure.reason}')
  return dataclasses.replace(entry, scores=(*entry.scores, *result.scores), timing=tried.timing)


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
