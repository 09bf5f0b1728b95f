"""Runs jobs on the nodes of a Ray cluster (extra `cluster`): each in a jail there, as `runner.LocalRunner` does.

The controller stays one process and keeps every result under its own workdir. A job holds one node's accelerators, or
cores, while it runs; what becomes of a node that is lost, preempted or shut down is that its job is run again on
another. Nodes need this package and a jail; a corpus that is not too large is brought to them.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
import io
import logging
import os
import pathlib
import queue
import shutil
import socket
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from asiarch_jax import config
from asiarch_jax.records import Job, JobResult, Progress, from_json, to_json
from asiarch_jax.shell import jobfolder, results
from asiarch_jax.shell import runner as runners

SHIPPED_BYTES = 1 << 30  # of a corpus that is brought to the nodes; a larger one has to be there under its own path
OnProgress = Callable[[Progress], None]


def needs(settings: config.Runner) -> dict[str, Any]:
  """Returns what a job asks of Ray: accelerators where the platform has some, else as many cores as forced devices.

  >>> needs(config.Runner(platform='tpu', devices=4)), needs(config.Runner(platform='cpu', host_devices=2))
  ({'num_cpus': 1, 'resources': {'TPU': 4}}, {'num_cpus': 2})
  """
  count = settings.devices or 1
  if settings.platform == 'tpu':
    return {'num_cpus': 1, 'resources': {'TPU': count}}
  if settings.platform in ('cuda', 'gpu', 'rocm'):
    return {'num_cpus': 1, 'num_gpus': count}
  return {'num_cpus': settings.host_devices}


def reachable(address: str, seconds: float = 10.0) -> None:
  """Sees that somebody listens at HOST:PORT or ray://HOST:PORT, since Ray waits for minutes where nobody does.

  Raises:
    ConnectionError: nobody does.
  """
  host, colon, port = address.removeprefix('ray://').rpartition(':')
  if not colon or not port.isdigit():
    return  # none is named, or `auto`
  try:
    with socket.create_connection((host.strip('[]'), int(port)), seconds):
      pass
  except OSError as error:
    raise ConnectionError(
      error.errno, f'no Ray cluster answers at {address} ({error.strerror or error}); begin one there (ray start '
      '--head), or leave runner.address and RAY_ADDRESS empty for one on this machine',
    ) from error  # fmt: skip


class ClusterRunner:
  """A `ports.Runner` whose jobs run on a Ray cluster, as many at a time as threads call it and nodes have room.

  Args:
    workdir: where finished jobs are kept, on this machine.
    settings: limits, jail, address of the cluster; `platform`, `devices` and `host_devices` say what a job holds.
    corpus_path: the folder of the token array, None for jobs that read none.
    worker_module: what nodes run with -m.

  Raises:
    ModuleNotFoundError: Ray is not installed.
    ConnectionError: there is no cluster at the address.
  """

  def __init__(
    self,
    workdir: str | os.PathLike[str],
    settings: config.Runner,
    corpus_path: str | os.PathLike[str] | None = None,
    *,
    worker_module: str = 'asiarch_jax.worker',
  ):
    import ray

    self._ray = ray
    self._jobs = pathlib.Path(workdir).resolve() / 'jobs'
    self._settings = settings
    self._module = worker_module
    self._stopped = threading.Event()
    self._running: set[Any] = set()
    if not ray.is_initialized():
      reachable(settings.address or os.environ.get('RAY_ADDRESS', ''))
      ray.init(address=settings.address or None, log_to_driver=False, logging_level=logging.ERROR)
    self._corpus = self._shipped(corpus_path)
    self._remote = ray.remote(max_retries=0, num_returns='streaming', **needs(settings))(work)

  def run(self, job: Job, on_progress: OnProgress | None = None) -> JobResult:
    """Returns a job's result; one that was reached before is not computed again.

    Raises:
      RuntimeError: more nodes were lost in a row than `runner.retries` allows, or no node can run it.
      RunnerStoppedError: `stop` was called.
    """
    folder = self._jobs / job.key
    folder.mkdir(parents=True, exist_ok=True)
    limits = results.limits_of(job, self._settings)
    with results.locked(folder / 'lock'):
      stored = results.stored(folder, limits, job.known)
      if stored is not None:
        return stored
      jobfolder.write_job(folder, job)
      for attempt in range(self._settings.retries + 1):
        try:
          return self._kept(folder, limits, self._once(job, on_progress))
        except self._ray.exceptions.RayError as error:
          if self._stopped.is_set():
            raise runners.RunnerStoppedError('the run was stopped') from error
          if isinstance(error, self._ray.exceptions.RayTaskError):
            raise RuntimeError(f'a node could not run {job.name}: {error.cause}') from error
          lost = f'{type(error).__name__}: the node that ran it is gone'
          if attempt == self._settings.retries:
            raise ConnectionError(
              f'{job.name} lost its node {attempt + 1} times (runner.retries = {self._settings.retries}); the last: '
              f'{str(error).splitlines()[0][:200]}. What is archived stays: run again when nodes hold'
            ) from error
          if on_progress is not None:
            on_progress(Progress('lost', note=f'{lost}; run again elsewhere ({attempt + 1})'))
    raise AssertionError('unreachable')

  def reading(self, corpus_path: str | os.PathLike[str]) -> ClusterRunner:
    """Returns this runner for jobs that read another folder: it shares nodes, results and `stop`."""
    other = copy.copy(self)
    other._corpus = self._shipped(corpus_path)
    return other

  def stop(self) -> None:
    """Ends all jobs and lets none begin; their `run` raises RunnerStoppedError."""
    self._stopped.set()
    for generator in list(self._running):
      with contextlib.suppress(Exception):
        self._ray.cancel(generator, force=True)

  def arrays(self, key: str) -> Mapping[str, Any]:
    """Returns the arrays that the job left, empty when it failed. Raises as `LocalRunner.arrays` does."""
    return results.kept_arrays(self._jobs, key)

  def _once(self, job: Job, on_progress: OnProgress | None) -> dict[str, Any]:
    """Returns what a node sent at the end: result, arrays and whether somebody ended it from outside."""
    if self._stopped.is_set():
      raise runners.RunnerStoppedError('the run was stopped')
    jail = 'none' if self._settings.jail == 'none' else 'auto'  # what works there, not here
    on_node = dataclasses.replace(self._settings, kind='local', workers=1, devices=0, jail=jail)
    generator = self._remote.remote(to_json(job), on_node, self._corpus, self._module)
    self._running.add(generator)
    try:
      for reference in generator:
        sent = self._ray.get(reference)
        if 'result' in sent:
          return sent
        if on_progress is not None:
          on_progress(from_json(Progress, sent['progress']))
    finally:
      self._running.discard(generator)
    raise RuntimeError(f'the node that ran {job.name} sent no result')

  def _kept(self, folder: pathlib.Path, limits: Mapping[str, float], sent: Mapping[str, Any]) -> JobResult:
    result: JobResult = from_json(JobResult, sent['result'])
    (folder / 'log.txt').write_text(sent['log'])
    if not sent['done']:  # ended from outside: not kept, the next run of the job may well succeed
      return result
    packed, sha256 = sent['arrays'], ''
    if packed:
      sha256 = hashlib.sha256(packed).hexdigest()
      jobfolder.replace(folder / 'arrays.npz', packed)
    results.keep(folder, result, sha256, limits)
    return result

  def _shipped(self, path: str | os.PathLike[str] | None) -> dict[str, Any] | None:
    """Returns what brings a corpus to the nodes: its packed content in Ray's store, or its path where that is large."""
    if path is None:
      return None
    folder = pathlib.Path(path).resolve()
    size = sum(file.stat().st_size for file in folder.rglob('*') if file.is_file())
    if size > SHIPPED_BYTES:
      return {'path': str(folder), 'size': size}
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode='w') as archive:
      for file in sorted(folder.rglob('*')):
        archive.add(file, arcname=str(file.relative_to(folder)), recursive=False)
    content = packed.getvalue()
    return {'hash': hashlib.sha256(content).hexdigest(), 'content': self._ray.put(content)}


