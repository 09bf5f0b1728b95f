"""Negative eigenvalues for the gated delta rule.

Today's delta-rule layers only shrink the component of the state along the present key: the step size is squashed into
the unit interval, and parity-like behaviour cannot be represented. We widen the step size to the interval from zero to
two, so that a token may turn the stored component around, as a Householder reflection does, while a scalar forget gate
bounds the memory. We expect progress wherever a hidden state must be followed, and no change of cost. Should the step
size sit at its upper end, the read could swing from token to token.
"""

import math
from typing import Any

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp

import pallas_kernels

FILTER_LENGTH = 4


def small_steps(rng, size):
  """Softplus of the result is even on a log scale between a thousandth and a tenth."""
  low, high = math.log(1e-3), math.log(1e-1)
  dt = jnp.exp(jax.random.uniform(rng, size, minval=low, maxval=high))
  return dt + jnp.log(-jnp.expm1(-dt))


class ShortConvolution(nn.Module):
  """A linear map, four causal taps a channel, SiLU."""

  features: int
  dtype: Any

  @nn.compact
  def __call__(self, inputs: jax.Array) -> jax.Array:
    mapped = nn.Dense(self.features, use_bias=False, dtype=self.dtype)(inputs)
    uniform = nn.initializers.variance_scaling(1.0, 'fan_in', 'uniform', 0, 1)
    kernel = self.param('kernel', uniform, (FILTER_LENGTH, self.features))
    filtered = pallas_kernels.causal_conv(mapped, kernel.astype(self.dtype))[0]
    return nn.silu(filtered)


class Mixer(nn.Module):
  width: int
  heads: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, hidden: jax.Array) -> jax.Array:
    forget_bias = self.param('forget_bias', small_steps, (self.heads,))
    forget_rate = self.param('forget_rate', nn.initializers.zeros, (self.heads,))
    forget = nn.Dense(self.heads, use_bias=False, dtype=jnp.float32)(hidden)
    strength = nn.Dense(self.heads, use_bias=False, dtype=self.dtype)(hidden)

    values, keys, queries = (
      einops.rearrange(ShortConvolution(self.width, self.dtype)(hidden), 'n l (g c) -> n l g c', g=self.heads)
      for _ in range(3)
    )
    memory, _ = pallas_kernels.delta_rule(
      pallas_kernels.l2_normalise(queries),
      pallas_kernels.l2_normalise(keys),
      values,
      nn.sigmoid(strength) * 2,
      pallas_kernels.softplus_log_decay(forget, forget_rate, forget_bias),
      scale=1.0,
    )
    normed = nn.RMSNorm(epsilon=1e-5, dtype=self.dtype)(memory)
    return nn.Dense(self.width, use_bias=False, dtype=self.dtype)(einops.rearrange(normed, 'n l g c -> n l (g c)'))
