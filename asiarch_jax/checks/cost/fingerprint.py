"""A name for the function that a mixer computes, whatever its text calls things.

Every value of the jaxpr gets a hash of its primitive, settings and operands, so that equal values have equal hashes,
order and names of equations do not matter, and dead code is never looked at. Wrappers (jit, remat, checkpoint names)
are looked through, sums and products are sets of terms. The gradient is part of the jaxpr, so a `stop_gradient` or a
rule of `custom_vjp` counts, and so is initialisation: the hash of a parameter begins with that of its initialiser.

Parameters have no names: the role of one is the hash of its own gradient, found in rounds as in colour refinement of
a graph.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from asiarch_jax.checks.cost import jaxprs
from asiarch_jax.checks.cost.jaxprs import words

ROUNDS = 2  # of refinement: a role, and the roles that surround it
COMMUTATIVE = {name: name for name in ('add', 'mul', 'max', 'min', 'and', 'or', 'xor')} | {'add_any': 'add'}
SAME = words('copy copy_p name optimization_barrier stop_gradient pvary reduce_precision_no_op')
IGNORED = words("""
  name sharding out_sharding in_shardings out_shardings in_layouts out_layouts ctx_mesh donated_invars
  inline keep_unused debug_info metadata jvp_jaxpr_fun fwd_jaxpr_thunk bwd symbolic_zeros policy
  prevent_cse differentiated linear unroll _split_transpose compiler_options_kvs num_consts effects
  backend cost_estimate interpret debug name_and_src_info compiler_params indices_are_sorted
  unique_indices weak_type
