"""What a decoder must keep of the tokens it has seen, read off a jaxpr.

Every value that depends on x is followed with the axes along which time runs (the token axis, or the chunk axis that a
reshape makes of it). Time meets time in a few ways only, and each says what must be remembered:

- a scan over time: its carry, where that depends on x, and whatever history it reads through its constants;
- a cumulative sum, and a sum over all of time: one running value;
- a convolution of W taps, or values met with their own past by padding and slicing: the W - 1 slices in between;
- a product of every token with every token: the operand that is looked back at, all of it (keys, then values);
- an FFT, a gather or a sort along time: the whole history;
- an associative scan (slices of stride two): one slice of each operand.

What happens inside a chunk counts as the way a recurrence is computed and keeps nothing. Limits: an associative scan
over pairs (a, b) counts both, although a decoder keeps b alone; a loop that reads x at its own index counts as one that
reads all of x; attention inside a fixed chunk is not seen (its buffer does not grow with T), nor is the state of a
Python loop over time.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal
from jax.lax import FftType

from asiarch_jax.checks.cost import jaxprs
from asiarch_jax.checks.cost.jaxprs import words

CUMULATIVE = frozenset(('cumsum', 'cumprod', 'cummax', 'cummin', 'cumlogsumexp'))
MOVES = words("""
  reshape transpose broadcast_in_dim convert_element_type slice concatenate pad squeeze expand_dims
  copy rev stop_gradient reduce_precision stack name optimization_barrier split copy_p
""")
ANYWHERE = words('gather dynamic_slice sort top_k approx_top_k')  # reach any moment of the past


@dataclasses.dataclass(frozen=True)
class Value:
  """What is known of an array: whether x is in it, and how its axes run in time."""

  shape: tuple[int, ...]
  depends: bool = False
  time: tuple[bool, ...] = ()
  paired: bool = False  # made from every token with every token: its operands are counted already
  source: int = 0  # the value that this one is a shifted view of
  delay: int = 0  # how many steps later than in `source` a moment stands
  tree: int = 0  # length of the time axis above an associative scan that this value is inside of

  @property
  def axes(self) -> list[int]:
    return [axis for axis, runs in enumerate(self.time) if runs and self.shape[axis] > 1]


class _Kept:
  """Adds up bytes; of one value's shifted views the longest delay counts."""

  def __init__(self, length: int) -> None:
    self.length = length  # T: what an axis of time has beyond it is padding
    self.bytes = 0.0
    self.windows: dict[int, float] = {}
    self.fresh = itertools.count(1)

  def window(self, value: Value, slice_bytes: float) -> None:
    if value.delay > 0:
      self.windows[value.source] = max(self.windows.get(value.source, 0.0), value.delay * slice_bytes)

  def total(self) -> float:
    return float(self.bytes + sum(self.windows.values()))


def kept_bytes(jaxpr: ClosedJaxpr) -> float:
  """Returns the bytes that a decoder keeps after T tokens x [1, T, D] (last operand) to go on with y (first output)."""
  body = jaxpr.jaxpr
  kept = _Kept(body.invars[-1].aval.shape[1])
  values = [_plain(variable.aval) for variable in body.invars]
  values[-1] = Value(values[-1].shape, True, (False, True, False), source=next(kept.fresh))
  _run(body, [_plain(variable.aval) for variable in body.constvars], values, kept, 1.0, outputs=1)
  return kept.total()


def _plain(aval: Any) -> Value:
  shape = tuple(int(n) for n in getattr(aval, 'shape', ()))
  return Value(shape, time=(False,) * len(shape))


def _run(
  body: Jaxpr, consts: list[Value], arguments: list[Value], kept: _Kept | None, times: float, outputs: int | None = None
) -> list[Value]:
  """Returns what the first `outputs` of `body` are; what is remembered goes to `kept` (None in a loop over time)."""
  known: dict[Any, Value] = dict(zip((*body.constvars, *body.invars), (*consts, *arguments), strict=True))

  def of(variable: Any) -> Value:
    return _plain(variable.aval) if isinstance(variable, Literal) else known[variable]

  for equation in jaxprs.live(body, outputs):
    results = _equation(equation, [of(variable) for variable in equation.invars], kept, times)
    known.update(zip(equation.outvars, results, strict=True))
  return [of(variable) for variable in body.outvars[:outputs]]