def work(
  job: Mapping[str, Any], settings: config.Runner, corpus: Mapping[str, Any] | None, module: str
) -> Iterator[dict[str, Any]]:
  """Runs on a node: yields the progress of a job, then its result, in the job's own temporary folder.

  Raises:
    FileNotFoundError: the corpus was not brought along and is not on this node.
  """
  events: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
  with tempfile.TemporaryDirectory(prefix='asiarch-', ignore_cleanup_errors=True) as folder:
    asked: Job = from_json(Job, job)
    where = pathlib.Path(folder) / 'asked' if asked.asks else kept_corpora()
    runner = runners.LocalRunner(folder, settings, corpus_here(corpus, where), worker_module=module)

    def run() -> None:
      try:
        result = runner.run(asked, lambda progress: events.put({'progress': to_json(progress)}))
        home = pathlib.Path(folder) / 'jobs' / asked.key
        arrays, log = home / 'arrays.npz', home / 'log.txt'
        events.put({
          'result': to_json(result),
          'arrays': arrays.read_bytes() if arrays.exists() else b'',
          'log': log.read_text() if log.exists() else '',
          'done': (home / 'done.json').exists(),
        })  # fmt: skip
      except BaseException as error:  # raised again where Ray sees it
        events.put({'error': error})

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while True:
      event = events.get()
      if 'error' in event:
        raise event['error']
      yield event
      if 'result' in event:
        thread.join()
        return


def kept_corpora() -> pathlib.Path:
  """Returns the folder in which this node keeps corpora that were brought to it."""
  return pathlib.Path(tempfile.gettempdir()) / f'asiarch-corpora-{os.getuid()}'


def corpus_here(corpus: Mapping[str, Any] | None, where: pathlib.Path) -> pathlib.Path | None:
  """Returns the corpus's folder on this node; what was brought is unpacked into `where`, once for its content.

  Raises:
    FileNotFoundError: it has to be here under its own path and is not.
  """
  if corpus is None:
    return None
  if 'path' in corpus:
    folder = pathlib.Path(corpus['path'])
    if not folder.exists():
      raise FileNotFoundError(
        f'{folder} is not on this node ({os.uname().nodename}), and its {corpus["size"] / 2**30:.1f} GiB are too much '
        f'to be brought along ({SHIPPED_BYTES / 2**30:.0f} GiB are not); put it where all nodes see it'
      )
    return folder
  import ray

  place = where / corpus['hash']
  if not place.exists():
    place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    content = ray.get(corpus['content'])
    part = pathlib.Path(tempfile.mkdtemp(dir=place.parent))
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
      archive.extractall(part, filter='data')
    try:
      part.rename(place)
    except OSError:  # another job of this node was quicker
      shutil.rmtree(part, ignore_errors=True)
  return place
