"""Syntax trees of source text, one at a time."""

from __future__ import annotations

import ast
import threading

_ONE = threading.Lock()


def parse(source: str | bytes) -> ast.Module:
  """Returns the syntax tree, as `ast.parse`, which may not run in two threads at once.

  CPython counts the depth of trees per interpreter and not per thread: where cycles overlap, one tree that is built
  while another one is ends in "AST constructor recursion depth mismatch" (gh-106905).

  Raises:
    SyntaxError, ValueError, RecursionError, MemoryError: as `ast.parse`.
  """
  with _ONE:
    return ast.parse(source)
