"""Frozen values that cross stage borders, and their JSON form.

Each is made once and read downstream only. Records hold plain numbers, strings and tuples, never arrays: arrays (curves
as packed numbers, parameters) lie beside a record in the archive. `to_json` and `from_json` are inverse to each other;
numbers that JSON cannot say (nan, inf) travel as strings.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import types
import typing
from typing import Any, Literal

SCHEMA = 1  # version of the JSON form; an archive says which one it was written with


@dataclasses.dataclass(frozen=True)
class Origin:
  """Where one idea of a proposal comes from, for the origin table of the paper (its Table 3).

  `kind` is cognition (a paper; `reference` is the key of the insight that was shown), analysis (an outcome of this
  archive; `reference` is its id) or original.
  """

  component: str
  kind: Literal['cognition', 'analysis', 'original']
  reference: str = ''


@dataclasses.dataclass(frozen=True)
class Proposal:
  """A mixer's source with its motivation and descent.

  `genome` is the description that the offline researcher wrote the source from, None for any other author; it is read
  and never changed. `operator` says how the proposal came about: seed, fresh, mutate, refine, combine, simplify,
  repair. `origins` lists the ideas in it as their author declared them, checked against what the author was shown.
  """

  name: str
  motivation: str
  source: str
  parent_id: int | None = None
  reference_ids: tuple[int, ...] = ()
  author: str = 'human'
  operator: str = 'seed'
  genome: dict[str, Any] | None = None
  origins: tuple[Origin, ...] = ()


@dataclasses.dataclass(frozen=True)
class Declined:
  """A researcher's answer when it has no proposal to train: what it tried, if anything, and why that ended.

  `stage` is reply (the model gave nothing that could be used) or repeat (only ideas that are in the archive).
  """

  stage: Literal['reply', 'repeat']
  reason: str
  proposal: Proposal | None = None


@dataclasses.dataclass(frozen=True)
class Attempt:
  """A version of a proposal that failed at `stage` and was mended: kept, since failures teach too."""

  proposal: Proposal
  stage: str
  reason: str


@dataclasses.dataclass(frozen=True)
class Drawn:
  """A proposal that one selection gave already. `fault` says why it cannot be used, empty for one that waits."""

  proposal: Proposal
  fault: str = ''


@dataclasses.dataclass(frozen=True)
class Finding:
  """What one check saw: `detail` is a sentence a researcher can act on."""

  check: str
  passed: bool
  detail: str
  seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class Limits:
  """What a job may use. They do not belong to a job's identity: they never change a result that is reached."""

  wall_seconds: float = 600.0
  seconds_per_step: float | None = None  # slower than this for long: stopped as too slow


@dataclasses.dataclass(frozen=True)
class Job:
  """One piece of work for a worker: gate a proposal, and with kind 'train' train and measure it.

  `experiment` holds the parts of the configuration that the worker reads (`config.worker_part`). `corpus` is the
  content hash of the token array. `waived` names checks whose failure is recorded but does not stop the job (an anchor
  may be quadratic). `parameters` is the count to match by the width of the feed-forward layers, None for the baseline
  that sets it; `flops`, where given, is the count a token to match instead. `baseline_losses` is the baseline's mean
  training loss at each logged step, for the monitor. `known` maps fingerprints of archived functions to entry ids: a
  repeat ends before training. `split` says which windows the improvement is read on: the vault's are for claims.
  `suite` is the setting (`suites.Setting`) of a job of that kind.
  With kind 'plan' the training step is compiled for `topology`, a slice that need not be there, and nothing is run.
  With kind 'answer' or 'decode', `corpus` names parameters and questions to them instead (`shell.questions`).
  """

  name: str
  source: str
  experiment: dict[str, Any]
  kind: Literal['check', 'train', 'suite', 'answer', 'decode', 'plan'] = 'train'
  corpus: str = ''
  waived: tuple[str, ...] = ()
  parameters: int | None = None
  baseline_losses: tuple[float, ...] = ()
  known: dict[str, int] = dataclasses.field(default_factory=dict)
  limits: Limits = Limits()
  split: Literal['test', 'vault'] = 'test'
  flops: float | None = None
  suite: dict[str, Any] = dataclasses.field(default_factory=dict)
  topology: str = ''

  @property
  def asks(self) -> bool:
    """Whether `corpus` names parameters and questions, which no other job reads."""
    return self.kind in ('answer', 'decode')

  @functools.cached_property
  def key(self) -> str:
    """Names the job by its content: all that a result depends on (sha256, 24 hex digits)."""
    content = {name: value for name, value in to_json(self).items() if name not in ('known', 'limits', 'name')}
    for name in ('suite', 'topology'):
      if not content[name]:
        content.pop(name)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]