def _equation(equation: JaxprEqn, operands: list[Value], kept: _Kept | None, times: float) -> list[Value]:
  name = equation.primitive.name
  if name == 'scan':
    return _scan(equation, operands, kept, times)
  if name == 'cond':
    outcomes = []
    for branch in equation.params['branches']:
      body, _ = jaxprs.opened(branch)
      mine = _Kept(kept.length) if kept else None
      outcomes.append((_run(body, [_plain(v.aval) for v in body.constvars], operands[1:], mine, times), mine))
    best = max(outcomes, key=lambda outcome: outcome[1].total() if outcome[1] else 0.0)
    if kept and best[1]:
      kept.bytes += best[1].total()
    return best[0]
  if (wrapped := jaxprs.wrapped(equation)) is not None and name != 'while':
    body, _ = jaxprs.opened(wrapped)
    return _run(body, [_plain(v.aval) for v in body.constvars], operands, kept, times)
  return _primitive(equation, operands, kept, times)


def _scan(equation: JaxprEqn, operands: list[Value], kept: _Kept | None, times: float) -> list[Value]:
  params = equation.params
  consts, carry = jaxprs.scan_sizes(equation)
  length = params['length']
  fixed, carried, rows = operands[:consts], operands[consts : consts + carry], operands[consts + carry :]
  sizes = {v.shape[a] for v in operands for a in v.axes}
  over_time = length > 1 and length in sizes
  body, _ = jaxprs.opened(params['jaxpr'])
  inner = [dataclasses.replace(v, shape=v.shape[1:], time=v.time[1:], delay=0) for v in rows]
  for _ in range(carry + 1):  # until it is known which parts of the carry x reaches
    results = _run(body, [], [*fixed, *carried, *inner], None, times)
    joined = [_joined(old, new) for old, new in zip(carried, results[:carry], strict=True)]
    if joined == carried:
      break
    carried = joined
  if kept is not None and not over_time:
    _run(body, [], [*fixed, *carried, *inner], kept, times * length)
  if kept is not None and over_time:
    avals = [variable.aval for variable in equation.invars[consts : consts + carry]]
    kept.bytes += times * sum(jaxprs.nbytes(a) for v, a in zip(carried, avals, strict=True) if v.depends)
    histories = zip(equation.invars, fixed, strict=False)
    kept.bytes += times * sum(jaxprs.nbytes(variable.aval) for variable, v in histories if v.depends and v.axes)
    for variable, value in zip(equation.invars[consts + carry :], rows, strict=True):
      if value.depends and value.axes:
        kept.window(value, times * jaxprs.nbytes(variable.aval) / math.prod(value.shape[axis] for axis in value.axes))
  # What a loop gave out one step before is its carry, or made from it: a delay of one is remembered already.
  delay = max((v.delay for v in rows if v.depends and v.axes), default=0) - 1
  fresh = kept.fresh if kept else itertools.repeat(0)
  outputs = [
    dataclasses.replace(
      v, shape=(length, *v.shape), time=(over_time and v.depends, *v.time), source=next(fresh), delay=delay
    )
    for v in results[carry:]
  ]
  return [*(dataclasses.replace(v, source=next(fresh), delay=0) for v in carried), *outputs]


def _joined(old: Value, new: Value) -> Value:
  time = tuple(a or b for a, b in zip(old.time, new.time, strict=True))
  return dataclasses.replace(old, depends=old.depends or new.depends, time=time, paired=old.paired or new.paired)


