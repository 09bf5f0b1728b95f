"""Families of processes, read from /proc and ended as a whole. Linux only; standard library only.

A family is a process and all below it. It is complete when its root is a subreaper or holds a process namespace: then
a child that forks twice, or starts a session of its own, is still below the root.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import signal
import stat
import time
from collections.abc import Iterable

PAGE_BYTES = os.sysconf('SC_PAGE_SIZE')
BLOCK_BYTES = 512  # unit of st_blocks, whatever the file system


@dataclasses.dataclass(frozen=True)
class Process:
  """One line of /proc: `started` in clock ticks since boot tells two owners of one pid apart."""

  pid: int
  parent: int
  threads: int
  started: int
  state: str


def process(pid: int) -> Process | None:
  """Returns what /proc says of a process, None when it is gone."""
  try:
    text = pathlib.Path(f'/proc/{pid}/stat').read_text(errors='replace')
  except OSError:
    return None
  # The name may hold spaces and brackets: the fields begin after the last one.
  fields = text[text.rfind(')') + 2 :].split()
  return Process(pid, int(fields[1]), int(fields[17]), int(fields[19]), fields[0])


def family(root: int) -> tuple[Process, ...]:
  """Returns the living processes below `root`, without it."""
  everyone = [process(int(name)) for name in os.listdir('/proc') if name.isdigit()]
  children: dict[int, list[Process]] = {}
  for one in everyone:
    if one is not None and one.state not in 'ZX':
      children.setdefault(one.parent, []).append(one)
  found: list[Process] = []
  frontier = [root]
  while frontier:
    below = children.pop(frontier.pop(), [])
    found.extend(below)
    frontier.extend(one.pid for one in below)
  return tuple(found)


def kill_family(root: int, seconds: float = 10.0) -> bool:
  """Kills all below `root`, then `root`; returns whether nothing is left.

  Stopped first, killed second: a process that forks faster than it is killed is held still before it dies. The root is
  last, since what it had to reap would else slip to another parent.
  """
  deadline = time.monotonic() + seconds
  stopped: set[int] = set()
  while time.monotonic() < deadline:
    running = [one for one in family(root) if one.pid not in stopped]
    if not running:
      break
    for one in running:
      _signal(one.pid, signal.SIGSTOP)
      stopped.add(one.pid)
  while (left := family(root)) and time.monotonic() < deadline:
    for one in left:
      _signal(one.pid, signal.SIGKILL)
    time.sleep(0.002)
  _signal(root, signal.SIGKILL)
  return not left


def kill_remembered(everyone: Iterable[Process]) -> None:
  """Kills those of an earlier look that still live, and what is below them now."""
  for one in everyone:
    now = process(one.pid)
    if now is not None and now.started == one.started and now.state not in 'ZX':
      kill_family(one.pid)


def _signal(pid: int, number: int) -> None:
  # Gone meanwhile, or a setuid program of another user: the caller sees it in what is left.
  with contextlib.suppress(ProcessLookupError, PermissionError):
    os.kill(pid, number)


def resident_bytes(pids: Iterable[int]) -> int:
  """Returns the memory that processes hold in RAM, shared pages counted for each."""
  total = 0
  for pid in pids:
    try:
      total += int(pathlib.Path(f'/proc/{pid}/statm').read_text().split()[1]) * PAGE_BYTES
    except (OSError, IndexError):
      continue
  return total


def nameless_bytes(pids: Iterable[int]) -> int:
  """Returns the size of files that processes hold open and that have no name: deleted ones and memory files."""
  seen: dict[tuple[int, int], int] = {}
  for pid in pids:
    try:
      names = os.listdir(f'/proc/{pid}/fd')
    except OSError:
      continue
    for name in names:
      try:
        status = os.stat(f'/proc/{pid}/fd/{name}')
      except OSError:
        continue
      if status.st_nlink == 0 and stat.S_ISREG(status.st_mode):
        seen[status.st_dev, status.st_ino] = status.st_blocks * BLOCK_BYTES
  return sum(seen.values())


def tree_bytes(folder: str | os.PathLike[str], entries: int) -> int | None:
  """Returns the disk space below `folder`, links not followed; None where it cannot be known: more than `entries` files
  and folders, nested so deep that no path names the leaves, or a folder that is locked to us."""
  total = count = 0
  frontier = [os.fspath(folder)]
  while frontier:
    try:
      with os.scandir(frontier.pop()) as listing:
        for entry in listing:
          count += 1
          if count > entries or len(entry.path) > 3000:
            return None
          with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # this one went away; the others count
            total += entry.stat(follow_symlinks=False).st_blocks * BLOCK_BYTES
            if entry.is_dir(follow_symlinks=False):
              frontier.append(entry.path)
    except PermissionError:
      return None
    except OSError:
      continue  # it went away: the next look sees what is there then
  return total
