"""One rule for every provider: which failed attempts are asked again, after how long, and what a failed call says.

An SDK's exceptions become a `Refusal`; `Calls` runs attempts on an event loop in a thread of its own, so that a call
may come from any thread, ends with Ctrl-C at once, and no attempt outlives `llm.timeout`.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import datetime
import email.utils
import importlib
import json
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, TypeVar

from asiarch_jax import config
from asiarch_jax.dialogue import RefusedError

LONGEST_BACKOFF = 120.0  # seconds between attempts, unless the provider asks for more
LONGEST_WAIT = 3600.0  # seconds that one call waits for a provider that asks for them; for longer it fails

T = TypeVar('T')


class Unavailable(Exception):  # noqa: N818  # what the provider is, and no fault of the program
  """A call failed for good after all its attempts: rate limits, server errors, time-outs, dropped connections."""


@dataclasses.dataclass(frozen=True)
class Refusal:
  """An attempt that failed, in the terms of every provider. `status` is HTTP's, 0 where no whole answer came."""

  status: int
  message: str
  wait: float = 0.0  # seconds that the provider asks for before the next attempt
  lasting: bool = False  # no attempt of this hour will do: the quota of the day, an account without money
  denied: bool = False  # the key is bad, whatever the status


class Calls:
  """Runs calls of an asynchronous SDK from any thread, with attempts, waits and time-outs by `config.Llm`."""

  def __init__(
    self,
    llm: config.Llm,
    key_remedy: str,
    errors: Mapping[type[Exception], Callable[[Any], Refusal]],
    secrets: Callable[[], Iterable[str]],
    sleep: Callable[[float], object] | None,
    jitter: Callable[[], float],
  ):
    """`errors` says what each exception of the SDK means; a subclass stands before its base."""
    self._llm, self._key_remedy, self._errors, self._secrets = llm, key_remedy, errors, secrets
    self._closed = threading.Event()
    self._sleep = sleep or self._closed.wait
    self._jitter = jitter
    self._lock = threading.Lock()
    self._loop = asyncio.new_event_loop()
    self._thread = threading.Thread(target=self._loop.run_forever, name=f'{llm.provider} calls', daemon=True)
    self._thread.start()

  def answer(self, call: Callable[[], Awaitable[T]], model: str, setting: str) -> tuple[T, int, float]:
    """Returns what `call` gives, the number of attempts and the seconds of all of them with the waits between.

    `setting` is the remedy where the provider does not know the model.

    Raises:
      Unavailable: no attempt was answered.
      PermissionError: the key is refused.
      ValueError: the request is.
      RuntimeError: `close` was called meanwhile.
    """
    began, attempt = time.monotonic(), 0
    while True:
      attempt += 1
      answer = self._attempt(call)
      if not isinstance(answer, Refusal):
        return answer, attempt, time.monotonic() - began
      failure = self._failure(answer, attempt, model, setting)
      if failure:
        raise failure
      backoff = self._llm.backoff * 2.0 ** (attempt - 1) * (0.5 + self._jitter())
      self._sleep(max(answer.wait, min(backoff, LONGEST_BACKOFF)))

  def close(self, end: Callable[[], Awaitable[object]]) -> None:
    """Ends calls in flight, then the connections by `end`, then the thread."""
    with self._lock:
      if self._closed.is_set():
        return
      self._closed.set()
      ended = asyncio.run_coroutine_threadsafe(self._ended(end), self._loop)
    concurrent.futures.wait([ended], timeout=5)
    self._loop.call_soon_threadsafe(self._loop.stop)
    self._thread.join(timeout=5)
    if not self._thread.is_alive():
      self._loop.close()

  def _attempt(self, call: Callable[[], Awaitable[T]]) -> T | Refusal:
    with self._lock:
      if self._closed.is_set():
        raise RuntimeError(f'{self._llm.provider}: the model is closed')
      future = asyncio.run_coroutine_threadsafe(self._bounded(call), self._loop)
    try:
      return future.result()
    except concurrent.futures.CancelledError:
      raise RuntimeError(f'{self._llm.provider}: the model was closed before it answered') from None
    finally:
      future.cancel()  # does nothing to one that is done: this is for Ctrl-C

  async def _bounded(self, call: Callable[[], Awaitable[T]]) -> T | Refusal:
    try:
      return await asyncio.wait_for(call(), self._llm.timeout)
    except TimeoutError:
      return Refusal(0, f'no answer within {self._llm.timeout:g} s')
    except tuple(self._errors) as error:
      return next(meaning for kind, meaning in self._errors.items() if isinstance(error, kind))(error)

  async def _ended(self, end: Callable[[], Awaitable[object]]) -> None:
    calls = asyncio.all_tasks() - {asyncio.current_task()}
    for call in calls:
      call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    await end()

  def _failure(self, refusal: Refusal, attempt: int, model: str, setting: str) -> Exception | None:
    """Returns what a refusal ends the call with, None if it is worth another attempt."""
    status = f'{refusal.status} ' if refusal.status else ''
    said = ' '.join(redacted(refusal.message, self._secrets()).split())[:600].rstrip('.')  # a cut key is one still
    what = f'{self._llm.provider} {model}: {status}{said}'
    if refusal.denied or refusal.status in (401, 403):
      return PermissionError(f'{what}; {self._key_remedy}')
    if refusal.status == 404:
      base_url = f', or check llm.base_url = {self._llm.base_url!r}' if self._llm.base_url else ''
      return ValueError(f'{what}; {setting}{base_url}')
    attempts = f'after {attempt} attempt{"s"[: attempt != 1]}'
    if refusal.lasting:
      return Unavailable(f'{what} {attempts} (asking again soon does not help)')
    if refusal.status and refusal.status not in (408, 409, 429) and refusal.status < 500:
      return RefusedError(f'{what}; the request was refused, so change its settings in llm')
    if refusal.wait > LONGEST_WAIT:
      return Unavailable(f'{what} {attempts} (it asks to wait {refusal.wait:,.0f} s)')
    if attempt >= self._llm.attempts:
      return Unavailable(f'{what} {attempts}')
    return None


