"""Times the delta rule on a GPU, beside flash-linear-attention: `python -m pallas_kernels.bench --gpu`.

First the parity suite runs on the device, where the tests stand beside the package; then flash-linear-attention is
timed, where torch, Triton (3.7.1 or newer: its backward pass refuses others on Hopper) and fla-core are there. Then, in
the same process, each implementation is compared, at the heads of each shape, with the recurrence in float64 (a wrong
kernel is not timed), and timed.

How a time is taken. The second level cache is overwritten before each run. JAX has no events of its own stream, so a
program that runs the call and then overwrites the cache is queued `RUNS` times and waited for; the same without the
call is subtracted. What the host spends to launch is hidden, since the device lags behind. Torch is timed twice: by
CUDA events around each run, as flash-linear-attention's own benchmark does, which counts launches that come late; and
by replaying a CUDA graph of the run, in the way JAX is timed, where it can be captured. The smaller is its time. Each
figure is the median of at least `ROUNDS` such measurements, with their quartiles.

The share of the roofline is that of the larger of two floors: the operations of the cheapest chunkwise form over the
chip's dense bfloat16 peak, and the bytes that it must move over its bandwidth, by the vendor's figures.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import functools
import importlib
import importlib.util
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from pallas_kernels import specs

CHUNK = 64  # of the chunkwise form that the floors are those of
ROUNDS, RUNS = 11, 10
FLUSH_BYTES = 2**27  # twice the second level cache of an H200


@dataclasses.dataclass(frozen=True)
class Shape:
  """A call that is timed: B rows of T tokens, H heads of D x D."""

  B: int
  T: int
  H: int
  D: int

  @property
  def name(self) -> str:
    return f'{self.B}x{self.T}x{self.H}x{self.D}'


# What flash-linear-attention times its kernels at.
SHAPES = {
  shape.name: shape
  for shape in (
    Shape(1, 8192, 96, 128), Shape(2, 16384, 16, 128), Shape(4, 2048, 16, 128), Shape(4, 4096, 64, 128),
    Shape(8, 2048, 32, 256), Shape(8, 1024, 8, 64),
  )
}  # fmt: skip
DECAYS = ('none', 'scalar', 'channel')


@dataclasses.dataclass(frozen=True)
class Gpu:
  """The vendor's figures of a chip: dense bfloat16 operations and bytes a second."""

  operations: float
  bandwidth: float


GPUS = {'H200': Gpu(989e12, 4.8e12), 'H100': Gpu(989e12, 3.35e12)}


@dataclasses.dataclass(frozen=True)
class Case:
  """One thing timed: `source` is an implementation of `delta_rule` or 'fla'."""

  source: str
  decay: str
  shape: Shape
  backward: bool

  @property
  def name(self) -> str:
    return f'{self.source} {self.decay} {self.shape.name} {"forward + backward" if self.backward else "forward"}'


@dataclasses.dataclass(frozen=True)
class Timing:
  """Milliseconds: the median and the quartiles beside it. `method` says how they were taken."""

  median: float
  low: float
  high: float
  method: str


def operations(case: Case) -> float:
  """Returns the operations of a case: Gram matrices, products with the inverse and the state, no inverse itself."""
  C, K, V = CHUNK, case.shape.D, case.shape.D
  forward, backward = 4 * C * K + 4 * C * V + 6 * K * V, 12 * C * K + 10 * C * V + 14 * K * V
  return case.shape.B * case.shape.T * case.shape.H * float(forward + case.backward * backward)


def bytes_moved(case: Case) -> float:
  """Returns the bytes that a case must move: operands and results once; trained, also the inverse and the states of
  each chunk in bfloat16, written and read."""
  C, K, V = CHUNK, case.shape.D, case.shape.D
  gates = 4 * {'none': 1, 'scalar': 2, 'channel': 1 + K}[case.decay]
  kept = 2 * C + 2 * K * V / C
  forward = 2 * (2 * K + 2 * V) + gates
  backward = 2 * (2 * K + 2 * V) + 2 * (2 * K + V) + 2 * gates
  return case.shape.B * case.shape.T * case.shape.H * (forward + case.backward * (backward + 2 * kept))


def floor_ms(case: Case, gpu: Gpu) -> float:
  """Returns the time that no program of the chunkwise form goes below, in milliseconds."""
  return 1e3 * max(operations(case) / gpu.operations, bytes_moved(case) / gpu.bandwidth)


