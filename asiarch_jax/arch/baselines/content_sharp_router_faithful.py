"""ContentSharpRouter as it was published: the router's logits of all heads reach every head.

Four paths of different reach, mixed a head and a token by their content: causal filters of 3 and 25 taps over the
values, the delta rule, and the values themselves. A router reads the token and the statistics of all paths, and a
learned temperature a head decides how sharply it chooses:

    f_t = SiLU(W_1 x_t + b_1)
    z_h = W_2 [f_t ; (mean, std) over the channels of short, long, delta, identity in head h] + b_2
    w_h = softmax((softplus(theta_h) + 1e-4) z_h),   o_h = w_0 short + w_1 long + w_2 delta + w_3 identity

The published bug, kept here: W_2 has 4 H outputs, four for each head, but is applied to every head's own input. So each
head takes its softmax over 4 H logits and uses the first four, whatever head it is. The weights that are used sum to
far less than one (the norm behind them hides it), their columns of W_2 are shared by all heads, the remaining columns
act through the denominator alone, and the bias of 2 stands on each fourth logit, used or not.
`content_sharp_router` has what was meant. The rest is the same in both: the temperature multiplies and starts at
1.5, filters start at the identity with noise of 0.02, the deviation is the unbiased one. The program's entropy term is
left out: it was returned where the trainer did not look, never decayed, and had the sign that lowers entropy.
(Found by ASI-ARCH, arXiv 2507.18074, record 703, `delta_net_csm`.)
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from pallas_kernels import causal_conv, delta_rule, l2_normalise

TAPS = 4  # of the short convolutions; the last one is the present token
SHORT, LONG, NOISE = 3, 25, 0.02  # taps of the filters, and how far from the identity they start
PATHS = 4  # short, long, delta, identity
SHARPNESS, IDENTITY_BIAS = 1.5, 2.0  # at the start


def near_identity(key, shape):
  """A filter that lets the present token through, and noise."""
  return jnp.zeros(shape).at[-1].set(1.0) + NOISE * jax.random.normal(key, shape)


def identity_first(key, shape):
  return jnp.zeros(shape).at[PATHS - 1 :: PATHS].set(IDENTITY_BIAS)


def statistics(path_BTHV: jax.Array) -> jax.Array:
  """Mean and unbiased deviation over a head's channels; where nothing varies the deviation has no slope."""
  path_BTHV = path_BTHV.astype(jnp.float32)
  mean_BTH = path_BTHV.mean(-1)
  variance_BTH = jnp.square(path_BTHV - mean_BTH[..., None]).sum(-1) / max(path_BTHV.shape[-1] - 1, 1)
  varies_BTH = variance_BTH > 0
  deviation_BTH = jnp.where(varies_BTH, jnp.sqrt(jnp.where(varies_BTH, variance_BTH, 1.0)), 0.0)
  return jnp.stack([mean_BTH, deviation_BTH], axis=-1)


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

  def weights(self, content_BTF: jax.Array, statistics_BTHS: jax.Array) -> jax.Array:
    """What each path counts in each head, in float32: the first four of Q = 4 H shares, in every head."""
    F, S, Q = content_BTF.shape[-1], statistics_BTHS.shape[-1], PATHS * self.heads
    route_FQ = self.param('route', nn.initializers.lecun_normal(), (F + S, Q))
    bias_Q = self.param('route_bias', identity_first, (Q,))
    theta_H = self.param('sharpness', nn.initializers.constant(math.log(math.expm1(SHARPNESS))), (self.heads,))
    logits_BTHQ = (content_BTF.astype(jnp.float32) @ route_FQ[:F])[:, :, None] + statistics_BTHS @ route_FQ[F:] + bias_Q
    return nn.softmax(logits_BTHQ * (nn.softplus(theta_H) + 1e-4)[:, None])[..., :PATHS]

  @nn.compact
  def __call__(self, x_BTD: jax.Array) -> jax.Array:
    q_BTHK = l2_normalise(self.project(x_BTD, 'query'))
    k_BTHK = l2_normalise(self.project(x_BTD, 'key'))
    v_BTHV = self.project(x_BTD, 'value')
    beta_BTH = nn.sigmoid(nn.Dense(self.heads, use_bias=False, dtype=self.dtype, name='beta')(x_BTD))

    delta_BTHV, _ = delta_rule(q_BTHK, k_BTHK, v_BTHV, beta_BTH, scale=1.0)
    paths = (self.filtered(v_BTHV, 'short', SHORT), self.filtered(v_BTHV, 'long', LONG), delta_BTHV, v_BTHV)

    content_BTF = nn.silu(nn.Dense(self.width // 2, dtype=self.dtype, name='content')(x_BTD))
    weights_BTHP = self.weights(content_BTF, jnp.concatenate([statistics(path) for path in paths], axis=-1))
    o_BTHV = sum(weights_BTHP[..., p, None].astype(self.dtype) * path for p, path in enumerate(paths))

    o_BTHV = nn.RMSNorm(epsilon=1e-5, dtype=self.dtype, name='norm')(o_BTHV)
    o_BTD = rearrange(o_BTHV, 'b t h v -> b t (h v)')
    return nn.Dense(self.width, use_bias=False, dtype=self.dtype, name='output')(o_BTD)
