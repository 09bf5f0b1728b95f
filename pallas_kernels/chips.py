"""TPUs by generation: the figures that their vendor publishes, and what compiling for one that is not here takes."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
  """A generation. A device is a chip, but for v4 and TPU7x, which show each of a chip's cores as one."""

  topology: str  # the smallest that can be compiled for
  clock_ghz: float  # that the peak implies
  hbm_gb_s: float  # of one core
  cores: int  # of a device, that a grid's parallel axes are split over
  peak_flops: float  # of a device, dense bfloat16, a second
  memory_gib: int  # of a device


CHIPS = {
  'v4': Chip('v4:2x2x1', 1.05, 614, 1, 137.5e12, 32),
  'v5e': Chip('v5e:2x2', 1.5, 819, 1, 197e12, 16),
  'v5p': Chip('v5p:2x2x1', 1.75, 1383, 2, 459e12, 95),
  'v6e': Chip('v6e:2x2', 1.75, 1640, 1, 918e12, 32),
  'tpu7x': Chip('tpu7x:2x2x1', 2.2, 3690, 1, 1153.5e12, 96),
}

# Without these a second process that loads libtpu stops at a lock, and the first asks the cloud which machine it is on.
AOT_ENVIRONMENT = {
  'JAX_PLATFORMS': 'cpu',
  'TPU_SKIP_MDS_QUERY': '1',
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'TPU_ACCELERATOR_TYPE': 'v6e-4',
}