@dataclasses.dataclass(frozen=True)
class Replica:
  """One trained copy. `losses` are training losses in nats a token at steps log_every, 2 log_every, ...

  `validation_bits` and `test_bits` are bits per byte on the held-out windows; nan when the replica diverged.
  """

  seed: int
  learning_rate: float
  steps: int
  losses: tuple[float, ...]
  validation_bits: float
  test_bits: float
  diverged: bool = False


@dataclasses.dataclass(frozen=True)
class TrainSummary:
  """What training a candidate's replicas gave and cost. Counts are per replica, tokens_per_second over all replicas."""

  replicas: tuple[Replica, ...]
  tokens: int
  parameters: int
  mlp_width: int
  flops_per_token: float
  state_bytes: int
  log_every: int
  learning_rate: float  # the one that the validation windows chose
  stopped: str = 'finished'  # finished, non_finite, too_slow, suspiciously_low, hopeless
  tokens_per_second: float = 0.0
  seconds_per_step: float = 0.0
  compile_seconds: float = 0.0
  peak_bytes: int = 0

  @property
  def chosen(self) -> tuple[Replica, ...]:
    """The replicas at the chosen learning rate, by seed."""
    return tuple(sorted((r for r in self.replicas if r.learning_rate == self.learning_rate), key=lambda r: r.seed))


def chosen_rate(replicas: typing.Sequence[Replica]) -> float:
  """Returns the learning rate with the best mean validation bits; one with a diverged replica comes last."""

  def badness(rate: float) -> tuple[int, float]:
    mine = [r for r in replicas if r.learning_rate == rate]
    finite = [r.validation_bits for r in mine if math.isfinite(r.validation_bits)]
    return sum(r.diverged for r in mine), sum(finite) / len(finite) if finite else math.inf

  return min(dict.fromkeys(r.learning_rate for r in replicas), key=badness)


@dataclasses.dataclass(frozen=True)
class TaskScore:
  """A task's value over n sequences at the chosen learning rate, with its standard error. Accuracies lie in [0, 1]."""

  task: str
  value: float
  stderr: float
  n: int
  unit: Literal['accuracy', 'bits_per_byte'] = 'accuracy'


@dataclasses.dataclass(frozen=True)
class ZeroShotScore:
  """What EleutherAI's harness measured on n items of a task. `metric` is its name there (acc, perplexity, ...).

  `stderr` counts the items as drawn; nan where it cannot be had. `chance` is the accuracy of guessing, None where the
  metric is no accuracy. `cut` counts the requests that lost their left end to the limit on length.
  """

  task: str
  metric: str
  value: float
  stderr: float
  n: int
  chance: float | None = None
  cut: int = 0


@dataclasses.dataclass(frozen=True)
class ZeroShot:
  """What one entry was measured at, on the first `limit` items of each task (0: all). `harness` is its version."""

  entry: int
  name: str
  limit: int
  max_length: int
  harness: str
  scores: tuple[ZeroShotScore, ...]

  @property
  def conditions(self) -> tuple[int, int, str]:
    """What two measurements have in common that can be compared."""
    return self.limit, self.max_length, self.harness


@dataclasses.dataclass(frozen=True)
class Cost:
  """Counted, not timed: from the jaxpr of the mixer alone (`checks.cost`).

  `growth` is the exponent g of FLOPs ~ T^g between two long sequences, T and 2T; `state_bytes` is what a decoder must
  keep a sequence and layer.
  """

  mixer_parameters: int
  flops_per_token: float
  state_bytes: int
  growth: float


