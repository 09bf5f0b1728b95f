"""Idioms of the kernels for Hopper GPUs: operands in shared memory, products of a warpgroup, gates over matrices."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import variance

Array = jax.Array
ROWS, COLUMNS = plgpu.Layout.WGMMA.reduce(1), plgpu.Layout.WGMMA.reduce(0)
# Layouts are chosen here, not inferred: the same in every JAX.
LANES = plgpu.LoweringSemantics.Lane
# Up to 0.10 the index was a parameter of its own.
_INDEX = inspect.signature(plgpu.load).parameters.get('idx')
_WHOLE = () if _INDEX is None or _INDEX.default is not inspect.Parameter.empty else ((),)


def kernel(body: Any, **options: Any) -> Any:
  """Returns `plgpu.kernel(body, **options)`, whose results vary over the mesh axes that its first operand does."""
  run = plgpu.kernel(body, **options)
  return lambda *operands: [variance.varied(x, operands[0]) for x in run(*operands)]


def load(ref: Any, layout: Any, *, optimized: bool = True) -> Array:
  """Returns what `ref` holds in registers, however this JAX spells it."""
  return plgpu.load(ref, *_WHOLE, layout=layout, optimized=optimized)


def store(ref: Any, x: Array) -> None:
  """Writes registers to the memory of the device, whole sectors or not, however this JAX spells it."""
  if (stored := getattr(plgpu, 'store', None)) is None:  # up to 0.11
    ref[...] = x
  else:
    stored(ref, x, optimized=False)


def load_turned(ref: Any) -> Array:
  """Returns the transpose of a 16-bit matrix in shared memory, as `product` takes a first factor."""
  turned = load(ref.transpose((1, 0)), plgpu.Layout.WGMMA_TRANSPOSED)
  return plgpu.layout_cast(turned, plgpu.Layout.WGMMA)


def matrix(shape: tuple[int, ...], dtype: Any = jnp.bfloat16, width: int = 64) -> Any:
  """Returns the type of shared memory that a 16-bit operand of a matrix product lies in, `width` columns a tile."""
  return plgpu.SMEM(shape, dtype, transforms=(plgpu.TilingTransform((8, width)), plgpu.SwizzleTransform(2 * width)))


def product(a: Any, b: Any, meanwhile: Any = None) -> Any:
  """Returns a b in float32; `b` lies in shared memory, `a` there or in registers.

  With `meanwhile`, also what that returns when called after the product has begun, before it is waited for.
  """

  def made(acc):
    plgpu.wgmma(acc, a, b)
    return _finished(acc, meanwhile)

  return pl.run_scoped(made, plgpu.ACC((a.shape[0], b.shape[1]), jnp.float32))


def summed_products(pairs: Sequence[tuple[Any, Any]]) -> Array:
  """Returns the sum of a b over pairs of factors, as `product` does."""

  def made(acc):
    for a, b in pairs:
      plgpu.wgmma(acc, a, b)
    return acc[...]

  return pl.run_scoped(made, plgpu.ACC((pairs[0][0].shape[0], pairs[0][1].shape[1]), jnp.float32))


def both_summed(first: Sequence[tuple[Any, Any]], second: Sequence[tuple[Any, Any]]) -> tuple[Array, Array]:
  """Returns what `summed_products` does of two sums, both begun before the first is waited for."""

  def made(*accs):
    for acc, pairs in zip(accs, (first, second), strict=True):
      for a, b in pairs:
        plgpu.wgmma(acc, a, b)
    return accs[0][...], accs[1][...]

  shapes = ((pairs[0][0].shape[0], pairs[0][1].shape[1]) for pairs in (first, second))
  return pl.run_scoped(made, *(plgpu.ACC(shape, jnp.float32) for shape in shapes))


def both_added(
  sum_: Array, other: Array, first: Sequence[tuple[Any, Any]], second: Sequence[tuple[Any, Any]]
) -> tuple[Array, Array]:
  """Returns both sums with what `both_summed` returns added."""

  def added(accs):
    for acc, pairs in zip(accs, (first, second), strict=True):
      for a, b in pairs:
        plgpu.wgmma(acc, a, b)

  return pl.run_state(added)((plgpu.ACC.init(sum_), plgpu.ACC.init(other)))


def added_product(sum_: Array, a: Any, b: Any, meanwhile: Any = None) -> Any:
  """Returns sum + a b, as `product` does."""

  def added(acc):
    plgpu.wgmma(acc, a, b)
    if meanwhile is not None:
      meanwhile()

  return pl.run_state(added)(plgpu.ACC.init(sum_))


def _finished(acc: Any, meanwhile: Any) -> Any:
  if meanwhile is None:
    return acc[...]
  beside = meanwhile()
  return acc[...], beside


def down(x_M: Array, shape: tuple[int, ...]) -> Array:
  """Returns an entry a row as a matrix."""
  return lax.broadcast_in_dim(x_M, shape, (0,))


def across(x_N: Array, shape: tuple[int, ...]) -> Array:
  """Returns an entry a column as a matrix."""
  return lax.broadcast_in_dim(x_N, shape, (1,))


def key_parts(K: int) -> list[Any]:
  """Returns the parts of K channels that a warpgroup holds its states in: a first factor has at most 128 of them."""
  size = min(K, 128)
  return [pl.ds(start, size) for start in range(0, K, size)]
