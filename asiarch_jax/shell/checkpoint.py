"""A run's state on disk, so that a killed run goes on as if it had never stopped: Orbax, one atomic step a snapshot."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from asiarch_jax.shell import jobfolder

STATE = 'state.npz'


class Checkpoint:
  """Snapshots of one run in `folder` (local or gs://), the newest `keep` of them. A context manager: leaving it closes.

  `save` and `restore` are what `training.train.Trainer.fit` takes. A snapshot appears whole or not at all: what a kill
  left half-written is removed at the next start, and the snapshot before it is found.
  """

  def __init__(self, folder: str | epath.Path, keep: int = 1) -> None:
    self.folder = epath.Path(folder)
    self._checkpointer = ocp.training.Checkpointer(
      self.folder,
      preservation_policy=ocp.training.preservation_policies.LatestN(keep),
      cleanup_tmp_directories=True,
    )

  def __enter__(self) -> Checkpoint:
    return self

  def __exit__(self, *_: object) -> None:
    self.close()

  def save(self, snapshot: Any) -> None:
    """Stores a snapshot under its number of logs and returns when it is complete. A number that is there is left."""
    step = int(snapshot.logs)
    if self._checkpointer.latest is None or self._checkpointer.latest.step < step:
      self._checkpointer.save(step, snapshot)

  def restore(self, like: Any) -> Any | None:
    """Returns the newest snapshot, laid out on devices as `like`, or None when there is none.

    Raises:
      ValueError: the folder holds a run of other shapes, or a damaged one.
    """
    latest = self._checkpointer.latest
    if latest is None:
      return None
    try:
      saved = self._checkpointer.load(latest, jax.tree.map(_described, like))
    except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
      raise ValueError(
        f'{self.folder} does not hold a state of this run ({str(error)[:300]}); remove the folder to start anew'
      ) from error
    differs = [
      f'{np.shape(old)} instead of {np.shape(new)}'
      for old, new in zip(jax.tree.leaves(saved), jax.tree.leaves(like), strict=True)
      if np.shape(old) != np.shape(new)
    ]
    if differs:
      raise ValueError(f'{self.folder} holds a run of other shapes ({differs[0]}); remove the folder to start anew')
    return saved

  def close(self) -> None:
    self._checkpointer.close()


class Shared:
  """Snapshots of a run over several processes, in a folder that the first of them has alone; the newest is kept.

  Orbax would want a folder that all hosts see, which jobs have not. Here the first process writes the whole and gives
  the others what it reads, so a run goes on with any number of processes. `whole` returns an array as every process
  sees it.
  """

  def __init__(self, folder: str | os.PathLike[str], whole: Callable[[Any], np.ndarray]) -> None:
    self._path = pathlib.Path(folder) / STATE
    self._whole = whole

  def __enter__(self) -> Shared:
    return self

  def __exit__(self, *_: object) -> None:
    pass

  def save(self, snapshot: Any) -> None:
    """Stores a snapshot; every process calls it."""
    leaves = [self._whole(leaf) for leaf in jax.tree.leaves(snapshot)]
    if jax.process_index() == 0:
      self._path.parent.mkdir(exist_ok=True)
      jobfolder.replace(self._path, jobfolder.pack({f'{number:06d}': leaf for number, leaf in enumerate(leaves)}))

  def restore(self, like: Any) -> Any | None:
    """Returns the newest snapshot, laid out on devices as `like`, or None when there is none; every process calls it.

    Raises:
      ValueError: the folder holds a run of other shapes, or a damaged one.
    """
    leaves, structure = jax.tree.flatten(like)
    saved = self._read(leaves) if jax.process_index() == 0 and self._path.exists() else None
    if not multihost_utils.broadcast_one_to_all(np.int32(saved is not None)):
      return None
    shown = [np.zeros(leaf.shape, leaf.dtype) for leaf in leaves] if saved is None else saved
    given = multihost_utils.broadcast_one_to_all(shown)
    return jax.tree.unflatten(
      structure, [_laid_out(np.asarray(one), leaf) for one, leaf in zip(given, leaves, strict=True)]
    )

  def _read(self, leaves: list[Any]) -> list[np.ndarray]:
    saved = jobfolder.unpack(self._path.read_bytes())
    held = [saved[name].shape for name in sorted(saved)]
    wanted = [np.shape(leaf) for leaf in leaves]
    if held != wanted:
      raise ValueError(f'{self._path} holds a run of other shapes; remove it to start anew')
    return [saved[name].astype(leaf.dtype) for name, leaf in zip(sorted(saved), leaves, strict=True)]


def _laid_out(value: np.ndarray, like: Any) -> Any:
  if not isinstance(like, jax.Array):
    return value
  return jax.make_array_from_callback(value.shape, like.sharding, lambda index: value[index])


def _described(leaf: Any) -> Any:
  """Returns shape, type and layout of an array; a host array stays a host array."""
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding) if isinstance(leaf, jax.Array) else leaf
