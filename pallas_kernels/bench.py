"""What a TPU's own compiler schedules for the delta rule, without a TPU: `python -m pallas_kernels.bench --static`.

Each case is compiled ahead of time by libtpu (extra `[aot]`) in a process of its own, which dumps its schedules. A
schedule is a list of bundles, about one a cycle; a kernel runs its own once a grid step. Printed for each case:
bundles per token and value head (b/t-h) inside kernels, and of the XLA operations around them by the compiler's own
cycle estimates; slots that are used; spills; bytes of HBM that the kernels, and the operations around them, read and
write; the larger of compute and memory time. All of it is a static estimate: nothing was run. Waiting for memory,
hazards of the matrix unit and the cost of a grid step are not in it; against published timings of another package it
was 2 % to 19 % below.

GPUs have two of their own: `--gpu` times the kernels on one (`gpu_bench`), `--gpu-static` compiles them without one and
reads registers and spills (`gpu_static`); `--help` behind either lists its options.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest.mock
from typing import Any

from pallas_kernels import gpu_bench, gpu_static, schedules
from pallas_kernels.chips import AOT_ENVIRONMENT, CHIPS


@dataclasses.dataclass(frozen=True)
class Case:
  """One call to compile. `source` is 'pallas_tpu', 'xla' or 'deltanet-tpu'."""

  source: str
  decay: str
  form: str = 'plain'  # or 'packed', 'grouped' (four value heads a key head)
  backward: bool = False
  B: int = 1
  T: int = 8192
  HV: int = 16
  K: int = 128
  V: int = 128
  dtype: str = 'bfloat16'  # of q, k and v

  @property
  def name(self) -> str:
    return f'{self.source} {self.decay} {self.form} {"forward + backward" if self.backward else "forward"}'

  @property
  def key_heads(self) -> int:
    return max(self.HV // 4, 1) if self.form == 'grouped' else self.HV


@dataclasses.dataclass(frozen=True)
class Estimate:
  """The static estimate of a case. Bundles and cycles are of the whole call."""

  case: Case
  chip: str
  kernels: tuple[schedules.Kernel, ...]
  traffic: schedules.Traffic

  @property
  def kernel_bundles(self) -> int:
    """Of all cores; a dump shows the steps of one."""
    return CHIPS[self.chip].cores * sum(kernel.bundles * kernel.steps for kernel in self.kernels)

  def per_token_head(self, cycles: int) -> float:
    return cycles / (self.case.B * self.case.T * self.case.HV)

  @property
  def compute_ms(self) -> float:
    chip = CHIPS[self.chip]
    return (self.kernel_bundles / chip.cores + self.traffic.xla_cycles) / chip.clock_ghz / 1e6

  @property
  def memory_ms(self) -> float:
    chip = CHIPS[self.chip]
    return (self.traffic.kernel_bytes + self.traffic.xla_bytes) / (chip.hbm_gb_s * chip.cores) / 1e6

  def slot_use(self, slot: str) -> float | None:
    """Returns the share of a slot's places that kernels use; None where there is no kernel."""
    used = sum(kernel.slots.get(slot, 0) * kernel.steps for kernel in self.kernels)
    places = sum(kernel.places.get(slot, 0) * kernel.bundles * kernel.steps for kernel in self.kernels)
    return round(used / places, 2) if places else None

  def row(self) -> dict[str, Any]:
    return {
      'case': self.case.name,
      'chip': self.chip,
      'kernel_bundles_per_token_head': round(self.per_token_head(self.kernel_bundles), 2),
      'xla_cycles_per_token_head': round(self.per_token_head(self.traffic.xla_cycles), 2),
      'matrix_slots_used': self.slot_use('MXU'),
      'vector_slots_used': self.slot_use('VALU'),
      'spills_a_step': sum(kernel.slots.get('VSTORE:SPILL', 0) for kernel in self.kernels),
      'kernel_hbm_megabytes': round(self.traffic.kernel_bytes / 1e6, 1),
      'xla_hbm_megabytes': round(self.traffic.xla_bytes / 1e6, 1),
      'compute_ms': round(self.compute_ms, 3),
      'memory_ms': round(self.memory_ms, 3),
      'larger_ms': round(max(self.compute_ms, self.memory_ms), 3),
      'kernels': [f'{kernel.name}: {kernel.bundles} bundles x {kernel.steps} steps' for kernel in self.kernels],
      'kind': 'static estimate',
    }


