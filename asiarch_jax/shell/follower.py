"""A host that follows another: it runs its part of each job that the leader hands out (`spmd`)."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import shutil
import socket
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from asiarch_jax import config
from asiarch_jax.records import Job, JobResult, from_json, to_json
from asiarch_jax.shell import hosts, links, places, runner, spmd
from asiarch_jax.shell.hub import Say, versions

RETRY = 1.0  # seconds between two attempts to reach the leader


class _PartRunner(runner.LocalRunner):
  """Runs one worker among others, in a folder that is the job's own."""

  part: runner.Part

  def _run_new(
    self,
    job: Job,
    folder: pathlib.Path,
    on_progress: runner.OnProgress | None,
    pinned: Mapping[str, str],
    part: runner.Part | None = None,
  ) -> JobResult:
    return super()._run_new(job, folder, on_progress, pinned, self.part)


class Follower:
  """A host that takes part in the jobs of a leader.

  Args:
    place: of this host.
    settings: limits and jail of workers here.
    cache: the folder for corpora that the leader brings.
    find: returns the folder of a corpus that this host has, by the hash of its content, or None.
    say: is given a line for people.
    worker_module: what is run with -m.
  """

  def __init__(
    self,
    place: hosts.Place,
    settings: config.Runner,
    cache: pathlib.Path,
    find: Callable[[str], pathlib.Path | None],
    say: Say,
    worker_module: str = 'asiarch_jax.worker',
  ):
    self._place, self._cache, self._find, self._say = place, cache, find, say
    self._settings = dataclasses.replace(settings, kind='local', workers=1)
    self._module = worker_module

  def follow(self) -> int:
    """Returns the status that the leader ended with; 1 when it is gone, or does not want this host."""
    where = f'{self._place.controller}:{self._place.port}'
    self._say(f'host {self._place.host} of {self._place.hosts} follows {where}')
    last = time.monotonic()
    reason = 'nobody listens there'
    while time.monotonic() - last < self._settings.join_seconds:
      try:
        connection = socket.create_connection((self._place.controller, self._place.port), links.SILENCE)
      except OSError as error:
        reason = error.strerror or str(error)
        time.sleep(RETRY)
        continue
      link = links.Link(connection)
      try:
        link.send(
          'join', host=self._place.host, hosts=self._place.hosts, name=socket.gethostname(), versions=versions()
        )
        answer = link.receive()
        if answer is not None and answer['kind'] == 'welcome':
          status = self._session(link)
          if status is not None:
            self._say(f'the leader ended with status {status}')
            return status
          last, reason = time.monotonic(), 'it closed the connection'
          self._say(f'the leader at {where} is gone; waiting {self._settings.join_seconds:g} s for another')
        elif answer is not None and answer['kind'] == 'refused':
          reason = str(answer.get('reason'))
          if not answer.get('again'):
            self._say(f'the leader at {where} refuses this host: {reason}')
            return 1
      finally:
        link.close()
      time.sleep(RETRY)
    self._say(
      f'no leader at {where} within runner.join_seconds = {self._settings.join_seconds:g} ({reason}); see whether the '
      'same command runs on the first host'
    )
    return 1

  def _session(self, link: links.Link) -> int | None:
    """Returns the status to end with, None when the leader is gone."""
    work: _Work | None = None
    try:
      while (message := link.receive()) is not None:
        kind = message['kind']
        if kind == 'end':
          return int(message.get('status', 1))
        if kind == 'job':
          if work is not None:
            work.end()
          work = _Work(self, link, message)
        elif work is not None and message.get('attempt') == work.attempt:
          if kind == 'begin':
            work.begin(message)
          elif kind == 'stop':
            work.end()
      return None
    finally:
      if work is not None:
        work.end()

  def corpus(self, content: str) -> pathlib.Path | None:
    """Returns the folder of a corpus, fetched from the leader where this host has none.

    Raises:
      OSError, tarfile.TarError: it cannot be fetched.
    """
    if not content:
      return None
    here = places.fetched_folder(self._cache, content)
    found = here if here.exists() else self._find(content)
    return self.fetch(content, here) if found is None else found

  def fetch(self, content: str, here: pathlib.Path) -> pathlib.Path:
    """Returns `here` with the leader's folder of that content in it. Raises as `corpus` does."""
    here.parent.mkdir(parents=True, exist_ok=True)
    part = pathlib.Path(tempfile.mkdtemp(dir=here.parent, prefix='.part-'))
    try:
      link = links.Link(socket.create_connection((self._place.controller, self._place.port), links.SILENCE))
      link.silent()
      with contextlib.closing(link):
        link.send('fetch', content=content)
        with tarfile.open(fileobj=link.reader(), mode='r|') as archive:
          archive.extractall(part, filter='data')
      with contextlib.suppress(OSError):  # another process of this host was quicker
        part.rename(here)
    finally:
      shutil.rmtree(part, ignore_errors=True)
    return here


class _Work:
  """What a follower does for one attempt. `ended` is said exactly once, unless the connection is gone."""

  def __init__(self, follower: Follower, link: links.Link, message: links.Message):
    self._follower, self._link = follower, link
    self.attempt, job = links.fields(message, attempt=str, job=dict)
    self._job: Job = from_json(Job, job)
    self._stopped = threading.Event()
    self._begun = threading.Event()
    self._begin: links.Message = {}
    self._thread = threading.Thread(target=self._run, daemon=True, name=f'job {self._job.name}')
    self._thread.start()

  def begin(self, message: links.Message) -> None:
    self._begin = message
    self._begun.set()

  def end(self) -> None:
    """Ends the worker and returns when it is gone."""
    self._stopped.set()
    self._begun.set()
    self._thread.join()

  def _run(self) -> None:
    told: dict[str, Any] = {}
    try:
      with tempfile.TemporaryDirectory(prefix='asiarch-', ignore_cleanup_errors=True) as folder:
        os.chmod(folder, 0o711)  # a worker of another user finds its job in it
        told = self._prepared(pathlib.Path(folder))
    except runner.RunnerStoppedError:
      pass
    except Exception as error:
      told = {'broken': f'{type(error).__name__}: {error}'}
    self._link.send('ended', attempt=self.attempt, **told)

  def _prepared(self, folder: pathlib.Path) -> dict[str, Any]:
    """Has what the job reads, then runs it when the leader says so; returns how it ended."""
    if self._job.asks:  # of use to this job alone
      corpus: pathlib.Path | None = self._follower.fetch(self._job.corpus, folder / 'asked')
    else:
      corpus = self._follower.corpus(self._job.corpus)
    self._link.send('ready', attempt=self.attempt)
    self._begun.wait()
    return {} if self._stopped.is_set() else self._worked(folder, corpus)

  def _worked(self, folder: pathlib.Path, corpus: pathlib.Path | None) -> dict[str, Any]:
    """Runs the worker; returns how it ended."""
    coordinator, processes, process, own, peers, forbidden = links.fields(
      self._begin, coordinator=str, processes=int, process=int, own=str, peers=list, forbidden=list
    )
    self._follower._say(f'worker {process} of {processes} for {self._job.name}')
    here = _PartRunner(folder, self._follower._settings, corpus, worker_module=self._follower._module)
    here.part = spmd.part_of(coordinator, processes, process, own, tuple(peers), tuple(forbidden), self._stopped)
    result = here.run(self._job)
    kept = (folder / 'jobs' / self._job.key / 'done.json').exists()
    return {'failure': to_json(result.failure) if result.failure else None, 'outside': not kept}
