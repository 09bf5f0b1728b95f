"""Every setting, once: frozen dataclasses whose defaults are the offline search on two CPU cores.

A config file returns `as_config_dict(Experiment(...))`, so that `--config.training.steps=200` is typed and an unknown
key is an error that names it. Functions are given the part they use. `docs/CONFIGURATION.md` is generated from here:
the comment behind a field is its documentation.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import typing
from collections.abc import Mapping
from typing import Any

import ml_collections

TASKS = ('bits_per_byte', 'recall_slice', 'mqar', 'selective_copying')  # the rows of `tasks.TASKS`, which needs JAX
LARGEST, LARGEST_WHOLE = 1e9, 2**53  # of numbers in settings
SHARES = (
  'training.warmup', 'training.decay', 'training.final', 'training.b1', 'training.b2',
  'researcher.fresh', 'researcher.combine', 'researcher.simplify', 'researcher.revive',
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Model:
  """The language model that hosts a mixer."""

  width: int = 64  # D, size of the residual stream
  layers: int = 2  # blocks of mixer and feed-forward
  heads: int = 2  # H handed to the mixer; divides width
  mlp_width: int = 192  # hidden size of the SwiGLU; the baseline's, matched candidates may get another
  vocabulary: int = 256  # token ids; at least the tokenizer's
  tied: bool = True  # the head is the embedding, transposed
  scan_layers: bool = False  # one nn.scan over layers instead of a Python loop; for deep models
  remat: bool = False  # recompute each block in the backward pass
  remat_saves: str = 'nothing'  # of a block with remat: nothing, kernels (their named residuals), products, or both
  dtype: str = 'float32'  # compute type; parameters and reductions are float32
  norm_epsilon: float = 1e-6  # inside every RMSNorm of the host
  init_stddev: float = 0.1  # of the embedding and the feed-forward; about 1/sqrt(width)


@dataclasses.dataclass(frozen=True)
class Training:
  """How each replica is trained. Replicas are seeds x learning rates, all in one compiled program."""

  steps: int = 200  # optimiser steps
  batch: int = 8  # B, sequences a step and replica
  length: int = 128  # T, tokens a sequence
  seeds: int = 3  # independent initialisations and data orders
  learning_rates: tuple[float, ...] = (5e-3, 1.5e-2)  # peak values; the best on the validation windows is reported
  schedule: str = 'wsd'  # wsd: warm-up, stable, decay; or cosine
  warmup: float = 0.1  # share of the steps
  decay: float = 0.3  # share of the steps that wsd decays over
  final: float = 0.1  # learning rate at the end over the peak
  weight_decay: float = 0.01  # AdamW, on matrices only
  b1: float = 0.9  # AdamW
  b2: float = 0.95  # AdamW
  epsilon: float = 1e-8  # AdamW
  clip: float = 1.0  # global norm of the gradient of one replica
  steps_per_call: int = 10  # steps in one dispatched lax.scan; losses are logged as their mean
  data_parallel: int = 1  # devices that share one replica's batch; divides batch
  microbatches: int = 1  # parts of a device's rows that gradients are summed over; divides them
  sharded: tuple[str, ...] = ()  # PATTERN AXES: parameters that `fsdp` devices hold a part of each, as 'kernel$ fsdp,-'
  fsdp: int = 0  # devices, of those that share a batch, that share out the parameters of `sharded`; 0: all of them
  checkpoint_every: int = 0  # steps between saved states to resume from; 0 saves none
  first_seed: int = 0  # of the replicas; later blocks of seeds add replicas to the same design


@dataclasses.dataclass(frozen=True)
class Monitor:
  """When a run is ended early, always with a typed reason. Zero switches a rule off."""

  too_slow: float = 3.0  # times the parent's measured seconds a step
  suspicious: float = 0.25  # share of the baseline's loss at the same step below which the future must be leaking
  hopeless: float = 0.25  # share above the baseline's loss at the checkpoint
  hopeless_at: float = 0.5  # the checkpoint, as a share of the steps


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """Held-out windows. The learning rate is chosen on validation, improvement is read on test, vault is for claims."""

  validation_windows: int = 64  # windows of training.length tokens
  test_windows: int = 128  # as above
  batch: int = 32  # windows a call; divides both


@dataclasses.dataclass(frozen=True)
class Checks:
  """The gate before training."""

  lengths: tuple[int, ...] = (1, 37, 64, 129)  # T at which the mixer must run; causality is tried at several
  tolerance: float = 2e-4  # largest change of an output that must not change, over the output's RMS
  growth: float = 1.25  # largest exponent g of FLOPs ~ T^g
  parameter_tolerance: float = 0.01  # share by which a matched model may miss the baseline's parameters
  smallest_mlp: float = 0.5  # a matched feed-forward is at least this share of model.mlp_width
  seconds: float = 60.0  # the gate's own wall clock


@dataclasses.dataclass(frozen=True)
class Tasks:
  """What is measured beside the loss. Names are rows of `tasks.TASKS`."""

  names: tuple[str, ...] = ('recall_slice', 'mqar')  # their accuracies make the task term of the fitness
  steps: int = 60  # training steps of a synthetic task, from a fresh initialisation, in the same compiled program
  examples: int = 256  # test sequences of a synthetic task
  pairs: int = 4  # key-value pairs in multi-query associative recall
  symbols: int = 16  # vocabulary of the synthetic tasks
  copies: int = 4  # tokens to copy in selective copying
  length: int = 32  # tokens that a synthetic task uses of training.length; the rest is padding without weight


@dataclasses.dataclass(frozen=True)
class ZeroShot:
  """What an entry is asked through EleutherAI's harness (extra `[eval]`): by `asiarch evaluate`, or in the search."""

  tasks: tuple[str, ...] = (  # names that the harness knows; these are the paper's
    'arc_challenge',
    'arc_easy',
    'boolq',
    'fda',
    'hellaswag',
    'lambada_openai',
    'openbookqa',
    'piqa',
    'social_iqa',
    'squad_completion',
    'swde',
    'winogrande',
    'wikitext',
  )
  limit: int = 500  # first items of each task, as the paper explores; 0 takes all
  max_length: int = 0  # tokens that the model is shown at most, longer text loses its left end; 0: training.length
  include: str = ''  # folder of task files of your own (YAML), which go before the harness's tasks of the same name
  in_search: bool = False  # asks every trained entry of a search and of its rungs: accuracies join the task term


