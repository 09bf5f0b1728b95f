"""Runs a job in a jailed child process, holds the clock, and keeps its result.

    <workdir>/jobs/<key>/  job.json  mixer.py   what the worker reads
                           out/                 all it can write, removed when the job is done
                           log.txt              what it printed, cut to the limit
                           lock  worker.json    who runs it: a lock that dies with its controller
                           arrays.npz done.json the accepted result; out of a worker's reach

A job that has done.json is not run again. Everything a worker leaves is read as hostile data.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import fcntl
import json
import os
import pathlib
import queue
import secrets
import select
import shutil
import signal
import stat
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from asiarch_jax import config
from asiarch_jax.records import Failure, Job, JobResult, Progress, Timing
from asiarch_jax.shell import devices, jobfolder, machine, processes, results, sandbox

LOOK_SECONDS = 0.05  # between two looks at a worker
FAMILY_SECONDS = 0.25  # between two looks for new processes and at what was written
LINES_PER_SECOND = 10  # of progress handed on
PROGRESS_BYTES = 64 << 10  # read of progress at one look; older lines are skipped
LINGER_SECONDS = 5.0  # a worker may live after it wrote its result
FAULTS = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL)
CRASHES = {status for fault in FAULTS for status in (128 + fault, -fault)}  # the exit status behind each
FILES = 10_000  # that a job may write
REASON_LINES = 40  # of the log that go into a failure
TEXT_CHARACTERS = 120  # of a text in progress: it goes to a terminal

OnProgress = Callable[[Progress], None]


class WorkerStartError(RuntimeError):
  """A worker could not begin: nothing was learned about the job."""


class RunnerStoppedError(RuntimeError):
  """The runner was told to stop: its workers are ended, their jobs not done."""


@dataclasses.dataclass(frozen=True)
class Part:
  """Which of several workers, each on a host of its own, this host's is; they compute a job together.

  `interrupted` says that the others will not go on. `spoiled` is asked, once a worker has ended, whether its result is
  owed to others that were lost and so says nothing about the job.
  """

  coordinator: str
  processes: int
  process: int
  network: sandbox.Network
  interrupted: threading.Event
  spoiled: Callable[[JobResult], bool] = lambda _: False
  variables: Mapping[str, str] = dataclasses.field(default_factory=dict)  # that name its place among the hosts

  @property
  def arguments(self) -> list[str]:
    return [f'--coordinator={self.coordinator}', f'--processes={self.processes}', f'--process={self.process}']


class LocalRunner:
  """Runs jobs on this machine, as many at a time as there are workers; several runners may share a workdir.

  Args:
    workdir: where the job folders are kept.
    settings: limits and jail; `jail` 'auto' is resolved when a first job runs.
    corpus_path: the folder of the token array, None for jobs that read none.
    python: the interpreter of workers.
    worker_module: what is run with -m.
    on_log: is given each line that a worker prints, cleaned of control characters.

  Raises:
    ValueError: the host has fewer accelerators than `settings` share out.
  """

  def __init__(
    self,
    workdir: str | os.PathLike[str],
    settings: config.Runner,
    corpus_path: str | os.PathLike[str] | None = None,
    *,
    python: str = sys.executable,
    worker_module: str = 'asiarch_jax.worker',
    on_log: Callable[[str], None] | None = None,
  ):
    self._jobs = pathlib.Path(workdir).resolve() / 'jobs'
    self._settings = settings
    self._corpus = pathlib.Path(corpus_path).resolve() if corpus_path else None
    self._python = python
    self._module = worker_module
    self._on_log = on_log
    self._jail = ''
    self._stopped = threading.Event()
    self._groups: queue.SimpleQueue[Mapping[str, str]] = queue.SimpleQueue()  # devices that no worker holds
    for group in devices.groups(settings.workers, settings.devices, machine.accelerators(), os.environ):
      self._groups.put(group)
    self.reaped = reap_orphans(self._jobs)

  def run(self, job: Job, on_progress: OnProgress | None = None) -> JobResult:
    """Returns a job's result; one that was reached before is not computed again.

    Raises:
      RuntimeError: no jail works here.
      RunnerStoppedError: `stop` was called.
      WorkerStartError: the worker ended before it began its job: the fault is of the installation, a device or the
        corpus, not of the proposal.
      OSError: the workdir cannot be written.
    """
    folder = self._jobs / job.key
    folder.mkdir(parents=True, exist_ok=True)
    with results.locked(folder / 'lock'):
      before = results.stored(folder, results.limits_of(job, self._settings), job.known)
      if before is not None:
        return before
      self._jail = self._jail or sandbox.choose(self._settings.jail)
      if self._stopped.is_set():
        raise RunnerStoppedError('the run was stopped')
      pinned = self._groups.get()  # waits where more jobs are run at a time than there are workers
      try:
        return self._run_new(job, folder, on_progress, pinned)
      finally:
        self._groups.put(pinned)

  def reading(self, corpus_path: str | os.PathLike[str]) -> LocalRunner:
    """Returns this runner for jobs that read another folder: it shares devices, results and `stop`."""
    other = copy.copy(self)
    other._corpus = pathlib.Path(corpus_path).resolve()
    return other

  def stop(self) -> None:
    """Ends the workers of all threads and lets none begin; their `run` raises RunnerStoppedError."""
    self._stopped.set()

  def arrays(self, key: str) -> Mapping[str, Any]:
    """Returns the arrays that the job left, empty when it failed.

    Raises:
      KeyError: no finished job has this key.
      ValueError: the file was changed since.
    """
    return results.kept_arrays(self._jobs, key)

  def _run_new(
    self,
    job: Job,
    folder: pathlib.Path,
    on_progress: OnProgress | None,
    pinned: Mapping[str, str],
    part: Part | None = None,
  ) -> JobResult:
    out = folder / 'out'
    for leftover in (folder / 'done.json', folder / 'arrays.npz'):
      leftover.unlink(missing_ok=True)
    jobfolder.write_job(folder, job)
    _renew(out, folder / jobfolder.CHECKPOINT)
    limits = results.limits_of(job, self._settings)
    cell = sandbox.Cell(
      job=folder,
      out=out,
      corpus=self._corpus,
      packages=sandbox.packages_of(self._module),
      settings=self._settings,
      wall_seconds=limits['wall_seconds'],
      python=self._python,
      pinned={**pinned, **(part.variables if part else {})},
      network=part.network if part else None,
    )
    began = time.time()
    with _Worker(self._jail, cell, self._module, self._on_log, part.arguments if part else ()) as worker:
      stops = (self._stopped, part.interrupted) if part else (self._stopped,)
      failure = worker.watch(limits, on_progress, stops)
    (folder / 'log.txt').write_text(worker.log)
    if worker.never_began:
      raise WorkerStartError(
        f'the worker {sandbox.status_text(worker.status)} before it began its job; it said:\n{worker.log[-2000:]}\n'
        f'run `{self._python} -m {self._module} --help` by hand, or raise runner.memory_gib'
      )
    result, arrays_sha256 = _accept(job, out, worker, failure, self._settings)
    if result.failure is not None and not result.failure.log:
      tail = '\n'.join(worker.log.splitlines()[-REASON_LINES:])
      result = dataclasses.replace(result, failure=dataclasses.replace(result.failure, log=tail))
    if result.timing == Timing():
      wall = time.time() - began
      result = dataclasses.replace(result, timing=Timing(wall, 0.0, wall * self._settings.host_devices, began))
    (folder / 'worker.json').unlink(missing_ok=True)
    if worker.ended_from_outside(result) or (part is not None and part.spoiled(result)):
      # Not kept: the job is run again, from its checkpoint if there is one.
      _renew(out, folder / jobfolder.CHECKPOINT)
      with contextlib.suppress(OSError):
        out.rmdir()
      return result
    if arrays_sha256:
      os.replace(out / 'arrays.npz', folder / 'arrays.npz')
    results.keep(folder, result, arrays_sha256, limits)
    _remove_tree(out)
    return result


def of(
  workdir: str | os.PathLike[str], settings: config.Runner, corpus_path: str | os.PathLike[str] | None = None
) -> Any:
  """Returns the runner that `settings.kind` names: a `ports.Runner` that can be stopped.

  One of kind spmd needs a process that leads others (`hub.leading`); where this one leads nobody, jobs are run here.

  Raises:
    ModuleNotFoundError: the extra that it needs is not installed.
    ConnectionError: there is no cluster.
  """
  if settings.kind == 'cluster':
    try:
      from asiarch_jax.shell import cluster

      return cluster.ClusterRunner(workdir, settings, corpus_path)
    except ModuleNotFoundError as error:
      raise ModuleNotFoundError(
        f"runner.kind = cluster needs {error.name}, which is not installed; pip install 'asiarch-jax[cluster]'"
      ) from error
  if settings.kind == 'spmd':
    from asiarch_jax.shell import hub, spmd

    here = hub.hub_here()
    if here is not None:
      return spmd.SpmdRunner(workdir, settings, corpus_path, hub=here)
  return LocalRunner(workdir, settings, corpus_path)


class _Worker:
  """A running worker. Leaving the context kills all of it."""

  def __init__(
    self,
    jail: str,
    cell: sandbox.Cell,
    module: str,
    on_log: Callable[[str], None] | None,
    more: Sequence[str] = (),
  ):
    job, out, corpus = cell.seen(jail)
    arguments = ['-m', module, f'--job={job}', f'--out={out}', f'--corpus={corpus}', *more]
    self._command, self._environment = sandbox.launch(jail, cell, arguments)
    self._cell = cell
    self._log = _Log(int(cell.settings.log_kib * 1024), on_log)
    self._progress = _ProgressFile(cell.out / 'progress.jsonl')
    self._process: subprocess.Popen[bytes] | None = None
    self._read = False
    self._family: tuple[processes.Process, ...] = ()
    self._stdin = -1
    self.secret = secrets.token_hex(32)
    self.killed = False
    self.status = 0

  def __enter__(self) -> _Worker:
    self._stdin, writer = os.pipe()
    try:
      self._process = subprocess.Popen(
        self._command,
        stdin=self._stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=self._environment,
        cwd='/',
        start_new_session=True,
      )
      started = processes.process(self._process.pid)
      who = {'pid': self._process.pid, 'started': started.started if started else 0}
      jobfolder.replace(self._cell.job / 'worker.json', json.dumps(who).encode())
      self._log.follow(self._process)
      os.write(writer, f'{self.secret}\n'.encode())  # far below a pipe's size: never blocks
    except BaseException:
      self.__exit__()
      raise
    finally:
      os.close(writer)
    return self

  def __exit__(self, *_: object) -> None:
    if self._process is not None:
      if self._process.poll() is None:
        processes.kill_family(self._process.pid)
      # Should its warden have been killed, nothing below it is a family any more.
      processes.kill_remembered(self._family)
      self.status = self._process.wait()
      self._log.finish()
    self._look_at_stdin(final=True)
    os.close(self._stdin)

  @property
  def log(self) -> str:
    return self._log.text()

  @property
  def never_began(self) -> bool:
    """Whether it ended by itself with its secret unread: nothing of the proposal had been loaded."""
    return not self._read and not self.killed

  def ended_from_outside(self, result: JobResult) -> bool:
    """Whether somebody else killed it: the next run of the job may well succeed."""
    by_signal = self.status in (128 + 9, 128 + 15, -9, -15)
    return not self.killed and by_signal and result.failure is not None and result.failure.kind == 'killed'

  def watch(
    self, limits: Mapping[str, float], on_progress: OnProgress | None, stops: Sequence[threading.Event]
  ) -> Failure | None:
    """Waits for the end; returns why the worker had to be killed, None when it ended by itself."""
    assert self._process is not None
    pid, settings = self._process.pid, self._cell.settings
    began = beat = time.monotonic()
    looked = float('-inf')
    finished: float | None = None
    while True:
      with contextlib.suppress(subprocess.TimeoutExpired):
        self._process.wait(LOOK_SECONDS)
      if any(stop.is_set() for stop in stops):
        raise RunnerStoppedError('the run was stopped')
      now = time.monotonic()
      self._look_at_stdin()
      if self._progress.grew():
        beat = now
      for progress in self._progress.lines(now):
        if on_progress is not None:
          on_progress(progress)
      if self._process.poll() is not None:
        return None
      overrun = None
      if now - looked >= FAMILY_SECONDS:
        looked = now
        self._family = processes.family(pid)
        overrun = _too_much(self._family, self._cell.out, settings)
        if finished is None and os.path.lexists(self._cell.out / 'result.json'):
          finished = now
      if finished is not None and now - finished > LINGER_SECONDS:
        self.killed = True
        return None
      resident = processes.resident_bytes(one.pid for one in self._family)
      if resident > settings.memory_gib * 2**30:
        overrun = Failure(
          'memory', f'held {resident / 2**30:.2f} GiB, more than runner.memory_gib = {settings.memory_gib:g}'
        )
      elif now - began > limits['wall_seconds']:
        overrun = Failure('time', f'ran for more than {limits["wall_seconds"]:g} s of wall clock')
      elif now - beat > limits['heartbeat_seconds']:
        overrun = Failure('time', f'was silent for more than runner.heartbeat_seconds = {settings.heartbeat_seconds:g}')
      if overrun is not None:
        self.killed = True
        return overrun

  def _look_at_stdin(self, final: bool = False) -> None:
    """Notes whether the secret was read. Unread means that it still lies there, whole, when all is over."""
    if self._read:
      return
    waiting = struct.unpack('i', fcntl.ioctl(self._stdin, termios.FIONREAD, b'\0' * 4))[0]
    if waiting == 0:
      self._read = True
    elif final:
      self._read = os.read(self._stdin, waiting) != f'{self.secret}\n'.encode()


class _Log:
  """The output of a worker: read without end so that it never blocks, kept at both ends only."""

  def __init__(self, limit: int, on_line: Callable[[str], None] | None):
    self._half = max(1, limit // 2)
    self._head, self._tail = b'', b''
    self._dropped = 0
    self._on_line = on_line
    self._line = b''
    self._thread: threading.Thread | None = None
    self._stop = threading.Event()

  def follow(self, process: subprocess.Popen[bytes]) -> None:
    assert process.stdout is not None
    self._stream = process.stdout
    os.set_blocking(process.stdout.fileno(), False)
    self._thread = threading.Thread(target=self._pump, daemon=True)
    self._thread.start()

  def finish(self) -> None:
    """Takes what still lies in the pipe and closes it, though some process may hold its other end."""
    if self._thread is not None:
      self._stop.set()
      self._thread.join()
      self._stream.close()

  def text(self) -> str:
    gap = f'\n... {self._dropped} bytes left out ...\n' if self._dropped else ''
    return clean(self._head.decode(errors='replace') + gap + self._tail.decode(errors='replace'))

  def _pump(self) -> None:
    descriptor = self._stream.fileno()
    while True:
      stopping = self._stop.is_set()
      readable, _, _ = select.select([descriptor], [], [], 0 if stopping else 0.1)
      if not readable:
        if stopping:
          return
        continue
      chunk = os.read(descriptor, 1 << 16)
      if not chunk:
        return
      self._keep(chunk)

  def _keep(self, chunk: bytes) -> None:
    room = self._half - len(self._head)
    self._head += chunk[:room]
    tail = self._tail + chunk[max(room, 0) :]
    cut = max(0, len(tail) - self._half)
    self._dropped += cut
    self._tail = tail[cut:]
    if self._on_line is not None and not self._dropped:
      *lines, self._line = (self._line + chunk).split(b'\n')
      for line in lines:
        self._on_line(clean(line.decode(errors='replace')))


class _ProgressFile:
  """The tail of progress.jsonl, which the worker, or what it runs, may fill with anything at any speed."""

  def __init__(self, path: pathlib.Path):
    self._path = path
    self._offset = self._size = 0
    self._rest = b''
    self._tokens = float(LINES_PER_SECOND)
    self._filled = 0.0

  def grew(self) -> bool:
    """Returns whether the file changed its size since the last call: the heartbeat."""
    try:
      size = os.lstat(self._path).st_size
    except OSError:
      return False
    before, self._size = self._size, size
    return size != before

  def lines(self, now: float) -> list[Progress]:
    """Returns the newest new records, at most LINES_PER_SECOND in the mean, their texts cut and cleaned."""
    self._tokens = min(LINES_PER_SECOND, self._tokens + (now - self._filled) * LINES_PER_SECOND)
    self._filled = now
    count = int(self._tokens)
    if count < 1 or self._size == self._offset:
      return []
    *lines, self._rest = (self._rest + self._more()).split(b'\n')
    self._rest = self._rest[-jobfolder.LINE_BYTES :]
    records = [record for line in lines[-count:] if (record := jobfolder.parse_progress(line)) is not None]
    self._tokens -= len(records)
    return [
      dataclasses.replace(record, stage=clean(record.stage, TEXT_CHARACTERS), note=clean(record.note, TEXT_CHARACTERS))
      for record in records
    ]

  def _more(self) -> bytes:
    try:
      descriptor = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
      return b''
    try:
      status = os.fstat(descriptor)
      if not stat.S_ISREG(status.st_mode):
        return b''
      # A flood is skipped, and so is a file that was cut shorter.
      start = max(min(self._offset, status.st_size), status.st_size - PROGRESS_BYTES)
      if start != self._offset:
        self._rest = b''
      data = os.pread(descriptor, PROGRESS_BYTES, start)
      self._offset = start + len(data)
      return data
    finally:
      os.close(descriptor)


def clean(text: str, characters: int | None = None) -> str:
  """Returns a text without control characters (a terminal would obey them), cut to a length.

  >>> clean('loss \x1b[31mred\r')
  'loss [31mred'
  """
  text = ''.join(one for one in text if one.isprintable() or one in '\n\t')
  return text if characters is None else text.replace('\n', ' ')[:characters]


def _too_much(family: tuple[processes.Process, ...], out: pathlib.Path, settings: config.Runner) -> Failure | None:
  """Returns why a family of processes is stopped, None while it stays within its limits."""
  threads = sum(one.threads for one in family)
  if threads > settings.processes:
    return Failure('killed', f'ran {threads} processes and threads, more than runner.processes = {settings.processes}')
  named = processes.tree_bytes(out, FILES)
  if named is None:
    return Failure('killed', f'wrote more than {FILES} files, folders in folders without end, or into a locked one')
  written = named + processes.nameless_bytes(one.pid for one in family)
  if written > settings.file_mib * 2**20:
    size = f'{written / 2**20:.0f} MiB'
    return Failure('killed', f'wrote {size}, more than runner.file_mib = {settings.file_mib:g}')
  return None


def _accept(
  job: Job, out: pathlib.Path, worker: _Worker, failure: Failure | None, settings: config.Runner
) -> tuple[JobResult, str]:
  """Returns the sealed result and the hash of its arrays, or the failure that stands for them."""
  if failure is not None:
    return JobResult(job.key, failure=failure), ''
  try:
    result, arrays_sha256 = jobfolder.read_result(out, worker.secret)
    if result.key != job.key:
      raise jobfolder.ForgedResultError(f'the result is of job {result.key}, not of {job.key}')
    results.checked_arrays(out / 'arrays.npz', arrays_sha256, int(settings.file_mib * 2**20))
  except FileNotFoundError as error:
    missing = pathlib.Path(str(error.filename)).name
    reason = f'the worker {sandbox.status_text(worker.status)} and left no {missing}'
    kind = 'crashed' if worker.status in CRASHES else 'killed'
    return JobResult(job.key, failure=Failure(kind, reason)), ''
  except jobfolder.ForgedResultError as error:
    return JobResult(job.key, failure=Failure('forged', str(error))), ''
  return _cleaned(result), arrays_sha256


def _cleaned(part: Any) -> Any:
  """Returns a result, or a part of one, whose texts, all a proposal's to choose, hold nothing that a terminal obeys."""
  if isinstance(part, str):
    return clean(part)
  if isinstance(part, tuple):
    return tuple(map(_cleaned, part))
  if isinstance(part, dict):
    return {_cleaned(key): _cleaned(value) for key, value in part.items()}
  if dataclasses.is_dataclass(part) and not isinstance(part, type):
    return dataclasses.replace(
      part, **{field.name: _cleaned(getattr(part, field.name)) for field in dataclasses.fields(part)}
    )
  return part


