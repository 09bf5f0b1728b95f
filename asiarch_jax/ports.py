"""What the cycle asks of the world. Adapters stand in `shell`, `agents` and `tests/fakes.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from asiarch_jax.dialogue import Prompt, Reply
from asiarch_jax.records import (
  Analysis,
  Attempt,
  Declined,
  Drawn,
  Entry,
  Finding,
  Job,
  JobResult,
  Judgement,
  Outcome,
  Progress,
  Proposal,
  Selection,
)


class ChatModel(Protocol):
  """Answers one prompt with JSON after a schema."""

  def complete(self, prompt: Prompt, schema: Mapping[str, Any]) -> Reply:
    """Returns the reply; one that cannot be used says so in its `fault`.

    Raises:
      PermissionError, ValueError: what no retry mends (key, model name, request), with the remedy.
    """
    ...


class Neighbours(Protocol):
  """Finds texts that say much the same."""

  def __call__(self, text: str, others: Sequence[str], count: int) -> tuple[int, ...]:
    """Returns the places in `others` of up to `count` texts nearest in meaning to `text`, nearest first."""
    ...


class Researcher(Protocol):
  """Writes proposals. `rng` is numpy's Generator: the only randomness an offline researcher may use."""

  def propose(
    self, selection: Selection, outcomes: Sequence[Outcome], rng: Any, drawn: Sequence[Drawn] = ()
  ) -> Proposal | Declined:
    """Returns a proposal, unlike those in `drawn`, which the same selection gave already; or why there is none."""
    ...

  def repeats(self, proposal: Proposal, outcomes: Sequence[Outcome]) -> str | None:
    """Returns why the proposal is an archived idea once more, None if it is new. Functions were compared before."""
    ...

  def repair(
    self, proposal: Proposal, findings: Sequence[Finding], rng: Any, earlier: Sequence[Attempt] = ()
  ) -> Proposal | None:
    """Returns the proposal mended after what the checks found, or None if it has no answer."""
    ...


class Examiner(Protocol):
  """Asks a trained entry what its training did not measure."""

  def __call__(
    self, entry: Entry, parameters: Mapping[str, Any], on_progress: Callable[[Progress], None] | None = None
  ) -> JobResult:
    """Returns the scores that join the entry's own, or the failure that left none, and the time that it took.

    `parameters` are those of the entry's best replica, by path.
    """
    ...


class Judge(Protocol):
  """Marks a measured entry against the archive; None when it cannot (a missing term, never a default)."""

  def __call__(self, entry: Entry, outcomes: Sequence[Outcome]) -> Judgement | None: ...


class Analyst(Protocol):
  """Compares an entry with parent, siblings and baseline and draws lessons; None when it cannot."""

  def __call__(self, entry: Entry, outcomes: Sequence[Outcome]) -> Analysis | None: ...


class Runner(Protocol):
  """Runs a job in a worker, once: the same key returns the first result."""

  def run(self, job: Job, on_progress: Callable[[Progress], None] | None = None) -> JobResult: ...

  def arrays(self, key: str) -> Mapping[str, Any]:
    """Returns the arrays that the job left (parameters of the best replica by path), read as data, never unpickled."""
    ...


class Archive(Protocol):
  """Append-only outcomes with their arrays; one writer."""

  def append(self, outcome: Outcome, arrays: Mapping[str, Any]) -> None:
    """Stores one outcome atomically.

    Raises:
      FileExistsError: its id is in the archive.
    """
    ...

  def outcomes(self) -> tuple[Outcome, ...]:
    """Returns all that was appended, by id."""
    ...

  def arrays(self, outcome_id: int) -> Mapping[str, Any]:
    """Returns the arrays of one outcome.

    Raises:
      KeyError: no such id.
    """
    ...


class Journal(Protocol):
  """Append-only events of a run, for people and for the report: never read back by the loop."""

  def write(self, event: str, **fields: Any) -> None: ...
