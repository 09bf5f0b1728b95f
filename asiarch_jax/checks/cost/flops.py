"""Floating-point operations of a jaxpr, loops counted as often as they run.

A matrix product of [M, K] and [K, N] is 2 M N K, a convolution two for each tap and output, an FFT of n points
5 n log2 n (2.5 where one side is real), a reduction or a cumulative sum one for each input, anything elementwise one
for each output, and moving data is free. Of the branches of a `cond` the dearest counts.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn
from jax.lax import FftType

from asiarch_jax.checks.cost import jaxprs
from asiarch_jax.checks.cost.jaxprs import words

FREE = words("""
  stack reshape transpose broadcast_in_dim convert_element_type bitcast_convert_type slice dynamic_slice
  gather concatenate dynamic_update_slice scatter pad squeeze expand_dims rev iota copy copy_p
  stop_gradient device_put split real imag sharding_constraint optimization_barrier get swap program_id
  num_programs broadcast empty mul_no_op random_wrap random_unwrap pvary pcast reduce_precision name
  layout_constraint create_token
""")
REDUCTIONS = words("""
  reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or reduce_xor argmax argmin cumsum
  cumprod cummax cummin cumlogsumexp reduce
""")


OPEN_LOOP = (
  'a while loop runs a number of turns that depends on data, so its cost is unknown and it has no gradient: '
  'use lax.scan, or lax.fori_loop with Python integers as bounds'
)


@dataclasses.dataclass(frozen=True)
class Part:
  """What one equation costs over all its repetitions, with the shapes that explain it."""

  primitive: str
  flops: float
  largest: int  # elements of its largest output
  shapes: str


class UnboundedLoopError(ValueError):
  """A `while` whose number of turns the jaxpr does not say."""


def parts(jaxpr: ClosedJaxpr | Jaxpr, times: float = 1.0) -> Iterator[Part]:
  """Yields the cost of each equation, in order.

  Raises:
    UnboundedLoopError: there is a `while` loop; `lax.scan`, and `fori_loop` with static bounds, are counted.
  """
  for equation in jaxprs.opened(jaxpr)[0].eqns:
    name = equation.primitive.name
    if name == 'while':
      raise UnboundedLoopError(OPEN_LOOP)
    if name == 'cond':
      branches = [list(parts(branch, times)) for branch in equation.params['branches']]
      yield from max(branches, key=lambda branch: sum(part.flops for part in branch))
    elif name == 'scan':
      yield from parts(equation.params['jaxpr'], times * equation.params['length'])
    elif name == 'pallas_call':
      turns = math.prod(int(n) for n in equation.params['grid_mapping'].grid)
      yield from parts(equation.params['jaxpr'], times * turns)
    elif (body := jaxprs.wrapped(equation)) is not None:
      yield from parts(body, times)
    elif (
      bodies := [] if name in REDUCTIONS or name.startswith(('reduce_window', 'scatter')) else jaxprs.inner(equation)
    ):
      for body in bodies:
        yield from parts(body, times)
    else:
      yield Part(name, times * _flops(equation), max(map(_size, equation.outvars), default=0), _shapes(equation))


def _size(variable: Any) -> int:
  return jaxprs.size(variable.aval)


def _shapes(equation: JaxprEqn) -> str:
  shapes = (str(list(getattr(variable.aval, 'shape', ()))) for variable in equation.invars)
  return ' x '.join(shape for shape in shapes if shape != '[]') or '[]'


def _flops(equation: JaxprEqn) -> float:
  name, params = equation.primitive.name, equation.params
  avals: list[Any] = [variable.aval for variable in equation.invars]
  outputs = sum(map(_size, equation.outvars))
  inputs = _size(equation.invars[0]) if equation.invars else 0
  if name in FREE:
    return 0.0
  if name in REDUCTIONS:
    return float(inputs)
  if name in ('dot_general', 'ragged_dot', 'ragged_dot_general'):
    return 2.0 * outputs * _contracted(equation)
  if name == 'conv_general_dilated':
    kernel, out_features = avals[1], params['dimension_numbers'].rhs_spec[0]
    return 2.0 * outputs * jaxprs.size(kernel) / kernel.shape[out_features]
  if name == 'fft':
    points = math.prod(params['fft_lengths'])
    each = 2.5 if params['fft_type'] in (FftType.RFFT, FftType.IRFFT) else 5.0
    return each * max(inputs, outputs) * math.log2(max(points, 2))
  if name in ('sort', 'top_k', 'approx_top_k'):
    axis = params.get('dimension', -1)
    return inputs * math.log2(max(avals[0].shape[axis], 2)) * len(equation.invars)
  if name.startswith(('reduce_window', 'select_and')):
    return float(outputs * math.prod(params.get('window_dimensions', (1,))))
  if name.startswith('scatter'):
    return float(_size(equation.invars[2]))
  if name == 'triangular_solve':
    return float(avals[0].shape[-1] * _size(equation.invars[1]))
  if name in (
    'cholesky',
    'lu',
    'qr',
    'householder_product',
    'eigh',
    'svd',
    'eig',
    'tridiagonal',
    'hessenberg',
    'schur',
  ):
    *batch, rows, columns = avals[0].shape
    factor = {'cholesky': 1 / 3, 'lu': 2 / 3, 'qr': 2.0}.get(name, 10.0)
    return factor * math.prod(batch) * rows * columns * min(rows, columns)
  if name == 'integer_pow':
    return float(outputs * max(int(abs(params['y'])).bit_length(), 1))
  return float(outputs)


def _contracted(equation: JaxprEqn) -> int:
  aval: Any = equation.invars[0].aval
  if equation.primitive.name != 'dot_general':
    return int(aval.shape[-1])
  (contracted, _), _ = equation.params['dimension_numbers']
  return math.prod(aval.shape[axis] for axis in contracted)