def redacted(text: str, secrets: Iterable[str]) -> str:
  """Returns a text without the secrets in it.

  >>> redacted('the key AIza-12345678 is not valid', ['AIza-12345678'])
  'the key [key] is not valid'
  """
  for secret in sorted(secrets, key=len, reverse=True):
    text = text.replace(secret, '[key]')
  return text


def seconds_asked(retry_after: str, now: float) -> float:
  """Returns the seconds that a Retry-After header asks for: a number, or a date of HTTP; 0 where it is neither.

  >>> seconds_asked('7', now=0.0), seconds_asked('Thu, 01 Jan 1970 00:01:30 GMT', now=60.0), seconds_asked('soon', 0.0)
  (7.0, 30.0, 0.0)
  """
  with contextlib.suppress(ValueError):
    return max(0.0, float(retry_after))
  with contextlib.suppress(ValueError):
    date = email.utils.parsedate_to_datetime(retry_after)
    return max(0.0, (date if date.tzinfo else date.replace(tzinfo=datetime.UTC)).timestamp() - now)
  return 0.0


def errors_of_transport() -> dict[type[Exception], Callable[[Any], Refusal]]:
  """Returns the errors of whichever HTTP client an SDK found, and those of answers that are not of its protocol."""
  found: dict[type[Exception], Callable[[Any], Refusal]] = {}
  for module, name, meaning in (
    ('httpx2', 'RequestError', dropped),
    ('httpx', 'RequestError', dropped),
    ('aiohttp', 'ClientError', dropped),
    ('pydantic', 'ValidationError', malformed),
  ):
    with contextlib.suppress(ImportError):
      found[getattr(importlib.import_module(module), name)] = meaning
  return found | {
    json.JSONDecodeError: malformed,
    AttributeError: malformed,  # both SDKs take any JSON for an answer, and OpenAI's any page
    TypeError: malformed,
    OSError: dropped,
    ValueError: lambda error: Refusal(400, str(error)),  # the SDK's own checks of a request
  }


def dropped(error: Exception) -> Refusal:
  return Refusal(0, f'{type(error).__name__}: {error}' if str(error) else type(error).__name__)


def malformed(error: Exception) -> Refusal:
  return Refusal(0, f'the answer is not of the protocol ({error})')


def asked_by_headers(error: Any) -> float:
  headers = getattr(error.response, 'headers', None) or {}
  return seconds_asked(headers.get('retry-after') or '', time.time())