def _primitive(equation: JaxprEqn, operands: list[Value], kept: _Kept | None, times: float) -> list[Value]:
  name, params = equation.primitive.name, equation.params
  shapes = [tuple(int(n) for n in getattr(v.aval, 'shape', ())) for v in equation.outvars]
  depending = [v for v in operands if v.depends]
  if not depending:
    return [_plain(v.aval) for v in equation.outvars]
  paired = any(v.paired for v in depending)
  tree = max(v.tree for v in depending)
  counting = kept if kept is not None and not paired and not tree else None
  source = next(kept.fresh) if kept is not None else 0

  def slice_bytes(index: int) -> float:
    value = operands[index]
    lengths = math.prod(value.shape[axis] for axis in value.axes)
    return times * jaxprs.nbytes(equation.invars[index].aval) / max(lengths, 1)

  def result(shape: tuple[int, ...], time: tuple[bool, ...], **changes: Any) -> Value:
    lengths = {shape[axis] for axis, runs in enumerate(time) if runs}
    within = 0 if tree in lengths else tree
    return Value(shape, True, time, **({'paired': paired, 'source': source, 'tree': within} | changes))

  if name in MOVES:
    return _moved(equation, operands, counting, slice_bytes, result)
  if counting is not None:
    for index, value in enumerate(operands):
      if value.depends and name != 'conv_general_dilated':  # whose taps are counted below
        counting.window(value, slice_bytes(index))

  if name == 'dot_general':
    time, twice, bytes_ = _product(equation, operands, slice_bytes)
    if kept is not None and not tree:
      kept.bytes += bytes_
    return [result(shapes[0], time, paired=paired or twice)]
  if name == 'conv_general_dilated':
    lhs_spec, rhs_spec, out_spec = params['dimension_numbers']
    time = tuple(operands[0].time[lhs_spec[out_spec.index(axis)]] for axis in range(len(shapes[0])))
    if counting is not None and operands[0].depends:
      for place, axis in enumerate(lhs_spec[2:]):
        if axis in operands[0].axes:
          taps = (operands[1].shape[rhs_spec[2 + place]] - 1) * params['rhs_dilation'][place]
          counting.bytes += min(taps, operands[0].shape[axis]) * slice_bytes(0)
    return [result(shapes[0], time)]
  if name in CUMULATIVE:
    if counting is not None and params['axis'] in operands[0].axes:
      counting.bytes += slice_bytes(0)
    return [result(shapes[0], operands[0].time)]
  if name.startswith(('reduce_', 'arg')) and 'axes' in params and name != 'reduce_precision':
    axes = params['axes']
    time = tuple(runs for axis, runs in enumerate(operands[0].time) if axis not in axes)
    if counting is not None and set(axes) & set(operands[0].axes) and not any(time):
      counting.bytes += times * sum(jaxprs.nbytes(v.aval) for v in equation.outvars)
    return [result(shape, time) for shape in shapes]
  if name == 'fft':
    first = len(operands[0].shape) - len(params['fft_lengths'])
    forward = params['fft_type'] in (FftType.FFT, FftType.RFFT)
    if counting is not None and forward and any(axis >= first for axis in operands[0].axes):
      longest = max(operands[0].shape[axis] for axis in operands[0].axes)
      counting.bytes += slice_bytes(0) * min(longest, counting.length)
    return [result(shapes[0], operands[0].time, paired=paired)]
  if name in ANYWHERE or name.startswith('reduce_window'):
    if counting is not None and operands[0].depends and operands[0].axes:
      counting.bytes += times * jaxprs.nbytes(equation.invars[0].aval)
    return [result(shape, _like(shape, depending)) for shape in shapes]
  if name == 'pallas_call':  # a recurrence hands its last state back: the outputs without a time axis
    outputs = [result(shape, _like(shape, depending)) for shape in shapes]
    if counting is not None:
      ends = [v for v, value in zip(equation.outvars, outputs, strict=True) if not value.axes]
      counting.bytes += times * sum(jaxprs.nbytes(v.aval) for v in ends)
    return outputs
  return [result(shape, _like(shape, depending)) for shape in shapes]


def _like(shape: tuple[int, ...], operands: list[Value]) -> tuple[bool, ...]:
  """Returns which axes of an output run in time: those of operands of its rank, else those of equal length."""
  same = [v for v in operands if len(v.shape) == len(shape)]
  if same:
    return tuple(any(v.time[axis] and v.shape[axis] == n for v in same) for axis, n in enumerate(shape))
  lengths = {v.shape[axis] for v in operands for axis in v.axes}
  return tuple(n in lengths for n in shape)


def _product(equation: JaxprEqn, operands: list[Value], slice_bytes: Any) -> tuple[tuple[bool, ...], bool, float]:
  """Returns the time axes of a matrix product, whether it pairs every token with every token, and bytes to keep."""
  (contract_l, contract_r), (batch_l, batch_r) = equation.params['dimension_numbers']
  left, right = operands
  free_l = [axis for axis in range(len(left.shape)) if axis not in (*contract_l, *batch_l)]
  free_r = [axis for axis in range(len(right.shape)) if axis not in (*contract_r, *batch_r)]
  time = (
    *(left.time[a] or right.time[b] for a, b in zip(batch_l, batch_r, strict=True)),
    *(left.time[axis] for axis in free_l),
    *(right.time[axis] for axis in free_r),
  )

  def whole(index: int) -> float:
    value = operands[index]
    lengths = [value.shape[axis] for axis in value.axes]
    return slice_bytes(index) * max(lengths, default=1)

  looks_l = any(axis in left.axes for axis in free_l)
  looks_r = any(axis in right.axes for axis in free_r)
  sums = any(a in left.axes or b in right.axes for a, b in zip(contract_l, contract_r, strict=True))
  if looks_l and looks_r and left.depends and right.depends:
    return time, True, 0.0 if left.paired or right.paired else min(whole(0), whole(1))
  if sums:  # each token sums over others
    if left.depends and right.depends:
      if looks_l or looks_r:
        return time, False, whole(1 if looks_l else 0)
      return time, False, float(jaxprs.nbytes(equation.outvars[0].aval))
    index = 0 if left.depends else 1
    other = operands[1 - index]
    spread = max(other.shape, default=1) > 1 and len(other.shape) > 1
    return time, False, whole(index) if spread else float(jaxprs.nbytes(equation.outvars[0].aval))
  return time, False, 0.0