def estimated(case: Case, chip: str, python: str = sys.executable) -> Estimate:
  """Returns the estimate of a case, compiled by a process of `python` that dumps what its compiler schedules.

  Raises:
    RuntimeError: it did not compile; says with which last lines.
  """
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    dump = f'--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true --xla_jf_dump_llo_pass_label_regex=.*final.*'
    root = str(pathlib.Path(__file__).resolve().parents[1])
    environment = {**os.environ, **AOT_ENVIRONMENT, 'PYTHONPATH': root}
    environment.pop('TPU_LIBRARY_PATH', None)  # JAX sets it to the compiler of this interpreter
    if case.source != 'xla':  # which has no kernel, and a schedule for each of its many operations
      environment['LIBTPU_INIT_ARGS'] = dump
    wanted = json.dumps({'case': dataclasses.asdict(case), 'chip': chip, 'hlo': f'{folder}/optimised.hlo'})
    command = [python, '-m', 'pallas_kernels.bench', '--compile', wanted]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
      raise RuntimeError(f'{case.name} on {chip} did not compile:\n' + '\n'.join(done.stderr.splitlines()[-8:]))
    moved = schedules.traffic((folder / 'optimised.hlo').read_text())
    return Estimate(case, chip, tuple(schedules.dumped_kernels(folder)), moved)


def called(case: Case) -> tuple[Any, list[Any]]:
  """Returns (the function that a case compiles, the types of its operands)."""
  import jax
  import jax.numpy as jnp

  narrow, wide = jnp.dtype(case.dtype), jnp.float32
  B, T, H, HV = case.B, case.T, case.key_heads, case.HV
  gates: dict[str, list[Any]] = {'none': [], 'scalar': [((B, T, HV), wide)], 'channel': [((B, T, HV, case.K), wide)]}
  shapes: list[tuple[tuple[int, ...], Any]] = [((B, T, H, case.K), narrow)] * 2
  shapes += [((B, T, HV, case.V), narrow), ((B, T, HV), wide), *gates[case.decay]]
  if case.form == 'packed':
    shapes.append(((B, T), jnp.int32))

  def forward(*operands):
    ids = operands[-1] if case.form == 'packed' else None
    floats = operands[:-1] if case.form == 'packed' else operands
    if case.source == 'deltanet-tpu':
      return _deltanet_tpu(case, *floats, ids=ids)
    from pallas_kernels import delta_rule

    return delta_rule(*floats, segment_ids=ids, implementation=case.source)

  def both(*operands):
    floats = [x for x in operands if jnp.issubdtype(x.dtype, jnp.floating)]
    (o, state), pull = jax.vjp(lambda *floats: forward(*floats, *operands[len(floats) :]), *floats)
    return o, state, pull((o, state))

  return (both if case.backward else forward), shapes