@dataclasses.dataclass(frozen=True)
class Corpus:
  """Which text."""

  path: str = 'docs'  # a folder made by `asiarch prepare`, or docs: made from installed docstrings on first use


@dataclasses.dataclass(frozen=True)
class Search:
  """Which proposals are asked for, and from what."""

  cycles: int = 15  # outcomes in the archive when the search is done, baselines included
  baselines: tuple[str, ...] = ('delta_net', 'gated_delta_net', 'softmax_attention')  # first cycles, in this order
  anchors: tuple[str, ...] = ('softmax_attention',)  # of the baselines: may be quadratic, never a parent
  baseline: str = 'delta_net'  # fitness and evidence are taken against it; first of the baselines
  match_parameters: bool = True  # bring every candidate to the baseline's parameter count
  pool: int = 50  # best entries that breed
  refresh: int = 50  # new entries after which the pool is drawn anew
  cold_start: int = 200  # entries before the first refresh; until then the parents are the baselines
  parent_ranks: tuple[int, int] = (1, 10)  # a parent is uniform over these
  reference_ranks: tuple[int, int] = (11, 50)  # references are drawn from these
  references: int = 4  # how many
  parents: str = 'pool'  # pool; baseline: always search.baseline, so nothing is learned; none: independent designs
  in_flight: int = 1  # cycles at a time, so that a slow language model idles no accelerator; 1 is reproducible


@dataclasses.dataclass(frozen=True)
class FitnessRule:
  """The composite of the paper, eq. 2 and its released code."""

  gain: float = 6.0  # S(x) = 1 / (1 + exp(-gain clip(x, -1, 1)))
  band: float = 0.1  # relative change that counts as one
  leak: float = 0.1  # loss this much below the baseline's: not in the pool, suspected leakage
  worse_loss: float = 0.1  # loss this much above: not in the pool
  worse_tasks: float = 0.1  # tasks this much below: not in the pool


@dataclasses.dataclass(frozen=True)
class Judge:
  """Who marks a measured entry, and the weights of the marks."""

  performance: float = 0.30  # weight of the mark against the baselines
  innovation: float = 0.25  # weight of the distance to what is in the archive
  complexity: float = 0.45  # weight of FLOPs, parameters and state against the baseline
  kind: str = 'measured'  # measured: from numbers alone; llm: a language model after the rubric
  calls: int = 3  # of a language model for one entry; the median of each mark counts
  blind: bool = False  # hide the author's motivation from a language model


@dataclasses.dataclass(frozen=True)
class Analyst:
  """Who compares an entry with its relatives and draws lessons."""

  kind: str = 'measured'  # measured: from numbers alone; llm: a language model that is given those numbers
  insights: int = 3  # papers retrieved by the weaknesses that were found


@dataclasses.dataclass(frozen=True)
class Researcher:
  """Who proposes."""

  kind: str = 'evolution'  # evolution: offline, from a genome; llm: a language model
  repairs: int = 2  # times that findings go back to the researcher before a proposal is rejected
  samples: int = 1  # proposals drawn for one selection and gated; the best by a cheap score is trained
  micro_steps: int = 20  # steps of the short run behind that score; 0 goes by novelty and counted cost alone
  fresh: float = 0.1  # chance of an independent design instead of a child
  combine: float = 0.3  # chance of crossing with a reference
  simplify: float = 0.12  # chance of removing a component from a child that is not crossed
  mutations: float = 2.0  # mean number of genome fields that a child changes (at least one)
  revive: float = 0.05  # chance that a language model mends an archived failure instead of proposing anew
  summaries: str = 'anew'  # of references, for a language model: anew at each sampling, or cached
  redraws: int = 3  # times that a language model may answer a proposal that repeats an archived idea
  neighbours: int = 5  # nearest archived motivations that a proposal is held against
  embedder: str = 'auto'  # what finds them: lexical, gemini (its embeddings), auto (gemini where it is the provider)