def timing(measured: list[float], method: str) -> Timing:
  """Returns the timing that seconds of single runs amount to."""
  low, median, high = statistics.quantiles([1e3 * second for second in measured], n=4, method='inclusive')
  return Timing(median, low, high, method)


def queued(run: Callable[[], Any], flush: Callable[[], Any], wait: Callable[[Any], None]) -> list[float]:
  """Returns the seconds of `run`, which flushes too, less those of `flush`, measured in turn; both are queued."""

  def seconds(call, runs):
    begun = time.perf_counter()
    for _ in range(runs):
      last = call()
    wait(last)
    return (time.perf_counter() - begun) / runs

  seconds(run, 2), seconds(flush, 2)
  once = seconds(run, 1)
  runs = max(2, min(RUNS, int(0.5 / max(once, 1e-6))))
  return [seconds(run, runs) - seconds(flush, runs) for _ in range(ROUNDS if once < 0.2 else 3)]


def drawn(shape: Shape, decay: str, seed: int = 0) -> dict[str, Any]:
  """Returns the operands of a case: q, k, v and beta in bfloat16, log decay in float32."""
  import jax
  import jax.numpy as jnp

  B, T, H, D = shape.B, shape.T, shape.H, shape.D
  keys = jax.random.split(jax.random.key(seed), 6)

  def unit(key):
    x = jax.random.normal(key, (B, T, H, D))
    return (x / jnp.linalg.norm(x, axis=-1, keepdims=True)).astype(jnp.bfloat16)

  made = {
    'q': unit(keys[0]),
    'k': unit(keys[1]),
    'v': jax.random.normal(keys[2], (B, T, H, D), jnp.bfloat16),
    'beta': jax.nn.sigmoid(jax.random.normal(keys[3], (B, T, H))).astype(jnp.bfloat16),
  }
  if decay != 'none':
    made['log_decay'] = jax.nn.log_sigmoid(jax.random.normal(keys[4], (B, T, H, D)[: 3 if decay == 'scalar' else 4]))
  made['do'] = jax.random.normal(keys[5], (B, T, H, D), jnp.bfloat16)
  return made


def called(source: str, backward: bool) -> Callable[..., Any]:
  """Returns the function of operands, as `drawn` names them, that a case of ours runs: o, or o and all gradients."""
  import jax

  from pallas_kernels import delta_rule

  def forward(operands):
    return delta_rule(**operands, implementation=source)[0]

  def run(operands):
    operands = dict(operands)
    do = operands.pop('do')
    if not backward:
      return forward(operands)
    o, pull = jax.vjp(forward, operands)
    return o, *pull(do)

  return run


def errors(source: str, decay: str, shape: Shape) -> dict[str, float]:
  """Returns, for each result that is beyond the suite's tolerance, its relative RMS error against the recurrence.

  All rows and heads of the shape, by which kernels choose their tiles, and two chunks of tokens; the recurrence in
  float64 on the same device.
  """
  import jax
  import jax.numpy as jnp
  import numpy as np

  operands = drawn(dataclasses.replace(shape, T=2 * CHUNK), decay, seed=1)
  o, got = jax.jit(called(source, backward=True))(operands)
  with jax.enable_x64(True):
    exact = {name: jnp.asarray(np.asarray(x, np.float64)) for name, x in operands.items()}
    want_o, want = jax.jit(called('reference', backward=True))(exact)
  found = {}
  for name, (x, y) in {'o': (o, want_o), **{name: (got[name], want[name]) for name in got}}.items():
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    error = float(np.sqrt(np.mean((x - y) ** 2)) / max(np.sqrt(np.mean(y**2)), specs.BFLOAT16.floor))
    limits = {'o': specs.BFLOAT16.output, **dict.fromkeys(('beta', 'log_decay'), specs.BFLOAT16.gate_gradient)}
    if not error < limits.get(name, specs.BFLOAT16.gradient):  # a NaN is an error
      found[name] = error
  return found


