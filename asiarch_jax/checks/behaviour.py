"""The contract proved by running: what a mixer does, not what its text says.

Everything is measured on the mixer in float32 with parameters moved away from their initialisation, so that a gate that
starts at zero hides nothing. A mixer sees batches of two or three sequences; `vmap` carries many such batches through
one compiled program, so that a swap of the future in one cannot be mistaken for mixing between rows.

Causality is tested by swapping the future and comparing the past: a derivative would miss an argmax. The future is
replaced by other noise, and by noise ten times larger, by itself shifted and by silence, at the borders of the usual
chunks, beside them and between them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import linecache
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any, NamedTuple

import flax.errors
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxpr_as_fun

from asiarch_jax import config
from asiarch_jax.arch import contract
from asiarch_jax.checks import cost
from asiarch_jax.checks.cost import jaxprs
from asiarch_jax.records import Finding
from pallas_kernels import target

# In the order in which they run; some end the gate, since nothing after them can run (DECISIVE).
CHECKS = (
  'contract',
  'state',
  'shapes',
  'dtypes',
  'effects',
  'randomness',
  'loops',
  'growth',
  'finite',
  'determinism',
  'batch',
  'causality',
  'prefix',
  'gradients',
)
HOST_CALLS = ('callback', 'infeed', 'outfeed', 'debug_print', 'outside_call', 'host_', 'xla_ffi', 'ffi_call', 'print')
RANDOM = ('random_', 'threefry', 'rng_')
CUTS = (1, 2, 5, 16, 17, 31, 32, 33, 48, 63, 64, 65, 100, 127, 128)  # tokens kept before a swapped future
FUTURES = ('other', 'ten times larger', 'shifted by five', 'silent')
FEW_CUTS = (1, 17, 32, 48)  # what is enough for all sequences but the longest; one before the end is added
FINGERPRINTED = 128  # tokens of the one row that a fingerprint is read off
MOST_A_ROW = 1.05  # FLOPs of a row among others over those of one alone
FIRST_SWAP = 3  # batches before the first swapped future
# Each program runs a few times only, so compiling costs more than running; other backends do not know these options.
# Without the fusion emitters, which write MLIR for LLVM, a program compiles in a quarter of the time.
PROGRAM: Mapping[str, Mapping[str, Any]] = {
  'cpu': {
    'xla_backend_optimization_level': 0,
    'xla_cpu_use_fusion_emitters': False,
    'xla_cpu_parallel_codegen_split_count': 1,
  }
}


def gate(
  mixer: type,
  spec: contract.MixerSpec,
  checks: config.Checks,
  *,
  trained: Sequence[tuple[int, int]] = (),
  waived: Iterable[str] = (),
  seed: int = 0,
  on_progress: Callable[[str], None] | None = None,
  clock: Callable[[], float] | None = None,
) -> tuple[Finding, ...]:
  """Returns one `Finding` for each of CHECKS that could be run, in that order; a failed one says what to change.

  `trained` are the numbers of rows and of tokens that the mixer will be trained and measured at. Of the `waived` checks
  a failure is reported like any other, and the gate goes on; what it means is the caller's. `on_progress` is told the
  name of each stage. With a `clock` (seconds), findings carry the time that their stage took, and the gate ends with a
  failed finding `seconds` once it has used `checks.seconds`.
  """
  subject = _Subject(mixer, spec, checks, seed, trained)
  findings: list[Finding] = []
  began = clock() if clock else 0.0
  for stage in STAGES:
    if on_progress:
      on_progress(stage.__name__.strip('_'))
    before = clock() if clock else 0.0
    try:
      found = list(stage(subject))
    except Exception as error:  # whatever the proposal's code raises is its author's to mend
      found = [Finding(*_complaint(error))]
    took = clock() - before if clock else 0.0
    findings += [dataclasses.replace(finding, seconds=took / len(found)) for finding in found]
    if any(not finding.passed and finding.check not in waived for finding in found) and stage in DECISIVE:
      break
    if clock and clock() - began > checks.seconds:
      slow = (
        f'the checks took {clock() - began:.0f} s of {checks.seconds:.0f} s allowed: make the mixer cheaper to compile'
      )
      findings.append(Finding('seconds', False, slow))
      break
  return tuple(sorted(findings, key=lambda finding: CHECKS.index(finding.check) if finding.check in CHECKS else 99))


@functools.cache
def _options(backend: str) -> Mapping[str, Any]:
  """Returns the compiler options for programs that run a few times: those of PROGRAM that this XLA knows."""
  known: dict[str, Any] = {}
  for name, value in PROGRAM.get(backend, {}).items():
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      jax.jit(lambda: 0).lower().compile({name: value})
      known[name] = value
  return known


def _complaint(error: Exception) -> tuple[str, bool, str]:
  """Returns check, False and a sentence for an exception that the mixer raised."""
  text = ' '.join(str(error).split())
  said = f'{type(error).__name__}: {text[:400]}'
  where = _line(error)
  if isinstance(error, flax.errors.InvalidRngError):
    return 'randomness', False, f'the mixer asks for random numbers{where}: only parameters are drawn ({said})'
  if isinstance(error, flax.errors.ModifyScopeVariableError | flax.errors.ScopeCollectionNotFound):
    return 'state', False, f'the mixer keeps state{where}: it has parameters only ({said})'
  if isinstance(error, cost.UnboundedLoopError):
    return 'loops', False, text
  return 'contract', False, f'the mixer raised{where}: {said}'


def _line(error: BaseException) -> str:
  """Returns ' at line n (text)' of the proposal's own source, the innermost line of it that raised."""
  place, frame = None, error.__traceback__
  while frame is not None:
    name = frame.tb_frame.f_code.co_filename
    if not name.startswith('/') and '<' not in name:
      place = (name, frame.tb_lineno)
    frame = frame.tb_next
  if place is None:
    return ''
  text = linecache.getline(*place).strip()
  return f' at line {place[1]}' + (f' ({text[:160]})' if text else '')


