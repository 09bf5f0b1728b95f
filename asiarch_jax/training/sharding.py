"""The device mesh `(replica, data)` and what lies where on it: pure choices of shape, then one constructor.

The devices may be those of several processes (`jax.distributed`): every one of them runs the same program, hands in the
same values and gets the same numbers back (`host`, `agreed`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
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


def full_shape(devices: int, replicas: int, batch: int) -> tuple[int, int]:
  """Returns the mesh shape (replica, data) that uses every device, with as few to a replica as can be.

  No process may be left without a part, so where replicas do not fill the devices, each one's batch is shared out.

  >>> full_shape(devices=8, replicas=4, batch=16), full_shape(8, 6, 16), full_shape(1, 3, 8)
  ((4, 2), (2, 4), (1, 1))

  Raises:
    ValueError: no such shape divides replicas and batch.
  """
  for rows in range(min(devices, replicas), 0, -1):
    if devices % rows == 0 and replicas % rows == 0 and batch % (devices // rows) == 0:
      return rows, devices // rows
  raise ValueError(
    f'{devices} devices of several hosts cannot share {replicas} replicas (seeds x learning rates) of batches of '
    f'{batch}; make training.batch a multiple of {devices}'
  )


def mesh(devices: Sequence[Any], replicas: int, data_parallel: int = 1, batch: int = 0) -> Mesh:
  """Returns the mesh over the first devices of `shape`; axes are Auto, so a plain Linen module traces under it.

  Where the devices belong to several processes all of them are used (`full_shape`), and `batch` is a replica's.

  Raises:
    ValueError: fewer devices than one replica wants, or what several hosts cannot share.
  """
  if len({device.process_index for device in devices}) > 1:
    rows, columns = full_shape(len(devices), replicas, batch)
  else:
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


def host(array: Any) -> np.ndarray:
  """Returns an array as every process sees it whole, also where its parts lie with other processes."""
  if not isinstance(array, jax.Array) or array.is_fully_addressable:
    return np.asarray(array)
  if array.is_fully_replicated:
    return np.asarray(array.addressable_data(0))
  return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def agreed(value: float) -> float:
  """Returns the first process's value: what decides anything must be the same for all, and clocks differ."""
  return value if jax.process_count() == 1 else float(multihost_utils.broadcast_one_to_all(np.float32(value)))