""")


def fingerprint(module: Any, width: int, length: int = 128) -> str:
  """Returns 32 hex digits that name the function of a mixer: values, gradients and initialisation, at T = `length`.

  The same for the same function under other names, comments, orders of lines and names of parameters; another for
  a changed constant, initialiser or gradient. Equal algebra in another form (x + x and 2 x) is not recognised.
  """
  shapes = jaxprs.parameter_shapes(module, width)
  leaves = jax.tree.leaves(shapes)
  x = jax.ShapeDtypeStruct((1, length, width), module.dtype)

  def forward(parameters: list[Any], x_BTD: jax.Array) -> Any:
    restored = jax.tree.unflatten(jax.tree.structure(shapes), parameters)
    y_BTD, sown = module.apply({'params': restored}, x_BTD, mutable=('losses',))
    return y_BTD, jax.tree.leaves(sown)

  def with_gradients(parameters: list[Any], x_BTD: jax.Array, dy_BTD: jax.Array) -> Any:
    (y_BTD, losses), pullback = jax.vjp(forward, parameters, x_BTD)
    return y_BTD, losses, pullback((dy_BTD, [jax.numpy.ones_like(loss) for loss in losses]))

  roles = _outputs(jaxprs.start(module, width).jaxpr, ['key'], len(leaves))
  whole = jaxprs.traced(with_gradients, leaves, x, x)
  gradients = slice(len(whole.jaxpr.outvars) - len(leaves) - 1, len(whole.jaxpr.outvars) - 1)
  for _ in range(ROUNDS):
    results = _outputs(whole, [*roles, 'x', 'dy'])
    roles = [_hash(role, result) for role, result in zip(roles, results[gradients], strict=True)]
  results = _outputs(whole, [*roles, 'x', 'dy'])
  y, losses, dx = results[0], results[1 : gradients.start], results[-1]
  of_parameters = sorted(zip(roles, results[gradients], strict=True))
  return _hash('mixer', width, y, sorted(losses), dx, of_parameters)


def _hash(*parts: Any) -> str:
  return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()


def _constant(value: Any) -> str:
  if hasattr(value, 'dtype') and jax.numpy.issubdtype(value.dtype, jax.dtypes.prng_key):
    value = jax.random.key_data(value)
  array = np.asarray(value)
  return _hash('constant', str(array.dtype), array.shape, array.tobytes())


def _outputs(jaxpr: ClosedJaxpr, operands: Sequence[str], outputs: int | None = None) -> list[str]:
  return _run(jaxpr.jaxpr, [_constant(value) for value in jaxpr.consts], operands, outputs)


def _run(body: Jaxpr, consts: Sequence[str], operands: Sequence[str], outputs: int | None = None) -> list[str]:
  """Returns the hashes of (the first `outputs`) outputs of `body`, given those of its constants and operands."""
  known: dict[Any, str] = dict(zip((*body.constvars, *body.invars), (*consts, *operands), strict=True))
  terms: dict[str, tuple[str, list[str]]] = {}  # a sum's or product's hash: the operation with its terms

  def of(variable: Any) -> str:
    return _constant_of(variable) if isinstance(variable, Literal) else known[variable]

  for equation in jaxprs.live(body, outputs):
    inputs = [of(variable) for variable in equation.invars]
    known.update(zip(equation.outvars, _equation(equation, inputs, terms), strict=True))
  return [of(variable) for variable in body.outvars[:outputs]]


def _constant_of(literal: Literal) -> str:
  return _constant(np.asarray(literal.val, getattr(literal.aval, 'dtype', None)))


def _equation(equation: JaxprEqn, inputs: list[str], terms: dict[str, tuple[str, list[str]]]) -> list[str]:
  name, params = equation.primitive.name, equation.params
  avals = [(str(getattr(v.aval, 'dtype', '')), getattr(v.aval, 'shape', ())) for v in equation.outvars]
  if name in SAME:
    return inputs
  if name in ('reshape', 'convert_element_type', 'broadcast_in_dim'):
    before: Any = equation.invars[0].aval
    if (str(before.dtype), before.shape) == avals[0]:
      return inputs[:1]
  if name == 'random_fold_in':  # Flax folds the names of parameters into their keys
    return inputs[:1]
  if name in COMMUTATIVE:
    operation = f'{COMMUTATIVE[name]} {avals[0]}'
    flat = sorted(t for i in inputs for t in (terms[i][1] if terms.get(i, ('',))[0] == operation else [i]))
    result = _hash(operation, flat)
    terms[result] = (operation, flat)
    return [result]
  if name == 'scan':
    return _scan(equation, inputs)
  if name == 'while':
    body, cond = params['body_jaxpr'], params['cond_jaxpr']
    n, m = params['cond_nconsts'], params['body_nconsts']
    carried = [_hash('while', i, hash_) for i, hash_ in enumerate(inputs[n + m :])]
    results = _closed(body, [*inputs[n : n + m], *carried])
    return [_hash('while', results, _closed(cond, [*inputs[:n], *carried]), inputs, i) for i in range(len(avals))]
  if name == 'cond':
    branches = [_closed(branch, inputs[1:]) for branch in params['branches']]
    return [_hash('cond', inputs[0], outcome) for outcome in zip(*branches, strict=True)]
  if (body := jaxprs.wrapped(equation)) is not None and name != 'pallas_call':
    return _closed(body, inputs)
  settings = sorted((key, _setting(value)) for key, value in params.items() if key not in IGNORED)
  whole = _hash(name, settings, avals, inputs)
  return [whole] if len(avals) == 1 else [_hash(whole, i) for i in range(len(avals))]


def _closed(jaxpr: ClosedJaxpr | Jaxpr, operands: Sequence[str]) -> list[str]:
  body, consts = jaxprs.opened(jaxpr)
  return _run(body, [_constant(value) for value in consts], operands)


def _scan(equation: JaxprEqn, inputs: list[str]) -> list[str]:
  """Returns the outputs of a loop. Parts of the carry have no order: like parameters, each is named by its role."""
  params = equation.params
  consts, carry = jaxprs.scan_sizes(equation)
  start = inputs[consts : consts + carry]
  rows = [_hash('row', hash_) for hash_ in inputs[consts + carry :]]
  carried = [_hash('carry', hash_) for hash_ in start]
  for _ in range(ROUNDS + 1):
    results = _closed(params['jaxpr'], [*inputs[:consts], *carried, *rows])
    carried = [_hash(role, result) for role, result in zip(carried, results[:carry], strict=True)]
  loop = _hash('scan', params['length'], params['reverse'], sorted(zip(start, carried, strict=True)))
  return [_hash(loop, i < carry, result) for i, result in enumerate(_closed_outputs(results, carried, carry))]


def _closed_outputs(results: list[str], carried: list[str], carry: int) -> list[str]:
  return [*carried, *results[carry:]]


def _setting(value: Any) -> Any:
  """Returns a parameter of a primitive in a form without names and addresses."""
  if isinstance(value, ClosedJaxpr | Jaxpr):
    body, consts = jaxprs.opened(value)
    return _run(body, [_constant(c) for c in consts], [f'operand {i}' for i in range(len(body.invars))])
  if isinstance(value, tuple | list):
    return [_setting(item) for item in value]
  if isinstance(value, np.ndarray | jax.Array):
    return _constant(value)
  if callable(value) and not isinstance(value, type):
    return ''
  return re.sub(r' at 0x[0-9a-f]+', '', str(value))


def same_function(one: ClosedJaxpr, other: ClosedJaxpr) -> bool:
  """Returns whether two jaxprs compute the same from the same operands, as far as their form shows it."""
  first, second = ([f'operand {i}' for i in range(len(jaxpr.jaxpr.invars))] for jaxpr in (one, other))
  return _outputs(one, first) == _outputs(other, second)
