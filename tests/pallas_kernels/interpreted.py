"""The kernels for Hopper GPUs, interpreted on a CPU: `python -m tests.pallas_kernels.interpreted NAME` of a case.

JAX 0.11 and newer have an interpreter of Mosaic GPU with threads, barriers and copies, but without what is special to
products: first factors in registers, swizzles, fences. So products are done by `jnp.dot` here, of the same operands,
and what is checked is the rest: which block reads what, in which order, and every equation. It ends with 1 where an
output or gradient is beyond the tolerance of the device. `--race` also looks for races of warpgroups, in a case whose
chunks shared memory holds all at once (a slot that is filled again when all have read it looks like a race to this
interpreter, which wants a fence between a read and a copy). `--replicas` runs two side by side by `vmap`, which must be
each alone. Two must fail: `--guilty` leaves out one level of a decay a channel; `--without LINE` such a line of
`gpu_channels.py`.
"""

import argparse
import os
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import (
  gpu_channels,
  gpu_gradient,
  gpu_gram,
  gpu_levels,
  gpu_math,
  gpu_reverse,
  gpu_sweep,
  mosaic_gpu,
  specs,
)
from tests.pallas_kernels import draws, mosaic_gpu_test

# One thread a warpgroup of all blocks that run at once, and none of XLA's own: they wait for each other.
ENVIRONMENT = {
  'JAX_PLATFORMS': 'cpu',
  'XLA_FLAGS': '--xla_cpu_multi_thread_eigen=false --xla_force_host_platform_device_count=16',
  'NPROC': '16',
}


def missing():
  """Returns what this JAX lacks, or None."""
  if jax.__version_info__ < (0, 11):
    return f'the interpreter of Mosaic GPU of JAX {jax.__version__} knows no loops over values; 0.11 does'
  try:
    from jax._src.pallas.mosaic_gpu.interpret import gpu_callbacks, params, shared_memory
  except ImportError as lacking:
    return f'JAX {jax.__version__} has no interpreter of Mosaic GPU: {lacking}'
  wanted = [(gpu_callbacks, 'GPURaceDetectionState'), (params, 'force_gpu_interpret_mode'), (shared_memory, 'Barrier')]
  lacking = [name for module, name in wanted if not hasattr(module, name)]
  return f'the interpreter of JAX {jax.__version__} has no {", ".join(lacking)}' if lacking else None


def value(x):
  return x if isinstance(x, jax.Array) else gpu_math.load(x, None)


def product(a, b, meanwhile=None):
  made = jnp.dot(value(a).astype(jnp.float32), value(b).astype(jnp.float32), precision='highest')
  return made if meanwhile is None else (made, meanwhile())


def added_product(sum_, a, b, meanwhile=None):
  made = product(a, b)
  if meanwhile is not None:
    meanwhile()
  return sum_ + made


def summed_products(pairs):
  return sum(product(a, b) for a, b in pairs)


def both_summed(first, second):
  return summed_products(first), summed_products(second)


def both_added(sum_, other, first, second):
  return sum_ + summed_products(first), other + summed_products(second)


def deallocated(barrier):
  """Frees a barrier; the interpreter's own also wants that its last phase was waited for, which a kernel need not."""
  with barrier.cv:
    barrier.ref_count -= 1
    if barrier.ref_count == 0 and barrier.arrivals_count != 0:
      raise ValueError(f'a barrier ends with {barrier.arrivals_count} arrivals')


def races():
  """Returns a list that gets an entry for a race in any kernel; the interpreter tells of the last one's alone."""
  from jax._src.pallas.mosaic_gpu.interpret import gpu_callbacks

  found = []

  class Watched(gpu_callbacks.GPURaceDetectionState):
    def __setattr__(self, name, value):
      if name == 'races_found' and value:
        found.append(True)
      super().__setattr__(name, value)

  gpu_callbacks.GPURaceDetectionState = Watched
  return found


def leave_out(line):
  """Makes `gpu_channels` do nothing where a line of it was."""
  source = pathlib.Path(gpu_channels.__file__).read_text()
  if source.count(line) != 1:
    sys.exit(f'{line!r} stands {source.count(line)} times in {gpu_channels.__file__}, not once')
  exec(compile(source.replace(line, 'pass'), gpu_channels.__file__, 'exec'), vars(gpu_channels))


def patch():
  from jax._src.pallas.mosaic_gpu.interpret import shared_memory

  shared_memory.Barrier.deallocate = deallocated
  mosaic_gpu.on_hopper = lambda: True
  for module in (gpu_math, gpu_gram, gpu_sweep, gpu_reverse, gpu_gradient, gpu_levels, gpu_channels):
    for made in (product, added_product, summed_products, both_summed, both_added):
      if hasattr(module, made.__name__):
        setattr(module, made.__name__, made)


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('name', choices=mosaic_gpu_test.CASES)
  parser.add_argument('--race', action='store_true')
  parser.add_argument('--guilty', action='store_true')
  parser.add_argument('--without')
  parser.add_argument('--replicas', action='store_true')
  options = parser.parse_args()
  if lacking := missing():
    sys.exit(lacking)
  from jax._src.pallas.mosaic_gpu.interpret import params

  if options.without:
    leave_out(options.without)
  patch()
  found = races()
  if options.guilty:
    gpu_levels.LEVELS -= 1
  if options.replicas:
    with params.force_gpu_interpret_mode(params.InterpretGPUParams()):
      apart = mosaic_gpu_test.side_by_side(options.name)
    sys.exit(0 if max(apart.values()) < 1e-5 else f'replicas differ: {apart}')
  given, truth = mosaic_gpu_test.posed(options.name)
  with params.force_gpu_interpret_mode(params.InterpretGPUParams(detect_races=options.race)):
    got = draws.outputs_and_gradients(*given, implementation='mosaic_gpu')
    got = jax.tree.map(np.asarray, got)
  for (path, x), (_, y) in zip(*(jax.tree_util.tree_leaves_with_path(tree) for tree in (got, truth)), strict=True):
    print(f'{path[0].key:<14} {draws.error(x, y):.5f}')
  draws.assert_close(got, truth, specs.BFLOAT16)
  if found:
    sys.exit('warpgroups race')


if __name__ == '__main__':
  if {name: os.environ.get(name) for name in ENVIRONMENT} != ENVIRONMENT:
    os.execve(sys.executable, [sys.executable, '-m', __spec__.name, *sys.argv[1:]], {**os.environ, **ENVIRONMENT})
  main()
