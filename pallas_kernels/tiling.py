"""Tile choice from shapes: pure. The figures behind it come from tests/benchmarks/xla_delta_rule.py."""

from __future__ import annotations

CHUNKS = (16, 32, 64, 128, 256)


def chunk_size(T: int, K: int, V: int, *, channel_decay: bool) -> int:
  """Returns the chunk of the XLA form for T tokens with K x V states: a power of two, never far above T."""
  wanted = 32
  while wanted >= 2 * T and wanted > 1:
    wanted //= 2
  return wanted
