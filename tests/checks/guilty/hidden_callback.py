"""Calls the host in the backward pass only."""

# guilty: effects
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn


@jax.custom_vjp
def identity(v):
  return v


def forward(v):
  return v, None


def backward(_, dv):
  jax.debug.callback(lambda value: None, dv.sum())
  return (dv,)


identity.defvjp(forward, backward)


class Mixer(nn.Module):
  width: int
  heads: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x_BTD):
    v_BTD = nn.Dense(self.width, dtype=self.dtype)(x_BTD)
    return identity(v_BTD)
