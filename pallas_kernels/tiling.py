"""Tile choice from shapes: pure. The figures behind it come from tests/benchmarks/xla_delta_rule.py."""

from __future__ import annotations


def chunk_size(T: int, K: int, V: int) -> int:
  """Returns the chunk of the XLA form for T tokens with K x V states: a power of two, never twice T or more.

  Work inside chunks grows with the chunk, work on states and their number shrink with it, so they balance near the
  size of a head. Measured on two CPU cores, forward with backward, with decay and without: 32 is fastest at
  K = V = 32 (16 costs 20 % more, 64 from 15 % to 40 %), 64 at K = V = 64 and 128 (32 costs 40 % and 50 % more).
  """
  chunk = 32 if max(K, V) < 64 else 64
  while chunk >= 2 * T and chunk > 1:
    chunk //= 2
  return chunk
