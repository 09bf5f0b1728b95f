"""Which accelerators a worker gets where several run on one host: the variables by which each platform pins a process.

Sources: NVIDIA's CUDA_VISIBLE_DEVICES; AMD's ROCR_VISIBLE_DEVICES; Cloud TPU's TPU_VISIBLE_CHIPS (older runtimes read
TPU_VISIBLE_DEVICES) with the bounds of the process's own grid.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

GRIDS = {1: '1,1,1', 2: '1,2,1', 4: '2,2,1', 8: '2,4,1'}  # chips of one process, as they lie on a host's board
FILES = {  # device files that are one accelerator each
  'gpu': re.compile(r'/dev/nvidia(\d+)$'),
  'rocm': re.compile(r'/dev/dri/renderD(\d+)$'),
  'tpu': re.compile(r'/dev/(?:accel|vfio/)(\d+)$'),
}
VISIBLE = {
  'gpu': ('CUDA_VISIBLE_DEVICES',),
  'rocm': ('ROCR_VISIBLE_DEVICES',),
  'tpu': ('TPU_VISIBLE_CHIPS', 'TPU_VISIBLE_DEVICES'),
}


def groups(
  workers: int, devices: int, files: Sequence[str], environment: Mapping[str, str]
) -> tuple[dict[str, str], ...]:
  """Returns the variables of each of `workers` workers, who get `devices` accelerators each; nothing where that is 0.

  `files` are the accelerators' device files. Where the environment shows only some of them to this process, these are
  shared out.

  Raises:
    ValueError: there are fewer than are needed, or chips that cannot form the grid of one process.
  """
  if not devices:
    return tuple({} for _ in range(workers))
  kind = next((kind for kind, pattern in FILES.items() if any(map(pattern.search, files))), None)
  if kind is None:
    raise ValueError(
      f'runner.devices = {devices}, and there is no accelerator on this host; set runner.devices=0 '
      '(runner.host_devices forces devices on a CPU)'
    )
  here = sorted({int(found[1]) for file in files if (found := FILES[kind].search(file))})
  places = [str(place) for place in range(len(here))]
  shown = next((environment[name] for name in VISIBLE[kind] if environment.get(name)), '')
  if shown:
    places = [one.strip() for one in shown.split(',') if one.strip()]
  if workers * devices > len(places):
    raise ValueError(
      f'runner.workers = {workers} with runner.devices = {devices} need {workers * devices} accelerators; this host '
      f'shows {len(places)}. Lower one of them'
    )
  if kind == 'tpu' and devices not in GRIDS:
    raise ValueError(f'runner.devices = {devices} chips form no grid of one process; use {", ".join(map(str, GRIDS))}')
  return tuple(_variables(kind, places[worker * devices : (worker + 1) * devices]) for worker in range(workers))


def _variables(kind: str, places: Sequence[str]) -> dict[str, str]:
  variables = dict.fromkeys(VISIBLE[kind], ','.join(places))
  if kind == 'tpu':
    variables |= {'TPU_CHIPS_PER_PROCESS_BOUNDS': GRIDS[len(places)], 'TPU_PROCESS_BOUNDS': '1,1,1'}
  return variables
