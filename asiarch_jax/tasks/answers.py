"""Scores that every accuracy task is made of."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from asiarch_jax.batch import Batch


def likeliest(logits_BTY: Float[Array, 'B T Y']) -> Int[Array, 'B T']:
  """Returns the likeliest token, -1 where the best logit is not finite."""
  finite_BT = jnp.isfinite(jnp.max(logits_BTY, axis=-1))
  return jnp.where(finite_BT, jnp.argmax(logits_BTY, axis=-1), -1)


def correct(logits_BTY: Float[Array, 'B T Y'], targets_BT: Int[Array, 'B T']) -> Bool[Array, 'B T']:
  """Returns where the likeliest token is the target. A position without a finite best logit is wrong."""
  return likeliest(logits_BTY) == targets_BT


def accuracy(logits_BTY: Float[Array, 'B T Y'], batch: Batch) -> tuple[Float[Array, ' B'], Float[Array, ' B']]:
  """Returns, for each sequence, the weight of the right answers and the weight of all answers asked.

  Every answer counts alike (micro average), unlike the class-balanced average of the MAD code, where a class that is
  predicted and never asked counts as zero.
  """
  right_BT = correct(logits_BTY, batch.targets)
  return jnp.sum(batch.weights * right_BT, axis=-1), jnp.sum(batch.weights, axis=-1)


def padded(tokens_BL: jax.Array, targets_BL: jax.Array, weights_BL: jax.Array, length: int) -> Batch:
  """Returns a batch of `length` positions: L of the task, then token 0 without weight."""
  pad = ((0, 0), (0, length - tokens_BL.shape[1]))
  return Batch(
    jnp.pad(tokens_BL, pad).astype(jnp.int32),
    jnp.pad(targets_BL, pad).astype(jnp.int32),
    jnp.pad(weights_BL, pad).astype(jnp.float32),
  )