@dataclasses.dataclass(frozen=True)
class Role:
  """How a language model is asked on behalf of one agent."""

  model: str = ''  # empty: llm.model
  temperature: float = -1.0  # negative: not sent, the provider's own holds
  reply_tokens: int = 32_768  # most tokens of a reply, thoughts included
  thinking: str = ''  # minimal, low, medium, high, or a number of tokens; empty: the provider's own


@dataclasses.dataclass(frozen=True)
class Llm:
  """Language models: where they are and how patiently they are asked. Read only where an agent's kind is llm."""

  provider: str = 'gemini'  # gemini; openai: any endpoint of that protocol; scripted; recorded: replay of a run
  model: str = 'gemini-3.8-flash'  # of every role that names none
  base_url: str = ''  # of the endpoint; empty: the provider's own (openai: OPENAI_BASE_URL)
  project: str = ''  # Google Cloud project: uses Vertex AI with application-default credentials instead of a key
  location: str = 'global'  # of Vertex AI
  exchanges: str = ''  # scripted: a JSON-lines file of replies; recorded: the workdir whose traces are replayed
  timeout: float = 300.0  # seconds of one attempt
  attempts: int = 6  # of one call, on rate limits, server errors, time-outs and dropped connections
  backoff: float = 2.0  # seconds before the second attempt, doubled for each, with jitter; Retry-After goes first
  pause: float = 60.0  # seconds that the run waits after a call failed for good, doubled each time up to an hour
  prices: tuple[str, ...] = (  # MODEL PROMPT CACHED REPLY DATE: dollars for a million tokens; yours may differ
    'gemini-3.8-flash 0.75 0.075 3.75 2026-11-25',
    'gemini-3.5-flash 1.50 0.15 9.00 2026-11-25',
    'gemini-3.1-flash-lite 0.25 0.025 1.50 2026-11-25',
    'gemini-3.1-pro-preview 2.00 0.20 12.00 2026-11-25',
  )
  researcher: Role = Role()
  repairer: Role = Role(reply_tokens=24_576)
  novelty: Role = Role(reply_tokens=8_192)
  summariser: Role = Role(temperature=1.2, reply_tokens=4_096)
  judge: Role = Role(reply_tokens=8_192)
  analyst: Role = Role(reply_tokens=16_384)


@dataclasses.dataclass(frozen=True)
class Cognition:
  """The base of papers that language-model agents read."""

  papers: str = ''  # a folder of your own, beside those of the package
  shown: int = 3  # insights in a researcher's prompt beyond those that analyses retrieved


@dataclasses.dataclass(frozen=True)
class Budget:
  """Where a search ends: the cycles in hand are finished and no other is begun. Zero sets no limit.

  All but wall_seconds count the whole of a workdir, earlier calls of the command included.
  """

  dollars: float = 0.0  # of language models, by llm.prices
  tokens: int = 0  # of language models: prompt, thoughts and reply
  accelerator_seconds: float = 0.0  # devices times seconds that workers held them
  wall_seconds: float = 0.0  # since this command began


@dataclasses.dataclass(frozen=True)
class Runner:
  """How a job is run."""

  kind: str = 'local'  # local: jailed processes here; spmd: a job on all hosts at once; cluster: on nodes of Ray
  address: str = ''  # cluster: of Ray; spmd: HOST:PORT of the first host; empty: what the environment says
  hosts: int = 0  # spmd: how many hosts run this command; 0: what the environment says
  host: int = -1  # spmd: which of them this is, counted from 0, the controller; -1: what the environment says
  join_seconds: float = 300.0  # spmd: that hosts wait for one that is not there, before they give up
  retries: int = 5  # times that a job is run again after a node or host that ran it was lost
  workers: int = 1  # jobs at a time
  devices: int = 0  # accelerators of one worker, each worker its own; 0: all that are here
  jail: str = 'auto'  # auto, bubblewrap, sandlock, or none (runs untrusted code with your rights)
  platform: str = ''  # JAX platform of workers; empty: what JAX finds
  host_devices: int = 1  # forced CPU devices of a worker
  xla_flags: tuple[str, ...] = ()  # of every worker, such as --xla_gpu_enable_latency_hiding_scheduler=true
  wall_seconds: float = 600.0  # of one job
  heartbeat_seconds: float = 120.0  # a worker silent for longer is killed
  memory_gib: float = 8.0  # of one job
  processes: int = 256  # threads and processes of one job
  file_mib: float = 256.0  # largest file, and the largest sum of what a job writes
  log_kib: float = 256.0  # of a worker's printed output that is kept


@dataclasses.dataclass(frozen=True)
class Evidence:
  """What is measured so that a search can be believed."""

  floor: int = 8  # replicas of search.baseline at least, on every rung: the noise floor, before any candidate
  placebo: float = 0.05  # chance that a cycle sends a copy of search.baseline through, unlabelled


