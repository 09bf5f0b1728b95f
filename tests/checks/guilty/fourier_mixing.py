"""Mixes along time in the Fourier domain without padding (FNet): circular, so the future comes round."""

# guilty: causality prefix
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
    return v_BTD + jnp.fft.fft(v_BTD.astype(jnp.float32), axis=1).real.astype(self.dtype) / x_BTD.shape[1]
