"""Eight taps, stacked and then weighted."""

import jax.numpy as jnp
from flax import linen as nn


class Mixer(nn.Module):
  width: int
  heads: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    shifted = [jnp.pad(x, ((0, 0), (n, 0), (0, 0)))[:, : x.shape[1]] for n in range(8)]
    weight = self.param('weight', nn.initializers.normal(0.3), (8, self.width), jnp.float32)
    y = jnp.einsum('sbtd,sd->btd', jnp.stack(shifted), weight)
    return nn.Dense(self.width, dtype=self.dtype)(y)
