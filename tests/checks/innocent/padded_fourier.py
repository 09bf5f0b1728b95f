"""A long convolution by FFT, padded to twice the length so that nothing comes round."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn


class Mixer(nn.Module):
  width: int
  heads: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x_BTD):
    v_BTD = nn.Dense(self.width, dtype=self.dtype)(x_BTD)

    length = x_BTD.shape[1]
    rate_D = self.param('rate', nn.initializers.uniform(1.0), (self.width,))
    filter_TD = jnp.exp(-jnp.arange(length)[:, None] * (0.1 + nn.softplus(rate_D)))
    spectrum_BFD = jnp.fft.rfft(v_BTD.astype(jnp.float32), 2 * length, axis=1) * jnp.fft.rfft(
      filter_TD, 2 * length, axis=0
    )
    return jnp.fft.irfft(spectrum_BFD, 2 * length, axis=1)[:, :length].astype(self.dtype)
