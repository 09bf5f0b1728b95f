"""Messages between the hosts of one search: JSON lines over TCP, with signs of life.

A link is one connection. Either side says something at least every BEAT seconds, so that a host whose power failed, and
which closes no connection, is missed after SILENCE seconds. Nothing is encrypted and nobody proves who they are, as in
JAX's own coordination service: the network between the hosts is trusted, and jailed workers cannot reach the port.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Mapping
from typing import Any, BinaryIO

BEAT = 3.0  # seconds between two signs of life
SILENCE = 15.0  # seconds without one, until the other side counts as gone
MESSAGE_BYTES = 64 << 20  # a job with its source and the losses of its baseline

Message = dict[str, Any]


class Link:
  """One side of a connection. Messages may be sent by any thread; one receives."""

  def __init__(self, connection: socket.socket):
    self._connection = connection
    self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    self._connection.settimeout(SILENCE)
    self._file: BinaryIO = connection.makefile('rb')
    self._sending = threading.Lock()
    self._over = threading.Event()
    threading.Thread(target=self._beat, daemon=True, name='signs of life').start()

  def send(self, kind: str, **fields: Any) -> bool:
    """Sends a message; returns whether it could be handed to the network."""
    line = json.dumps({'kind': kind, **fields}).encode() + b'\n'
    try:
      with self._sending:
        self._connection.sendall(line)
      return True
    except OSError:
      self.close()
      return False

  def receive(self) -> Message | None:
    """Returns the next message, None when the other side is gone, silent, or speaks another language."""
    while not self._over.is_set():
      try:
        line = self._file.readline(MESSAGE_BYTES)
        message = json.loads(line)
      except (OSError, ValueError):
        break
      if not isinstance(message, dict) or not isinstance(message.get('kind'), str):
        break
      if message['kind'] != 'alive':
        return message
    self.close()
    return None

  def silent(self) -> None:
    """Gives no more signs of life: what follows on this connection is a stream of bytes."""
    self._over.set()

  def reader(self) -> BinaryIO:
    return self._file

  def writer(self) -> BinaryIO:
    return self._connection.makefile('wb')

  def own_address(self) -> str:
    return str(self._connection.getsockname()[0])

  def close(self) -> None:
    self._over.set()
    with contextlib.suppress(OSError):
      self._connection.shutdown(socket.SHUT_RDWR)
    self._connection.close()

  @property
  def closed(self) -> bool:
    return self._over.is_set()

  def _beat(self) -> None:
    while not self._over.wait(BEAT):
      self.send('alive')


def fields(message: Mapping[str, Any], **kinds: type) -> tuple[Any, ...]:
  """Returns the fields of a message that are named, each of the type that is named.

  Raises:
    ValueError: one is missing or of another type.
  """
  for name, kind in kinds.items():
    if not isinstance(message.get(name), kind):
      raise ValueError(f'the message {message.get("kind")!r} has {name} = {message.get(name)!r}, not {kind.__name__}')
  return tuple(message[name] for name in kinds)