class _Subject:
  """A mixer with its parameters and the programs compiled for it; each is made when first asked for."""

  def __init__(
    self,
    mixer: type,
    spec: contract.MixerSpec,
    checks: config.Checks,
    seed: int,
    trained: Sequence[tuple[int, int]] = (),
  ):
    self.mixer, self.spec, self.checks, self.seed, self.trained = mixer, spec, checks, seed, tuple(trained)
    self.lengths = tuple(sorted(set(checks.lengths)))
    self.rng = np.random.default_rng([seed, 7])
    self.traces: dict[Any, Any] = {}
    self.compiling: dict[Any, futures.Future] = {}

  def built(self, dtype: Any) -> Any:
    return contract.build(self.mixer, dataclasses.replace(self.spec, dtype=jnp.dtype(dtype)))

  @functools.cached_property
  def module(self) -> Any:
    return self.built(jnp.float32)

  @functools.cached_property
  def shapes(self) -> Any:
    """Shapes of the parameters, as the host makes them: from one short sequence."""
    return jaxprs.parameter_shapes(self.module, self.spec.width)

  def runs_at(self, length: int) -> bool:
    """Returns whether the mixer initialises from two sequences of this length."""
    try:
      jaxprs.start(self.module, self.spec.width, 2, length)
    except Exception:  # whatever the proposal's code raises: it does not
      return False
    return True

  def outputs(self, module: Any, batch: int, length: int) -> Any:
    """Returns (shape of y, shapes of what is sown), traced."""
    x = jax.ShapeDtypeStruct((batch, length, self.spec.width), module.dtype)
    return jax.eval_shape(lambda p, x: module.apply({'params': p}, x, mutable=contract.SOWN), self.shapes, x)

  @functools.cached_property
  def shortest(self) -> Any:
    return self.outputs(self.module, 1, 2)

  def answer(self, batch: int, length: int) -> Any:
    """Returns the shape of y; of a size that will be run, that of the program, which is compiled from now on."""
    size = (length, batch)
    if size not in self.sizes or size == (self.middle, 2):
      return self.outputs(self.module, batch, length)[0]
    self.start(size)
    y_SBTD = self.trace(size).out_info
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), y_SBTD)

  def apply(self, parameters: Any, x_BTD: jax.Array) -> jax.Array:
    return self.module.apply({'params': parameters}, x_BTD, mutable=contract.SOWN)[0]

  def loss(self, parameters: Any, x_BTD: jax.Array, weights_BTD: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns a scalar that every part of the output and every sown loss enters, and the output y."""
    y_BTD, sown = self.module.apply({'params': parameters}, x_BTD, mutable=('losses',))
    return (y_BTD * weights_BTD).sum() + sum(jnp.sum(loss) for loss in jax.tree.leaves(sown)), y_BTD

  @property
  def middle(self) -> int:
    """A length for what is tried at one length only: the shortest that is long enough to have a past."""
    return next((length for length in self.lengths if length >= 16), self.lengths[-1])

  @functools.cached_property
  def sizes(self) -> tuple[tuple[int, int], ...]:
    """What is run, as (length, batch), longest first: two rows everywhere but for one length with three."""
    three = self.lengths[-2] if len(self.lengths) > 2 and self.lengths[-2] != self.middle else 0
    sizes = [(length, 3 if length == three else 2) for length in reversed(self.lengths)]
    return tuple(sizes if three else [*sizes, (self.middle, 3)])

  @property
  def quick(self) -> tuple[int, int]:
    """The size to run once more: the shortest with a past that runs without its gradient."""
    sizes = [size for size in self.sizes if size != (self.middle, 2)]
    return next((size for size in reversed(sizes) if size[0] >= self.middle), sizes[0])

  @functools.cached_property
  def probes(self) -> dict[tuple[int, int], _Probes]:
    """What is put in. All lengths show the same sequences, cut."""
    shape = (3, self.lengths[-1], self.spec.width)
    rows_BTD, others_BTD = (self.rng.normal(size=shape).astype(np.float32) for _ in range(2))
    return {
      (t, b): _probes(rows_BTD[:b, :t], others_BTD[:b, :t], CUTS if t == self.lengths[-1] else FEW_CUTS)
      for t, b in {*self.sizes, *((length, 2) for length in self.lengths)}
    }

  @functools.cached_property
  def jitted(self) -> Any:
    return jax.jit(jax.vmap(self.apply, (None, 0)))

  def trace(self, name: Any) -> Any:
    """Returns one program, traced: 'gradient' (which gives y too), 'init', the forward pass of (length, batch) for all
    probes, or that of ('elsewhere', (length, batch))."""
    if name not in self.traces:
      # Accelerators round products to bfloat16 or TF32 otherwise, and that would look like a leak.
      with jax.default_matmul_precision('highest'):
        self.traces[name] = self._traced(name)
    return self.traces[name]

  def _traced(self, name: Any) -> Any:
    if name == 'gradient':
      x_SBTD = jax.ShapeDtypeStruct(self.slope_x.shape, jnp.float32)
      slopes = jax.vmap(jax.grad(self.loss, (0, 1), has_aux=True), (None, 0, 0))
      return jax.jit(slopes).trace(self.shapes, x_SBTD, x_SBTD)
    if name == 'init':
      begin = jaxprs.start(self.module, self.spec.width)
      leaves = len(jax.tree.leaves(begin.parameters))
      return jax.jit(lambda key: jaxpr_as_fun(begin.jaxpr)(key)[:leaves]).trace(jax.random.key(0))
    if name[0] == 'elsewhere':
      return jax.jit(self.apply).trace(self.shapes, jax.ShapeDtypeStruct(self.elsewhere[name[1]].shape, jnp.float32))
    return self.jitted.trace(self.shapes, jax.ShapeDtypeStruct(self.probes[name].x.shape, jnp.float32))

  @functools.cached_property
  def compilers(self) -> futures.ThreadPoolExecutor:
    """Two: tracing holds Python, compiling and running do not, so programs are compiled while others are traced."""
    return futures.ThreadPoolExecutor(2)

  @functools.cached_property
  def runners(self) -> futures.ThreadPoolExecutor:
    """Not the compilers: a run waits for its program, and must not keep it from being compiled.

    One: two programs with triangular solves that run at once on a processor may wait for each other for ever.
    """
    return futures.ThreadPoolExecutor(1)

  @functools.cached_property
  def elsewhere(self) -> dict[tuple[int, int], np.ndarray]:
    """What is put in at sizes (length, batch) where the mixer is counted or trained and looks like another program.

    The rows are those of the probes, other rows and tokens behind them.
    """
    counted = cost.growth(self.module, self.spec.width).lengths[0]
    length = self.trained[0][1] if self.trained else self.lengths[-1]
    sizes = [(counted, 1), (FINGERPRINTED, 1), *((tokens, rows) for rows, tokens in self.trained), (length, 1)]
    known_BTD = self.probes[self.lengths[-1], 2].x[0]
    watched = cost.program(self.module, self.spec.width, length, 2)
    found = {}
    for tokens, rows in dict.fromkeys(sizes):
      seen = cost.program(self.module, self.spec.width, tokens, rows)
      if not cost.alike(seen, watched, cheaper=tokens == length and rows > 1):
        x_BTD = self.rng.normal(size=(rows, tokens, self.spec.width)).astype(np.float32)
        shared_BTD = known_BTD[:rows, :tokens]
        x_BTD[: shared_BTD.shape[0], : shared_BTD.shape[1]] = shared_BTD
        found[tokens, rows] = x_BTD
    return found

  def start(self, name: Any) -> None:
    """Sees to it that a program is being compiled."""
    if name not in self.compiling:
      traced, options = self.trace(name), _options(target.device()[0])
      self.compiling[name] = self.compilers.submit(lambda: traced.lower().compile(options))

  def program(self, name: Any) -> Any:
    self.start(name)
    return self.compiling[name].result()

  @functools.cached_property
  def initial(self) -> Any:
    leaves = map(np.asarray, self.program('init')(jax.random.key(self.seed)))
    return jax.tree.unflatten(jax.tree.structure(self.shapes), leaves)

  @functools.cached_property
  def moved(self) -> Any:
    """Parameters a little off their initialisation: a tenth of their size, and a tenth where they are zero."""

    def move(leaf: np.ndarray) -> np.ndarray:
      size = float(np.sqrt(np.mean(np.square(leaf, dtype=np.float64)))) if leaf.size else 0.0
      step = 0.1 * size if size > 0 and math.isfinite(size) else 0.1
      return (leaf + step * self.rng.normal(size=leaf.shape)).astype(leaf.dtype)

    return jax.tree.map(move, self.initial)

  def run(self, parameters: Any, size: tuple[int, int]) -> np.ndarray:
    """Returns y [S, B, T, D] for all probes of a size."""
    if size == (self.middle, 2):
      return np.asarray(self.slopes(parameters)[1])[:-1]
    return np.asarray(self.program(size)(parameters, self.probes[size].x))

  @functools.cached_property
  def slope_x(self) -> np.ndarray:
    """The probes of the middle length, and behind them one token over and over, as padding is: [S + 1, 2, T, D]."""
    x_SBTD = self.probes[self.middle, 2].x
    return np.concatenate([x_SBTD, np.repeat(x_SBTD[:1, :, :1], self.middle, 2)])

  @functools.cached_property
  def slope_weights(self) -> np.ndarray:
    return self.rng.normal(size=self.slope_x.shape).astype(np.float32)

  def slopes(self, parameters: Any) -> Any:
    """Returns ((gradients of the parameters, of x), y) for each batch of `slope_x`."""
    return self.program('gradient')(parameters, self.slope_x, self.slope_weights)

  def late_slopes(self) -> tuple[Any, Any]:
    """Returns the gradients of the parameters and of x at the longest length: some paths begin after many tokens."""
    shape = (2, self.lengths[-1], self.spec.width)
    x_BTD, weights_BTD = (self.rng.normal(size=shape).astype(np.float32) for _ in range(2))
    with jax.default_matmul_precision('highest'):
      slopes = jax.jit(jax.grad(self.loss, (0, 1), has_aux=True)).lower(self.moved, x_BTD, weights_BTD)
      return slopes.compile(dict(_options(target.device()[0])))(self.moved, x_BTD, weights_BTD)[0]

  def apart(self, size: tuple[int, int]) -> tuple[float, int]:
    """Returns the largest change, and where, at a size (length, batch) of `elsewhere`.

    Of rows and tokens seen before, of rows in reverse, and of the first half of the rows when the others are replaced.
    """
    program, x_BTD = self.program(('elsewhere', size)), self.elsewhere[size]
    y_BTD = np.asarray(program(self.moved, x_BTD))
    seen_BTD = self.pair(self.lengths[-1])[: size[1], : size[0]]
    found = [_change(y_BTD[: seen_BTD.shape[0], : seen_BTD.shape[1]], seen_BTD)]
    if size[1] > 1:
      half, other_BTD = -(-size[1] // 2), np.array(x_BTD)
      other_BTD[half:] = 10 * x_BTD[::-1][half:]
      found.append(_change(np.asarray(program(self.moved, x_BTD[::-1]))[::-1], y_BTD))
      found.append(_change(np.asarray(program(self.moved, other_BTD))[:half], y_BTD[:half]))
    return max(found)

  @functools.cached_property
  def answers(self) -> dict[tuple[int, int], np.ndarray]:
    """What comes out with the moved parameters, by size."""
    moved = self.moved
    for size in self.sizes:
      self.start('gradient' if size == (self.middle, 2) else size)
    return dict(zip(self.sizes, self.runners.map(lambda size: self.run(moved, size), self.sizes), strict=True))

  def shortened(self, length: int) -> np.ndarray:
    """Returns y [2, T, D] of the first two sequences, from three rows where these agree with the longest run."""
    if (length, 2) not in self.answers:
      y_BTD = self.answers[length, 3][0][:2]
      if _change(y_BTD, self.pair(self.lengths[-1])[:, :length])[0] <= self.checks.tolerance:
        return y_BTD
    return self.pair(length)

  def again(self, size: tuple[int, int]) -> Any:
    """Returns the jaxpr of one forward program, traced a second time."""
    x = jax.ShapeDtypeStruct(self.probes[size].x.shape, jnp.float32)
    with jax.default_matmul_precision('highest'):
      return jax.make_jaxpr(jax.vmap(lambda *operands: self.apply(*operands), (None, 0)))(self.shapes, x)

  def pair(self, length: int) -> np.ndarray:
    """Returns y [2, T, D] of the first two sequences, two rows a batch."""
    size = (length, 2)
    if size not in self.answers:
      self.answers[size] = self.run(self.moved, size)
    return self.answers[size][0]


class _Probes(NamedTuple):
  """Batches of one size: the rows as they are, in reverse, the first with other neighbours, then swapped futures."""

  x: np.ndarray  # [S, B, T, D]
  swaps: tuple[tuple[int, str], ...]  # (tokens kept, what came after) of the batches from FIRST_SWAP


def _probes(rows_BTD: np.ndarray, others_BTD: np.ndarray, wanted: Sequence[int]) -> _Probes:
  length = rows_BTD.shape[1]
  batches = [rows_BTD, rows_BTD[::-1], np.concatenate([rows_BTD[:1], 10 * others_BTD[1:]])]
  futures_BTD = dict(zip(FUTURES, (others_BTD, 10 * others_BTD, rows_BTD + 5, 0 * rows_BTD), strict=True))
  cuts = sorted({cut for cut in wanted if cut < length} | {length - 1} - {0})
  swaps = [(cut, kind) for i, cut in enumerate(cuts) for kind in (FUTURES[0], FUTURES[1 + i % 3])]
  batches += [np.concatenate([rows_BTD[:, :cut], futures_BTD[kind][:, cut:]], 1) for cut, kind in swaps]
  return _Probes(np.stack(batches), tuple(swaps))


def _contract(subject: _Subject) -> Iterator[Finding]:
  """The mixer builds, initialises and answers; it has parameters and what it sows, nothing else."""
  try:
    others = jaxprs.start(subject.module, subject.spec.width).others
  except Exception as error:
    check, _, said = _complaint(error)
    if check == 'contract' and subject.runs_at(64):
      check, said = 'shapes', f'B = 1, T = 2 cannot be run, any B and T must be: {said}'
    yield Finding(check, False, said)
    return
  foreign = sorted(set(others) - set(contract.SOWN))
  if foreign:
    yield Finding(
      'state', False, f'the mixer keeps the collection {foreign[0]!r}: it has parameters only, drop that state'
    )
    return
  _, sown = subject.shortest
  foreign = sorted(set(sown) - set(contract.SOWN))
  if foreign:
    yield Finding(
      'state', False, f'the mixer changes the collection {foreign[0]!r} when called: it has parameters only'
    )
    return
  for path, leaf in jax.tree_util.tree_leaves_with_path(sown.get('losses', {})):
    if leaf.shape != () or not jnp.issubdtype(leaf.dtype, jnp.floating):
      name = jax.tree_util.keystr(path)
      yield Finding(
        'contract', False, f'the loss sown at {name} is {leaf.dtype}{list(leaf.shape)}: sow one float, a mean'
      )
      return
  if not jax.tree.leaves(subject.shapes):
    yield Finding('contract', False, 'the mixer has no parameters: there is nothing to train')
    return
  subject.start('init')
  yield Finding('contract', True, 'builds from width, heads, dtype; initialises; answers')
  yield Finding('state', True, 'parameters and sown values only')


def _shapes(subject: _Subject) -> Iterator[Finding]:
  """Any B and T goes in and comes out again, in the type asked for."""
  width, lengths = subject.spec.width, subject.lengths
  sizes = [(batch, length) for length, batch in subject.sizes if length != subject.middle]
  for batch, length in [*sizes, (1, subject.middle)]:  # two rows come with the gradient
    try:
      y = subject.answer(batch, length)
    except Exception as error:
      check, _, said = _complaint(error)
      check = 'shapes' if check == 'contract' else check
      yield Finding(check, False, f'B = {batch}, T = {length} cannot be run, any B and T must be: {said}')
      return
    if not hasattr(y, 'shape') or y.shape != (batch, length, width):
      got = f'shape {list(y.shape)}' if hasattr(y, 'shape') else f'a {type(y).__name__}'
      yield Finding(
        'shapes', False, f"x has shape [{batch}, {length}, {width}] and y {got}: return one array of x's shape"
      )
      return
  yield Finding('shapes', True, f'B from 1 to 3 and T in {list(lengths)} keep their shape')
  for path, leaf in jax.tree_util.tree_leaves_with_path(subject.shapes):
    if leaf.dtype != jnp.float32:
      name = jax.tree_util.keystr(path)
      yield Finding('dtypes', False, f'parameter {name} is {leaf.dtype}: keep parameters float32 and cast where used')
      return
  y, _ = subject.shortest
  if y.dtype != jnp.float32:
    yield Finding('dtypes', False, f'with dtype float32 y is {y.dtype}: end with y.astype(x.dtype)')
    return
  for dtype in sorted({'bfloat16', str(subject.spec.dtype)} - {'float32'}):
    try:
      y, _ = subject.outputs(subject.built(dtype), 3, subject.middle)
    except Exception as error:
      yield Finding('dtypes', False, f'with dtype {dtype}: {_complaint(error)[2]}')
      return
    if y.dtype != jnp.dtype(dtype):
      yield Finding('dtypes', False, f'with dtype {dtype} y is {y.dtype}: end with y.astype(x.dtype)')
      return
  yield Finding('dtypes', True, 'y has the type of x in float32 and bfloat16, parameters are float32')


def _effects(subject: _Subject) -> Iterator[Finding]:
  """The jaxpr of the mixer, and of its gradient, is a pure function without random numbers or open loops."""
  forward = subject.trace(subject.sizes[0]).jaxpr
  names = {equation.primitive.name for equation in jaxprs.walk(forward)}
  if 'while' in names:  # before its gradient is asked for: it has none
    yield Finding('loops', False, cost.OPEN_LOOP)
    return
  yield Finding('loops', True, 'every loop has a known number of turns')
  for trace in (lambda: forward, lambda: subject.trace('gradient').jaxpr):  # a callback may have no gradient
    if calls := _host_calls(jaxpr := trace()):
      yield Finding('effects', False, f'the mixer calls the host ({", ".join(calls)}): remove it')
      return
    names |= {equation.primitive.name for equation in jaxprs.walk(jaxpr)}
  yield Finding('effects', True, 'no call to the host, no effect')
  drawn = sorted(name for name in names if name.startswith(RANDOM))
  if drawn:
    yield Finding(
      'randomness', False, f'the mixer draws random numbers when called ({drawn[0]}): only parameters are drawn'
    )
  else:
    yield Finding('randomness', True, 'no random numbers but for parameters')


def _host_calls(jaxpr: Any) -> list[str]:
  names = {equation.primitive.name for equation in jaxprs.walk(jaxpr)}
  return sorted(
    {n for n in names if any(part in n for part in HOST_CALLS)} or {str(effect) for effect in jaxpr.effects}
  )


def _growth(subject: _Subject) -> Iterator[Finding]:
  """FLOPs grow more slowly with T than the limit allows, in sum and in every part."""
  subject.start('gradient')  # compiled while the growth is counted
  types = {subject.spec.dtype: subject.built(subject.spec.dtype), jnp.dtype('float32'): subject.module}
  growths = [cost.growth(module, subject.spec.width) for module in types.values()]
  grown, steep = max(growths, key=lambda one: one.exponent), max(growths, key=lambda one: one.steepest)
  for size in subject.elsewhere:
    subject.start(('elsewhere', size))
  low, high = grown.lengths
  seen = f'FLOPs grow as T^{grown.exponent:.2f} between T = {low} and {high}'
  limit = subject.checks.growth
  if grown.exponent > limit:
    what = f', most steeply in {grown.culprit}' if grown.culprit else ''
    yield Finding(
      'growth', False, f'{seen}{what}, more than T^{limit:g}: replace what compares every token with every other'
    )
  elif steep.steepest > max(cost.STEEP, limit):
    what = f'{steep.culprit} grows as T^{steep.steepest:.2f}'
    yield Finding('growth', False, f'{what}, although the sum does not yet show it: replace what has T x T elements')
  else:
    yield Finding('growth', True, seen)


def _finite(subject: _Subject) -> Iterator[Finding]:
  """Parameters and outputs are finite at initialisation and near it."""
  for path, leaf in jax.tree_util.tree_leaves_with_path(subject.initial):
    if not np.isfinite(leaf).all():
      name = jax.tree_util.keystr(path)
      yield Finding('finite', False, f'parameter {name} starts with a value that is not finite: mend its initialiser')
      return
  size = subject.quick
  subject.start(size)
  first = subject.runners.submit(subject.run, subject.initial, size)  # beside the answers
  places = [('with parameters moved by a tenth', y, length) for (length, _), y in subject.answers.items()]
  places.insert(0, ('at initialisation', first.result(), size[0]))
  for where, y_SBTD, length in places:
    bad_BT = ~np.isfinite(y_SBTD[0]).all(-1)
    if bad_BT.any():
      at = int(bad_BT.any(0).argmax())
      how = 'guard divisions, logarithms, roots and exponentials'
      yield Finding('finite', False, f'{where} the output at position {at} of {length} is not finite: {how}')
      return
  yield Finding('finite', True, 'finite at initialisation and near it')


def _determinism(subject: _Subject) -> Iterator[Finding]:
  """Two calls give the same, and two traces the same program: nothing outside the arguments is read."""
  size = subject.quick
  if not np.array_equal(subject.run(subject.moved, size), subject.answers[size], equal_nan=True):
    yield Finding('determinism', False, 'two calls with the same input give different outputs: remove what changes')
  elif not cost.same_function(subject.trace(size).jaxpr, subject.again(size)):
    yield Finding(
      'determinism', False, 'traced twice, the mixer is two functions: it reads something that changes; remove it'
    )
  else:
    yield Finding('determinism', True, 'the same input gives the same output')


def _batch(subject: _Subject) -> Iterator[Finding]:
  """A row's output does not depend on its place, on its neighbours or on how many there are."""
  longest = subject.lengths[-1]
  for size, y_SBTD in tuple(subject.answers.items()):
    length, batch = size
    pairs = [
      ('when the rows change places', y_SBTD[1][::-1], y_SBTD[0]),
      ('when the other rows are replaced', y_SBTD[2][:1], y_SBTD[0][:1]),
    ]
    # Three rows are compared with two of the same length where they differ from two of another.
    if batch == 3 and _change(y_SBTD[0][:2], subject.pair(longest)[:, :length])[0] > subject.checks.tolerance:
      pairs.append(('when the batch has three rows instead of two', y_SBTD[0][:2], subject.pair(length)))
    for when, got, wanted in pairs:
      change, at = _change(got, wanted)
      if change > subject.checks.tolerance:
        said = f"a row's output at position {at} changes by {change:.2g} of its size {when} (T = {length})"
        yield Finding('batch', False, f'{said}: never reduce, sort or normalise over the batch axis')
        return
  for batch, length in subject.trained:
    many, one = (cost.program(subject.module, subject.spec.width, length, rows) for rows in (batch, 1))
    if many.flops_per_token > MOST_A_ROW * one.flops_per_token:
      times = many.flops_per_token / one.flops_per_token
      said = f'a row among {batch} takes {times:.2f} times the FLOPs of one alone (T = {length})'
      yield Finding('batch', False, f'{said}: do the same whatever the number of rows')
      return
    if batch > 1 and (length, batch) in subject.elsewhere:
      change, at = subject.apart((length, batch))
      if change > subject.checks.tolerance:
        said = f"a row's output at position {at} changes by {change:.2g} of its size among {batch} rows of T = {length}"
        yield Finding('batch', False, f'{said}: do the same whatever the number of rows, and never mix them')
        return
  yield Finding('batch', True, 'rows do not see each other')


def _causality(subject: _Subject) -> Iterator[Finding]:
  """The past does not change when the future does."""
  for size in subject.sizes:
    length, y_SBTD, probes = size[0], subject.answers[size], subject.probes[size]
    worst: tuple[float, int, int, str] = (0.0, 0, 0, '')
    for (cut, kind), swapped_BTD in zip(probes.swaps, y_SBTD[FIRST_SWAP:], strict=True):
      change, at = _change(swapped_BTD[:, :cut], y_SBTD[0][:, :cut])
      # A larger future rounds more where all of a sequence goes through one transform; each cut sees an equal one, too.
      change /= max(1.0, _rms(swapped_BTD) / _rms(y_SBTD[0]))
      worst = max(worst, (change, at, cut, kind))
    change, at, cut, kind = worst
    if math.isinf(change):  # nothing can be said of the past: zero times infinity is no number
      when = f'when the tokens from position {cut} on are {kind} (T = {length})'
      how = 'bound what is fed back, normalise keys, guard exponentials'
      yield Finding('finite', False, f'the output at position {at} is not finite {when}: {how}')
      return
    if change > subject.checks.tolerance:
      when = f'when the tokens from position {cut} on are {kind}'
      said = f'the output at position {at} changes by {change:.2g} of its size {when}'
      how = 'pad on the left only, sum and normalise over the past only, mask before the softmax'
      yield Finding('causality', False, f'{said} (T = {length}): it sees the future; {how}')
      return
  cuts = sum(len(subject.probes[size].swaps) for size in subject.sizes)
  yield Finding('causality', True, f'{cuts} swapped futures at T in {list(subject.lengths)} left the past as it was')


def _prefix(subject: _Subject) -> Iterator[Finding]:
  """A position's output is the same however long the sequence is."""
  longest = subject.lengths[-1]
  whole_BTD = subject.pair(longest)
  for length in subject.lengths[:-1]:
    change, at = _change(subject.shortened(length), whole_BTD[:, :length])
    if change > subject.checks.tolerance:
      said = f'the output at position {at} differs by {change:.2g} of its size between T = {length} and T = {longest}'
      how = 'use nothing that depends on T itself: no position / T, no schedule or kernel of length T'
      yield Finding('prefix', False, f'{said} with the same tokens before it: {how}')
      return
  for counted in (size for size in subject.elsewhere if size[1] == 1):
    change, at = subject.apart(counted)
    if change > subject.checks.tolerance:
      said = f'the output at position {at} of one row of T = {counted[0]} differs by {change:.2g} of its size'
      how = f'what grows with T is counted there, so it must be what runs at T = {longest}'
      yield Finding('prefix', False, f'{said} with the same tokens before it: {how}; decide nothing by B or T')
      return
  yield Finding('prefix', True, f'T in {list(subject.lengths)} agree on their common tokens')


def _named(grads: Any, dx: Any) -> list[tuple[str, np.ndarray]]:
  """Returns the gradients by the path of their parameter, that of the input, named '', at the end."""
  paths = jax.tree_util.tree_leaves_with_path(grads)
  return [*((jax.tree_util.keystr(path), np.asarray(leaf)) for path, leaf in paths), ('', np.asarray(dx))]


def _gradients(subject: _Subject) -> Iterator[Finding]:
  """Every parameter and the input receive a finite gradient that is not zero."""
  named = _named(*subject.slopes(subject.moved)[0])
  for index, text in ((0, 'random tokens'), (-1, 'one token repeated')):
    bad = [name for name, leaf in named if not np.isfinite(leaf[index]).all()]
    if bad:
      of = f'of parameter {bad[0]}' if bad[0] else 'of the input'
      how = 'guard roots, norms and divisions at zero (add an epsilon inside)'
      yield Finding('gradients', False, f'the gradient {of} is not finite for {text}: {how}')
      return
  dead = [name for name, leaf in named if leaf.size and not leaf[0].any()]
  if dead:
    late = dict(_named(*subject.late_slopes()))
    dead = [name for name in dead if not late[name].any()]
  if dead:
    several = f' (and {len(dead) - 1} more)' if len(dead) > 1 else ''
    of = f'parameter {dead[0]}{several}' if dead[0] else 'the input'
    tried = f'T = {subject.middle} and {subject.lengths[-1]}'
    said = f'{of} gets no gradient at {tried}: it is unused or cut off; connect it or remove it'
    yield Finding('gradients', False, said)
    return
  yield Finding('gradients', True, f'finite and not zero for the input and all {len(named) - 1} parameters')


def _rms(array: np.ndarray) -> float:
  return max(float(np.sqrt(np.mean(np.square(array, dtype=np.float64)))), 1e-6)


def _change(got: np.ndarray, wanted: np.ndarray) -> tuple[float, int]:
  """Returns the largest change over the root mean square of what was wanted, and the position where it is."""
  change_T = np.abs(got.astype(np.float64) - wanted).max(axis=(0, 2)) / _rms(wanted)
  change_T = np.where(np.isnan(change_T), np.inf, change_T)
  at = int(change_T.argmax())
  return float(change_T[at]), at


Stage = Callable[[_Subject], Iterable[Finding]]
DECISIVE: Sequence[Stage] = (_contract, _shapes, _effects, _finite)
STAGES: Sequence[Stage] = (
  _contract,
  _shapes,
  _effects,
  _growth,
  _finite,
  _determinism,
  _batch,
  _causality,
  _prefix,
  _gradients,
)