def compiled(case: Case) -> tuple[Any, Any]:
  """Returns (the program of a case followed by an overwriting of the cache, that overwriting alone)."""
  import jax
  import jax.numpy as jnp

  run = called(case.source, case.backward)

  def flush(value):
    return jnp.full((FLUSH_BYTES // 4,), value, jnp.float32)

  kinds = jax.eval_shape(functools.partial(drawn, case.shape, case.decay))
  value = jax.ShapeDtypeStruct((), jnp.float32)
  both = jax.jit(lambda operands, value: (run(operands), flush(value)))
  return both.lower(kinds, value).compile(), jax.jit(flush).lower(value).compile()


def ours(programs: tuple[Any, Any], operands: Any) -> Timing:
  import jax
  import jax.numpy as jnp

  run, flush = programs
  value = jnp.float32(1)
  measured = queued(lambda: run(operands, value), lambda: flush(value), jax.block_until_ready)
  return timing(measured, 'queued programs')


def kernel_times(case: Case, operands: Any) -> list[tuple[str, float]]:
  """Returns (name, milliseconds) of each kernel that a call launches, by CUPTI, in order."""
  import jax
  from jax.experimental.mosaic.gpu import profiler

  run = jax.jit(called(case.source, case.backward))
  return profiler.measure(run, aggregate=False)(operands)[1] or []


def missing_gpu() -> str | None:
  """Returns what to do where JAX sees no GPU, None where it sees one."""
  import jax

  try:
    device = jax.devices('gpu')[0]
  except RuntimeError as unknown:
    return (
      f'no GPU: JAX {jax.__version__} finds none ({unknown}); on a machine with an NVIDIA GPU install '
      "'asiarch-jax[gpu]' and leave JAX_PLATFORMS unset. Without one, `--gpu-static` compiles the kernels"
    )
  return None if device.platform == 'gpu' else f'no GPU: JAX gives {device}'


def missing_fla() -> str | None:
  """Returns what flash-linear-attention lacks here, None where nothing."""
  lacking = [name for name in ('torch', 'triton', 'einops', 'fla') if importlib.util.find_spec(name) is None]
  if lacking:
    return f'not installed: {", ".join(lacking)} (pip install torch einops, and fla-core==0.6.0)'
  import torch

  return None if torch.cuda.is_available() else f'torch {torch.__version__} sees no GPU'


def theirs(case: Case) -> Callable[[], Any]:
  """Returns a run of flash-linear-attention's kernels for a case, on tensors drawn like `drawn`."""
  import torch

  names = {
    'none': ('fla.ops.delta_rule', 'chunk_delta_rule'),
    'scalar': ('fla.ops.gated_delta_rule', 'chunk_gated_delta_rule'),
    'channel': ('fla.ops.kda', 'chunk_kda'),
  }
  module, name = names[case.decay]
  rule = getattr(importlib.import_module(module), name)
  B, T, H, D = case.shape.B, case.shape.T, case.shape.H, case.shape.D

  def normal(*shape):
    return torch.randn(*shape, device='cuda', generator=torch.Generator('cuda').manual_seed(0))

  q, k = (torch.nn.functional.normalize(normal(B, T, H, D), dim=-1).bfloat16() for _ in range(2))
  v, do = normal(B, T, H, D).bfloat16(), normal(B, T, H, D).bfloat16()
  operands = {'q': q, 'k': k, 'v': v, 'beta': normal(B, T, H).sigmoid().bfloat16()}
  if case.decay != 'none':
    operands['g'] = torch.nn.functional.logsigmoid(normal(*(B, T, H, D)[: 3 if case.decay == 'scalar' else 4]))
  wanted = list(operands.values())
  if not case.backward:

    def run():
      with torch.no_grad():
        return rule(**operands)[0]

    return run
  for x in wanted:
    x.requires_grad_(True)
  return lambda: torch.autograd.grad(rule(**operands)[0], wanted, do)


def fla_timing(case: Case) -> tuple[Timing, dict[str, float]]:
  """Returns (the timing of flash-linear-attention by the faster method, the medians of both)."""
  import torch

  run, cache = theirs(case), torch.empty(FLUSH_BYTES // 4, device='cuda')
  for _ in range(3):  # also tunes
    run()
  torch.cuda.synchronize()
  measured = []
  for _ in range(ROUNDS * 3):
    cache.zero_()
    begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begun.record()
    run()
    ended.record()
    torch.cuda.synchronize()
    measured.append(begun.elapsed_time(ended) / 1e3)
  timings = [timing(measured, 'events')]
  try:
    graph = torch.cuda.CUDAGraph()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
      run()
    torch.cuda.current_stream().wait_stream(side)
    with torch.cuda.graph(graph):
      run()
    replayed = queued(lambda: (graph.replay(), cache.zero_()), cache.zero_, lambda _: torch.cuda.synchronize())
    timings.append(timing(replayed, 'graph replay'))
  except RuntimeError as refused:
    print(f'{case.name}: no CUDA graph ({str(refused).splitlines()[0]})', file=sys.stderr)
    torch.cuda.synchronize()
  return min(timings, key=lambda found: found.median), {found.method: found.median for found in timings}


def line(case: Case, found: Timing | str, against: Timing | None, gpu: Gpu | None) -> str:
  """Returns a row of the table; `found` is a sentence where there is no timing, `against` is flash-linear-attention."""
  if isinstance(found, str):
    return f'{case.name:<58} {found}'
  share = '' if gpu is None else f'  {floor_ms(case, gpu) / found.median:6.1%} of the roofline'
  ratio = '' if against is None else f'  {against.median / found.median:5.2f} x fla'
  return f'{case.name:<58} {found.median:9.4f} ms  [{found.low:.4f}, {found.high:.4f}]{share}{ratio}'


def parity_suite(python: str = sys.executable) -> str:
  """Runs the tests of the kernels on the device; returns what pytest's last line says, or why it did not run."""
  root = pathlib.Path(__file__).resolve().parents[1]
  tests = root / 'tests' / 'pallas_kernels'
  if not tests.is_dir():
    return 'parity suite: not run, no tests beside the package: run this in a checkout'
  if importlib.util.find_spec('pytest') is None:
    return 'parity suite: not run, pytest is not installed'
  command = [python, '-m', 'pytest', '--noconftest', '-q', '-rfE', '-m', 'not sweep', str(tests / 'delta_rule_test.py')]
  names = ('gpu_backward_test.py', 'gpu_bench_test.py', 'mosaic_gpu_test.py')  # not what only compiles
  command += [str(tests / name) for name in names]
  if importlib.util.find_spec('xdist') is not None:
    command += ['-n', '4']  # most of the time is compiling; seven recurrences in float64 once filled the card
  environment = {**os.environ, 'XLA_PYTHON_CLIENT_PREALLOCATE': 'false'}
  done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
  lines = [line for line in done.stdout.splitlines() if line.startswith(('FAILED', 'ERROR'))]
  last = done.stdout.strip().splitlines()[-1:] or done.stderr.strip().splitlines()[-1:]
  return '\n'.join([f'parity suite: {"passed" if done.returncode == 0 else "FAILED"}: {" ".join(last)}', *lines])


def options_of(arguments: list[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(prog='python -m pallas_kernels.bench --gpu', description=__doc__.split('\n')[0])
  parser.add_argument('--shape', nargs='+', choices=SHAPES, default=list(SHAPES), metavar='BxTxHxD')
  parser.add_argument('--decay', nargs='+', choices=DECAYS, default=list(DECAYS))
  parser.add_argument('--source', nargs='+', help="implementations, and 'fla'; all that answer if not given")
  parser.add_argument('--forward-only', action='store_true')
  parser.add_argument('--kernels', action='store_true', help='also the time of each kernel, by CUPTI')
  parser.add_argument('--no-parity', action='store_true', help='leave the parity suite out; each kernel is compared')
  parser.add_argument('--json', action='store_true', help='one JSON object a line')
  return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
  options = options_of(arguments)
  os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')  # torch wants memory too
  import jax

  if missing := missing_gpu():
    print(missing, file=sys.stderr)
    return 2
  from pallas_kernels import IMPLEMENTATIONS

  known = [name for name in IMPLEMENTATIONS if name not in ('pallas_tpu', 'reference')]
  sources = options.source or [*known, 'fla']
  if unknown := set(sources) - {*known, 'fla'}:
    print(
      f'--source: there is no {", ".join(sorted(unknown))}; there are {", ".join([*known, "fla"])}', file=sys.stderr
    )
    return 2
  kind = jax.devices('gpu')[0].device_kind
  gpu = next((figures for name, figures in GPUS.items() if name in kind), None)
  print(f'{kind}, jax {jax.__version__}', flush=True)
  if gpu is None:
    print(f'no figures of {kind}: shares of the roofline are left out')
  if not options.no_parity:
    print(parity_suite(), flush=True)
  fla_lacks = missing_fla() if 'fla' in sources else 'not asked for'
  if fla_lacks:
    print(f'flash-linear-attention is not timed: {fla_lacks}')

  passes = (False,) if options.forward_only else (False, True)
  groups = [(SHAPES[name], decay) for name in options.shape for decay in options.decay]
  against: dict[Case, Timing] = {}
  # First, and alone: memory that JAX has had once it does not give back.
  for case in (
    [] if fla_lacks else [Case('fla', decay, shape, backward) for shape, decay in groups for backward in passes]
  ):
    found, both = _attempted(functools.partial(fla_timing, case)) or ('failed', {})
    if isinstance(found, Timing):
      against[case] = found
    _print(options, case, found, None, gpu, {'medians': both})
    _torch_memory_back()
  cases = [
    Case(source, decay, shape, backward)
    for shape, decay in groups
    for source in sources
    if source != 'fla'
    for backward in passes
  ]
  return 1 if _ours_timed(options, cases, against, gpu) else 0


def _ours_timed(options: argparse.Namespace, cases: list[Case], against: dict[Case, Timing], gpu: Gpu | None) -> bool:
  """Times and prints cases of ours; returns whether one of them is wrong."""
  wrong = False
  with concurrent.futures.ThreadPoolExecutor(8) as compilers:
    programs = {case: compilers.submit(compiled, case) for case in cases}
    concurrent.futures.wait(programs.values())  # nothing else runs while something is timed
  compared: dict[tuple[str, str, Shape], dict[str, float] | None] = {}
  for case in cases:
    compiling, what = programs.pop(case), (case.source, case.decay, case.shape)
    if compiling.exception() is None and what not in compared:
      compared[what] = _attempted(functools.partial(errors, *what))
    beyond = compared.get(what, {})
    found: Timing | str
    if beyond is None:
      found = 'not timed: it could not be compared with the recurrence'
    else:
      wrong = wrong or bool(beyond)
      found = f'WRONG: relative error of {beyond}' if beyond else _timed(compiling, drawn(case.shape, case.decay))
    del compiling  # and what it holds on the device
    _print(options, case, found, against.get(dataclasses.replace(case, source='fla')), gpu, {})
    if options.kernels and isinstance(found, Timing):
      times = functools.partial(kernel_times, case, drawn(case.shape, case.decay))
      for name, milliseconds in _attempted(times) or []:
        print(f'    {milliseconds:9.4f} ms  {name[:100]}', flush=True)
  return wrong


def _timed(compiling: concurrent.futures.Future, operands: Any) -> Timing | str:
  """Returns the timing of a case of ours, or why there is none."""
  import jax

  try:
    return ours(compiling.result(), operands)
  except NotImplementedError as refused:
    return f'refused: {refused}'
  except jax.errors.JaxRuntimeError as failed:
    return f'failed: {str(failed).splitlines()[0][:200]}'


def _attempted(run: Callable[[], Any]) -> Any:
  """Returns what `run` does, or None where it fails, which is said: another package must not end the bench."""
  try:
    return run()
  except Exception as failed:
    print(f'{type(failed).__name__}: {str(failed)[:300]}', file=sys.stderr, flush=True)
    return None


def _torch_memory_back() -> None:
  if (torch := sys.modules.get('torch')) is not None and torch.cuda.is_available():
    torch.cuda.empty_cache()


def _print(
  options: argparse.Namespace, case: Case, found: Timing | str, against: Timing | None, gpu: Gpu | None, more: dict
) -> None:
  if not options.json:
    print(line(case, found, against, gpu), *(f'  {method} {ms:.4f}' for method, ms in more.get('medians', {}).items()))
  else:
    row: dict[str, Any] = {'case': case.name, **more}
    row |= dataclasses.asdict(found) if isinstance(found, Timing) else {'failed': found}
    if against is not None and isinstance(found, Timing):
      row['ratio_to_fla'] = against.median / found.median
    if gpu is not None and isinstance(found, Timing):
      row['share_of_roofline'] = floor_ms(case, gpu) / found.median
    print(json.dumps(row))
  sys.stdout.flush()
