"""Counts what language models take, call by call: into the trace of its cycle, the journal and one sum for the run."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from asiarch_jax.dialogue import Price, Prompt, Reply, spend_of, total
from asiarch_jax.ports import ChatModel, Journal
from asiarch_jax.records import Progress, Spend
from asiarch_jax.shell.exchanges import Traces

TITLES = {'novelty': 'novelty checker'}  # of roles that are no persons


class Ledger:
  """A sum of spends that several threads add to; it begins with what earlier runs of a workdir spent."""

  def __init__(self, before: Spend = Spend()):  # noqa: B008  # frozen
    self._total = before
    self._lock = threading.Lock()

  def add(self, spend: Spend) -> None:
    with self._lock:
      self._total = total([self._total, spend])

  @property
  def total(self) -> Spend:
    return self._total


class Metered:
  """A ChatModel on behalf of one cycle: hands calls on and records each, whatever came of it."""

  def __init__(
    self,
    model: ChatModel,
    cycle: int,
    traces: Traces,
    prices: Mapping[str, Price],
    ledger: Ledger,
    journal: Journal,
    on_progress: Callable[[Progress], None] = lambda progress: None,
  ):
    self._model = model
    self._cycle = cycle
    self._traces = traces
    self._prices = prices
    self._ledger = ledger
    self._journal = journal
    self._on_progress = on_progress
    self._own = Ledger()

  def complete(self, prompt: Prompt, schema: Mapping[str, Any]) -> Reply:
    """Returns the model's reply, recorded. Raises as the model does."""
    self._on_progress(Progress('ask', note=TITLES.get(prompt.role, prompt.role)))
    try:
      reply = self._model.complete(prompt, schema)
    except Exception as error:
      self._journal.write('call_failed', cycle=self._cycle, role=prompt.role, reason=str(error)[:600])
      raise
    spend = spend_of(reply, self._prices)
    self._own.add(spend)
    self._ledger.add(spend)
    self._traces.write(self._cycle, prompt, schema, reply, spend.dollars)
    self._journal.write(
      'call',
      cycle=self._cycle,
      role=prompt.role,
      model=reply.model,
      fault=reply.fault,
      tokens=spend.tokens,
      dollars=spend.dollars,
      seconds=round(reply.seconds, 3),
      attempts=reply.attempts,
    )
    return reply

  def spent(self) -> Spend:
    """Returns what this cycle took so far."""
    return self._own.total