LEAST_CLAIMED = 8  # fresh seeds of each side of a claim
RUNG = ', rung '  # in the name of an experiment as it is on a rung


@dataclasses.dataclass(frozen=True)
class Claims:
  """How `asiarch claim` confirms an entry: fresh seeds, windows that were never read."""

  replicas: int = 8  # fresh seeds of each side
  windows: int = 256  # of the vault
  error: float = 0.05  # chance of any false claim over all claims of a workdir
  budgets: tuple[float, ...] = (0.5, 1.0, 2.0)  # lengths of the baseline's training for the compute multiplier; or ()


@dataclasses.dataclass(frozen=True)
class Rung:
  """A fidelity above the search: what a worker reads there, and who may climb to it."""

  model: Model = Model()
  training: Training = Training()
  evaluation: Evaluation = Evaluation()
  tasks: Tasks = Tasks()
  wall_seconds: float = 3600.0  # of one job
  share: float = 0.25  # of the candidates below that climb at most, where the rungs agree perfectly; more where less
  false_discoveries: float = 0.2  # expected share of those that climb and are not better
  audit: int = 1  # candidates that climb by lot, so that the agreement of the rungs is not measured on winners alone
  rounds: int = 2  # blocks of training.seeds; after each but the last the less promising half gets no more


SMALL = Rung(
  model=Model(width=128, layers=4, heads=4, mlp_width=384, init_stddev=0.08),
  training=Training(steps=400, length=256, seeds=4, learning_rates=(3e-3, 8e-3)),
)


@dataclasses.dataclass(frozen=True)
class Experiment:
  """The whole of a run. Its hash stands in the archive: a workdir holds one experiment."""

  name: str = 'default'  # shown in the report
  seed: int = 0  # of every choice that the controller makes and every key that a worker folds
  model: Model = Model()
  training: Training = Training()
  monitor: Monitor = Monitor()
  evaluation: Evaluation = Evaluation()
  checks: Checks = Checks()
  tasks: Tasks = Tasks()
  zero_shot: ZeroShot = ZeroShot()
  corpus: Corpus = Corpus()
  search: Search = Search()
  fitness: FitnessRule = FitnessRule()
  judge: Judge = Judge()
  analyst: Analyst = Analyst()
  researcher: Researcher = Researcher()
  llm: Llm = Llm()
  cognition: Cognition = Cognition()
  budget: Budget = Budget()
  runner: Runner = Runner()
  evidence: Evidence = Evidence()
  claims: Claims = Claims()
  ladder: tuple[str, ...] = ('small',)  # the rungs above the search that `asiarch verify` climbs, in this order
  rungs: Mapping[str, Rung] = dataclasses.field(default_factory=lambda: {'small': SMALL})


WORKER_PARTS = ('seed', 'model', 'training', 'monitor', 'evaluation', 'checks', 'tasks')
# What may differ when a workdir is continued: how far, and with which hands. Everything else decides what is found.
CONTINUABLE = (
  *('name', 'search.cycles', 'search.in_flight', 'llm', 'budget', 'runner', 'claims', 'ladder', 'rungs'),
  'zero_shot',
)
ROLES = tuple(field.name for field in dataclasses.fields(Llm) if isinstance(field.default, Role))
JUDGE_WEIGHTS = ('performance', 'innovation', 'complexity')


def as_dict(part: Any) -> dict[str, Any]:
  """Returns a part of the configuration as plain JSON values (tuples become lists)."""
  return {
    name: as_dict(value) if _is_part(value) else list(value) if type(value) is tuple else value
    for name, value in _items(part)
  }


def _items(part: Any) -> list[tuple[str, Any]]:
  """Returns the names and values of a part: a dataclass, or a mapping of parts by name."""
  if isinstance(part, Mapping):
    return list(part.items())
  return [(field.name, getattr(part, field.name)) for field in dataclasses.fields(part)]


def _is_part(value: Any) -> bool:
  return dataclasses.is_dataclass(value) or isinstance(value, Mapping)


def as_config_dict(experiment: Experiment) -> ml_collections.ConfigDict:
  """Returns what a config file's `get_config` gives to absl flags. Types are locked, unknown keys refused."""

  def convert(part: Any) -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(
      {name: convert(value) if _is_part(value) else value for name, value in _items(part)}
    )

  return convert(experiment)


def from_dict(values: Any, kind: type = Experiment, path: str = 'config') -> Any:
  """Returns the frozen dataclass `kind` filled from a ConfigDict or a dict, missing keys at their default.

  Raises:
    ValueError: an unknown key (named, with the nearest known one) or a value of another type.
  """
  hints = typing.get_type_hints(kind)
  fields = {}
  if not hasattr(values, 'items'):
    raise ValueError(f'{path} holds settings by name, not {str(values)[:60]!r}')
  for name, value in values.items():
    if name not in hints:
      near = difflib.get_close_matches(str(name), hints, n=1)
      raise ValueError(
        f'{path}.{name} is not a setting; '
        + (f'did you mean {path}.{near[0]}? ' if near else '')
        + f'{path} has: {", ".join(hints)}'
      )
    fields[name] = _typed(hints[name], value, f'{path}.{name}')
  return kind(**fields)


