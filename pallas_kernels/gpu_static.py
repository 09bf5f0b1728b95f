"""What NVIDIA's own compiler makes of the GPU kernels, without a GPU: `python -m pallas_kernels.bench --gpu-static`.

Each case is compiled ahead of time for an H100 (sm_90a) in a process of its own, which prints what Mosaic GPU and ptxas
say. Printed for each kernel: registers of a thread, bytes of spills and stack, shared memory of a block, how many
blocks a multiprocessor holds by both, and the matrix products in its code. There is no cycle model: this tells whether
kernels compile, fit and spill, not how fast they are. It ends with 1 where one spills or does not compile.

Needs the compiler alone, wheels of some 400 MB: pip install jax-cuda13-plugin jax-cuda13-pjrt of the version of jax.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import itertools
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

from pallas_kernels import ptxas

TARGET = pathlib.Path(__file__).with_name('h100.txtpb')  # XLA's GpuTargetConfigProto of an H100 80GB HBM3
REGISTERS, SHARED_BYTES = 65536, 233472  # of a multiprocessor
DUMPED = {'MOSAIC_GPU_DUMP_RESOURCES': '1', 'MOSAIC_GPU_DUMP_PTX': '1', 'MOSAIC_GPU_DUMP_PTXAS': '1'}
DECAYS, FORMS, SIZES = ('none', 'scalar', 'channel'), ('plain', 'packed', 'grouped', 'grouped_packed'), (64, 128)
WIDE = ((256, 256), (128, 256), (256, 128))


@dataclasses.dataclass(frozen=True)
class Case:
  """One call to compile, in bfloat16. `form` is one of `FORMS`: grouped are four value heads a key head."""

  decay: str
  form: str = 'plain'
  backward: bool = False
  B: int = 1
  T: int = 512
  HV: int = 4
  K: int = 128
  V: int = 128
  recompute: bool = False
  implementation: str = 'mosaic_gpu'

  @property
  def name(self) -> str:
    passes = 'forward + backward' if self.backward else 'forward'
    return f'{self.implementation} {self.decay} {self.form} {self.B}x{self.HV} heads {self.K}x{self.V} {passes}'


def pairs(form: str) -> list[tuple[int, int]]:
  """Returns the K and V that a form is compiled with; not every pair with 256, which are slow."""
  if form == 'grouped_packed':
    return [(128, 128)]
  return [*itertools.product(SIZES, repeat=2), *(WIDE if form == 'plain' else WIDE[:1])]


def missing_compiler() -> str | None:
  """Returns what to do where there is no GPU compiler to ask, None where there is one."""
  names = ('jax_plugins.xla_cuda13', 'jax_plugins.xla_cuda12')
  if importlib.util.find_spec('jax_plugins') is None or not any(importlib.util.find_spec(name) for name in names):
    import jax

    version = jax.__version__
    return (
      'the GPU compiler is not installed: pip install '
      f'jax-cuda13-plugin=={version} jax-cuda13-pjrt=={version} (it needs no GPU)'
    )
  return None


def called(case: Case) -> tuple[Callable[..., Any], list[tuple[tuple[int, ...], Any]]]:
  """Returns (the function that a case compiles, the shapes and types of its operands)."""
  import jax
  import jax.numpy as jnp

  from pallas_kernels import delta_rule

  narrow, wide = jnp.bfloat16, jnp.float32
  B, T, HV, K, V = case.B, case.T, case.HV, case.K, case.V
  H = max(HV // 4, 1) if 'grouped' in case.form else HV
  gates: dict[str, list[Any]] = {'none': [], 'scalar': [((B, T, HV), wide)], 'channel': [((B, T, HV, K), wide)]}
  shapes: list[tuple[tuple[int, ...], Any]] = [((B, T, H, K), narrow)] * 2
  shapes += [((B, T, HV, V), narrow), ((B, T, HV), wide), *gates[case.decay]]

  def forward(floats, ids, state):
    return delta_rule(
      *floats, segment_ids=ids, initial_state=state, implementation=case.implementation, recompute=case.recompute
    )

  def run(*operands):
    *floats, state, ids = operands if 'packed' in case.form else (*operands, None)
    if not case.backward:
      return forward(floats, ids, state)
    outputs, pull = jax.vjp(lambda floats, state: forward(floats, ids, state), floats, state)
    return outputs, pull(outputs)

  packed = [((B, T), jnp.int32)] if 'packed' in case.form else []
  return run, [*shapes, ((B, HV, K, V), wide), *packed]


def compile_for_h100(call: Callable[..., Any], shapes: Sequence[tuple[tuple[int, ...], Any]]) -> Any:
  """Returns the executable of `call` on operands of these (shape, type) for an H100 that need not be there."""
  import jax
  from jax.experimental import topologies
  from jax.sharding import AbstractDevice, AbstractMesh, SingleDeviceSharding, use_abstract_mesh

  devices: list[Any] = topologies.get_topology_desc(
    topology_name='h100', platform='cuda', target_config=TARGET.read_text(), topology='1x1x1'
  ).devices
  on_one = SingleDeviceSharding(devices[0])
  operands = [jax.ShapeDtypeStruct(shape, dtype, sharding=on_one) for shape, dtype in shapes]
  kind = AbstractDevice(device_kind=devices[0].device_kind, platform='cuda', num_cores=None)
  with use_abstract_mesh(AbstractMesh((), (), abstract_device=kind)):
    lowered = jax.jit(call).trace(*operands).lower(lowering_platforms=('cuda',))
  return lowered.compile()


def compiled(command: Sequence[str], name: str) -> list[ptxas.Kernel]:
  """Returns the kernels that a process compiles, by what it prints.

  Raises:
    RuntimeError: it did not compile; says with which last lines.
  """
  root = str(pathlib.Path(__file__).resolve().parents[1])
  environment = {**os.environ, **DUMPED, 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': root}
  environment.pop('MOSAIC_GPU_DUMP_TO', None)  # it would have files written instead
  environment.pop('JAX_COMPILATION_CACHE_DIR', None)  # what is cached is not compiled, and prints nothing
  done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
  if done.returncode:
    raise RuntimeError(f'{name} did not compile:\n' + '\n'.join(done.stderr.splitlines()[-8:]))
  return list(ptxas.kernels(done.stdout))


def case_kernels(case: Case, python: str = sys.executable) -> list[ptxas.Kernel]:
  """Returns the kernels of a case, compiled by a process of `python`.

  Raises:
    RuntimeError: it did not compile; says with which last lines.
  """
  wanted = json.dumps(dataclasses.asdict(case))
  return compiled([python, '-m', 'pallas_kernels.bench', '--gpu-static', '--compile', wanted], case.name)


def blocks_held(kernel: ptxas.Kernel) -> int:
  """Returns how many blocks of a kernel a multiprocessor holds at once, by its registers and shared memory."""
  warps = -(-kernel.threads // 32)
  registers = 8 * -(-kernel.registers // 8) * 32 * max(warps, 1)  # given out by eight a thread
  by_shared = SHARED_BYTES // (kernel.shared_bytes + 1024) if kernel.shared_bytes else 32
  return min(REGISTERS // registers, by_shared, 2048 // max(kernel.threads, 1))


def table(rows: Sequence[tuple[str, ptxas.Kernel]]) -> str:
  """Returns the kernels of cases as lines of text."""
  heads = ('case', 'kernel', 'threads', 'registers', 'spilled B', 'stack B', 'shared B', 'blocks', 'wgmma')
  lines = [heads] + [
    tuple(
      str(cell)
      for cell in (
        name, kernel.name, kernel.threads, kernel.registers, kernel.spill_store_bytes + kernel.spill_load_bytes,
        kernel.stack_bytes, kernel.shared_bytes, blocks_held(kernel), kernel.products,
      )
    )
    for name, kernel in rows
  ]  # fmt: skip
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  return '\n'.join('  '.join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in lines)


def main(arguments: list[str] | None = None) -> int:
  parser = argparse.ArgumentParser(
    prog='python -m pallas_kernels.bench --gpu-static', description=__doc__.split('\n')[0]
  )
  parser.add_argument('--decay', nargs='+', choices=DECAYS, default=list(DECAYS))
  parser.add_argument('--form', nargs='+', choices=FORMS, default=list(FORMS))
  parser.add_argument(
    '--size', nargs='+', type=int, help='K and V: every pair of these; 64, 128 and some with 256 if not given'
  )
  parser.add_argument('--forward-only', action='store_true')
  parser.add_argument('--compile', help=argparse.SUPPRESS)
  options = parser.parse_args(arguments)
  if options.compile:
    compile_for_h100(*called(Case(**json.loads(options.compile))))
    return 0
  if missing := missing_compiler():
    print(missing, file=sys.stderr)
    return 2
  cases = [
    Case(decay, form, backward, B, K=K, V=V)
    for decay in options.decay
    for form in options.form
    for K, V in (itertools.product(options.size, repeat=2) if options.size else pairs(form))
    for B in ((1, 64) if V == 128 >= K else (1,))  # few heads and many: one tile of V a block, or two
    for backward in ((False,) if options.forward_only else (False, True))  # where the forward kernels keep more
  ]
  rows, failed = [], False
  for case in cases:
    try:
      found = case_kernels(case)
    except RuntimeError as error:
      print(error, file=sys.stderr, flush=True)
      failed = True
      continue
    rows += [(case.name, kernel) for kernel in found]
    failed = failed or any(kernel.spills for kernel in found)
  if rows:
    print(table(rows))
  return 1 if failed else 0