@dataclasses.dataclass(frozen=True)
class Accuracy:
  """Shares of right answers: macro is balanced over classes (`suites.accuracy`). `test` names one of several tests."""

  test: str
  macro: float
  micro: float


@dataclasses.dataclass(frozen=True)
class SuiteRun:
  """One training run of a setting, measured where its validation accuracy ended it, else after the last step.

  `test_stopped` is measured where the test accuracy itself would have ended it, as MAD does.
  """

  seed: int
  learning_rate: float
  weight_decay: float
  steps: int
  validation: tuple[Accuracy, ...]
  test: tuple[Accuracy, ...]
  test_stopped: tuple[Accuracy, ...]
  diverged: bool = False


@dataclasses.dataclass(frozen=True)
class SuiteResult:
  """All runs of one setting of a suite, trained side by side. `metric` is what runs are chosen by."""

  setting: str
  task: str
  metric: Literal['macro', 'micro']
  runs: tuple[SuiteRun, ...]
  parameters: int
  seconds: float = 0.0
  compile_seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class Failure:
  """Why a job ended without a result. `kind` is one of FAILURES; `log` the tail of what the worker printed."""

  kind: str
  reason: str
  log: str = ''


FAILURES = {
  'checks': 'a check found the proposal outside the contract',
  'duplicate': 'the same function is in the archive already',
  'error': 'the mixer or the training step raised',
  'non_finite': 'every replica diverged',
  'too_slow': 'a step took longer than the limit against the parent allows',
  'suspiciously_low': 'the loss is so far below the baseline that the future must be leaking',
  'hopeless': "the loss at a checkpoint lies above the archive's own curves",
  'memory': 'the worker outgrew its memory limit',
  'time': 'the worker outlived its wall clock or stopped its heartbeat',
  'crashed': 'compiled code failed and took the worker with it (a segmentation fault, say)',
  'killed': 'the worker ended without a result',
  'forged': 'the result file was not written by the worker',
}


@dataclasses.dataclass(frozen=True)
class Timing:
  """Measured, so different at every run; everything else in a record is reproducible."""

  wall_seconds: float = 0.0
  check_seconds: float = 0.0
  accelerator_seconds: float = 0.0  # devices x seconds that the worker held them
  started: float = 0.0  # seconds since the epoch


def total(*timings: Timing) -> Timing:
  """Returns the time of several jobs of one cycle; it started with the first that ran."""
  return Timing(
    wall_seconds=sum(timing.wall_seconds for timing in timings),
    check_seconds=sum(timing.check_seconds for timing in timings),
    accelerator_seconds=sum(timing.accelerator_seconds for timing in timings),
    started=next((timing.started for timing in timings if timing.started), 0.0),
  )


@dataclasses.dataclass(frozen=True)
class Spend:
  """What language models took for one outcome: calls, tokens (thoughts included), dollars, seconds waited."""

  calls: int = 0
  tokens: int = 0
  dollars: float = 0.0
  seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class Collective:
  """One kind of exchange between devices in a training step: how often, and the bytes that a device gets by it."""

  kind: str
  times: int
  size: int


@dataclasses.dataclass(frozen=True)
class Bound:
  """Seconds that a training step takes at least, by published speeds, and what bounds it. Nothing was measured."""

  by: str
  seconds: float


@dataclasses.dataclass(frozen=True)
class Plan:
  """What a compiler says of one training step on a slice. Bytes, FLOPs and cycles are of one device.

  `flops` are counted, three times the forward's; `cycles` are the compiler's own estimates outside kernels; `traffic`
  is what kernels and the rest read and write of the device's memory. `memory` is what a device has, 0 where it is not
  known; then there are no `bounds` either.
  """

  topology: str
  device: str
  devices: int
  mesh: tuple[int, int, int]  # replica, data, fsdp
  replicas: int  # of one device
  rows: int  # of a replica's batch
  parameters: int
  state: int  # bytes of parameters and optimiser state
  arguments: int
  temporary: int
  peak: int
  memory: int
  flops: float
  cycles: int
  traffic: int
  collectives: tuple[Collective, ...]
  bounds: tuple[Bound, ...]
  compile_seconds: float


