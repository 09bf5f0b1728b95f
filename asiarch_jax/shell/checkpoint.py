"""A run's state on disk, so that a killed run goes on as if it had never stopped: Orbax, one atomic step a snapshot."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from etils import epath
from orbax.checkpoint import v1 as ocp


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


def _described(leaf: Any) -> Any:
  """Returns shape, type and layout of an array; a host array stays a host array."""
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding) if isinstance(leaf, jax.Array) else leaf
