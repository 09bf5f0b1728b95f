"""What this machine has for a search: devices as a worker sees them, packages, memory, cores, disk, a busy archive.

Everything is only looked at. What starts a process, starts it as a worker is started and ends all of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import importlib.metadata
import json
import os
import pathlib
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator

from packaging.requirements import Requirement

from asiarch_jax import config
from asiarch_jax.shell import archive, processes, sandbox

PACKAGE = 'asiarch-jax'
DEVICE_SECONDS = 90.0  # a TPU takes half a minute to start; a worker that is silent for 120 s is killed
TAIL_CHARACTERS = 400  # of what a process said before it failed
ACCELERATORS = ('nvidia[0-9]*', 'accel[0-9]*', 'vfio/[0-9]*')  # under /dev
# What a worker does first: its imports, its devices, one compiled program on them.
START = """
import json
import asiarch_jax.worker
import jax
try:
  asiarch_jax.worker.require_platform()
  devices = jax.devices()
except AssertionError:  # all that JAX has to say of a plugin that is missing
  raise SystemExit('JAX has no backend of that name: its plugin is not installed')
jax.block_until_ready(jax.jit(lambda x: x + 1)(jax.numpy.zeros(())))
limit = lambda device: (device.memory_stats() or {}).get('bytes_limit')
print(json.dumps([[device.platform, device.device_kind, limit(device)] for device in devices]))
"""


@dataclasses.dataclass(frozen=True)
class Device:
  """One device of JAX. `memory_bytes` is what JAX may use of it, None where it does not say."""

  platform: str
  kind: str
  memory_bytes: int | None = None


@dataclasses.dataclass(frozen=True)
class Start:
  """How the start of a worker went: its devices, or why it has none (`fault`) and the end of what it said."""

  devices: tuple[Device, ...] = ()
  seconds: float = 0.0
  fault: str = ''
  said: str = ''


@dataclasses.dataclass(frozen=True)
class Share:
  """How much of the machine this process may use, control groups counted. Bytes; cores may be a fraction."""

  memory_total: int
  memory_available: int
  cores: float


@dataclasses.dataclass(frozen=True)
class Disk:
  """Where a folder lies, or would be made: the nearest folder that exists, its free bytes, whether it takes files."""

  folder: str
  free_bytes: int
  writable: bool


def worker_start(runner: config.Runner, jail: str, seconds: float = DEVICE_SECONDS, code: str = START) -> Start:
  """Returns the devices that a worker in `jail` gets, found by one that does nothing else.

  This process must not ask JAX itself: a device that it takes is lost to its workers.
  """
  with tempfile.TemporaryDirectory(prefix='asiarch-') as folder:
    out = pathlib.Path(folder, 'out')
    out.mkdir()
    cell = sandbox.Cell(pathlib.Path(folder), out, None, sandbox.packages_of('asiarch_jax'), runner, seconds)
    command, environment = sandbox.launch(jail, cell, ['-c', code])
    began, fault = time.monotonic(), ''
    with subprocess.Popen(
      command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment,
      cwd='/', start_new_session=True,
    ) as process:  # fmt: skip
      try:
        output, errors = process.communicate(timeout=seconds)
      except subprocess.TimeoutExpired:
        fault = f'did not start within {seconds:g} s'
        processes.kill_family(process.pid)
        output, errors = process.communicate()
      except BaseException:
        processes.kill_family(process.pid)
        raise
    took = time.monotonic() - began
  if not fault and process.returncode:
    fault = sandbox.status_text(process.returncode)
  if fault:
    return Start(seconds=took, fault=fault, said=_tail(errors or output))
  try:
    devices = tuple(Device(*each) for each in json.loads(output.splitlines()[-1]))
  except (ValueError, TypeError, IndexError):
    return Start(seconds=took, fault='did not name its devices', said=_tail(errors or output))
  return Start(devices, took)


def _tail(said: bytes) -> str:
  """Returns the last lines of an output on one line, without what a terminal would obey; of a traceback its error."""
  lines = [line.rstrip() for line in said.decode(errors='replace').splitlines() if line.strip()]
  if any(line.startswith('Traceback ') for line in lines):
    last = max(number for number, line in enumerate(lines) if line.startswith(('  ', 'Traceback ')))
    lines = lines[last + 1 :] or lines
  text = ' / '.join(''.join(one for one in ' '.join(line.split()) if one.isprintable()) for line in lines[-3:])
  return text if len(text) <= TAIL_CHARACTERS else f'…{text[1 - TAIL_CHARACTERS :]}'


def accelerators(root: str | os.PathLike[str] = '/') -> tuple[str, ...]:
  """Returns the device files of accelerators, whether or not JAX can use them."""
  folder = pathlib.Path(root, 'dev')
  patterns = (*ACCELERATORS, *(('dri/renderD[0-9]*',) if (folder / 'kfd').exists() else ()))  # AMD's, not a screen's
  return tuple(sorted(str(path) for pattern in patterns for path in folder.glob(pattern)))


def installed(names: Iterable[str]) -> dict[str, str]:
  """Returns the version of each distribution that is installed."""
  found = {}
  for name in names:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      found[name] = importlib.metadata.version(name)
  return found


def program(name: str) -> str:
  """Returns where a program is, empty where it is not."""
  return shutil.which(name) or ''


def required() -> dict[str, str]:
  """Returns the versions that this package was installed to work with, by distribution, such as `>=0.8`.

  Extras are among them, and jaxlib as jax wants it. Empty where the package was never installed.
  """
  with contextlib.suppress(importlib.metadata.PackageNotFoundError):
    lines = importlib.metadata.requires(PACKAGE) or []
    lines += [line for line in importlib.metadata.requires('jax') or () if 'extra ==' not in line]
    wanted = {one.name: str(one.specifier) for one in map(Requirement, lines) if str(one.specifier)}
    return wanted | {'python': importlib.metadata.metadata(PACKAGE)['Requires-Python'] or ''}
  return {}


def share(root: str | os.PathLike[str] = '/') -> Share:
  """Returns what this process may use: what the kernel has, or the control group it was put into, if that is less."""
  base = pathlib.Path(root)
  total, available = _memory(base)
  cores = float(len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1)
  for version, folder in _groups(base, 'memory'):
    limit_name, used_name = (
      ('memory.max', 'memory.current') if version == 2 else ('memory.limit_in_bytes', 'memory.usage_in_bytes')
    )
    limit, used = _number(folder / limit_name), _number(folder / used_name)
    if limit is not None and limit < total:
      total = limit
      available = min(available, max(0, limit - (used or 0) + _cached(folder, version)))
  for version, folder in _groups(base, 'cpu'):
    if version == 2:
      quota, period = (_text(folder / 'cpu.max').split() or ['max', ''])[:2]
    else:
      quota, period = _text(folder / 'cpu.cfs_quota_us'), _text(folder / 'cpu.cfs_period_us')
    if quota.isdigit() and period.isdigit() and int(period):
      cores = min(cores, int(quota) / int(period))
  return Share(total, available, cores)


def _memory(base: pathlib.Path) -> tuple[int, int]:
  """Returns the bytes in all and those that can be had without swapping; elsewhere than on Linux all count as free."""
  lines = dict(line.split(':', 1) for line in _text(base / 'proc/meminfo').splitlines() if ':' in line)
  kib = {name: int(value.split()[0]) for name, value in lines.items() if name in ('MemTotal', 'MemAvailable')}
  if 'MemTotal' not in kib:
    total = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    return total, total
  return kib['MemTotal'] << 10, kib.get('MemAvailable', kib['MemTotal']) << 10


def _groups(base: pathlib.Path, controller: str) -> Iterator[tuple[int, pathlib.Path]]:
  """Yields the version and folder of each control group above this process: any of them may set the limit."""
  mounted = base / 'sys/fs/cgroup'
  for line in _text(base / 'proc/self/cgroup').splitlines():
    _, controllers, path = line.split(':', 2)
    if controllers and controller not in controllers.split(','):
      continue
    version, top = (1, mounted / controller) if controllers else (2, mounted)
    group = pathlib.PurePosixPath(path.lstrip('/'))
    for part in (group, *group.parents) if group.parts else (group,):
      yield version, top / part


def _cached(folder: pathlib.Path, version: int) -> int:
  """Returns the bytes that a group would give back at need: file pages that nobody used lately."""
  name = 'inactive_file' if version == 2 else 'total_inactive_file'
  lines = (line.split() for line in _text(folder / 'memory.stat').splitlines())
  return next((int(words[1]) for words in lines if len(words) == 2 and words[0] == name), 0)


def _number(path: pathlib.Path) -> int | None:
  text = _text(path)
  return int(text) if text.isdigit() else None


def _text(path: pathlib.Path) -> str:
  try:
    return path.read_text().strip()
  except OSError:
    return ''


def disk(folder: str | os.PathLike[str]) -> Disk:
  """Returns where `folder` is, or would be made. Nothing is made.

  Raises:
    NotADirectoryError: a file is in its way.
  """
  place = pathlib.Path(os.path.abspath(folder))
  while not os.path.lexists(place):
    place = place.parent
  if not place.is_dir():
    raise NotADirectoryError(f'{place} is not a folder; remove it, or name another')
  return Disk(str(place), shutil.disk_usage(place).free, os.access(place, os.W_OK | os.X_OK))


def archive_writer(workdir: str | os.PathLike[str]) -> str:
  """Returns who is appending to the archive of a workdir, empty where nobody is.

  A writer's note is emptied when it ends. The note of a killed one stays, and only then the lock itself is tried, for a
  moment and shared.
  """
  path = pathlib.Path(workdir, archive.FOLDER, 'writer.lock')
  try:
    note = path.read_bytes()
  except OSError:
    return ''
  if not note.strip():
    return ''
  try:
    owner = json.loads(note)
    who, pid, host = f'process {owner["pid"]} on {owner["host"]}', int(owner['pid']), owner['host']
  except (ValueError, KeyError, TypeError):
    who, pid, host = 'a process that left no name', 0, ''
  with open(path, 'rb') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
      return who
    except OSError:  # a file system without locks: the note is the lock
      gone = host == socket.gethostname() and processes.process(pid) is None
      return '' if gone else who
  return ''
