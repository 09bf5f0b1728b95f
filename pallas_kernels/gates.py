"""Pure parametrisations of what the delta rule is given: normalised keys and log decays."""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array


def l2_normalise(x: Array, *, axis: int = -1, epsilon: float = 1e-6) -> Array:
  """Returns x / sqrt(sum(x^2) + epsilon) along `axis`, computed in float32 at least, in the type of `x`.

  A zero vector stays zero and has a finite gradient.
  """
  wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  return (wide * jax.lax.rsqrt(jnp.square(wide).sum(axis, keepdims=True) + epsilon)).astype(x.dtype)


def softplus_log_decay(raw: Array, a_log: Array, dt_bias: Array) -> Array:
  """Returns -exp(a_log) softplus(raw + dt_bias) in float32: the log decay of Mamba 2 and Gated DeltaNet, below 0.

  The parameters broadcast against `raw` from the right: [H] for a decay a head, [H, K] for one a channel.
  Source: arXiv 2405.21060 and arXiv 2412.06464.
  """
  wide = jnp.promote_types(raw.dtype, jnp.float32)
  return -jnp.exp(a_log.astype(wide)) * jax.nn.softplus(raw.astype(wide) + dt_bias.astype(wide))


def bounded_log_decay(raw: Array, a_log: Array, dt_bias: Array, *, lower_bound: float = -5.0) -> Array:
  """Returns lower_bound * sigmoid(exp(a_log) (raw + dt_bias)) in float32: a log decay between `lower_bound` and 0.

  Raises:
    ValueError: `lower_bound` is not below zero.
  """
  if lower_bound >= 0:
    raise ValueError(f'lower_bound is {lower_bound}; a log decay is at most 0, so give a negative bound such as -5')
  wide = jnp.promote_types(raw.dtype, jnp.float32)
  return lower_bound * jax.nn.sigmoid(jnp.exp(a_log.astype(wide)) * (raw.astype(wide) + dt_bias.astype(wide)))
