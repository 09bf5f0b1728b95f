"""Where the hosts of one search meet: the leader's side of the links to its followers, and of one attempt at a job."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import importlib.metadata
import os
import pathlib
import re
import socket
import tarfile
import threading
import time
from collections.abc import Callable, Iterator

from asiarch_jax.records import Failure, Job, JobResult, from_json, to_json
from asiarch_jax.shell import hosts, links

AFTERMATH = 5.0  # seconds after one worker ended badly, in which the others' ends arrive and tell why
ENDING = 10.0  # seconds in which a follower ends its worker, until it counts as lost
PORT_SECONDS = 3.0  # that a leader waits for its port
LATE = 60.0  # seconds that a leader without more to do waits for hosts that never came, to tell them so
LOST_EACH_OTHER = 'the workers lost each other'
GONE = 'is gone'  # ends the sentence of a host that was lost
# What a worker says of peers that are gone. A proposal may say it, too: a job is then run again, and no more.
WIRE = re.compile(
  r'gloo|nccl|coordination.?service|distributed runtime|heartbeat|DEADLINE_EXCEEDED|UNAVAILABLE|barrier|'
  r'connection (reset|refused|closed)|socket closed|address already in use|broken pipe',
  re.IGNORECASE,
)

Say = Callable[[str], None]


class StoppedError(RuntimeError):
  """Who waited was told to stop."""


def versions() -> dict[str, str]:
  """Returns what has to be the same on all hosts."""
  return {name: importlib.metadata.version(name) for name in ('asiarch-jax', 'jax', 'jaxlib')}


@dataclasses.dataclass(eq=False)
class Member:
  """A follower that is there, as its leader sees it."""

  host: int
  name: str
  address: str
  link: links.Link
  attempt: Attempt | None = None

  def __str__(self) -> str:
    return f'host {self.host} ({self.name})'


class Hub:
  """Where followers meet their leader; it lives as long as the command.

  Raises:
    OSError: the port is taken.
  """

  def __init__(self, place: hosts.Place, join_seconds: float, say: Say):
    self.place, self._join_seconds, self.say = place, join_seconds, say
    self._members: dict[int, Member] = {}
    self._seen: set[int] = set()
    self._offered: dict[str, pathlib.Path] = {}
    self._changed = threading.Condition()
    self._status: int | None = None
    self.own_address = ''
    self._server = _listening(place.port)
    threading.Thread(target=self._accept, daemon=True, name='followers').start()

  def offer(self, content: str, folder: pathlib.Path | None) -> None:
    """Lets followers fetch a folder by the hash of its content."""
    if content and folder is not None:
      self._offered[content] = folder

  def gathered(self, stopped: threading.Event, on_wait: Say) -> tuple[Member, ...]:
    """Returns all followers, once they are there.

    Raises:
      ConnectionError: one is not there within `runner.join_seconds`; says which.
      StoppedError: the leader was stopped.
    """
    until, told = time.monotonic() + self._join_seconds, False
    with self._changed:
      while missing := self._missing():
        if stopped.is_set():
          raise StoppedError
        if time.monotonic() > until:
          which = ', '.join(map(str, missing))
          raise ConnectionError(
            f'host{"s"[: len(missing) > 1]} {which} of 0 to {self.place.hosts - 1} did not join within '
            f'runner.join_seconds = {self._join_seconds:g}: see whether the same command runs there and reaches '
            f'{self.place.controller}:{self.place.port}; then run this again, what is archived stays'
          )
        if not told:
          told = True
          on_wait(f'waiting for host{"s"[: len(missing) > 1]} {", ".join(map(str, missing))}')
        self._changed.wait(0.2)
      return tuple(self._members[host] for host in sorted(self._members))

  def close(self, status: int) -> None:
    """Tells every follower to end with a status; waits a little for those that were not there yet."""
    until = time.monotonic() + min(LATE, self._join_seconds)
    with self._changed:
      self._status = status
      while status == 0 and len(self._seen) < self.place.hosts - 1 and time.monotonic() < until:
        self._changed.wait(0.2)
      members = list(self._members.values())
    for member in members:
      member.link.send('end', status=status)
    with contextlib.suppress(OSError):
      self._server.shutdown(socket.SHUT_RDWR)  # ends `accept`, which closing alone does not
    self._server.close()

  def _missing(self) -> list[int]:
    return [host for host in range(1, self.place.hosts) if host not in self._members]

  def _accept(self) -> None:
    while True:
      try:
        connection, (address, *_) = self._server.accept()
      except OSError:  # closed
        return
      threading.Thread(target=self._serve, args=(connection, address), daemon=True, name=f'host at {address}').start()

  def _serve(self, connection: socket.socket, address: str) -> None:
    link = links.Link(connection)
    message = link.receive()
    if message is None:
      return
    with contextlib.suppress(ValueError):
      if message['kind'] == 'fetch':
        (content,) = links.fields(message, content=str)
        self._give(link, content)
      elif message['kind'] == 'join':
        member = self._joined(link, hosts.plain(address), message)
        if member is not None:
          self._listen(member)
    link.close()

  def _give(self, link: links.Link, content: str) -> None:
    """Sends a folder as a tar stream."""
    folder = self._offered.get(content)
    link.silent()
    with contextlib.suppress(OSError), link.writer() as file:
      if folder is not None:
        with tarfile.open(fileobj=file, mode='w|') as archive:
          for path in sorted(folder.rglob('*')):
            archive.add(path, arcname=str(path.relative_to(folder)), recursive=False)

  def _joined(self, link: links.Link, address: str, message: links.Message) -> Member | None:
    """Returns a new member, or None where it had to be refused."""
    host, count, name, theirs = links.fields(message, host=int, hosts=int, name=str, versions=dict)
    ours = versions()
    refused = ''
    if count != self.place.hosts or not 0 < host < self.place.hosts:
      refused = f'it is host {host} of {count}, and the first host counts {self.place.hosts}; start all alike'
    elif theirs != ours:
      apart = [f'{key} {theirs.get(key)} instead of {own}' for key, own in ours.items() if theirs.get(key) != own]
      refused = f'it has {", ".join(apart)}; install the same versions on all hosts'
    if refused:
      self.say(f'host {host} ({name}) cannot take part: {refused}')
      link.send('refused', reason=refused, again=False)
      return None
    with self._changed:
      other = self._members.get(host)
      if other is not None and not other.link.closed:
        link.send('refused', reason=f'{other} is there already', again=True)
        return None
      member = self._members[host] = Member(host, name, address, link)
      self._seen.add(host)
      self.own_address = hosts.plain(link.own_address())
      link.send('welcome')
      if self._status is not None:
        link.send('end', status=self._status)
      self._changed.notify_all()
    self.say(f'{member} joined: {len(self._members) + 1} of {self.place.hosts}')
    return member

  def _listen(self, member: Member) -> None:
    while (message := member.link.receive()) is not None:
      if member.attempt is not None:
        member.attempt.heard(member, message)
    with self._changed:
      if self._members.get(member.host) is member:
        del self._members[member.host]
      self._changed.notify_all()
    if member.attempt is not None:
      member.attempt.lose(member)


def _listening(port: int) -> socket.socket:
  """Returns a socket that listens at a port; a leader that has just ended may hold it for a moment.

  Raises:
    OSError: the port stays taken.
  """
  until = time.monotonic() + PORT_SECONDS
  while True:
    try:
      if socket.has_dualstack_ipv6():
        return socket.create_server(('', port), family=socket.AF_INET6, dualstack_ipv6=True)
      return socket.create_server(('', port))
    except OSError as error:
      if error.errno == errno.EADDRINUSE and time.monotonic() < until:
        time.sleep(0.1)
        continue
      raise OSError(
        error.errno, f'the first host cannot listen at port {port}: {error.strerror}; end the other search there, or '
        'set another port, on all hosts, by --config.runner.address=HOST:PORT',
      ) from error  # fmt: skip


class Attempt:
  """One try of a job on all hosts: what the followers said of it. A context manager: leaving it ends their workers."""

  def __init__(self, members: tuple[Member, ...]):
    self.members = members
    self.id = os.urandom(8).hex()
    self.interrupted = threading.Event()
    self.lost = ''  # what was lost of it that is not the proposal's fault
    self.broken = ''  # why a worker could not begin on some host
    self.failure: Failure | None = None  # the first of a follower's worker
    self._ready: set[int] = set()
    self._ended: set[int] = set()
    self._changed = threading.Condition()

  def __enter__(self) -> Attempt:
    for member in self.members:
      member.attempt = self
      if member.link.closed:
        self.lose(member)
    return self

  def __exit__(self, *_: object) -> None:
    for member in self.members:
      member.link.send('stop', attempt=self.id)
    with self._changed:
      self._changed.wait_for(self._over, ENDING)
    for member in self.members:
      member.attempt = None
      if member.host not in self._ended:
        member.link.close()

  def hand_out(self, job: Job, stopped: threading.Event) -> None:
    """Gives the job to the followers and returns when they have it, with its corpus, or the attempt is lost."""
    for member in self.members:
      member.link.send('job', attempt=self.id, job=to_json(job))
    with self._changed:
      while len(self._ready) < len(self.members) and not (self.interrupted.is_set() or stopped.is_set()):
        self._changed.wait(0.2)

  def begin(self, coordinator: str, peers: tuple[str, ...], forbidden: tuple[int, ...]) -> None:
    for member in self.members:
      member.link.send(
        'begin', attempt=self.id, coordinator=coordinator, own=member.address, peers=list(peers),
        forbidden=list(forbidden), process=member.host, processes=len(self.members) + 1,
      )  # fmt: skip

  def heard(self, member: Member, message: links.Message) -> None:
    if message.get('attempt') != self.id:
      return
    with self._changed:
      if message['kind'] == 'ready':
        self._ready.add(member.host)
      elif message['kind'] == 'ended':
        self._ended.add(member.host)
        self._end_of(member, message)
      self._changed.notify_all()

  def lose(self, member: Member) -> None:
    with self._changed:
      self._ended.add(member.host)
      self.lost = self.lost or f'{member} {GONE}'
      self.interrupted.set()
      self._changed.notify_all()

  def spoiled(self, result: JobResult) -> bool:
    """Says whether the first worker's failure may be owed to peers that were lost: waits for what they tell."""
    if result.failure is None:
      return False
    if result.failure.kind in ('error', 'crashed', 'killed'):
      with self._changed:
        self._changed.wait_for(lambda: self._over() or bool(self.lost), AFTERMATH)
    if on_the_wire(result.failure):
      if self.failure is not None and not on_the_wire(self.failure):
        return True  # the peer ended by a fault of its own, which is the job's
      self.lost = self.lost or LOST_EACH_OTHER
    return bool(self.lost or self.broken)

  def _end_of(self, member: Member, message: links.Message) -> None:
    if message.get('broken'):
      self.broken = self.broken or f'on {member}: {message["broken"]}'
      self.interrupted.set()
    elif message.get('outside'):
      failure = from_json(Failure, message['failure'])
      self.failure = self.failure or dataclasses.replace(failure, reason=f'on {member}: {failure.reason}')
      self.lost = self.lost or f'the worker on {member} was ended from outside'
      self.interrupted.set()
    elif message.get('failure') and self.failure is None:
      failure = from_json(Failure, message['failure'])
      self.failure = dataclasses.replace(failure, reason=f'on {member}: {failure.reason}')
      # The first worker has the same fault, or misses this one; either takes it a moment to find out.
      threading.Timer(AFTERMATH, self.interrupted.set).start()

  def _over(self) -> bool:
    return len(self._ended) == len(self.members)


def on_the_wire(failure: Failure) -> bool:
  """Says whether a failure tells of peers that could not be reached.

  >>> on_the_wire(Failure('error', 'XlaRuntimeError: Gloo all-reduce failed')), on_the_wire(Failure('time', 'x'))
  (True, False)
  """
  return failure.kind in ('error', 'crashed', 'killed') and bool(WIRE.search(f'{failure.reason}\n{failure.log}'))


_HUBS: list[Hub] = []


@contextlib.contextmanager
def leading(place: hosts.Place, join_seconds: float, say: Say) -> Iterator[Callable[[int], None]]:
  """Opens the hub that runners of this process use; yields what to call with the command's status."""
  hub = Hub(place, join_seconds, say)
  _HUBS.append(hub)
  status = [1]
  try:
    yield lambda code: status.__setitem__(0, code)
  finally:
    _HUBS.remove(hub)
    hub.close(status[0])


def hub_here() -> Hub | None:
  """Returns the hub of this process, None where it leads nobody."""
  return _HUBS[-1] if _HUBS else None
