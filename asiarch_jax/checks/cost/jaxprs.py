"""A mixer as a jaxpr, and how to walk one.

Traced for a processor wherever this runs: what a mixer costs and what it computes are the same on every platform, and
the kernels of one say neither.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var

from pallas_kernels import target


def words(text: str) -> frozenset[str]:
  """Returns the names in `text`."""
  return frozenset(text.split())


CALLS = ('jaxpr', 'call_jaxpr', 'fun_jaxpr')  # where primitives that only wrap a function keep it


def remembering(function: Callable[..., Any]) -> Callable[..., Any]:
  """Returns `function`, called once only for a module and sizes: tracing is what a gate spends its time on."""
  remembered = functools.lru_cache(maxsize=16)(function)

  @functools.wraps(function)
  def asked(module: Any, *sizes: int) -> Any:
    try:
      hash(module)
    except TypeError:  # a field of the mixer has no hash
      return function(module, *sizes)
    return remembered(module, *sizes)

  return asked


def traced(function: Callable[..., Any], *operands: Any, **options: Any) -> Any:
  """Returns `jax.make_jaxpr(function, **options)(*operands)`, for a processor."""
  with target.processor():
    return jax.make_jaxpr(function, **options)(*operands)


class Start(NamedTuple):
  """How a mixer begins: a jaxpr from a key to the leaves of its parameters and then of all else, and their shapes."""

  jaxpr: ClosedJaxpr
  parameters: Any
  others: dict[str, Any]  # collections beside the parameters, by name


@remembering
def start(module: Any, width: int, batch: int = 1, length: int = 2) -> Start:
  """Returns the initialisation of a mixer. The host begins from a short sequence as well."""

  def init(key: jax.Array) -> tuple[Any, dict[str, Any]]:
    variables = dict(module.init(key, jnp.zeros((batch, length, width), module.dtype)))
    return variables.pop('params', {}), variables

  jaxpr, (parameters, others) = traced(init, jax.random.key(0), return_shape=True)
  return Start(jaxpr, parameters, others)


def parameter_shapes(module: Any, width: int) -> Any:
  """Returns the shapes of a mixer's parameters, traced."""
  return start(module, width).parameters


@remembering
def trace(module: Any, width: int, length: int, batch: int) -> ClosedJaxpr:
  """Returns the jaxpr of a mixer: parameters in order of their leaves, then x [B, T, D], to y and what is lost."""
  parameters = parameter_shapes(module, width)
  x = jax.ShapeDtypeStruct((batch, length, width), module.dtype)

  def forward(leaves: list[Any], x_BTD: jax.Array) -> Any:
    restored = jax.tree.unflatten(jax.tree.structure(parameters), leaves)
    y_BTD, sown = module.apply({'params': restored}, x_BTD, mutable=('losses',))
    return y_BTD, jax.tree.leaves(sown)

  return traced(forward, jax.tree.leaves(parameters), x)


def opened(jaxpr: ClosedJaxpr | Jaxpr) -> tuple[Jaxpr, list[Any]]:
  """Returns a jaxpr without its constants, and the constants."""
  return (jaxpr.jaxpr, list(jaxpr.consts)) if isinstance(jaxpr, ClosedJaxpr) else (jaxpr, [])


def inner(equation: JaxprEqn) -> list[ClosedJaxpr | Jaxpr]:
  """Returns every jaxpr among the parameters of an equation."""
  found = []
  for value in equation.params.values():
    for item in value if isinstance(value, tuple | list) else (value,):
      if isinstance(item, ClosedJaxpr | Jaxpr):
        found.append(item)
  return found


def wrapped(equation: JaxprEqn) -> ClosedJaxpr | Jaxpr | None:
  """Returns the function that a call primitive (jit, remat, custom_vjp, ...) applies to all its operands, else None."""
  for name in CALLS:
    body = equation.params.get(name)
    if isinstance(body, ClosedJaxpr | Jaxpr) and len(opened(body)[0].invars) == len(equation.invars):
      return body
  return None


def scan_sizes(equation: JaxprEqn) -> tuple[int, int]:
  """Returns how many operands of a scan are fixed, and how many its carry holds; the others are walked through.

  Told by the axis that the body does not see, since the names of the parameters change with the version of JAX.
  """
  body, _ = opened(equation.params['jaxpr'])

  def alike(outer: Any, inner: Any) -> int:
    return sum(len(a.aval.shape) == len(b.aval.shape) for a, b in zip(outer, inner, strict=True))

  carry = alike(equation.outvars, body.outvars)
  return alike(equation.invars, body.invars) - carry, carry


def walk(jaxpr: ClosedJaxpr | Jaxpr) -> Iterator[JaxprEqn]:
  """Yields every equation, those of inner jaxprs behind the one that holds them."""
  for equation in opened(jaxpr)[0].eqns:
    yield equation
    for body in inner(equation):
      yield from walk(body)


def live(jaxpr: Jaxpr, outputs: int | None = None) -> list[JaxprEqn]:
  """Returns the equations that an effect or an output (of the first `outputs`, or any) needs, in order."""
  needed = {variable for variable in jaxpr.outvars[:outputs] if isinstance(variable, Var)}
  kept = []
  for equation in reversed(jaxpr.eqns):
    if equation.effects or any(variable in needed for variable in equation.outvars):
      kept.append(equation)
      needed.update(variable for variable in equation.invars if not isinstance(variable, Literal))
  return kept[::-1]


def nbytes(aval: Any) -> int:
  """Returns the bytes of an array of this shape and type."""
  dtype = getattr(aval, 'dtype', None)
  return 0 if dtype is None else size(aval) * getattr(dtype, 'itemsize', jnp.dtype('uint32').itemsize)


def size(aval: Any) -> int:
  """Returns the number of elements."""
  count = 1
  for dimension in getattr(aval, 'shape', ()):
    count *= int(dimension)
  return count
