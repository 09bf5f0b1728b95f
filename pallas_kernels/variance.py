"""Mesh axes that values vary over inside `shard_map`: what kernels must say of their results."""

from __future__ import annotations

from typing import Any

import jax
from jax import lax

Array = jax.Array


def axes(x: Array | None) -> frozenset:
  """Returns the mesh axes that `x` varies over inside `shard_map`, whichever way this JAX spells them."""
  if x is None:
    return frozenset()
  kind = jax.typeof(x)
  manual = getattr(kind, 'manual_axis_type', None)
  return frozenset(getattr(kind, 'vma', ()) if manual is None else manual.varying)


def varied(x: Array, like: Array) -> Array:
  """Returns `x`, made to vary over every mesh axis that `like` varies over."""
  more = axes(like) - axes(x)
  return lax.pcast(x, tuple(sorted(more)), to='varying') if more else x


def varying_like(x: Array, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
  """Returns the type of a result that varies over the mesh axes that `x` does, whichever way this JAX spells them."""
  kind = jax.typeof(x)
  spelt = 'manual_axis_type' if hasattr(kind, 'manual_axis_type') else 'vma'
  return jax.ShapeDtypeStruct(shape, dtype, **{spelt: getattr(kind, spelt)})
