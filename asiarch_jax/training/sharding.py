"""The device mesh `(replica, data)` and what lies where on it: pure choices of shape, then one constructor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

REPLICA, DATA = 'replica', 'data'
REPLICAS = P(REPLICA)  # parameters, optimiser state, rates: the leading axis is the replica
STEPS = P(None, REPLICA, DATA)  # batches of a call: [K, R, B, T]
LOSSES = P(None, REPLICA)  # [K, R]
ROWS = P(DATA)  # held-out batches, the same for all replicas: [B, T]
SCORES = P(REPLICA, DATA)  # [R, B]


def shape(devices: int, replicas: int, data_parallel: int = 1) -> tuple[int, int]:
  """Returns the mesh shape (replica, data): as many devices as divide the replicas evenly.

  >>> shape(devices=8, replicas=4, data_parallel=2), shape(8, 12), shape(1, 4)
  ((4, 2), (6, 1), (1, 1))

  Raises:
    ValueError: fewer devices than one replica wants.
  """
  if data_parallel > devices:
    raise ValueError(
      f'training.data_parallel = {data_parallel} needs as many devices, {devices} at hand; lower it or add devices'
    )
  most = min(devices // data_parallel, replicas)
  return max(n for n in range(1, most + 1) if replicas % n == 0), data_parallel


def mesh(devices: Sequence[Any], replicas: int, data_parallel: int = 1) -> Mesh:
  """Returns the mesh over the first devices of `shape`; axes are Auto, so a plain Linen module traces under it.

  Raises:
    ValueError: fewer devices than one replica wants.
  """
  rows, columns = shape(len(devices), replicas, data_parallel)
  grid = np.asarray(list(devices)[: rows * columns], dtype=object).reshape(rows, columns)
  return Mesh(grid, (REPLICA, DATA), axis_types=(AxisType.Auto, AxisType.Auto))


def place(values: Any, mesh: Mesh, spec: P) -> Any:
  """Returns a pytree of host arrays as global arrays laid out by `spec`.

  Each process hands in the whole value and keeps what its own devices hold: batches are functions of (seed, step), so
  every process can make them.
  """
  sharding = NamedSharding(mesh, spec)

  def one(leaf: Any) -> jax.Array:
    value = np.asarray(leaf)
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])

  return jax.tree.map(one, values)
