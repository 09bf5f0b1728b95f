"""The host for compression: a mixer encodes a sequence into its last position, a fixed small network decodes it.

    x = Embed(tokens);  the residual blocks of `lm`;  code = x[last]
    y_t = code + sincos(t);  twice: y_t = gelu(W RMSNorm(y_t) + b);  logits_t = Head(RMSNorm(y_t))

After MAD's AutoEncoder (Poli et al. 2024, arXiv 2403.17844). Only the code passes from the sequence to the decoder, and
the decoder sees one position at a time, so what it names at t the mixer must have brought to the end. To the mixer it
is a host like any other: its contract does not change.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from asiarch_jax.arch import lm

DECODER_LAYERS = 2
PERIODS = 10_000  # the longest wave-length of the positions is 2 pi times this


class AutoEncoder(lm.LanguageModel):
  """Maps tokens [B, T] to logits [B, T, vocabulary] in float32: at each position the token that stands there."""

  @nn.compact
  def __call__(self, tokens_BT: jax.Array) -> jax.Array:
    model, dtype = self.model, jnp.dtype(self.model.dtype)
    init = nn.initializers.normal(model.init_stddev)
    embedding_YD = self.param('embedding', init, (model.vocabulary, model.width), jnp.float32)
    x_BTD = embedding_YD[tokens_BT].astype(dtype)
    mlp_width = model.mlp_width if self.mlp_width is None else self.mlp_width
    x_BTD = lm.blocks(x_BTD, self.mixer, model, mlp_width, self.gather)
    y_BTD = x_BTD[:, -1:] + positions(tokens_BT.shape[1], model.width).astype(dtype)
    for layer in range(DECODER_LAYERS):
      y_BTD = nn.RMSNorm(epsilon=model.norm_epsilon, dtype=dtype, name=f'decoder_norm_{layer}')(y_BTD)
      y_BTD = nn.gelu(nn.Dense(model.width, dtype=dtype, kernel_init=init, name=f'decoder_{layer}')(y_BTD))
    y_BTD = nn.RMSNorm(epsilon=model.norm_epsilon, dtype=dtype, name='norm')(y_BTD)
    head_YD = embedding_YD if model.tied else self.param('head', init, embedding_YD.shape, jnp.float32)
    return jnp.einsum('btd,yd->bty', y_BTD, head_YD.astype(dtype), preferred_element_type=jnp.float32)


def positions(length: int, width: int) -> jax.Array:
  """Returns sines, then cosines, of position times falling frequencies, float32 [length, width]."""
  half = width // 2
  frequencies = jnp.exp(-math.log(PERIODS) / max(half - 1, 1) * jnp.arange(half))
  angles_TF = jnp.arange(length)[:, None] * frequencies
  waves_TD = jnp.concatenate([jnp.sin(angles_TF), jnp.cos(angles_TF)], axis=1)
  return jnp.pad(waves_TD, ((0, 0), (0, width - 2 * half)))
