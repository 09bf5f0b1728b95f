"""A model that outlasts its provider's outages: the run pauses, says so, and goes on where it stopped."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from asiarch_jax.dialogue import Prompt, Reply
from asiarch_jax.shell.calls import Unavailable
from asiarch_jax.shell.llm import Closable

LONGEST_PAUSE = 3600.0  # seconds

T = TypeVar('T')


class Patient:
  """Asks `model` until it answers: a call that failed for good pauses the run for `pause` seconds, then longer.

  Threads share the pause: one of them asks again after each, the others wait for it. `say` is given a line at each
  pause and one when the run goes on. `pause` 0 lets the failure out instead. Without `sleep` a pause ends when the
  model is closed.
  """

  def __init__(
    self,
    model: Closable,
    pause: float,
    say: Callable[[str], None],
    *,
    sleep: Callable[[float], object] | None = None,
    clock: Callable[[], float] = time.monotonic,
  ):
    self._model, self._pause, self._say, self._clock = model, pause, say, clock
    self._closed = threading.Event()
    self._sleep = sleep or self._closed.wait
    self._changed = threading.Condition()
    self._paused = False
    self._recoveries = 0  # times that a pause has ended

  def complete(self, prompt: Prompt, schema: Mapping[str, Any]) -> Reply:
    return self.ask(lambda: self._model.complete(prompt, schema))

  def ask(self, call: Callable[[], T]) -> T:
    """Returns what `call` returns, asked again after a pause as often as it raises `Unavailable`.

    Raises:
      Unavailable: `pause` is 0, or the model was closed meanwhile.
    """
    while True:
      with self._changed:
        self._changed.wait_for(lambda: not self._paused or self._closed.is_set())
        recoveries = self._recoveries
      try:
        return call()
      except Unavailable as error:
        if not self._pause or self._closed.is_set():
          raise
        failure = error
      if self._pauses(recoveries):
        return self._answer_after_pauses(call, failure)

  def close(self) -> None:
    """Ends pauses, then the model."""
    self._closed.set()
    with self._changed:
      self._changed.notify_all()
    self._model.close()

  def _pauses(self, recoveries: int) -> bool:
    """Says whether this thread is the one that pauses the run; not if one does, or did since the call began."""
    with self._changed:
      if self._paused or self._recoveries != recoveries:
        return False
      self._paused = True
      return True

  def _answer_after_pauses(self, call: Callable[[], T], failure: Unavailable) -> T:
    began, pause = self._clock(), min(self._pause, LONGEST_PAUSE)
    try:
      while True:
        self._say(f'{failure}; the run pauses {pause:,.0f} s and then asks again (Ctrl-C stops it; nothing is lost)')
        self._sleep(pause)
        if self._closed.is_set():
          raise failure
        try:
          answer = call()
        except Unavailable as error:
          failure, pause = error, min(2 * pause, LONGEST_PAUSE)
          continue
        self._say(f'the model answers again; the run goes on after {self._clock() - began:,.0f} s')
        return answer
    finally:
      with self._changed:
        self._paused = False
        self._recoveries += 1
        self._changed.notify_all()
