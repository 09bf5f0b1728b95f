"""The child that runs untrusted source: gate, train, measure, write the result. One process a job.

Usage: python -m asiarch_jax.worker --job=DIR --out=DIR --corpus=DIR, with a secret on the first line of standard input.
The job folder is read only; everything that is written goes to --out (`shell.jobfolder` has the formats). The parent
holds the jail, the clock and the memory limit.

With --coordinator it is one of several that compute the same job together, on all their devices; the first one's
result is the job's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from jax.experimental import topologies

from asiarch_jax import config
from asiarch_jax.arch import autoencoder, contract, decoding, lm
from asiarch_jax.batch import Batch
from asiarch_jax.checks import behaviour, cost, source
from asiarch_jax.records import (
  Cost,
  Failure,
  Finding,
  Job,
  JobResult,
  Progress,
  Replica,
  TaskScore,
  Timing,
  TrainSummary,
  chosen_rate,
)
from asiarch_jax.shell import checkpoint, factorisations, jobfolder, questions, text_encoding
from asiarch_jax.shell import corpus as corpora
from asiarch_jax.suites import settings as suites
from asiarch_jax.tasks import TASKS
from asiarch_jax.tasks import summary as task_summary
from asiarch_jax.training import causality, likelihood, monitor, planning, sharding, suite, train
from pallas_kernels import chips

LOG_LINES = 40  # of a traceback that goes into a failure
STEPPED = 1e-3  # largest share of the RMS by which logits token by token may differ: rounding, and no more
TEST_KEY = 1_000_003  # separates the keys of test examples from those of training
Report = Callable[[Progress], None]


def gate(job: Job, settings: config.Experiment, report: Report) -> tuple[JobResult, type | None, int]:
  """Returns the result of the checks, the mixer's class and the feed-forward width that matches its parameters.

  The class is None when the job ends here: the result then says why.
  """
  began = time.monotonic()

  def ended(kind: str, reason: str, **fields: Any) -> tuple[JobResult, None, int]:
    timing = Timing(check_seconds=time.monotonic() - began)
    return JobResult(job.key, failure=Failure(kind, reason), timing=timing, **fields), None, 0

  report(Progress('check', note='source'))
  findings = source.check(job.source)
  refused = source.failure(findings)
  if refused:
    return ended(refused.kind, refused.reason, findings=findings)
  mixer = contract.load(job.source, job.name)
  spec = contract.spec_of(settings.model)
  # The length that is trained at is tried too: a mixer may not behave only where it is watched.
  checks = dataclasses.replace(
    settings.checks, lengths=tuple(sorted({*settings.checks.lengths, settings.training.length}))
  )
  findings += behaviour.gate(
    mixer,
    spec,
    checks,
    trained=sizes_of(settings),
    waived=job.waived,
    seed=settings.seed,
    on_progress=lambda name: report(Progress('check', note=name)),
    clock=time.monotonic,
  )
  failed = [finding for finding in findings if not finding.passed and finding.check not in job.waived]
  if failed:
    return ended('checks', f'{failed[0].check}: {failed[0].detail}', findings=findings)
  module = contract.build(mixer, spec)
  counted = cost.count(module, spec.width, settings.training.length)
  fingerprint = cost.fingerprint(module, spec.width)
  if fingerprint in job.known:
    reason = f'computes the same function as entry {job.known[fingerprint]}'
    return ended('duplicate', reason, findings=findings, fingerprint=fingerprint, cost=counted)
  mlp_width, finding = matched(mixer, job, settings, counted.flops_per_token)
  findings += (finding,)
  if not finding.passed:
    return ended(
      'checks', f'{finding.check}: {finding.detail}', findings=findings, fingerprint=fingerprint, cost=counted
    )
  timing = Timing(check_seconds=time.monotonic() - began)
  return JobResult(job.key, findings=findings, fingerprint=fingerprint, cost=counted, timing=timing), mixer, mlp_width


def sizes_of(settings: config.Experiment) -> tuple[tuple[int, int], ...]:
  """Returns the numbers of rows and of tokens that a mixer is called with in training and in evaluation."""
  training = settings.training
  shares = (1, training.microbatches, training.microbatches * training.data_parallel * max(training.fsdp, 1))
  rows = [max(training.batch // share, 1) for share in shares]
  return tuple((count, training.length) for count in dict.fromkeys([*rows, settings.evaluation.batch]))


def require_platform() -> None:
  """Sees to it that calls run where JAX_PLATFORMS says first: of the places it names, JAX passes over a missing GPU.

  Raises:
    RuntimeError: the first of them is not there.
  """
  wanted = os.environ.get('JAX_PLATFORMS', '').split(',')[0]
  if wanted not in ('', 'cpu') and jax.default_backend() == 'cpu':
    raise RuntimeError(
      f'JAX has no device of platform {wanted!r} here: install its extra, end what else holds the device, or set '
      '--config.runner.platform=cpu'
    )


@contextlib.contextmanager
def on_processor() -> Iterator[None]:
  """Has all that is inside run on the processor.

  A gate is some ten programs, each run a few times: an accelerator's compiler takes minutes for them, and that of a
  processor seconds.
  """
  before = jax.config.jax_default_device  # type: ignore[attr-defined]
  if jax.default_backend() != 'cpu':  # for all threads, since some compile
    jax.config.update('jax_default_device', jax.local_devices(backend='cpu')[0])
  try:
    yield
  finally:
    jax.config.update('jax_default_device', before)


def matched(mixer: type, job: Job, settings: config.Experiment, mixer_flops: float = 0.0) -> tuple[int, Finding]:
  """Returns the feed-forward width that brings the model to the job's parameter or FLOP count, and what was found.

  `mixer_flops` is what one mixer takes a token.
  """
  model = settings.model
  if job.flops is not None:
    tolerance, smallest = settings.checks.parameter_tolerance, settings.checks.smallest_mlp
    try:
      width = lm.mlp_width_of_flops(model, job.flops, model.layers * mixer_flops, tolerance, smallest)
    except ValueError as error:
      return 0, Finding('flops', False, str(error))
    return width, Finding('flops', True, f'{job.flops:.0f} FLOPs a token with a feed-forward of {width}')
  if job.parameters is None:
    return model.mlp_width, Finding('parameters', True, f'{lm.parameter_count(mixer, model)} parameters set the count')
  try:
    width, parameters = lm.matched_mlp_width(
      mixer, model, job.parameters, settings.checks.parameter_tolerance, settings.checks.smallest_mlp
    )
  except ValueError as error:
    return 0, Finding('parameters', False, str(error))
  return width, Finding('parameters', True, f'{parameters} parameters with a feed-forward of {width}')


def lost(losses_LR: np.ndarray, measured: Iterable[np.ndarray]) -> np.ndarray:
  """Returns which replicas diverged: a loss on the way, or what was measured of them after it, is not finite."""
  return monitor.diverged(np.stack([*losses_LR, *measured]))


def learn(
  job: Job,
  settings: config.Experiment,
  mixer: type,
  mlp_width: int,
  cost_: Cost,
  text: corpora.Corpus,
  out: str,
  report: Report,
) -> tuple[TrainSummary, tuple[TaskScore, ...], Mapping[str, np.ndarray], Failure | None]:
  """Trains all replicas on the corpus and on each synthetic task; returns summary, scores, best parameters, failure."""
  training, evaluation = settings.training, settings.evaluation
  rates, count = training.learning_rates, training.seeds * len(training.learning_rates)
  host = lm.LanguageModel(mixer, settings.model, mlp_width)
  mesh = sharding.mesh_of(jax.devices(), training)
  trainer = train.Trainer(host, training, mesh, settings.seed, clock=time.monotonic)
  # One set of scores for every measurement: one program to compile.
  scorers = {name: TASKS[name].score for name in dict.fromkeys(('bits_per_byte', *settings.tasks.names))}

  def on_step(step: int, losses: np.ndarray, seconds: float) -> None:
    at = step // training.steps_per_call - 1
    baseline = job.baseline_losses[at] if at < len(job.baseline_losses) else None
    report(Progress('train', step, training.steps, float(np.nanmean(losses)), baseline, 1 / max(seconds, 1e-9)))

  report(Progress('compile', 0, training.steps))
  seeds = [settings.seed + training.first_seed + seed for seed in range(training.seeds)]
  with contextlib.ExitStack() as stack:
    kept: checkpoint.Checkpoint | checkpoint.Shared | None = None
    if training.checkpoint_every:
      # The runner leaves this folder to the next worker of the same job, if this one is killed from outside.
      folder = os.path.join(out, jobfolder.CHECKPOINT)
      if jax.process_count() > 1:
        kept = stack.enter_context(checkpoint.Shared(folder, sharding.host))
      else:
        kept = stack.enter_context(checkpoint.Checkpoint(folder))
    fitted = trainer.fit(
      parts=lambda step, of, rows: text.training_batch(step, seeds[of], training.batch, training.length, rows=rows),
      watch=monitor.Watch(settings.monitor, job.baseline_losses, job.limits.seconds_per_step, training),
      on_progress=on_step,
      save=kept.save if kept else None,
      restore=kept.restore if kept else None,
    )
  failure = Failure(fitted.stopped.kind, fitted.stopped.reason) if fitted.stopped else None
  bits = {'validation': np.full(count, np.nan), job.split: np.full(count, np.nan)}
  scores: dict[str, tuple[np.ndarray, np.ndarray]] = {}
  if failure is None:
    report(Progress('evaluate', training.steps, training.steps))
    for split, windows in (('validation', evaluation.validation_windows), (job.split, evaluation.test_windows)):
      measured = trainer.measure(
        fitted.parameters, text.windows(split, windows, training.length, evaluation.batch), scorers
      )
      sums_RN, counts_RN = measured['bits_per_byte']
      nats_to_bits = 1 / np.log(2) / text.split_bytes_per_token(split)
      bits[split] = sums_RN.sum(1) / counts_RN.sum(1) * nats_to_bits
      if split == job.split:
        scores = {name: pair for name, pair in measured.items() if TASKS[name].kind == 'corpus'}
        scores['bits_per_byte'] = (sums_RN * nats_to_bits, counts_RN)
    first = next(iter(text.windows('validation', evaluation.validation_windows, training.length, evaluation.batch)))
    leaking = causality.leak(
      lambda batch: trainer.measure(fitted.parameters, [batch], scorers)['bits_per_byte'][0], first
    )
    failure = Failure('checks', f'causality: {leaking}') if leaking else None
  lost_R = lost(fitted.losses, () if failure else bits.values())
  replicas = tuple(
    Replica(
      seed=training.first_seed + r // len(rates),
      learning_rate=rates[r % len(rates)],
      steps=fitted.steps,
      losses=tuple(round(float(loss), 6) for loss in fitted.losses[:, r]),
      validation_bits=float(bits['validation'][r]),
      test_bits=float(bits[job.split][r]),
      diverged=bool(lost_R[r]),
    )
    for r in range(count)
  )
  rate = chosen_rate(replicas)
  tokens = fitted.steps * training.batch * training.length
  summary = TrainSummary(
    replicas=replicas,
    tokens=tokens,
    parameters=lm.parameter_count(mixer, settings.model, mlp_width),
    mlp_width=mlp_width,
    flops_per_token=lm.flops_per_token(settings.model, mlp_width) + settings.model.layers * cost_.flops_per_token,
    state_bytes=settings.model.layers * cost_.state_bytes,
    log_every=training.steps_per_call,
    learning_rate=rate,
    stopped=failure.kind if failure else 'finished',
    tokens_per_second=training.batch * training.length * count / max(fitted.seconds_per_step, 1e-9),
    seconds_per_step=fitted.seconds_per_step,
    compile_seconds=fitted.compile_seconds,
    peak_bytes=fitted.peak_bytes,
  )
  if failure is not None:
    return summary, (), {}, failure

  for name in settings.tasks.names:
    if TASKS[name].kind == 'synthetic':
      report(Progress(name, 0, settings.tasks.steps))
      scores[name] = _synthetic(name, settings, trainer, scorers, report)
  chosen = [r for r in range(count) if replicas[r].learning_rate == rate and not replicas[r].diverged]
  measured_scores = (_score(name, sums[chosen], counts[chosen]) for name, (sums, counts) in scores.items())
  values = tuple(score for score in measured_scores if score is not None)
  best = min(chosen, key=lambda r: replicas[r].validation_bits)
  parameters = jax.tree.map(lambda leaf: sharding.host(leaf)[best], fitted.parameters)
  return summary, values, jobfolder.by_path(parameters), None


def _synthetic(
  name: str,
  settings: config.Experiment,
  trainer: train.Trainer,
  scorers: Mapping[str, train.Score],
  report: Report,
) -> tuple[np.ndarray, np.ndarray]:
  """Trains fresh replicas on a synthetic task, in the program that is compiled already, and tests them."""
  training, tasks, model = settings.training, settings.tasks, settings.model
  examples = TASKS[name].make
  assert examples is not None, f'{name} is synthetic and makes no examples'
  make = jax.jit(lambda key, rows: examples(key, tasks, rows, training.length, model.vocabulary), static_argnums=1)
  root = jax.random.fold_in(jax.random.PRNGKey(settings.seed), list(TASKS).index(name))

  def batches(step: int) -> Batch:
    one = [
      make(jax.random.fold_in(jax.random.fold_in(root, training.first_seed + seed), step), training.batch)
      for seed in range(training.seeds)
    ]
    return jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *one)

  def on_step(step: int, losses: np.ndarray, seconds: float) -> None:
    report(Progress(name, step, tasks.steps, float(np.nanmean(losses)), None, 1 / max(seconds, 1e-9)))

  fitted = trainer.fit(batches, steps=tasks.steps, on_progress=on_step)
  rows = min(settings.evaluation.batch, tasks.examples)
  test = [
    jax.tree.map(np.asarray, make(jax.random.fold_in(jax.random.fold_in(root, TEST_KEY), part), rows))
    for part in range(-(-tasks.examples // rows))
  ]
  return trainer.measure(fitted.parameters, test, scorers)[name]


def _score(name: str, sums_RN: np.ndarray, counts_RN: np.ndarray) -> TaskScore | None:
  """Returns a task's mean over replicas; its error adds what seeds and what items contribute.

  None where fewer than two sequences ask for an answer: a missing term, never a default.
  """
  try:
    measured = [task_summary.summarise(sums, counts) for sums, counts in zip(sums_RN, counts_RN, strict=True)]
  except ValueError:
    return None
  values, errors, sequences = zip(*measured, strict=True)
  seeds = np.var(values, ddof=1) / len(values) if len(values) > 1 else 0.0
  stderr = float(np.sqrt(seeds + np.mean(np.square(errors))))
  return TaskScore(name, float(np.mean(values)), stderr, min(sequences), TASKS[name].unit)


@dataclasses.dataclass(frozen=True)
class Trained:
  """A host with the parameters of its archived entry, and what it is asked."""

  host: lm.LanguageModel
  parameters: Mapping[str, np.ndarray]  # by path
  requests: Sequence[questions.Request]
  terms: questions.Terms
  encoding: text_encoding.Encoding


def trained(job: Job, settings: config.Experiment, folder: str, report: Report) -> Trained:
  """Returns the model of a job with the parameters and questions in a folder (`shell.questions`).

  Raises:
    ValueError: the parameters are not those of this mixer in this host.
  """
  report(Progress('load', note='parameters and questions'))
  requests, terms, encoding, arrays = questions.read(folder)
  host = lm.LanguageModel(contract.load(job.source, job.name), settings.model)
  shapes = _shapes(jax.eval_shape(host.initial_parameters, jax.random.key(0)))
  for path in sorted(shapes.keys() | arrays.keys()):
    theirs, ours = np.shape(arrays[path]) if path in arrays else None, shapes.get(path)
    if theirs != ours:
      raise ValueError(f'parameter {path} has shape {theirs} in the archive and {ours} in the model of this source')
  return Trained(host, arrays, requests, terms, encoding)


def answer(
  job: Job, settings: config.Experiment, folder: str, report: Report
) -> tuple[JobResult, Mapping[str, np.ndarray]]:
  """Answers the questions in a folder with the parameters beside them: nothing is trained.

  The mixer was through the gate when its parameters were made; its text is looked at again.

  Raises:
    ValueError: the parameters are not those of this mixer in this host, or an answer is not finite.
  """
  findings = source.check(job.source)
  refused = source.failure(findings)
  if refused:
    return JobResult(job.key, findings=findings, failure=refused), {}
  model = trained(job, settings, folder, report)
  requests, terms = model.requests, model.terms
  scorer = likelihood.Scorer(
    model.host,
    jobfolder.nested(model.parameters),
    max_length=terms.max_length,
    tokens_per_call=terms.tokens_per_call,
    vocabulary=terms.vocabulary,
  )
  report(Progress('compile'))
  scored = [index for index, request in enumerate(requests) if request.most is None]
  prompts = [index for index, request in enumerate(requests) if request.most is not None]

  def on_call(stage: str) -> likelihood.OnCall:
    return lambda done, total: report(Progress(stage, done, total))

  def complete(prompt: int, added: Sequence[int]) -> bool:
    stops = requests[prompts[prompt]].stops
    return bool(stops) and any(stop in model.encoding.decode(added) for stop in stops)

  nats_N, greedy_N = scorer.loglikelihoods(
    [likelihood.Question(requests[index].ids, requests[index].scored) for index in scored], on_call('score')
  )
  asked = [likelihood.Prompt(requests[index].ids, requests[index].most or 0) for index in prompts]
  following = scorer.continuations(asked, end=terms.end, stop=complete, on_call=on_call('generate'))
  answers = {
    **{i: questions.Answer(float(n), bool(g)) for i, n, g in zip(scored, nats_N, greedy_N, strict=True)},
    **{i: questions.Answer(following=tuple(ids)) for i, ids in zip(prompts, following, strict=True)},
  }
  return JobResult(job.key, findings=findings), questions.pack([answers[index] for index in range(len(requests))])


def decode(
  job: Job, settings: config.Experiment, folder: str, report: Report
) -> tuple[JobResult, Mapping[str, np.ndarray]]:
  """Returns the logits of the requests' ids, which have one length, and whether states can be carried between tokens.

  Arrays: `tokens` [B, T], `logits` [B, T, Y]. The finding `steps` says how far logits token by token after the first
  half (`pallas_kernels.stepping`) lie from these, both computed in float32: in bfloat16 the rounding of a step and of a
  chunk alone would hide a state that was forgotten.
  """
  findings = source.check(job.source)
  refused = source.failure(findings)
  if refused:
    return JobResult(job.key, findings=findings, failure=refused), {}
  settings = dataclasses.replace(settings, model=dataclasses.replace(settings.model, remat=False))
  model = trained(job, settings, folder, report)
  parameters, host = jax.tree.map(jnp.asarray, jobfolder.nested(model.parameters)), model.host
  if settings.model.scan_layers:  # a scan cannot hold states
    parameters = lm.unstacked(parameters)
    host = lm.LanguageModel(host.mixer, dataclasses.replace(settings.model, scan_layers=False))
  tokens_BT = np.asarray([request.ids for request in model.requests], np.int32)
  report(Progress('compile'))
  logits_BTY = np.asarray(jax.jit(host.apply)({'params': parameters}, tokens_BT))
  arrays = {'tokens': tokens_BT, 'logits': logits_BTY}
  report(Progress('decode'))
  exact = lm.LanguageModel(host.mixer, dataclasses.replace(host.model, dtype='float32'))
  try:
    whole_BTY = np.asarray(jax.jit(exact.apply)({'params': parameters}, tokens_BT))
    stepped_BTY = np.asarray(decoding.in_steps(exact, parameters, tokens_BT, tokens_BT.shape[1] // 2))
  except Exception as error:
    return JobResult(job.key, findings=(*findings, Finding('steps', False, f'{type(error).__name__}: {error}'))), arrays
  apart = float(np.abs(stepped_BTY - whole_BTY).max() / np.sqrt(np.mean(np.square(whole_BTY))))
  finding = Finding('steps', apart <= STEPPED, f'token by token differs by {apart:.2g} of the RMS of the logits')
  return JobResult(job.key, findings=(*findings, finding)), arrays


def _shapes(tree: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
  """Returns the shapes of a tree of parameters by path."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {jobfolder.SEPARATOR.join(str(key.key) for key in path): np.shape(leaf) for path, leaf in leaves}


