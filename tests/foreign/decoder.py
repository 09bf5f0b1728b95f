"""A small decoder-only trainer of another code base, in the manner of nanodo: a config, Linen blocks, one jitted step.

Its attention is replaced by a mixer that is handed in as `attention(width, heads)`: nothing else was changed for it.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct


@dataclasses.dataclass(frozen=True)
class DoConfig:
  D: int = 32
  H: int = 2
  L: int = 16
  N: int = 2
  V: int = 64
  F: int = 64


class Mlp(nn.Module):
  cfg: DoConfig

  @nn.compact
  def __call__(self, x_BxLxD):
    x_BxLxF = nn.gelu(nn.Dense(self.cfg.F, use_bias=False)(x_BxLxD))
    return nn.Dense(self.cfg.D, use_bias=False)(x_BxLxF)


class TBlock(nn.Module):
  cfg: DoConfig
  attention: Callable[[int, int], nn.Module]

  @nn.compact
  def __call__(self, in_BxLxD):
    x_BxLxD = nn.LayerNorm(use_bias=False)(in_BxLxD)
    x_BxLxD = self.attention(self.cfg.D, self.cfg.H)(x_BxLxD) + in_BxLxD
    return x_BxLxD + Mlp(self.cfg)(nn.LayerNorm(use_bias=False)(x_BxLxD))


class TransformerDo(nn.Module):
  cfg: DoConfig
  attention: Callable[[int, int], nn.Module]

  @nn.compact
  def __call__(self, y_BxL):
    embed = nn.Embed(self.cfg.V, self.cfg.D)
    x_BxLxD = embed(y_BxL)
    for _ in range(self.cfg.N):
      x_BxLxD = TBlock(self.cfg, self.attention)(x_BxLxD)
    return embed.attend(nn.LayerNorm(use_bias=False)(x_BxLxD).astype(jnp.float32))


class TrainState(struct.PyTreeNode):
  params: Any
  opt_state: Any


def train(attention, batches, cfg=DoConfig(), rate=3e-3):
  """Returns the losses of a short training run."""
  model, optimizer = TransformerDo(cfg, attention), optax.adamw(rate)
  params = model.init(jax.random.key(0), batches[0][:, :-1])['params']
  state = TrainState(params, optimizer.init(params))

  @jax.jit
  def step(state, y_BxL):
    def loss_fn(params):
      logits_BxLxV = model.apply({'params': params}, y_BxL[:, :-1])
      return optax.softmax_cross_entropy_with_integer_labels(logits_BxLxV, y_BxL[:, 1:]).mean()

    loss, grads = jax.value_and_grad(loss_fn)(state.params)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    return TrainState(optax.apply_updates(state.params, updates), opt_state), loss

  losses = []
  for batch in batches:
    state, loss = step(state, batch)
    losses.append(float(loss))
  return losses