def _typed(hint: Any, value: Any, path: str) -> Any:
  if dataclasses.is_dataclass(hint):
    return from_dict(value, typing.cast(type, hint), path)
  if typing.get_origin(hint) is Mapping:
    if not hasattr(value, 'items'):
      raise ValueError(f'{path} holds parts by name, not {value!r}')
    return {name: _typed(typing.get_args(hint)[1], item, f'{path}.{name}') for name, item in value.items()}
  if typing.get_origin(hint) is tuple:
    if not isinstance(value, list | tuple):
      raise ValueError(f'{path} is a list, not {value!r}')
    inner = typing.get_args(hint)[0]
    return tuple(_typed(inner, item, f'{path}[{index}]') for index, item in enumerate(value))
  if hint is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
    wanted = getattr(hint, '__name__', hint)
    raise ValueError(f'{path} takes {wanted}, not {value!r} ({type(value).__name__})')
  return value


def worker_part(experiment: Experiment) -> dict[str, Any]:
  """Returns what a worker reads, as plain JSON: the part of the configuration that decides a result."""
  whole = as_dict(experiment)
  return {name: whole[name] for name in WORKER_PARTS}


def flat(part: Any, prefix: str = '') -> dict[str, Any]:
  """Returns every leaf setting by dotted name.

  >>> flat(Judge())['complexity']
  0.45
  """
  leaves: dict[str, Any] = {}
  for name, value in _items(part):
    leaves |= flat(value, f'{prefix}{name}.') if _is_part(value) else {f'{prefix}{name}': value}
  return leaves


def differences(ours: Experiment, theirs: Experiment) -> dict[str, tuple[Any, Any]]:
  """Returns the settings that make two experiments different ones, by dotted name, as (ours, theirs)."""
  first, second = flat(ours), flat(theirs)
  bred_on = ours.zero_shot.in_search or theirs.zero_shot.in_search
  continuable = [free for free in CONTINUABLE if not (free == 'zero_shot' and bred_on)]
  apart = {
    name: (first.get(name), second.get(name))
    for name in first | second
    if first.get(name) != second.get(name) and not any(f'{name}.'.startswith(f'{free}.') for free in continuable)
  }
  # Models may change under way, but for the judge's: its marks are calibrated on what it gave the baseline.
  judges = (ours.llm.judge.model or ours.llm.model, theirs.llm.judge.model or theirs.llm.model)
  if ours.judge.kind == theirs.judge.kind == 'llm' and judges[0] != judges[1]:
    apart['llm.judge.model'] = judges
  return apart