def _deltanet_tpu(case: Case, q, k, v, beta, *gates, ids):
  """Returns what the package deltanet-tpu 0.3 makes of the operands: float32, one key head a value head."""
  import deltanet_tpu
  import jax.numpy as jnp

  q, k = (jnp.repeat(x, case.HV // case.key_heads, 2).astype(jnp.float32) for x in (q, k))
  call = {'none': 'chunk_delta_rule', 'scalar': 'chunk_gdn', 'channel': 'chunk_kda'}[case.decay]
  options = {} if ids is None else {'segment_ids': ids}
  operands = (q, k, v.astype(jnp.float32), *gates, beta)
  return getattr(deltanet_tpu, call)(*operands, output_final_state=True, **options)


def compile_for(case: Case, chip: str, sharded: bool = False) -> Any:
  """Returns the executable of a case for a chip that need not be there; `sharded` over the rows of a slice of 2 x 2."""
  import jax
  import numpy as np
  from jax.experimental import topologies
  from jax.sharding import (
    AbstractDevice,
    AbstractMesh,
    Mesh,
    NamedSharding,
    PartitionSpec,
    SingleDeviceSharding,
    use_abstract_mesh,
  )

  devices: list[Any] = topologies.get_topology_desc(platform='tpu', topology_name=CHIPS[chip].topology).devices
  call, shapes = called(case)
  if sharded:
    rows = PartitionSpec('data')
    mesh = Mesh(np.array(devices), ('data',))
    on_slice = NamedSharding(mesh, rows)
    operands = [jax.ShapeDtypeStruct(shape, dtype, sharding=on_slice) for shape, dtype in shapes]
    mapped = jax.shard_map(call, mesh=mesh, in_specs=rows, out_specs=rows)
    return jax.jit(mapped).trace(*operands).lower(lowering_platforms=('tpu',)).compile()
  on_one = SingleDeviceSharding(devices[0])
  operands = [jax.ShapeDtypeStruct(shape, dtype, sharding=on_one) for shape, dtype in shapes]
  kind = AbstractDevice(device_kind=devices[0].device_kind, platform='tpu', num_cores=1)
  with use_abstract_mesh(AbstractMesh((), (), abstract_device=kind)):
    lowered = jax.jit(call).trace(*operands).lower(lowering_platforms=('tpu',))
  return lowered.compile()


def missing_compiler() -> str | None:
  """Returns what to do where there is no TPU compiler to ask, None where there is one."""
  if importlib.util.find_spec('libtpu') is None:
    return "libtpu is not installed: pip install 'asiarch-jax[aot]' (the TPU compiler; it needs no TPU)"
  return None


def table(estimates: list[Estimate]) -> str:
  """Returns the estimates as lines of text."""
  heads = ('static estimate', 'b/t-h', '+ XLA', 'MXU', 'VALU', 'spills', 'HBM MB', '+ XLA', 'compute ms', 'memory ms')
  keys = (
    'case', 'kernel_bundles_per_token_head', 'xla_cycles_per_token_head', 'matrix_slots_used', 'vector_slots_used',
    'spills_a_step', 'kernel_hbm_megabytes', 'xla_hbm_megabytes', 'compute_ms', 'memory_ms',
  )  # fmt: skip
  rows = [heads] + [tuple(str(estimate.row()[key]) for key in keys) for estimate in estimates]
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return '\n'.join('  '.join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def cases(decays: list[str], forms: list[str], backward: bool, deltanet: bool) -> list[Case]:
  passes = (False, True) if backward else (False,)
  ours = [Case('pallas_tpu', decay, form, back) for back in passes for decay in decays for form in forms]
  xla = [Case('xla', decay, 'plain', back) for back in passes for decay in decays]
  theirs = [Case('deltanet-tpu', decay, 'plain', back) for back in passes for decay in decays] if deltanet else []
  return ours + xla + theirs


def main(arguments: list[str] | None = None) -> int:
  arguments = sys.argv[1:] if arguments is None else arguments
  for flag, other in (('--gpu', gpu_bench.main), ('--gpu-static', gpu_static.main)):
    if flag in arguments:
      return other([argument for argument in arguments if argument != flag])
  parser = argparse.ArgumentParser(
    prog='python -m pallas_kernels.bench',
    description=__doc__.split('\n')[0],
    epilog='--gpu and --gpu-static are benches of their own: put --help behind them',
  )
  parser.add_argument('--static', action='store_true', help='read schedules of an ahead-of-time compilation')
  parser.add_argument('--chip', choices=CHIPS, default='v6e')
  parser.add_argument(
    '--decay', nargs='+', choices=('none', 'scalar', 'channel'), default=['none', 'scalar', 'channel']
  )
  parser.add_argument(
    '--form', nargs='+', choices=('plain', 'packed', 'grouped'), default=['plain', 'packed', 'grouped']
  )
  parser.add_argument('--forward-only', action='store_true')
  parser.add_argument('--deltanet-python', help='interpreter that has deltanet-tpu and its jax[tpu], to compare with')
  parser.add_argument('--json', action='store_true', help='one JSON object a line')
  parser.add_argument('--compile', help=argparse.SUPPRESS)
  options = parser.parse_args(arguments)
  if options.compile:
    wanted = json.loads(options.compile)
    case = Case(**wanted['case'])
    # deltanet-tpu asks the default backend whether to interpret its kernels.
    asked = unittest.mock.patch('jax.default_backend', lambda: 'tpu')
    with asked if case.source == 'deltanet-tpu' else contextlib.nullcontext():
      executable = compile_for(case, wanted['chip'])
    pathlib.Path(wanted['hlo']).write_text(executable.as_text())
    return 0
  if not options.static:
    parser.error('say which: --static for TPUs, --gpu-static for GPUs, both without a device; --gpu on a GPU')
  if missing := missing_compiler():
    print(missing, file=sys.stderr)
    return 2
  deltanet = options.deltanet_python or (sys.executable if importlib.util.find_spec('deltanet_tpu') else None)
  estimates = []
  for case in cases(options.decay, options.form, not options.forward_only, bool(deltanet)):
    python = deltanet if case.source == 'deltanet-tpu' else sys.executable
    try:
      estimates.append(estimated(case, options.chip, python or sys.executable))
    except RuntimeError as error:
      print(error, file=sys.stderr)
      continue
    if options.json:
      print(json.dumps(estimates[-1].row()), flush=True)
  if not options.json:
    print(table(estimates))
  return 0


if __name__ == '__main__':
  sys.exit(main())
