"""AdaMultiPathGateNet, reconstructed: one gate whose logits are global, a head's and a token's, and never collapse.

Gates in stages are hard to tune and gates by schedule forget the schedule when a run is resumed. Here one softmax takes
the sum of three kinds of logits, so that a path can be wanted everywhere, in one head, or at one token; a small floor
keeps every path in the sum, and a loss that never ends rewards entropy:

    z = g_path + b_{h, path} + MLP [x ; stats of all paths of all heads]_{h, path}
    w = (1 - 5 e) softmax(z / (softplus(t_h) + 0.5)) + e
    o_h = w_0 short + w_1 middle + w_2 long + w_3 delta + w_4 identity
    loss: -0.02 times the mean entropy of w over batch, tokens and heads

This is a reconstruction: ASI-ARCH (arXiv 2507.18074; most likely record 827, `delta_net_balanced_sparse_gate`)
published no code and one paragraph, which names the sum of global, head and token logits, the small floor, and the
entropy term that is always on. Everything else is a choice, most of it after a published relative (record 902):
- five paths: filters of 3, 15 and 64 taps, which start at the identity with noise of 0.02, the delta rule, the values;
- stats are mean, deviation (of the population), mean size and Euclidean length over a head's channels;
- the MLP is D + 20 H -> D / 2 -> 5 H with GELU; b is its last bias, so it has no other;
- g and b start at zero: no path is preferred; t starts where the temperature is one, and 0.5 is the least;
- e = 0.02 and a weight of 0.02 on the entropy of each layer, added over layers.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from pallas_kernels import causal_conv, delta_rule, l2_normalise

TAPS = 4  # of the short convolutions; the last one is the present token
FILTERS, NOISE = {'short': 3, 'middle': 15, 'long': 64}, 0.02  # taps, and how far from the identity they start
COLDEST, FLOOR, ENTROPY = 0.5, 0.02, 0.02  # least temperature, least share of a path, weight of the loss


def near_identity(key, shape):
  """A filter that lets the present token through, and noise."""
  return jnp.zeros(shape).at[-1].set(1.0) + NOISE * jax.random.normal(key, shape)


def root(x: jax.Array) -> jax.Array:
  """The square root, without a slope at zero."""
  return jnp.where(x > 0, jnp.sqrt(jnp.where(x > 0, x, 1.0)), 0.0)


def statistics(path_BTHV: jax.Array) -> jax.Array:
  """Mean, deviation, mean size and Euclidean length over a head's channels."""
  path_BTHV = path_BTHV.astype(jnp.float32)
  size_BTH, length_BTH = jnp.abs(path_BTHV).mean(-1), root(jnp.square(path_BTHV).sum(-1))
  return jnp.stack([path_BTHV.mean(-1), root(path_BTHV.var(-1)), size_BTH, length_BTH], axis=-1)


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

  def weights(self, x_BTD: jax.Array, paths: tuple[jax.Array, ...]) -> jax.Array:
    """What each path counts in each head, in float32."""
    P, zeros = len(paths), nn.initializers.zeros
    seen_BTS = jnp.concatenate([rearrange(statistics(path), 'b t h s -> b t (h s)') for path in paths], axis=-1)
    hidden_BTF = nn.Dense(max(1, self.width // 2), dtype=self.dtype, name='gate_hidden')(
      jnp.concatenate([x_BTD, seen_BTS.astype(self.dtype)], axis=-1)
    )
    of_token = nn.Dense(P * self.heads, use_bias=False, dtype=self.dtype, name='gate')
    logits_BTHP = self.split(of_token(nn.gelu(hidden_BTF, approximate=False)).astype(jnp.float32))
    logits_BTHP += self.param('global_bias', zeros, (P,)) + self.param('head_bias', zeros, (self.heads, P))
    temperature_start = nn.initializers.constant(math.log(math.expm1(1 - COLDEST)))
    temperature_H = nn.softplus(self.param('temperature', temperature_start, (self.heads,))) + COLDEST
    return (1 - P * FLOOR) * nn.softmax(logits_BTHP / temperature_H[:, None]) + FLOOR

  @nn.compact
  def __call__(self, x_BTD: jax.Array) -> jax.Array:
    q_BTHK = l2_normalise(self.project(x_BTD, 'query'))
    k_BTHK = l2_normalise(self.project(x_BTD, 'key'))
    v_BTHV = self.project(x_BTD, 'value')
    beta_BTH = nn.sigmoid(nn.Dense(self.heads, use_bias=False, dtype=self.dtype, name='beta')(x_BTD))

    delta_BTHV, _ = delta_rule(q_BTHK, k_BTHK, v_BTHV, beta_BTH, scale=1.0)
    paths = (*(self.filtered(v_BTHV, name, taps) for name, taps in FILTERS.items()), delta_BTHV, v_BTHV)
    weights_BTHP = self.weights(x_BTD, paths)
    self.sow('losses', 'entropy', ENTROPY * (weights_BTHP * jnp.log(weights_BTHP)).sum(-1).mean())
    o_BTHV = sum(weights_BTHP[..., p, None].astype(self.dtype) * path for p, path in enumerate(paths))

    o_BTHV = nn.RMSNorm(epsilon=1e-5, dtype=self.dtype, name='norm')(o_BTHV)
    o_BTD = rearrange(o_BTHV, 'b t h v -> b t (h v)')
    return nn.Dense(self.width, use_bias=False, dtype=self.dtype, name='output')(o_BTD)
