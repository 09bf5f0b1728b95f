"""HierGateNet, reconstructed: global or local first, and a floor under each path that the token sets.

A gate that may close a path for good loses what that path would have learned later, the slow memory above all. Here a
first gate weighs the delta rule, the global path, against everything local; a second mixes the local paths, the values
themselves and two causal filters of them; and every path of a head keeps a least share, which is learned and depends on
the token:

    a = sigmoid(W_g x + b_g)_h,   mix = softmax((W_l x + b_l)_h / softplus(t_h))  over  identity, short, long
    p = [a ; (1 - a) mix],   f = 0.2 sigmoid(W_f x + b_f)_{h, path},   w = (1 - sum_path f) p + f
    o_h = w_0 delta + w_1 identity + w_2 short + w_3 long

Four floors of at most 0.2 leave at least a fifth of the weight to the gates, and the weights sum to one.

This is a reconstruction: ASI-ARCH (arXiv 2507.18074) published no code and one paragraph, which names the two stages,
macro (local against global) and fine, and floors by path and head that are learned and follow the context. Records
570, 944 and 1785 all bear the name. Everything else is a choice, most of it after relatives with code (645, 700, 948):
- the global path is the delta rule alone, and all three gates are linear maps of the token, without statistics;
- b_g starts at 0.5, b_l at 2 for the identity and 0 for the filters, t at 1 (a temperature of 1.31);
- largest floor 0.2; W_f starts at zero and b_f where each floor is 0.05, so that they begin the same for every token;
- filters of 3 and 31 taps, which start at the identity with noise of 0.02.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from pallas_kernels import causal_conv, delta_rule, l2_normalise

TAPS = 4  # of the short convolutions; the last one is the present token
SHORT, LONG, NOISE = 3, 31, 0.02  # taps of the filters, and how far from the identity they start
GLOBAL_BIAS, IDENTITY_BIAS = 0.5, 2.0  # of the two stages at the start
HIGHEST_FLOOR, FIRST_FLOOR = 0.2, 0.05  # of a path's share: at most, and at the start


def near_identity(key, shape):
  """A filter that lets the present token through, and noise."""
  return jnp.zeros(shape).at[-1].set(1.0) + NOISE * jax.random.normal(key, shape)


def identity_first(key, shape):
  return jnp.zeros(shape).at[..., 0].set(IDENTITY_BIAS)


class Mixer(nn.Module):
  width: int
  heads: int
  dtype: Any = jnp.float32

  def split(self, x_BTD: jax.Array) -> jax.Array:
    return rearrange(x_BTD, 'b t (h k) -> b t h k', h=self.heads)

  def project(self, x_BTD: jax.Array, name: str) -> jax.Array:
    """A linear map, a short causal convolution along time, and SiLU, split into heads."""
    x_BTD = nn.Dense(self.width, use_bias=False, dtype=self.dtype, name=name)(x_BTD)
    taps_WD = self.param(
      f'{name}_taps', nn.initializers.variance_scaling(1.0, 'fan_in', 'uniform', 0, 1), (TAPS, self.width)
    )
    x_BTD, _ = causal_conv(x_BTD, taps_WD.astype(self.dtype))
    return self.split(nn.silu(x_BTD))

  def filtered(self, v_BTHV: jax.Array, name: str, taps: int) -> jax.Array:
    """A causal filter for each channel of each head."""
    taps_WD = self.param(f'{name}_taps', near_identity, (taps, self.width))
    y_BTD, _ = causal_conv(rearrange(v_BTHV, 'b t h v -> b t (h v)'), taps_WD.astype(self.dtype))
    return self.split(y_BTD)

  def logits(self, x_BTD: jax.Array, name: str, paths: int, kernel: Any, bias: Any) -> jax.Array:
    """A linear map of the token in float32, `paths` numbers a head."""
    dense = nn.Dense(paths * self.heads, use_bias=False, dtype=self.dtype, kernel_init=kernel, name=name)
    return self.split(dense(x_BTD).astype(jnp.float32)) + self.param(f'{name}_bias', bias, (self.heads, paths))

  def weights(self, x_BTD: jax.Array) -> jax.Array:
    """What delta, identity, short and long count in each head."""
    normal, constant = nn.initializers.lecun_normal(), nn.initializers.constant
    global_BTH1 = nn.sigmoid(self.logits(x_BTD, 'global', 1, normal, constant(GLOBAL_BIAS)))
    temperature_H1 = nn.softplus(self.param('temperature', nn.initializers.ones, (self.heads,)))[:, None]
    local_BTHP = nn.softmax(self.logits(x_BTD, 'local', 3, normal, identity_first) / temperature_H1)
    shares_BTHP = jnp.concatenate([global_BTH1, (1 - global_BTH1) * local_BTHP], axis=-1)
    start = constant(math.log(FIRST_FLOOR / (HIGHEST_FLOOR - FIRST_FLOOR)))
    floors_BTHP = HIGHEST_FLOOR * nn.sigmoid(self.logits(x_BTD, 'floor', 4, nn.initializers.zeros, start))
    return shares_BTHP * (1 - floors_BTHP.sum(-1, keepdims=True)) + floors_BTHP

  @nn.compact
  def __call__(self, x_BTD: jax.Array) -> jax.Array:
    q_BTHK = l2_normalise(self.project(x_BTD, 'query'))
    k_BTHK = l2_normalise(self.project(x_BTD, 'key'))
    v_BTHV = self.project(x_BTD, 'value')
    beta_BTH = nn.sigmoid(nn.Dense(self.heads, use_bias=False, dtype=self.dtype, name='beta')(x_BTD))

    delta_BTHV, _ = delta_rule(q_BTHK, k_BTHK, v_BTHV, beta_BTH, scale=1.0)
    paths = (delta_BTHV, v_BTHV, self.filtered(v_BTHV, 'short', SHORT), self.filtered(v_BTHV, 'long', LONG))
    weights_BTHP = self.weights(x_BTD)
    o_BTHV = sum(weights_BTHP[..., p, None].astype(self.dtype) * path for p, path in enumerate(paths))

    o_BTHV = nn.RMSNorm(epsilon=1e-5, dtype=self.dtype, name='norm')(o_BTHV)
    o_BTD = rearrange(o_BTHV, 'b t h v -> b t (h v)')
    return nn.Dense(self.width, use_bias=False, dtype=self.dtype, name='output')(o_BTD)
