"""What the GPU kernels compiled to when they last ran on a device: digests of their PTX, in ran.json.

A kernel that a call gets without naming it has run on a device, and is still what ran: `gpu_static_test.py` compares,
so that a change of such a kernel's code fails there until `mosaic_gpu.not_run` names it or it has run again. After the
suite has passed on a device, `python -m tests.pallas_kernels.ran DEVICE` writes the file anew: in a checkout of the
commit that ran, under the JAX that it ran with.
"""

import argparse
import datetime
import itertools
import json
import pathlib
import types

import jax

from pallas_kernels import gpu_static, mosaic_gpu

PATH = pathlib.Path(__file__).with_name('ran.json')
CASES = [
  *(
    gpu_static.Case(decay, form, True, K=K, V=V)
    for decay, form in itertools.product(gpu_static.DECAYS, gpu_static.FORMS)
    for K, V in gpu_static.pairs(form)
  ),
  # With many heads, a block takes two tiles of V.
  *(gpu_static.Case(decay, 'packed', True, B=64) for decay in ('scalar', 'channel')),
]


def chosen(case):
  """Returns whether a call like this gets the kernels without naming them."""
  H = case.HV // 4 if case.form == 'grouped' else case.HV
  call = types.SimpleNamespace(decay=case.decay, H=H, HV=case.HV, K=case.K, V=case.V)
  return mosaic_gpu.not_run(call) is None


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('device', help='as `nvidia-smi` names it')
  options = parser.parse_args()
  made = {}
  for case in filter(chosen, CASES):
    made[case.name] = {kernel.name: kernel.digest for kernel in gpu_static.case_kernels(case)}
    print(case.name, flush=True)
  known = {'jax': jax.__version__, 'device': options.device, 'date': datetime.date.today().isoformat(), 'cases': made}
  PATH.write_text(json.dumps(known, indent=2) + '\n')


if __name__ == '__main__':
  main()