def answer_suite(job: Job, settings: config.Experiment, report: Report) -> JobResult:
  """Trains and tests all runs of one setting of a suite. The gate is a job of its own, once for all settings."""
  findings = source.check(job.source)
  refused = source.failure(findings)
  if refused:
    return JobResult(job.key, findings=findings, failure=refused)
  setting = suites.parsed(job.suite)
  model = suites.model_of(setting.recipe, max(kind.vocabulary for kind in (*setting.train, *setting.tests)))
  mixer, spec = contract.load(job.source, job.name), contract.spec_of(model)
  host = (autoencoder.AutoEncoder if setting.train[0].task == 'compression' else lm.LanguageModel)(mixer, model)
  counted = cost.count(contract.build(mixer, spec), spec.width, max(kind.length for kind in setting.train))
  mesh = sharding.mesh(jax.devices(), setting.recipe.runs, batch=setting.recipe.batch)
  measured, stopped = suite.run(setting, host, mesh, settings.seed, lm.count(host), clock=time.monotonic, report=report)
  failure = Failure(stopped.kind, stopped.reason) if stopped else None
  return JobResult(job.key, findings=findings, cost=counted, failure=failure, suite=measured)


def plan(job: Job, settings: config.Experiment, report: Report) -> JobResult:
  """Compiles the training step for the job's topology. Nothing is run, and what does not fit is a failure."""
  findings = source.check(job.source)
  refused = source.failure(findings)
  if refused:
    return JobResult(job.key, findings=findings, failure=refused)
  mixer, spec = contract.load(job.source, job.name), contract.spec_of(settings.model)
  report(Progress('check', note='cost'))
  counted = cost.count(contract.build(mixer, spec), spec.width, settings.training.length)
  os.environ.update(chips.AOT_ENVIRONMENT)
  try:
    devices = topologies.get_topology_desc(platform='tpu', topology_name=job.topology).devices
  except Exception as error:  # libtpu's, of several types
    reason = f'{job.topology!r} is no topology that libtpu knows, such as v5e:4x4 or v4:2x2x4: {str(error)[:300]}'
    return JobResult(job.key, findings=findings, failure=Failure('error', reason))
  report(Progress('compile', note=job.topology))
  forward = lm.flops_per_token(settings.model) + settings.model.layers * counted.flops_per_token
  host = lm.LanguageModel(mixer, settings.model)
  try:
    planned = planning.plan(host, settings.training, devices, job.topology, forward, time.monotonic)
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    said = next((line for line in str(error).splitlines() if 'Ran out of memory' in line), str(error).splitlines()[0])
    return JobResult(job.key, findings=findings, cost=counted, failure=Failure('memory', said.strip()[:500]))
  return JobResult(job.key, findings=findings, cost=counted, plan=planned)


