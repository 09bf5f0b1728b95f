"""Who may append to an archive: one process at a time, on a disk and in a bucket.

On a local folder the kernel keeps the lock (flock), so a dead writer's is free at once; the file's text only tells
people who holds it. A bucket has no such thing: there the object is the lock, and its holder writes it anew every BEAT
seconds. Who wants it watches for LEASE seconds whether that goes on, so that no two clocks are compared, and takes it
over when it does not: a preempted controller's search is continued on another host. A holder that was taken for dead,
such as one that slept, finds out before it appends.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import threading
import time
import uuid
from typing import Any

from etils import epath

BEAT = 15.0  # seconds between two signs of life of a writer in a bucket
LEASE = 60.0  # without one, until another may take over
READS = 4  # of a note that makes no sense
SETTLE = 2.0  # seconds after which two that took over at once see which of them was last


class WriterLock:
  """Held from its making until `release`.

  Raises:
    BlockingIOError: another process holds it (named).
  """

  def __init__(self, path: epath.Path):
    self._path = path
    self._descriptor: int | None = None
    self._token = uuid.uuid4().hex
    self._thread: threading.Thread | None = None
    self._ended = threading.Event()
    self._lost = ''
    self._beats = 0
    if '://' not in os.fspath(path):
      self._lock_file()
    else:
      self._claim()

  def confirm(self) -> None:
    """Sees that the lock is still held.

    Raises:
      BlockingIOError: another process took it over while this one gave no sign of life.
    """
    if self._descriptor is not None:
      return
    if not self._lost:
      other = _read(self._path)
      self._lost = '' if other.get('token', self._token) == self._token else _who(other)
    if self._lost:
      raise BlockingIOError(
        errno.EAGAIN,
        f'{self._lost} appends to {self._path.parent} now: this process gave no sign of life for {LEASE:.0f} s. '
        'Nothing archived is lost; end one of the two',
      )

  def release(self) -> None:
    if self._descriptor is not None:
      os.ftruncate(self._descriptor, 0)
      os.close(self._descriptor)
      self._descriptor = None
      return
    self._ended.set()
    if self._thread is not None:
      self._thread.join(LEASE)  # a sign of life that is under way would come after the end
    if not self._lost and _read(self._path).get('token') == self._token:
      self._path.unlink(missing_ok=True)

  def _note(self) -> str:
    who = {'pid': os.getpid(), 'host': socket.gethostname(), 'since': time.time()}
    return json.dumps({**who, 'token': self._token, 'beat': f'{self._beats:09d}'})

  def _lock_file(self) -> None:
    import fcntl

    descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
      fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      other = os.read(descriptor, 4096)
      os.close(descriptor)
      if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
        raise _in_use(self._path, _owner(other)) from None
      if error.errno not in (errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK):
        raise
      self._claim()  # a file system without flock
      return
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, self._note().encode(), 0)
    self._descriptor = descriptor

  def _claim(self) -> None:
    """Takes the lock object unless a living writer holds it."""
    if self._path.exists():
      other = _read(self._path)
      gone = other.get('host') == socket.gethostname() and not _alive(int(other.get('pid', 0)))
      if other and not gone and self._beating(other):
        raise _in_use(self._path, other)
    self._path.write_text(self._note())
    time.sleep(SETTLE)
    if (other := _read(self._path)).get('token') != self._token:
      raise _in_use(self._path, other)
    self._thread = threading.Thread(target=self._beat, daemon=True, name='writer of the archive')
    self._thread.start()

  def _beating(self, before: dict[str, Any]) -> bool:
    """Says whether a holder gives a sign of life within LEASE seconds."""
    until = time.monotonic() + LEASE
    while time.monotonic() < until:
      time.sleep(min(BEAT / 3, max(0.0, until - time.monotonic())))
      if not self._path.exists():
        return False
      if _read(self._path) != before:
        return True
    return False

  def _beat(self) -> None:
    while not self._ended.wait(BEAT):
      with contextlib.suppress(OSError):  # a bucket that does not answer: the next beat may be heard
        other = _read(self._path)
        if other.get('token', self._token) != self._token:
          self._lost = _who(other)
          return
        self._beats += 1
        self._path.write_text(self._note())


def _read(path: epath.Path) -> dict[str, Any]:
  """Returns the note of a holder, empty where there is none. One that is written just now may be read torn: again."""
  for _ in range(READS):
    try:
      owner = _owner(path.read_bytes())
    except FileNotFoundError:
      return {}
    if owner:
      return owner
    time.sleep(SETTLE / 4)
  return {}


def _owner(text: bytes) -> dict[str, Any]:
  try:
    owner = json.loads(text)
  except ValueError:
    return {}
  return owner if isinstance(owner, dict) else {}


def _who(owner: dict[str, Any]) -> str:
  return f'process {owner.get("pid", "(unknown)")} on {owner.get("host", "an unknown host")}'


def _in_use(path: epath.Path, owner: dict[str, Any]) -> BlockingIOError:
  return BlockingIOError(
    errno.EAGAIN, f'{_who(owner)} is appending to {path.parent}; wait for it or stop it, or use another workdir'
  )


def _alive(pid: int) -> bool:
  if pid <= 0:
    return False
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  except PermissionError:
    return True
  return True
