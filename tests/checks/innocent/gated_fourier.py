"""A long convolution by Fourier transforms of what two gates let through: larger inputs round more."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn


class Mixer(nn.Module):
  width: int
  heads: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x_BTD):
    T = x_BTD.shape[1]
    a_BTD, b_BTD, gate_BTD = jnp.split(nn.Dense(3 * self.width, use_bias=False, dtype=self.dtype)(x_BTD), 3, -1)
    rate_D = self.param('rate', lambda key, shape: jnp.linspace(-1.0, 6.0, shape[0]), (self.width,))
    size_D = self.param('size', nn.initializers.normal(0.5), (self.width,))
    taps_TD = size_D * jnp.exp(-jnp.exp(-rate_D) * jnp.arange(T, dtype=jnp.float32)[:, None])
    points = 1 << (2 * T - 1).bit_length()
    product = jnp.fft.rfft((a_BTD * b_BTD).astype(jnp.float32), n=points, axis=1) * jnp.fft.rfft(
      taps_TD, n=points, axis=0
    )
    y_BTD = jnp.fft.irfft(product, n=points, axis=1)[:, :T].astype(self.dtype)
    return nn.Dense(self.width, use_bias=False, dtype=self.dtype)(y_BTD * gate_BTD).astype(x_BTD.dtype)