def run(job: Job, corpus_dir: str, out: str, report: Report) -> tuple[JobResult, Mapping[str, np.ndarray]]:
  """Returns a job's result and arrays. An exception of the proposal becomes a failure with its traceback."""
  began = time.time()
  settings = config.from_dict(job.experiment)
  result = JobResult(job.key)
  arrays: Mapping[str, np.ndarray] = {}
  try:
    require_platform()
    if job.kind == 'answer':
      result, arrays = answer(job, settings, corpus_dir, report)
      return _timed(result, began), arrays
    if job.kind == 'decode':
      result, arrays = decode(job, settings, corpus_dir, report)
      return _timed(result, began), arrays
    if job.kind == 'plan':
      return _timed(plan(job, settings, report), began), arrays
    if job.kind == 'suite':
      return _timed(answer_suite(job, settings, report), began), arrays
    with on_processor():
      result, mixer, mlp_width = gate(job, settings, report)
    if sharding.agreed(float(mixer is not None)) != float(mixer is not None):
      raise RuntimeError('the gate decided otherwise here than on the first host: what it measures there differs')
    if mixer is not None and job.kind == 'train':
      assert result.cost is not None
      text = corpora.load(corpus_dir)
      mixer = contract.load(job.source, job.name)  # anew: what the checks left in it is gone
      summary, scores, arrays, failure = learn(job, settings, mixer, mlp_width, result.cost, text, out, report)
      result = dataclasses.replace(result, training=summary, scores=scores, failure=failure)
  except sharding.UnfitError as error:  # nobody's code is at fault: the sentence says it all
    result = dataclasses.replace(result, failure=Failure('error', str(error)))
  except Exception as error:
    failure = Failure('error', f'{type(error).__name__}: {error}'[:500], traceback_of(error))
    result = dataclasses.replace(result, failure=failure)
  return _timed(result, began), arrays


