"""A researcher whose one proposal is given: baselines and human files go through the same line as any other."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Sequence
from typing import Any

from asiarch_jax import syntax
from asiarch_jax.records import Drawn, Finding, Outcome, Proposal, Selection


@dataclasses.dataclass(frozen=True)
class Given:
  """Proposes `proposal`, whatever the selection, and repairs nothing."""

  proposal: Proposal

  def propose(
    self, selection: Selection, outcomes: Sequence[Outcome], rng: Any, drawn: Sequence[Drawn] = ()
  ) -> Proposal:
    return self.proposal

  def repeats(self, proposal: Proposal, outcomes: Sequence[Outcome]) -> str | None:
    return None

  def repair(
    self, proposal: Proposal, findings: Sequence[Finding], rng: Any, earlier: Sequence[Any] = ()
  ) -> Proposal | None:
    return None


def from_source(name: str, source: str, author: str) -> Proposal:
  """Returns a file's text as a proposal; its module docstring is the motivation."""
  try:
    motivation = ast.get_docstring(syntax.parse(source)) or ''
  except (SyntaxError, ValueError, RecursionError, MemoryError):
    motivation = ''  # the source check will say what is wrong
  return Proposal(name=name, motivation=motivation, source=source, author=author)