@dataclasses.dataclass(frozen=True)
class JobResult:
  """What came back from a worker. Without `failure`, `training`, `cost` and `scores` are complete (kind 'train')."""

  key: str
  findings: tuple[Finding, ...] = ()
  fingerprint: str = ''
  cost: Cost | None = None
  training: TrainSummary | None = None
  scores: tuple[TaskScore, ...] = ()
  failure: Failure | None = None
  timing: Timing = Timing()
  suite: SuiteResult | None = None
  plan: Plan | None = None


@dataclasses.dataclass(frozen=True)
class Progress:
  """One line of a running worker, for the display: never a measurement."""

  stage: str
  step: int = 0
  steps: int = 0
  loss: float | None = None
  baseline_loss: float | None = None
  steps_per_second: float = 0.0
  note: str = ''


@dataclasses.dataclass(frozen=True)
class Judgement:
  """Marks on 1-10 and their weighted mean (`config.Judge`), recomputed by us from the parts.

  `raw` holds the marks as a language model gave them (medians over its calls), before they were calibrated on the
  baseline; `calls` the score of each call. Both are empty for marks from measurements.
  """

  performance: float
  innovation: float
  complexity: float
  score: float
  reason: str
  raw: tuple[float, ...] = ()
  calls: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class Fitness:
  """The composite of the paper (eq. 2): the mean of the terms that could be measured, each in [0, 1]."""

  loss: float | None
  tasks: float | None
  judge: float | None
  total: float


@dataclasses.dataclass(frozen=True)
class Evidence:
  """Improvement over the baseline in bits per byte (positive is better), paired by seed, with its 95 % interval.

  `replicas` counts the pairs, `dropped` those that lost a replica to divergence.
  """

  improvement: float
  low: float
  high: float
  probability_better: float
  replicas: int
  dropped: int = 0


@dataclasses.dataclass(frozen=True)
class Analysis:
  """The five sections of an analysis, and the lessons that later proposals are told.

  `weaknesses` says what the measurements show to be lacking: the query for papers. `retrieved` holds the keys of the
  insights that were found by it (`cognition.retrieval.Hit.key`). `author` is 'measured' or a language model's name.
  """

  design: str
  results: str
  expectation: str
  explanation: str
  synthesis: str
  lessons: tuple[str, ...] = ()
  weaknesses: str = ''
  retrieved: tuple[str, ...] = ()
  author: str = 'measured'


@dataclasses.dataclass(frozen=True)
class Entry:
  """A proposal that was trained and measured. `role` 'anchor' is compared with and never a parent."""

  id: int
  proposal: Proposal
  role: Literal['baseline', 'anchor', 'candidate']
  findings: tuple[Finding, ...]
  fingerprint: str
  cost: Cost
  training: TrainSummary
  scores: tuple[TaskScore, ...]
  job_key: str
  judgement: Judgement | None = None
  fitness: Fitness | None = None
  evidence: Evidence | None = None
  analysis: Analysis | None = None
  timing: Timing = Timing()
  spend: Spend = Spend()
  earlier: tuple[Attempt, ...] = ()


@dataclasses.dataclass(frozen=True)
class Rejection:
  """A proposal that ended at a stage: a kind of FAILURES, or of `Declined`. Failures are archived too."""

  id: int
  stage: str
  reason: str
  proposal: Proposal
  findings: tuple[Finding, ...] = ()
  fingerprint: str = ''
  training: TrainSummary | None = None
  job_key: str = ''
  timing: Timing = Timing()
  spend: Spend = Spend()
  earlier: tuple[Attempt, ...] = ()


Outcome = Entry | Rejection