def _timed(result: JobResult, began: float) -> JobResult:
  wall = time.time() - began
  timing = Timing(wall, result.timing.check_seconds, wall * jax.device_count(), began)
  return dataclasses.replace(result, timing=timing)


def traceback_of(error: BaseException) -> str:
  """Returns the traceback from the proposal's own first line on, with paths as they are on every machine.

  What is above that line is ours and teaches its author nothing; an absolute path would differ from run to run.
  """
  frames = list(traceback.extract_tb(error.__traceback__))
  own = next((n for n, frame in enumerate(frames) if not frame.filename.startswith(('/', '<'))), 0)
  for frame in frames:
    frame.filename = re.sub(r'^.*/(site-packages|lib/python[\d.]+|lib(?=/asiarch_jax))/', '', frame.filename)
  said = [*traceback.format_list(frames[own:]), f'{type(error).__name__}: {error}']
  return '\n'.join(''.join(['Traceback (most recent call last):\n', *said]).splitlines()[-LOG_LINES:])


def main(_: list[str]) -> None:
  """Reads the job, runs it and writes the sealed result."""
  gc.freeze()
  gc.set_threshold(20_000, 20, 50)  # a traced program is many objects that live: looked through less often
  factorisations.without_threads()
  job = jobfolder.read_job(_JOB.value)
  if not _COORDINATOR.value:  # where several compute together, devices are there once they have connected
    try:
      require_platform()
      if job.kind == 'train':
        corpora.load(_CORPUS.value)
    except (RuntimeError, OSError, ValueError) as fault:  # before the secret is read: none of it is the proposal's
      sys.exit(str(fault))
  secret = sys.stdin.readline().strip()
  os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # the pipe that the secret came through is gone for the proposal

  def report(progress: Progress) -> None:
    jobfolder.append_progress(_OUT.value, progress)

  if _COORDINATOR.value:
    report(Progress('connect', note=f'{_PROCESSES.value} hosts'))
    jax.distributed.initialize(
      _COORDINATOR.value, _PROCESSES.value, _PROCESS.value, cluster_detection_method='deactivate'
    )
  result, arrays = run(job, _CORPUS.value, _OUT.value, report)
  jobfolder.write_result(_OUT.value, result, arrays if _PROCESS.value == 0 else {}, secret)
  if _COORDINATOR.value:
    jax.distributed.shutdown()  # waits for the others: none of them sees a peer that is gone


if __name__ == '__main__':
  _JOB = flags.DEFINE_string('job', None, 'Folder with job.json and mixer.py; read only.', required=True)
  _OUT = flags.DEFINE_string('out', None, 'Folder for the result, the progress lines and the arrays.', required=True)
  _CORPUS = flags.DEFINE_string('corpus', '', 'Folder of the token array.')
  _COORDINATOR = flags.DEFINE_string('coordinator', '', 'ADDRESS:PORT where the first of several workers is found.')
  _PROCESSES = flags.DEFINE_integer('processes', 1, 'How many workers compute this job together.')
  _PROCESS = flags.DEFINE_integer('process', 0, 'Which of them this is.')
  app.run(main)
