"""AdamW for one replica, as pure functions: `vmap` makes it many. The peak learning rate is a traced number.

Weight decay is decoupled and acts on matrices only (Loshchilov & Hutter 2019, arXiv 1711.05101); the gradient of one
replica is clipped by its own global norm. A schedule is a share of the peak, a function of (step, steps), so one
compiled program serves runs of any length.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from asiarch_jax import config

STACKED = 'layers'  # below this top-level name of a host's parameters each leaf has one more axis in front, the layer


def wsd(step: jax.Array, steps: jax.Array, training: config.Training) -> jax.Array:
  """Returns the share of the peak rate at `step` (from 0): linear warm-up, plateau, linear decay to `training.final`.

  The first step has 1/warm-up-steps of the peak, never zero; the last one of `steps` has `final`.
  """
  warm = jnp.minimum(1.0, (step + 1) / jnp.maximum(1.0, training.warmup * steps))
  left = (steps - 1 - step) / jnp.maximum(1.0, training.decay * steps)
  return warm * (training.final + (1 - training.final) * jnp.clip(left, 0.0, 1.0))


def cosine(step: jax.Array, steps: jax.Array, training: config.Training) -> jax.Array:
  """Returns the share of the peak rate at `step` (from 0): linear warm-up, then half a cosine down to `final`."""
  warmup = training.warmup * steps
  warm = jnp.minimum(1.0, (step + 1) / jnp.maximum(1.0, warmup))
  done = jnp.clip((step + 1 - warmup) / jnp.maximum(1.0, steps - warmup), 0.0, 1.0)
  return warm * (training.final + (1 - training.final) * 0.5 * (1 + jnp.cos(jnp.pi * done)))


SCHEDULES: dict[str, Callable[[jax.Array, jax.Array, config.Training], jax.Array]] = {'wsd': wsd, 'cosine': cosine}


def matrices(parameters: Any) -> Any:
  """Returns a tree of bools: which leaves are matrices, and so decay. A stack of layers does not count as an axis."""

  def is_matrix(path: tuple[Any, ...], leaf: Any) -> bool:
    return leaf.ndim - (getattr(path[0], 'key', None) == STACKED) >= 2

  return jax.tree_util.tree_map_with_path(is_matrix, parameters)


def clipped(gradient: Any, norm: jax.Array, training: config.Training) -> Any:
  """Returns a gradient of this global norm, scaled down where that is above `training.clip`: optax's own rule."""
  return jax.tree.map(lambda leaf: jnp.where(norm < training.clip, leaf, leaf / norm * training.clip), gradient)


def adamw(training: config.Training, weight_decay: jax.Array | None = None) -> optax.GradientTransformation:
  """Returns Adam and decay of a `clipped` gradient, up to the learning rate: its update is multiplied by minus that.

  `weight_decay`, which may be traced, stands for the configured one where replicas differ in it.
  """
  return optax.chain(
    optax.scale_by_adam(training.b1, training.b2, training.epsilon),
    optax.add_decayed_weights(training.weight_decay if weight_decay is None else weight_decay, matrices),
  )


def learning_rate(peak: jax.Array, step: jax.Array, steps: jax.Array, training: config.Training) -> jax.Array:
  """Returns the rate of `step` under the schedule that `training` names."""
  return peak * SCHEDULES[training.schedule](step, steps, training)
