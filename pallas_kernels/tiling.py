"""Tile choice from shapes: pure. The figures behind it come from tests/benchmarks/xla_delta_rule.py, and for TPU from
`python -m pallas_kernels.bench --static`."""

from __future__ import annotations

import dataclasses

TPU_LANES = 128
TPU_CHANNELS = (32, 64, 128, 256)  # sizes of a head that the TPU kernels know; others are padded to the next
TPU_CHUNKS = (64, 128)
TPU_SMALL_VMEM = 16 * 2**20  # bytes, of v4: the gradients of a decay per channel fit it in chunks of 64 only

GPU_CHANNELS = (64, 128, 256)  # sizes of a head that the kernels for Hopper know
GPU_CORES = 132  # of an H100 or H200 as servers have them


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


def block_entries(platform: str) -> int:
  """Returns how many of B x HV x tokens x max(K, V) a block of the XLA form holds, or one chunk where that holds more.

  What a processor's cache likes; a GPU likes large products and few of them, so there only memory sets a bound.
  """
  return 2**26 if platform == 'gpu' else 2**14


@dataclasses.dataclass(frozen=True)
class TpuTiles:
  """What one grid step of a TPU kernel does: `heads` value heads by `chunk` tokens, of heads padded to K and V."""

  chunk: int
  heads: int
  K: int
  V: int


def tpu_chunk(T: int, most: int = TPU_CHUNKS[-1]) -> int:
  """Returns the chunk of the TPU kernels for T tokens, where VMEM holds chunks of `most`."""
  return min(most, next((chunk for chunk in TPU_CHUNKS if chunk >= T), TPU_CHUNKS[-1]))


def tpu_tiles(H: int, HV: int, K: int, V: int, chunk: int, most: int = 8) -> TpuTiles:
  """Returns the tiles for chunks of H key and HV value heads, K by V; `most` heads are done in one step.

  Heads of a step are whole groups or part of one, and their lanes fill whole registers (or are all there are).
  """
  K, V = (next(size for size in TPU_CHANNELS if size >= channels) for channels in (K, V))
  heads = _heads(H, HV, K, V, most)
  if not heads:
    K, V = (max(size, TPU_LANES) for size in (K, V))
    heads = _heads(H, HV, K, V, most)
  return TpuTiles(chunk, max(heads), K, V)


def tpu_most_heads(K: int, V: int, exact: bool) -> int:
  """Returns how many heads of a step fit the 16 MiB of VMEM that a kernel has on v4 and by default elsewhere.

  Eight are fastest (they fill each other's latency) and fit at K = V = 128 with bfloat16 products; the values between
  stages grow with K V, and twice where products are of float32.
  """
  size = max(K, TPU_LANES) * max(V, TPU_LANES) * (2 if exact else 1)
  return max(1, 8 * TPU_LANES**2 // size)


def _heads(H: int, HV: int, K: int, V: int, most: int) -> list[int]:
  """Returns the numbers of value heads, up to `most`, that a step can do."""
  group = HV // H

  def fits(heads):
    keys = max(heads // group, 1)
    whole = heads % group == 0 or group % heads == 0
    return (
      whole
      and HV % heads == 0
      and all(n * size % TPU_LANES == 0 or n == every for n, size, every in ((keys, K, H), (heads, V, HV)))
    )

  return [heads for heads in range(1, most + 1) if fits(heads)]


def gpu_channels(K: int, V: int) -> tuple[int, int]:
  """Returns the sizes that heads are padded to for Hopper: beside 256 the other is at least 128."""
  K, V = (next(known for known in GPU_CHANNELS if known >= size) for size in (K, V))
  return (max(K, 128), max(V, 128)) if max(K, V) > 128 else (K, V)


def gpu_tiles(heads: int, K: int, V: int) -> int:
  """Returns how many tiles of 64 columns of V one block of the sweep takes, for `heads` heads of all rows together.

  One, where that leaves no block waiting for a core; else as many as there are, which share the operands they read. A
  tile of K = 256 has the registers of a block for itself, and with V = 256 two tiles have not run on a device.
  Measured on an H200 with 64 heads of 128, forward: 61 us with one, 86 us with two.
  """
  tiles = V // 64
  return 1 if max(K, V) > 128 or heads * tiles <= GPU_CORES else tiles