def validate(experiment: Experiment) -> None:
  """Refuses settings that contradict each other.

  Raises:
    ValueError: naming both values and the remedy.
  """
  model, training, search = experiment.model, experiment.training, experiment.search
  _numbers(experiment)
  _at_least_one(experiment)
  if model.width % model.heads:
    raise ValueError(f'model.heads = {model.heads} does not divide model.width = {model.width}; change one of them')
  if model.dtype not in ('float32', 'bfloat16'):
    raise ValueError(f'model.dtype = {model.dtype!r}; use float32 or bfloat16')
  if training.schedule not in ('wsd', 'cosine'):
    raise ValueError(f'training.schedule = {training.schedule!r}; use wsd or cosine')
  if training.steps % training.steps_per_call:
    raise ValueError(
      f'training.steps_per_call = {training.steps_per_call} does not divide training.steps = {training.steps}'
    )
  if experiment.tasks.steps % training.steps_per_call:
    raise ValueError(
      f'training.steps_per_call = {training.steps_per_call} does not divide tasks.steps = {experiment.tasks.steps}'
    )
  if model.remat_saves not in ('nothing', 'kernels', 'products', 'both'):
    raise ValueError(f'model.remat_saves = {model.remat_saves!r}; use nothing, kernels, products or both')
  if training.batch % (training.data_parallel * training.microbatches):
    raise ValueError(
      f'training.microbatches = {training.microbatches} x training.data_parallel = {training.data_parallel} do not '
      f'divide training.batch = {training.batch}'
    )
  for rule in training.sharded:
    sharding_rule(rule)
  if training.fsdp > 1 and not training.sharded:
    raise ValueError(f'training.fsdp = {training.fsdp} shares nothing out; name parameters in training.sharded')
  if training.batch % training.data_parallel:
    raise ValueError(
      f'training.data_parallel = {training.data_parallel} does not divide training.batch = {training.batch}'
    )
  if not training.learning_rates or min(training.learning_rates) <= 0:
    raise ValueError(f'training.learning_rates = {training.learning_rates}; name at least one, all positive')
  for name in ('validation_windows', 'test_windows'):
    if getattr(experiment.evaluation, name) % experiment.evaluation.batch:
      raise ValueError(
        f'evaluation.batch = {experiment.evaluation.batch} does not divide '
        f'evaluation.{name} = {getattr(experiment.evaluation, name)}'
      )
  if not search.baselines or search.baselines[0] != search.baseline:
    raise ValueError(
      f'search.baseline = {search.baseline!r} is not the first of search.baselines = {search.baselines}; put it there'
    )
  unknown = set(search.anchors) - set(search.baselines)
  if unknown:
    raise ValueError(f'search.anchors names {sorted(unknown)}, not among search.baselines = {search.baselines}')
  for name, names in (
    ('search.baselines', search.baselines), ('tasks.names', experiment.tasks.names), ('ladder', experiment.ladder)
  ):  # fmt: skip
    if len(set(names)) < len(names):
      raise ValueError(f'{name} = {names} names one twice; name each once')
  if search.baseline in search.anchors:
    raise ValueError(f'search.anchors has search.baseline = {search.baseline!r}, which all are compared with; drop it')
  if not_tasks := [name for name in experiment.tasks.names if name not in TASKS]:
    raise ValueError(f'tasks.names has {not_tasks[0]!r}; there are {", ".join(TASKS)}')
  for name in experiment.tasks.names:
    require_room(name, experiment.tasks, training.length, model.vocabulary)
  for name in ('parent_ranks', 'reference_ranks'):
    ranks = getattr(search, name)
    if len(ranks) != 2 or not 1 <= ranks[0] <= ranks[1]:
      raise ValueError(f'search.{name} = {ranks}; give two ranks, first at most last, counted from 1')
    if ranks[0] > search.pool:
      raise ValueError(f'search.{name} = {ranks} begins beyond search.pool = {search.pool}; let it begin within')
  weights = sum(getattr(experiment.judge, name) for name in JUDGE_WEIGHTS)
  if abs(weights - 1) > 1e-6:
    raise ValueError(f'the weights of judge sum to {weights:.3f}; make it 1')
  if experiment.zero_shot.in_search:
    both = sorted({*experiment.zero_shot.tasks} & {*experiment.tasks.names})
    if both or not experiment.zero_shot.tasks:
      raise ValueError(
        f'zero_shot.in_search = True and zero_shot.tasks = {experiment.zero_shot.tasks}; '
        + (f'tasks.names has {both[0]!r} too: drop one of them' if both else 'name at least one')
      )
  _agents(experiment)
  if search.parents not in ('pool', 'baseline', 'none'):
    raise ValueError(f'search.parents = {search.parents!r}; use pool, baseline or none')
  for name, chance in (('evidence.placebo', experiment.evidence.placebo), ('claims.error', experiment.claims.error)):
    if chance > 1:
      raise ValueError(f'{name} = {chance}; it is a chance, at most 1')
  budgets = experiment.claims.budgets
  if budgets and (len(set(budgets)) < 3 or 1.0 not in budgets or min(budgets) <= 0):
    raise ValueError(
      f'claims.budgets = {budgets}; give three or more different positive ones with 1.0 among them, or none for no '
      'compute multiplier'
    )
  if experiment.claims.replicas < LEAST_CLAIMED:
    raise ValueError(
      f'claims.replicas = {experiment.claims.replicas}; a claim takes at least {LEAST_CLAIMED} fresh seeds of each side'
    )
  if experiment.runner.kind not in ('local', 'spmd', 'cluster'):
    raise ValueError(f'runner.kind = {experiment.runner.kind!r}; use local, spmd or cluster')
  if experiment.runner.kind == 'spmd' and experiment.runner.workers > 1:
    raise ValueError(
      f'runner.workers = {experiment.runner.workers} with runner.kind = spmd, where one job takes all hosts; use 1'
    )
  if experiment.runner.devices and experiment.runner.platform == 'cpu':
    raise ValueError(
      f'runner.devices = {experiment.runner.devices} counts accelerators and runner.platform = cpu has none; '
      'runner.host_devices forces devices on a CPU'
    )
  for flag in experiment.runner.xla_flags:
    if not re.fullmatch(r'--xla_\w+(=\S+)?', flag):
      raise ValueError(f'runner.xla_flags has {flag!r}; each is one flag of XLA, --xla_NAME=VALUE')
    if flag.startswith('--xla_force_host_platform_device_count'):
      raise ValueError(f'runner.xla_flags has {flag!r}; runner.host_devices is there for it')
  if experiment.runner.jail not in ('auto', 'bubblewrap', 'sandlock', 'none'):
    raise ValueError(f'runner.jail = {experiment.runner.jail!r}; use auto, bubblewrap, sandlock or none')
  if experiment.runner.host < -1 or 0 < experiment.runner.hosts <= experiment.runner.host:
    raise ValueError(
      f'runner.host = {experiment.runner.host} of runner.hosts = {experiment.runner.hosts}; hosts are counted from 0, '
      'and -1 asks the environment'
    )
  _rungs(experiment)


