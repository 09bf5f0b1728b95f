"""A runner that trains nothing: improvements are planted by name and noise is drawn, so that truth is known.

It stands in for `shell.runner.LocalRunner` where a test is about decisions and not about training. A replica's bits are

    BITS - effect(name) - GAIN log2(steps) + luck of the seed (shared by all designs) + own luck of (source, seed)
"""

from __future__ import annotations

import copy
import hashlib
import math
import zlib
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np

from asiarch_jax import records
from asiarch_jax.shell import questions

BITS, GAIN, LUCK, OWN = 3.0, 0.05, 0.02, 0.02


class PlantedRunner:
  """Takes what LocalRunner takes. Class attributes are the plan; `jobs` lists what was run, over all instances.

  Questions are answered by lot, the same lot for the same source and request.
  """

  effect: Callable[[records.Job], float] = staticmethod(lambda job: 0.0)
  fails: Callable[[records.Job], str] = staticmethod(lambda job: '')
  own = OWN
  world: tuple[int, ...] = ()  # another one, other luck
  interrupt_after: int | None = None
  jobs: ClassVar[list[records.Job]] = []
  done: ClassVar[dict[str, records.JobResult]] = {}
  answers: ClassVar[dict[str, Mapping[str, Any]]] = {}

  def __init__(self, workdir, settings, corpus_path=None, **_):
    self.stopped = False
    self.corpus = corpus_path

  def reading(self, corpus_path) -> PlantedRunner:
    other = copy.copy(self)
    other.corpus = corpus_path
    return other

  def run(self, job: records.Job, on_progress: Callable[[records.Progress], None] | None = None) -> records.JobResult:
    kind = type(self)
    if job.key in kind.done:
      return kind.done[job.key]
    if kind.interrupt_after is not None and len(kind.jobs) >= kind.interrupt_after:
      raise KeyboardInterrupt
    kind.jobs.append(job)
    kind.done[job.key] = self._result(job)
    return kind.done[job.key]

  def arrays(self, key: str) -> Mapping[str, Any]:
    return type(self).answers.get(key, {})

  def stop(self) -> None:
    self.stopped = True

  def _result(self, job: records.Job) -> records.JobResult:
    kind = type(self)
    mark = hashlib.sha256(job.source.encode()).hexdigest()[:12]
    cost = records.Cost(1000, 2000.0, 400, 1.0)
    if reason := kind.fails(job):
      return records.JobResult(job.key, fingerprint=mark, failure=records.Failure('error', reason))
    if job.kind == 'answer':
      asked, *_ = questions.read(self.corpus)
      lots = [zlib.crc32(f'{mark} {request}'.encode()) / 2**32 for request in asked]
      kind.answers[job.key] = questions.pack([questions.Answer(-lot, lot < 0.5, (65,)) for lot in lots])
      return records.JobResult(job.key, timing=records.Timing(1.0, 0.0, 1.0, 1.0))
    if job.kind == 'check':
      return records.JobResult(job.key, fingerprint=mark, cost=cost)
    training = job.experiment['training']
    effect, steps = kind.effect(job), training['steps']
    replicas = []
    for seed in range(training['first_seed'], training['first_seed'] + training['seeds']):
      luck = LUCK * np.random.default_rng([seed, 1, *kind.world]).standard_normal()
      own = kind.own * np.random.default_rng([seed, zlib.crc32(job.source.encode()), *kind.world]).standard_normal()
      bits = BITS - effect - GAIN * math.log2(steps) + luck + own
      for rate in training['learning_rates']:
        replicas.append(
          records.Replica(seed, rate, steps, (4.0, 3.0, 2.5), bits + abs(rate - 5e-3), bits + abs(rate - 5e-3))
        )
    summary = records.TrainSummary(
      replicas=tuple(replicas), tokens=steps * 100, parameters=job.parameters or 10_000, mlp_width=48,
      flops_per_token=job.flops or 80.0 * job.experiment['model']['width'] ** 2, state_bytes=400, log_every=4,
      learning_rate=records.chosen_rate(replicas), tokens_per_second=1e5, seconds_per_step=0.01,
    )  # fmt: skip
    scores = (records.TaskScore('recall_slice', 0.3, 0.01, 64),)
    return records.JobResult(
      job.key, (), mark, cost, summary, scores, timing=records.Timing(2.0, 0.5, 2.0, 1.0)
    )  # fmt: skip


def planted(**plan: Any) -> type[PlantedRunner]:
  """Returns a runner class of its own with this plan."""
  wrapped = {name: staticmethod(value) if callable(value) else value for name, value in plan.items()}
  return type('Planted', (PlantedRunner,), {**wrapped, 'jobs': [], 'done': {}, 'answers': {}})
