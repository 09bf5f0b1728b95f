"""One job on all hosts at once: the same command runs on every host, the first one leads, the others follow.

The leader's `SpmdRunner` is a `LocalRunner` whose worker is the first of several. It hands each job to the followers
(`follower`), which write it into a folder of their own and run the same worker in the same jail, under the same
limits; the workers find each other through `jax.distributed` at a port that is new for every attempt. What the first
worker seals is the result; the others' say only how they ended.

Each attempt has workers of its own: when one host is lost, or one worker is ended from outside, all of them are ended,
and the job is run again once every host is there. A worker that ends by a fault of the proposal, on whichever host,
ends the job with that failure. Followers outlive a lost leader by `runner.join_seconds`, in which another one may take
its place.
"""

from __future__ import annotations

import os
import pathlib
import socket
import sys
import threading
from collections.abc import Callable, Mapping

from asiarch_jax import config
from asiarch_jax.records import Job, JobResult, Progress
from asiarch_jax.shell import hosts, results, runner, sandbox
from asiarch_jax.shell.hub import GONE, LOST_EACH_OTHER, Attempt, Hub, StoppedError, on_the_wire

REPEATS = 2  # times that a job is run again after what a proposal could have done itself, such as end its own worker


class SpmdRunner(runner.LocalRunner):
  """A `ports.Runner` of the leader: its own worker is the first, every follower of the hub runs another.

  Args:
    hub: where the followers are.
    retries: times that a job is run again after something of it was lost, from `settings`.
    The others are those of `LocalRunner`.
  """

  def __init__(
    self,
    workdir: str | os.PathLike[str],
    settings: config.Runner,
    corpus_path: str | os.PathLike[str] | None = None,
    *,
    hub: Hub,
    python: str = sys.executable,
    worker_module: str = 'asiarch_jax.worker',
    on_log: Callable[[str], None] | None = None,
  ):
    super().__init__(workdir, settings, corpus_path, python=python, worker_module=worker_module, on_log=on_log)
    self._hub = hub
    self._retries = settings.retries

  def _run_new(
    self,
    job: Job,
    folder: pathlib.Path,
    on_progress: runner.OnProgress | None,
    pinned: Mapping[str, str],
    part: runner.Part | None = None,
  ) -> JobResult:
    def tell(stage: str, note: str) -> None:
      if on_progress is not None:
        on_progress(Progress(stage, note=note))

    self._hub.offer(job.corpus, self._corpus)
    result: JobResult | None = None
    lost, repeats, broken = '', 0, 0
    for attempt in range(self._retries + 1):
      try:
        members = self._hub.gathered(self._stopped, lambda note: tell('wait', note))
      except StoppedError as error:
        raise runner.RunnerStoppedError('the run was stopped') from error
      with Attempt(members) as trial:
        try:
          result = self._tried(trial, job, folder, on_progress, pinned)
          lost = trial.lost
        except runner.WorkerStartError as error:
          # Once may be somebody who killed it before it had begun; twice is a fault of the installation.
          broken += 1
          if broken > 1:
            raise
          lost = str(error).splitlines()[0]
      if (folder / 'done.json').exists():
        assert result is not None
        return result
      if self._stopped.is_set():
        raise runner.RunnerStoppedError('the run was stopped')
      if not lost.endswith(GONE):
        repeats += 1
        if result is not None and repeats > min(REPEATS, self._retries):
          return result
      again = f'{lost or "the first worker was ended from outside"}; run again ({attempt + 1})'
      if attempt < self._retries:
        self._hub.say(f'{job.name}: {again}')
        tell('lost', again)
    raise ConnectionError(
      f'{job.name} was lost {self._retries + 1} times (runner.retries = {self._retries}), the last time since {lost}; '
      'what is archived stays'
    )

  def _tried(
    self,
    trial: Attempt,
    job: Job,
    folder: pathlib.Path,
    on_progress: runner.OnProgress | None,
    pinned: Mapping[str, str],
  ) -> JobResult | None:
    """Returns the result of one attempt, which is kept unless something was lost; None where none was reached.

    Raises:
      RunnerStoppedError, WorkerStartError: as `LocalRunner.run`.
    """
    trial.hand_out(job, self._stopped)
    own = self._hub.own_address or '127.0.0.1'
    peers = tuple(dict.fromkeys((own, *(member.address for member in trial.members))))
    coordinator = f'[{own}]:{free_port()}' if ':' in own else f'{own}:{free_port()}'
    forbidden = (self._hub.place.port,)
    part = part_of(coordinator, len(trial.members) + 1, 0, own, peers, forbidden, trial.interrupted, trial.spoiled)
    result: JobResult | None = None
    if not trial.interrupted.is_set():
      trial.begin(coordinator, peers, forbidden)
      try:
        result = super()._run_new(job, folder, on_progress, pinned, part)
        if (folder / 'done.json').exists():
          return result
      except runner.RunnerStoppedError:
        if self._stopped.is_set():
          raise
    if trial.broken:
      raise runner.WorkerStartError(trial.broken)
    if trial.failure is None:
      return result
    result = JobResult(job.key, failure=trial.failure)
    if on_the_wire(trial.failure):
      trial.lost = trial.lost or LOST_EACH_OTHER
    elif not trial.lost:
      results.keep(folder, result, '', results.limits_of(job, self._settings))
    return result


def part_of(
  coordinator: str,
  processes: int,
  process: int,
  own: str,
  peers: tuple[str, ...],
  forbidden: tuple[int, ...],
  interrupted: threading.Event,
  spoiled: Callable[[JobResult], bool] = lambda _: False,
) -> runner.Part:
  """Returns a worker's part, with the hosts of its slice among its peers."""
  variables = hosts.resolved(os.environ)
  slice_ = (one for value in variables.values() for one in value.split(','))
  network = sandbox.Network(own, tuple(dict.fromkeys((*peers, *slice_))), forbidden)
  return runner.Part(coordinator, processes, process, network, interrupted, spoiled, variables)


def free_port() -> int:
  """Returns a port of this host that nobody listens at just now."""
  with socket.socket() as one:
    one.bind(('', 0))
    return int(one.getsockname()[1])