def require_room(task: str, tasks: Tasks, length: int, vocabulary: int) -> None:
  """Refuses sizes of a synthetic task that contradict each other or those of the model; others have none.

  Raises:
    ValueError: naming both numbers and the remedy.
  """
  if task not in ('mqar', 'selective_copying'):
    return
  if tasks.symbols > vocabulary:
    raise ValueError(
      f'tasks.symbols = {tasks.symbols} exceeds the vocabulary of {vocabulary}; '
      'lower tasks.symbols or raise model.vocabulary'
    )
  if tasks.length > length:
    raise ValueError(
      f'tasks.length = {tasks.length} exceeds the sequence length {length}; lower it or raise training.length'
    )
  if task == 'mqar':
    pairs, keys = tasks.pairs, max(tasks.symbols // 2 - 1, 0)
    if keys < pairs:
      raise ValueError(
        f'tasks.pairs = {pairs} needs as many distinct keys, and tasks.symbols = {tasks.symbols} has {keys} (half of '
        f'the symbols without the blank); use symbols >= {2 * pairs + 2}'
      )
    if (tasks.length - 2 * pairs) // 2 < pairs:  # a query is a key and the blank after it
      raise ValueError(
        f'tasks.length = {tasks.length} has no room for {pairs} pairs and {pairs} queries; '
        f'use tasks.length >= {4 * pairs}'
      )
    return
  if tasks.symbols < 4:
    left = max(tasks.symbols - 2, 0)
    raise ValueError(f'tasks.symbols = {tasks.symbols} leaves {left} to copy beside blank and mark; use at least 4')
  if tasks.length < 2 * tasks.copies:
    raise ValueError(
      f'tasks.length = {tasks.length} cannot hold tasks.copies = {tasks.copies} symbols and their copies; '
      f'use at least {2 * tasks.copies}'
    )


def sharding_rule(text: str) -> tuple[re.Pattern[str], tuple[bool, ...]]:
  """Returns the pattern of a rule of `training.sharded` and, for each axis of a parameter, whether it is shared out.

  >>> sharding_rule('mlp/.*/kernel$ -,fsdp')
  (re.compile('mlp/.*/kernel$'), (False, True))

  Raises:
    ValueError: it is no rule.
  """
  pattern, _, axes = text.rpartition(' ')
  names = axes.split(',')
  if not pattern.strip() or set(names) - {'-', 'fsdp'} or names.count('fsdp') > 1:
    raise ValueError(
      f'training.sharded has {text!r}; a rule is a pattern of parameter paths, a space, and fsdp for at most one axis '
      "and - for the others, such as 'mlp/.*/kernel$ -,fsdp'"
    )
  try:
    return re.compile(pattern.strip()), tuple(name == 'fsdp' for name in names)
  except re.error as error:
    raise ValueError(f'training.sharded has {text!r}, whose pattern is none: {error}') from error


def _agents(experiment: Experiment) -> None:
  for name, kind, kinds in (
    ('researcher.kind', experiment.researcher.kind, ('evolution', 'llm')),
    ('researcher.summaries', experiment.researcher.summaries, ('anew', 'cached')),
    ('researcher.embedder', experiment.researcher.embedder, ('auto', 'lexical', 'gemini')),
    ('judge.kind', experiment.judge.kind, ('measured', 'llm')),
    ('analyst.kind', experiment.analyst.kind, ('measured', 'llm')),
    ('llm.provider', experiment.llm.provider, ('gemini', 'openai', 'scripted', 'recorded')),
  ):
    if kind not in kinds:
      raise ValueError(f'{name} = {kind!r}; use {", ".join(kinds[:-1])} or {kinds[-1]}')
  for role in ROLES:
    thinking = getattr(experiment.llm, role).thinking
    if thinking not in ('', 'minimal', 'low', 'medium', 'high') and not re.fullmatch('[0-9]+', thinking):
      raise ValueError(f'llm.{role}.thinking = {thinking!r}; use minimal, low, medium, high or a number of tokens')
  if experiment.llm.provider in ('scripted', 'recorded') and uses_llm(experiment) and not experiment.llm.exchanges:
    raise ValueError(
      f'llm.provider = {experiment.llm.provider!r} needs llm.exchanges; name '
      + ('a JSON-lines file of replies' if experiment.llm.provider == 'scripted' else 'the workdir of the run')
    )


def rung_of(experiment: Experiment) -> str:
  """Returns the name of the rung that `at_rung` made this experiment for; empty for that of a search."""
  return '' if experiment.ladder or experiment.rungs else experiment.name.partition(RUNG)[2]


def at_rung(experiment: Experiment, name: str) -> Experiment:
  """Returns the experiment as it is measured on a rung of its ladder: by numbers alone, whoever proposed.

  The baseline gets a replica for every seed that the last round of a candidate may have.

  Raises:
    ValueError: there is no rung of that name.
  """
  if name not in experiment.rungs:
    raise ValueError(f'{name!r} is not a rung; rungs has {", ".join(sorted(experiment.rungs)) or "none"}')
  rung = experiment.rungs[name]
  return dataclasses.replace(
    experiment,
    name=f'{experiment.name}{RUNG}{name}',
    model=rung.model,
    training=rung.training,
    evaluation=rung.evaluation,
    tasks=rung.tasks,
    researcher=Researcher(),
    judge=Judge(),
    analyst=Analyst(),
    evidence=dataclasses.replace(
      experiment.evidence, floor=max(experiment.evidence.floor, rung.rounds * rung.training.seeds)
    ),
    runner=dataclasses.replace(experiment.runner, wall_seconds=rung.wall_seconds),
    ladder=(),
    rungs={},
  )


def _rungs(experiment: Experiment) -> None:
  for name in experiment.ladder:
    rung = experiment.rungs.get(name)
    if rung is None:
      known = ', '.join(sorted(experiment.rungs)) or 'none'
      raise ValueError(f'ladder names {name!r} and rungs has {known}; add rungs.{name}, or take it off the ladder')
    if rung.share > 1 or rung.false_discoveries >= 1:
      raise ValueError(
        f'rungs.{name}: share = {rung.share} is at most 1 and false_discoveries = {rung.false_discoveries} below 1'
      )
    try:
      validate(at_rung(experiment, name))
    except ValueError as error:
      raise ValueError(f'rungs.{name}: {error}') from error


def uses_llm(experiment: Experiment) -> bool:
  """Says whether any agent of the experiment is a language model."""
  return 'llm' in (experiment.researcher.kind, experiment.judge.kind, experiment.analyst.kind)


def _numbers(experiment: Experiment) -> None:
  for name, value in flat(experiment).items():
    setting = name.split('.', 2)[2] if name.startswith('rungs.') else name
    for number in value if isinstance(value, tuple) else (value,):
      if not isinstance(number, int | float) or isinstance(number, bool):
        continue
      most = LARGEST if isinstance(number, float) else LARGEST_WHOLE
      if not math.isfinite(number) or abs(number) > most:
        raise ValueError(f'{name} = {value}; give a finite number, at most {most:g}')
      if setting in SHARES and number > 1:
        raise ValueError(f'{name} = {value}; it is a share or a chance, at most 1')
      if setting == 'checks.lengths' and number < 1:
        raise ValueError(f'{name} = {value}; each is at least 1')
  for prefix, training in (
    ('', experiment.training),
    *((f'rungs.{n}.', r.training) for n, r in experiment.rungs.items()),
  ):
    if training.schedule == 'wsd' and training.warmup + training.decay > 1:
      raise ValueError(
        f'{prefix}training.warmup = {training.warmup} and {prefix}training.decay = {training.decay} are shares of the '
        'steps that overlap; let them sum to 1 at most'
      )


def _at_least_one(experiment: Experiment) -> None:
  for name, value in flat(experiment).items():
    if name.endswith('.temperature') or name == 'runner.host':
      continue  # negative: not sent, not said
    setting = name
    if name.startswith('rungs.'):
      name = name.split('.', 2)[2]
    may_be_zero = name.startswith(
      ('monitor.', 'researcher.', 'judge.', 'fitness.', 'budget.', 'cognition.', 'zero_shot.')
    ) or name in (
      'seed',
      'analyst.insights',
      'llm.backoff',
      'llm.pause',
      'runner.devices',
      'runner.hosts',
      'runner.retries',
      'training.checkpoint_every',
      'training.fsdp',
      'training.warmup',
      'training.decay',
      'training.final',
      'training.weight_decay',
      'search.cold_start',
      'search.references',
      'training.first_seed',
      'evidence.placebo',
      'audit',
      'model.init_stddev',
    )
    may_be_zero &= name not in ('judge.calls', 'researcher.samples', 'researcher.neighbours')
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and (value < 0 or (value == 0 and not may_be_zero)):
      raise ValueError(f'{setting} = {value}; it is {"at least 0" if may_be_zero else "positive"}')


def documentation(source: str, experiment: Experiment | None = None) -> list[tuple[str, str, str, str]]:
  """Returns (dotted name, type, value, comment) of every setting, read from this module's own text `source`.

  The settings and values are those of `experiment`, by default of one that nobody changed.
  """
  comments: dict[tuple[str, str], str] = {}
  owner = ''
  for line in source.splitlines():
    if line.startswith('class '):
      owner = line.removeprefix('class ').partition(':')[0]
    elif line.startswith('  ') and ': ' in line and '  # ' in line:
      comments[owner, line.strip().partition(':')[0]] = line.partition('  # ')[2]
  rows: list[tuple[str, str, str, str]] = []

  def walk(part: Any, prefix: str) -> None:
    for field in dataclasses.fields(part):
      value = getattr(part, field.name)
      if isinstance(value, Mapping):
        for name, item in value.items():
          walk(item, f'{prefix}{field.name}.{name}.')
      elif dataclasses.is_dataclass(value):
        walk(value, f'{prefix}{field.name}.')
      else:
        comment = comments.get((type(part).__name__, field.name), '')
        rows.append((f'{prefix}{field.name}', str(field.type), repr(value), comment))

  walk(experiment or Experiment(), '')
  return rows
