"""What Mosaic GPU and ptxas say of the kernels they compile: registers, spills, shared memory, matrix products.

A pure reader of text, the one that the environment variables in `gpu_static.DUMPED` have a compilation print.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Iterator


@dataclasses.dataclass(frozen=True)
class Kernel:
  """One kernel: registers of a thread, bytes of its stack and of its spills, and bytes of shared memory of a block.

  `products` counts the wgmma instructions in its code (loops once); `shared_bytes` is None where JAX does not say;
  `digest` is of its PTX, whatever lines of source that came from.
  """

  name: str
  threads: int
  registers: int
  stack_bytes: int
  spill_store_bytes: int
  spill_load_bytes: int
  shared_bytes: int | None
  products: int
  digest: str = ''

  @property
  def spills(self) -> bool:
    return self.spill_store_bytes + self.spill_load_bytes > 0


def kernels(text: str) -> Iterator[Kernel]:
  """Yields the kernels of a dump in the order they were compiled.

  Raises:
    ValueError: a kernel was compiled, and its PTX is not there or ptxas's report of it not in the form known here.
  """
  shared = [int(found) for found in re.findall(r'smem_scratch_bytes=(\d+)', text)]
  codes = dict(_codes(text))
  reports = re.split(r"Compiling entry function '([^']+)' for 'sm_\w+'", text)
  for number, (name, report) in enumerate(zip(reports[1::2], reports[2::2], strict=True)):
    stack = re.search(r'(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads', report)
    used = re.search(r'Used (\d+) registers', report)
    if stack is None or used is None:
      raise ValueError(f'no registers or spills of {name} in what ptxas printed: {report[:300]!r}')
    if (code := codes.get(name)) is None:
      raise ValueError(f'no PTX of {name} in what was printed, which has that of {sorted(codes)}')
    threads = re.search(r'\.(?:max|req)ntid (\d+)', code)
    stack_bytes, stored, loaded = map(int, stack.groups())
    yield Kernel(
      name.removesuffix('_mosaic_gpu_kernel'),
      int(threads[1]) if threads else 0,
      int(used[1]),
      stack_bytes,
      stored,
      loaded,
      shared[number] if len(shared) > number else None,
      code.count('wgmma.mma_async'),
      hashlib.sha256(re.sub(r'(?m)^\s*\.loc\b.*\n', '', code).encode()).hexdigest()[:16],
    )


def _codes(text: str) -> Iterator[tuple[str, str]]:
  """Yields (name, PTX) of each entry."""
  pieces = re.split(r'\.visible \.entry (\w+)\(', text)
  for name, code in zip(pieces[1::2], pieces[2::2], strict=True):
    yield name, code.split('\n}')[0]