@dataclasses.dataclass(frozen=True)
class Selection:
  """The parent that a proposal starts from and the entries it may borrow from; no parent: start afresh.

  `independent` marks a control arm: proposals are samples that know nothing of each other but that none is made twice.
  """

  parent: Entry | None
  references: tuple[Entry, ...] = ()
  independent: bool = False

  def told(self, outcomes: typing.Sequence[Outcome]) -> typing.Sequence[Outcome]:
    """Returns the outcomes that a proposal may learn from: all, or baselines and anchors alone."""
    return [o for o in outcomes if isinstance(o, Entry) and o.role != 'candidate'] if self.independent else outcomes


def entries_of(outcomes: typing.Iterable[Outcome]) -> tuple[Entry, ...]:
  """Returns the outcomes that were measured, in order of id."""
  return tuple(sorted((o for o in outcomes if isinstance(o, Entry)), key=lambda entry: entry.id))


def without_timing(outcome: Outcome) -> Outcome:
  """Returns the reproducible part of an outcome: clocks and seconds set to zero."""
  findings = tuple(dataclasses.replace(finding, seconds=0.0) for finding in outcome.findings)
  training = outcome.training and dataclasses.replace(
    outcome.training, tokens_per_second=0.0, seconds_per_step=0.0, compile_seconds=0.0, peak_bytes=0
  )
  spend = dataclasses.replace(outcome.spend, seconds=0.0)
  return dataclasses.replace(outcome, findings=findings, training=training, timing=Timing(), spend=spend)  # type: ignore[arg-type]


def to_json(record: Any) -> Any:
  """Returns plain JSON values: dicts, lists, strings, finite numbers, None."""
  if dataclasses.is_dataclass(record) and not isinstance(record, type):
    body = {field.name: to_json(getattr(record, field.name)) for field in dataclasses.fields(record)}
    return {'outcome': type(record).__name__, **body} if isinstance(record, Entry | Rejection) else body
  if isinstance(record, dict):
    return {str(key): to_json(value) for key, value in record.items()}
  if isinstance(record, list | tuple):
    return [to_json(value) for value in record]
  if isinstance(record, float) and not math.isfinite(record):
    return str(record)
  return record


def from_json(kind: Any, value: Any) -> Any:
  """Returns the record of type `kind` that `to_json` wrote as `value`.

  Raises:
    ValueError: a field is missing, unknown or of another type; the message names it.
  """
  origin, arguments = typing.get_origin(kind), typing.get_args(kind)
  if kind is Outcome:
    names = {'Entry': Entry, 'Rejection': Rejection}
    if not isinstance(value, dict) or value.get('outcome') not in names:
      raise ValueError(f'an outcome says which of {sorted(names)} it is; this one does not')
    return from_json(names[value['outcome']], value)
  if origin in (types.UnionType, typing.Union):
    inner = [argument for argument in arguments if argument is not type(None)]
    return None if value is None else from_json(inner[0], value)
  if dataclasses.is_dataclass(kind):
    return _record_from_json(kind, value)
  if origin is tuple:
    return tuple(from_json(arguments[0], item) for item in value)
  if origin is dict:
    return {from_json(arguments[0], key): from_json(arguments[1], item) for key, item in value.items()}
  if origin is Literal:
    if value not in arguments:
      raise ValueError(f'{value!r} is none of {arguments}')
    return value
  if kind in (float, int, str):
    return kind(value)
  if kind is bool and not isinstance(value, bool):
    raise ValueError(f'{value!r} is not true or false')
  return value


_hints = functools.cache(typing.get_type_hints)  # slow, and asked for every record


def _record_from_json(kind: Any, value: Any) -> Any:
  if not isinstance(value, dict):
    raise ValueError(f'{kind.__name__} is written as an object, not as {type(value).__name__}')
  hints = _hints(kind)
  unknown = set(value) - set(hints) - {'outcome'}
  if unknown:
    raise ValueError(f'{kind.__name__} has no field {sorted(unknown)[0]!r}; it has {sorted(hints)}')
  fields = {}
  for name, item in value.items():
    if name in hints:
      try:
        fields[name] = from_json(hints[name], item)
      except (TypeError, ValueError) as error:
        raise ValueError(f'{kind.__name__}.{name}: {error}') from error
  try:
    return kind(**fields)
  except TypeError as error:
    raise ValueError(f'{kind.__name__}: {error}') from error
