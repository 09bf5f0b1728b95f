"""The device mesh `(replica, data, fsdp)` and what lies where on it: pure choices of shape, then one constructor.

The rows of a replica's batch lie over `data` and `fsdp`. Parameters that are shared out lie over `fsdp`, the last axis,
whose devices are neighbours (those of one host, where it has enough): they are gathered and their gradients scattered
among neighbours, and only sums of a part's size cross the hosts. Along `data` lie copies.

The devices may be those of several processes (`jax.distributed`): every one of them runs the same program, hands in the
same values and gets the same numbers back (`host`, `agreed`).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from asiarch_jax import config

REPLICA, DATA, FSDP = 'replica', 'data', 'fsdp'
BATCH = (DATA, FSDP)  # the devices that share one replica's batch
REPLICAS = P(REPLICA)  # parameters, optimiser state, rates: the leading axis is the replica
STEPS = P(None, REPLICA, BATCH)  # batches of a call: [K, R, B, T]
LOSSES = P(None, REPLICA)  # [K, R]
ROWS = P(BATCH)  # held-out batches, the same for all replicas: [B, T]


class UnfitError(ValueError):
  """Settings that do not suit the devices or the parameters; the message has both and what to change."""


def shape(devices: int, replicas: int, data_parallel: int = 1) -> tuple[int, int]:
  """Returns (replicas side by side, devices to a replica's batch): as many devices as divide the replicas evenly.

  >>> shape(devices=8, replicas=4, data_parallel=2), shape(8, 12), shape(1, 4)
  ((4, 2), (6, 1), (1, 1))

  Raises:
    UnfitError: fewer devices than one replica wants.
  """
  if data_parallel > devices:
    raise UnfitError(
      f'training.data_parallel = {data_parallel} needs as many devices, {devices} at hand; lower it or add devices'
    )
  most = min(devices // data_parallel, replicas)
  return max(n for n in range(1, most + 1) if replicas % n == 0), data_parallel


def full_shape(devices: int, replicas: int, batch: int) -> tuple[int, int]:
  """Returns what `shape` does, but with every device in use and as few to a replica as can be.

  No process may be left without a part, so where replicas do not fill the devices, each one's batch is shared out.

  >>> full_shape(devices=8, replicas=4, batch=16), full_shape(8, 6, 16), full_shape(1, 3, 8)
  ((4, 2), (2, 4), (1, 1))

  Raises:
    UnfitError: no such shape divides replicas and batch.
  """
  for rows in range(min(devices, replicas), 0, -1):
    if devices % rows == 0 and replicas % rows == 0 and batch % (devices // rows) == 0:
      return rows, devices // rows
  raise UnfitError(
    f'{devices} devices of several hosts cannot share {replicas} replicas (seeds x learning rates) of batches of '
    f'{batch}; make training.batch a multiple of {devices}'
  )


def mesh(devices: Sequence[Any], replicas: int, data_parallel: int = 1, batch: int = 0, fsdp: int = 1) -> Mesh:
  """Returns the mesh over the first devices of `shape`; axes are Auto, so a plain Linen module traces under it.

  Where the devices belong to several processes all of them are used (`full_shape`), and `batch` is a replica's. Of the
  devices that share a batch `fsdp` hold a part each of what is shared out; 0 means all of them.

  Raises:
    UnfitError: fewer devices than one replica wants, what several hosts cannot share, or parts that do not come out.
  """
  if len({device.process_index for device in devices}) > 1:
    rows, columns = full_shape(len(devices), replicas, batch)
  else:
    rows, columns = shape(len(devices), replicas, data_parallel)
  parts = fsdp or columns
  if columns % parts:
    raise UnfitError(
      f'training.fsdp = {fsdp} does not divide the {columns} devices that share a batch; 0 takes all of them'
    )
  grid = np.asarray(list(devices)[: rows * columns], dtype=object).reshape(rows, columns // parts, parts)
  return Mesh(grid, (REPLICA, *BATCH), axis_types=3 * (AxisType.Auto,))


def mesh_of(devices: Sequence[Any], training: config.Training) -> Mesh:
  """Returns the mesh for all replicas of a training; where nothing is shared out, `fsdp` is 1.

  Raises:
    UnfitError: as `mesh`.
  """
  replicas = training.seeds * len(training.learning_rates)
  fsdp = training.fsdp if training.sharded else 1
  return mesh(devices, replicas, training.data_parallel, training.batch, fsdp)


def batch_devices(mesh: Mesh) -> int:
  """Returns how many devices share one replica's batch."""
  return mesh.shape[DATA] * mesh.shape[FSDP]


@dataclasses.dataclass(frozen=True)
class Rules:
  """Which axis of which parameter lies over the mesh axis `fsdp`: so its optimiser state does, too.

  A rule is (pattern of paths, whether each axis of the parameter is shared out); the first that matches holds. A
  parameter's path is its names joined by slashes, without the replica, which every leaf has as its first axis.
  """

  rules: Sequence[tuple[re.Pattern[str], Sequence[bool]]] = ()

  def axis(self, path: Sequence[Any], leaf: Any) -> int | None:
    """Returns the axis of a parameter (counted without the replica's) that is shared out, None where none is.

    Optimiser state, whose path ends in that of its parameter, follows it.

    Raises:
      UnfitError: the rule is for another number of axes.
    """
    name = _path(path)
    axes = next((axes for pattern, axes in self.rules if name and pattern.search(name)), ())
    if not any(axes):
      return None
    if len(axes) != np.ndim(leaf):
      raise UnfitError(f'training.sharded has a rule of {len(axes)} axes for {name}, whose shape is {np.shape(leaf)}')
    return list(axes).index(True)

  def spec(self, path: Sequence[Any], leaf: Any) -> P:
    """Returns how a leaf of a replica's state lies, with the replica's axis in front."""
    axis = self.axis(path, leaf)
    return REPLICAS if axis is None else P(REPLICA, *(FSDP if n == axis else None for n in range(np.ndim(leaf))))

  def specs(self, one: Any) -> Any:
    """Returns the specs of a tree of one replica's leaves, parameters or whole state."""
    return jax.tree_util.tree_map_with_path(self.spec, one)

  def check(self, one: Any, devices: int) -> None:
    """Sees that every axis that is shared out can be.

    Raises:
      UnfitError: an axis does not divide by the devices; says which.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(one):
      axis = self.axis(path, leaf)
      if axis is not None and leaf.shape[axis] % devices:
        raise UnfitError(
          f'training.sharded shares axis {axis} of {_path(path)}, of shape {leaf.shape}, out over {devices} devices, '
          f'which do not divide {leaf.shape[axis]}; leave it out, or choose another axis'
        )


def _path(path: Sequence[Any]) -> str:
  """Returns the names along a path, joined by slashes."""
  return '/'.join(str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey))


def gathered(parts: Any, rules: Rules, like: Any, later: Collection[str] = ()) -> Any:
  """Returns whole parameters of one replica, inside `shard_map`; those under the names `later` stay as they are.

  `like` has their whole shapes. A gradient with respect to the parts is summed over `fsdp`: it comes back in parts.
  """

  def one(path: Any, whole: Any, part: jax.Array) -> jax.Array:
    axis = None if path[0].key in later else rules.axis(path, whole)
    return part if axis is None else jax.lax.all_gather(part, FSDP, axis=axis, tiled=True)

  return jax.tree_util.tree_map_with_path(one, like, parts)


def gathered_block(parts: Any, rules: Rules, name: str, like: Any) -> Any:
  """Returns the whole parameters of one layer that lie under `name`, inside `shard_map`.

  `like` has the shapes of all that lies under `name`: with layers stacked an axis more than the parts have, in front.

  Raises:
    UnfitError: the layers themselves are shared out.
  """

  def one(path: Any, whole: Any, part: jax.Array) -> jax.Array:
    axis = rules.axis((jax.tree_util.DictKey(name), *path), whole)
    if axis is None:
      return part
    axis -= np.ndim(whole) - part.ndim
    if axis < 0:
      raise UnfitError(
        f'training.sharded shares the axis of the layers out for {name}/{_path(path)}, and with model.remat each layer '
        'is made whole when it runs; share out another axis'
      )
    return jax.lax.all_gather(part, FSDP, axis=axis, tiled=True)

  return jax.tree_util.tree_map_with_path(one, like, parts)


def averaged(gradient: Any, rules: Rules, like: Any) -> Any:
  """Returns the mean over a batch's devices of gradients with respect to `gathered` parts: of these, in parts."""

  def one(path: Any, whole: Any, leaf: jax.Array) -> jax.Array:
    if rules.axis(path, whole) is None:
      return jax.lax.pmean(leaf, BATCH)
    return jax.lax.pmean(leaf, DATA) / jax.lax.axis_size(FSDP)

  return jax.tree_util.tree_map_with_path(one, like, gradient)


def cut(values: Any, rules: Rules) -> Any:
  """Returns this device's part of a replica's whole leaves, inside `shard_map`."""

  def one(path: Any, leaf: jax.Array) -> jax.Array:
    axis = rules.axis(path, leaf)
    if axis is None:
      return leaf
    size = leaf.shape[axis] // jax.lax.axis_size(FSDP)
    return jax.lax.dynamic_slice_in_dim(leaf, jax.lax.axis_index(FSDP) * size, size, axis)

  return jax.tree_util.tree_map_with_path(one, values)


def norm(gradient: Any, rules: Rules, like: Any) -> jax.Array:
  """Returns the global norm of an `averaged` gradient, whose parts lie on several devices."""
  whole: list[jax.Array] = []
  parts: list[jax.Array] = []
  for (path, leaf), shape in zip(jax.tree_util.tree_leaves_with_path(gradient), jax.tree.leaves(like), strict=True):
    (whole if rules.axis(path, shape) is None else parts).append(jnp.sum(jnp.square(leaf)))
  total = sum(whole, jnp.float32(0))
  return jnp.sqrt(total + jax.lax.psum(sum(parts), FSDP) if parts else total)


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


def own_part(mesh: Mesh, replicas: int, batch: int) -> tuple[slice, slice]:
  """Returns the replicas, and the rows of their batches, that lie with this process's devices: all with one process.

  Where those are no rectangle, the smallest one around them.
  """
  held = NamedSharding(mesh, P(REPLICA, BATCH)).addressable_devices_indices_map((replicas, batch)).values()
  spans = [[(index or ())[axis].indices(size)[:2] for index in held] for axis, size in enumerate((replicas, batch))]
  first, second = (slice(min(start for start, _ in span), max(stop for _, stop in span)) for span in spans)
  return first, second


def place_part(part: Any, mesh: Mesh, spec: P, whole: Sequence[int], origin: Sequence[int]) -> Any:
  """Returns a pytree of arrays of shape `whole`, of which this process has made the part that begins at `origin`."""
  sharding = NamedSharding(mesh, spec)

  def one(leaf: np.ndarray) -> jax.Array:
    def cut(index: tuple[slice, ...] | None) -> np.ndarray:
      spans = (place.indices(size)[:2] for place, size in zip(index or (), whole, strict=True))
      return leaf[tuple(slice(start - at, stop - at) for (start, stop), at in zip(spans, origin, strict=True))]

    return jax.make_array_from_callback(tuple(whole), sharding, cut)

  return jax.tree.map(one, part)


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
