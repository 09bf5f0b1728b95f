"""What the GPU kernels compiled to when they last ran on a device: digests of their PTX, in ran.json.

A kernel that a call gets without naming it has run on a device, and is still what ran: `gpu_static_test.py` compares,
so that a change of such a kernel's code fails there until `mosaic_gpu.not_run` names it or it has run again. Not
compared are the grid, and what XLA does around the kernels.

With a device: take the kind that is to be chosen out of `mosaic_gpu.not_run`, and commit; run
`python -m pallas_kernels.bench --gpu` there; where its parity suite passed, write the file anew, under the JAX that it
ran with, by

    python -m tests.pallas_kernels.ran --device 'NVIDIA H200' --date 2026-11-26

and say so in README.md, docs/LOG.md and the docstring of `delta_rule`.
"""

import argparse
import itertools
import json
import pathlib
import subprocess
import sys
import types

import jax

from pallas_kernels import gpu_static, mosaic_gpu

ROOT = pathlib.Path(__file__).parents[2]
PATH = pathlib.Path(__file__).with_name('ran.json')
TWO_TILES = [
  *(('none', 'plain'), ('scalar', 'plain'), ('scalar', 'grouped'), ('scalar', 'packed')),
  *(('channel', 'plain'), ('channel', 'packed'), ('channel', 'grouped_packed')),
]
CASES = [
  *(
    gpu_static.Case(decay, form, True, K=K, V=V)
    for decay, form in itertools.product(gpu_static.DECAYS, gpu_static.FORMS)
    for K, V in gpu_static.pairs(form)
  ),
  # With many heads, a block takes two tiles of V.
  *(gpu_static.Case(decay, form, True, B=64) for decay, form in TWO_TILES),
  gpu_static.Case('channel', 'packed', True, B=64, K=256, V=256),
  # Where nothing is kept for a backward pass, the forward kernels are others.
  *(
    gpu_static.Case(decay, form, K=size, V=size)
    for decay, form, size in itertools.product(gpu_static.DECAYS, ('plain', 'packed'), (128, 256))
  ),
]


def chosen(case):
  """Returns whether a call like this gets the kernels without naming them."""
  H = case.HV // 4 if 'grouped' in case.form else case.HV
  call = types.SimpleNamespace(decay=case.decay, H=H, HV=case.HV, K=case.K, V=case.V)
  return mosaic_gpu.not_run(call) is None


def digests(kernels):
  """Returns {name: digest of its PTX, and bytes of shared memory} of compiled kernels.

  Raises:
    ValueError: two have one name.
  """
  found = {kernel.name: f'{kernel.digest} {kernel.shared_bytes}' for kernel in kernels}
  if len(found) < len(kernels):
    raise ValueError(f'two kernels of one name: {[kernel.name for kernel in kernels]}')
  return found


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--device', required=True, help='as `nvidia-smi` names it')
  parser.add_argument('--date', required=True, help='of the run')
  options = parser.parse_args()
  commit, changed = (
    subprocess.run(['git', *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    for words in (['rev-parse', '--short', 'HEAD'], ['status', '--porcelain', 'pallas_kernels'])
  )
  if changed:
    sys.exit(f'what ran is a commit, and these files differ from {commit}: {changed}')
  made = {}
  for case in filter(chosen, CASES):
    made[case.name] = digests(gpu_static.case_kernels(case))
    print(case.name, flush=True)
  known = {'jax': jax.__version__, 'device': options.device, 'date': options.date, 'commit': commit, 'cases': made}
  PATH.write_text(json.dumps(known, indent=2) + '\n')


if __name__ == '__main__':
  main()