def _moved(equation: JaxprEqn, operands: list[Value], counting: Any, slice_bytes: Any, result: Any) -> list[Value]:
  """Follows time, and delays along it, through data that moves."""
  name, params = equation.primitive.name, equation.params
  shapes = [tuple(int(n) for n in getattr(v.aval, 'shape', ())) for v in equation.outvars]
  shape, value = shapes[0], operands[0]

  def reached() -> None:
    """Counts what operands are views of: from here on they are one value, whose delays differ."""
    for index, operand in enumerate(operands):
      if counting is not None and operand.depends:
        counting.window(operand, slice_bytes(index))

  if name == 'stack':
    time = _like_concatenated(operands, len(shape) - 1)
    reached()
    return [result(shape, (*time[: params['axis']], False, *time[params['axis'] :]))]
  if name == 'concatenate':
    axis = params['dimension']
    time = _like_concatenated(operands, len(shape))
    if time[axis]:
      longest = max((i for i, v in enumerate(operands) if v.depends), key=lambda i: operands[i].shape[axis])
      before = sum(v.shape[axis] for v in operands[:longest])
      seen = operands[longest]
      return [result(shape, time, source=seen.source, delay=seen.delay + before)]
    reached()
    return [result(shape, time)]
  kept_view = {'source': value.source, 'delay': value.delay} if len(value.axes) == 1 else {}
  if name == 'pad':
    low = [low for low, _, interior in params['padding_config']]
    strides = [interior for _, _, interior in params['padding_config']]
    if len(value.axes) == 1 and not strides[value.axes[0]]:
      kept_view = {'source': value.source, 'delay': value.delay + low[value.axes[0]]}
    else:
      kept_view = {}
    return [result(shape, value.time, **kept_view)]
  if name == 'slice':
    steps = params['strides'] or (1,) * len(shape)
    time = value.time
    for axis in value.axes:
      if steps[axis] > 1:
        if counting is not None and params['start_indices'][axis] == 0:
          counting.bytes += slice_bytes(0)
        return [result(shape, time, tree=value.tree or value.shape[axis])]
    if len(value.axes) == 1:
      kept_view = {'source': value.source, 'delay': value.delay - params['start_indices'][value.axes[0]]}
    return [result(shape, time, **kept_view)]
  if name == 'split':
    return [result(s, value.time, **(kept_view if params['axis'] not in value.axes else {})) for s in shapes]
  if name == 'transpose':
    return [result(shape, tuple(value.time[axis] for axis in params['permutation']), **kept_view)]
  if name == 'broadcast_in_dim':
    spread_time = [False] * len(shape)
    for axis, target in enumerate(params['broadcast_dimensions']):
      spread_time[target] = value.time[axis]
    lengths = {value.shape[axis] for axis in value.axes}
    kept_axes = params['broadcast_dimensions']
    spread = [
      a for a, n in enumerate(shape) if n in lengths and (a not in kept_axes or value.shape[kept_axes.index(a)] == 1)
    ]
    if spread and value.axes:
      if counting is not None:
        counting.bytes += slice_bytes(0) * max(lengths)
      for axis in spread:
        spread_time[axis] = True
      return [result(shape, tuple(spread_time), paired=True)]
    return [result(shape, tuple(spread_time), **kept_view)]
  if name in ('squeeze', 'expand_dims', 'reshape'):
    time = _reshaped(value, shape)
    lengths = {value.shape[axis] for axis in value.axes}
    same = all(shape[axis] in lengths for axis, runs in enumerate(time) if runs and shape[axis] > 1)
    return [result(shape, time, **(kept_view if same else {}))]
  return [result(s, value.time if len(s) == len(value.time) else _like(s, [value]), **kept_view) for s in shapes]


def _like_concatenated(operands: list[Value], rank: int) -> tuple[bool, ...]:
  depending = [v for v in operands if v.depends]
  return tuple(any(v.time[place] for v in depending) for place in range(rank))


def _reshaped(value: Value, shape: tuple[int, ...]) -> tuple[bool, ...]:
  """Returns which axes of `shape` run in time: of those that an axis of time is split into, the first.

  >>> _reshaped(Value((1, 64, 8), True, (False, True, False)), (1, 4, 16, 2, 4))
  (False, True, False, False, False)
  """
  time, i, j = [False] * len(shape), 0, 0
  old = value.shape
  while i < len(old) and j < len(shape):
    left, right, i0, j0 = old[i], shape[j], i, j
    while left != right:
      if left < right:
        i += 1
        left *= old[i]
      else:
        j += 1
        right *= shape[j]
    i, j = i + 1, j + 1
    if any(axis in value.axes for axis in range(i0, i)):
      first = next((axis for axis in range(j0, j) if shape[axis] > 1), j0)
      time[first] = True
  return tuple(time)