def reap_orphans(jobs: pathlib.Path) -> int:
  """Kills the workers whose controller is dead and returns their number.

  A controller that lives holds the lock of its job. A pid is trusted only with the start time that belongs to it.
  """
  reaped = 0
  for note in sorted(jobs.glob('*/worker.json')):
    with open(note.with_name('lock'), 'w') as lock:
      try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        continue
      try:
        who = json.loads(note.read_bytes())
        pid, started = int(who['pid']), int(who['started'])
      except (ValueError, KeyError, TypeError, FileNotFoundError):
        continue
      alive = processes.process(pid)
      if alive is not None and alive.started == started:
        processes.kill_family(pid)
        reaped += 1
      note.unlink(missing_ok=True)
  return reaped


def _renew(out: pathlib.Path, aside: pathlib.Path) -> None:
  """Makes `out` an empty folder, but for the checkpoint of a worker that was killed from outside.

  What is kept was written under the same job, by the same source: it can mislead nobody but itself.
  """
  kept = out / jobfolder.CHECKPOINT
  if kept.is_dir() and not out.is_symlink() and not kept.is_symlink():
    _remove_tree(aside)
    os.rename(kept, aside)
  _remove_tree(out)
  out.mkdir(mode=0o700)
  if aside.is_dir():
    os.rename(aside, kept)


def _remove_tree(folder: pathlib.Path) -> None:
  """Removes what a worker wrote, however deep it is and whatever permissions it set.

  Raises:
    OSError: something of it cannot be removed.
  """
  if not os.path.lexists(folder):
    return
  with contextlib.suppress(OSError, RecursionError):
    shutil.rmtree(folder)
    return
  # Deeper than a path may be long, or locked: the system's own tools walk by descriptor.
  subprocess.run(['chmod', '-R', 'u+rwX', '--', str(folder)], capture_output=True)
  subprocess.run(['rm', '-rf', '--', str(folder)], capture_output=True)
  if os.path.lexists(folder):
    raise OSError(f'{folder} cannot be removed; remove it by hand')
