"""PathGateFusionNet, reconstructed: first copy or context, then which context.

One softmax over all paths lets the copy of the present token, useful almost everywhere, starve the memories. Here a
first gate splits the budget between copying and context, and a second splits the context between a short filter, a long
filter and the delta rule. A small path past both keeps gradients alive, and each head has an output gate:

    c   = sigmoid(MLP_1 [x ; stats of short, long, delta, identity of all heads])          a head
    m   = softmax(MLP_2 [x ; stats of short, long, delta of all heads] / (softplus(t_h) + 0.05))   a head: three
    o_h = (1 - f) c identity + (1 - (1 - f) c) (m_0 short + m_1 long + m_2 delta)
          + sigmoid(rho_h) sigmoid(W_r x + b_r)_h short
    y_h = 4 sigmoid(MLP_3 [x ; stats of o_h ; weights of the four paths]) RMSNorm(o_h)

This is a reconstruction: ASI-ARCH (arXiv 2507.18074, record 1505, `delta_net_hpg`) published no code and one paragraph,
which names the two stages, the small residual that is always on and the output gates of heads. Everything else is a
choice, most of it after published relatives (records 1434 and 1448):
- stats are mean, deviation (of the population), mean size and Euclidean length over a head's channels;
- MLP_1 is D + 16 H -> D -> H, MLP_2 D + 12 H -> D -> 3 H, MLP_3 D + 8 -> D / 2 -> 1 and the same for all heads; GELU;
- the copy takes at most 1 - f. Relative 1434 lowers f from 0.08 to 0.01 over 4,000 steps; a mixer knows no step, so f
  is 0.045, where that schedule stands after the 2,000 steps of the published runs;
- the residual is the short filter once more, by a share of each head and a gate of the token, as in 1448;
- biases start at 1.25 (copy), 0 (context) and -1 (residual), rho at -1, and t where the temperature is one;
- filters of 3 and 31 taps, which start at the identity with noise of 0.02;
- the output gate stands behind the norm, which would undo it, and starts near one.
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
CONTEXT_FLOOR, COPY_BIAS = 0.045, 1.25  # f, and the first gate at the start
COLDEST = 0.05  # least temperature of the second gate
RESIDUAL_SHARE, RESIDUAL_BIAS = -1.0, -1.0  # rho and b_r at the start
OUTPUT_GATE = 4.0  # largest value of the output gate; it starts at a quarter of it


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

  def perceptron(self, x_BTD: jax.Array, seen: tuple[jax.Array, ...], name: str, outputs: int, bias: float):
    """Logits in float32 from the token and the statistics of all heads."""
    flat = [rearrange(s_BTHS, 'b t h s -> b t (h s)').astype(self.dtype) for s_BTHS in seen]
    hidden_BTD = nn.Dense(self.width, dtype=self.dtype, name=f'{name}_hidden')(jnp.concatenate([x_BTD, *flat], -1))
    out = nn.Dense(outputs, dtype=self.dtype, bias_init=nn.initializers.constant(bias), name=name)
    return out(nn.gelu(hidden_BTD, approximate=False)).astype(jnp.float32)

  def weights(self, x_BTD: jax.Array, seen: tuple[jax.Array, ...]) -> jax.Array:
    """What short, long, delta and identity count in each head: the copy first, then shares of what it leaves."""
    copy_BTH = nn.sigmoid(self.perceptron(x_BTD, seen, 'copy', self.heads, COPY_BIAS))
    copied_BTH1 = ((1 - CONTEXT_FLOOR) * copy_BTH)[..., None]
    temperature_start = nn.initializers.constant(math.log(math.expm1(1 - COLDEST)))
    temperature_H = nn.softplus(self.param('temperature', temperature_start, (self.heads,))) + COLDEST
    logits_BTHP = self.split(self.perceptron(x_BTD, seen[:3], 'context', 3 * self.heads, 0.0))
    within_BTHP = nn.softmax(logits_BTHP / temperature_H[:, None])
    return jnp.concatenate([(1 - copied_BTH1) * within_BTHP, copied_BTH1], axis=-1)

  def output_gate(self, x_BTD: jax.Array, features_BTHS: jax.Array) -> jax.Array:
    """One number a head: a perceptron that all heads share, each with its own features beside the token."""
    D, S, F = self.width, features_BTHS.shape[-1], max(1, self.width // 2)
    first_SF = self.param('output_gate_hidden', nn.initializers.lecun_normal(), (D + S, F))
    bias_F = self.param('output_gate_hidden_bias', nn.initializers.zeros, (F,))
    of_token_BTF = x_BTD @ first_SF[:D].astype(self.dtype)
    of_head_BTHF = features_BTHS.astype(self.dtype) @ first_SF[D:].astype(self.dtype)
    hidden_BTHF = nn.gelu(of_token_BTF[:, :, None] + of_head_BTHF + bias_F.astype(self.dtype), approximate=False)
    quarter = nn.initializers.constant(math.log(1 / (OUTPUT_GATE - 1)))
    return OUTPUT_GATE * nn.sigmoid(nn.Dense(1, dtype=self.dtype, bias_init=quarter, name='output_gate')(hidden_BTHF))

  @nn.compact
  def __call__(self, x_BTD: jax.Array) -> jax.Array:
    q_BTHK = l2_normalise(self.project(x_BTD, 'query'))
    k_BTHK = l2_normalise(self.project(x_BTD, 'key'))
    v_BTHV = self.project(x_BTD, 'value')
    beta_BTH = nn.sigmoid(nn.Dense(self.heads, use_bias=False, dtype=self.dtype, name='beta')(x_BTD))

    delta_BTHV, _ = delta_rule(q_BTHK, k_BTHK, v_BTHV, beta_BTH, scale=1.0)
    context = (self.filtered(v_BTHV, 'short', SHORT), self.filtered(v_BTHV, 'long', LONG), delta_BTHV)
    weights_BTHP = self.weights(x_BTD, tuple(statistics(path) for path in (*context, v_BTHV)))
    o_BTHV = sum(weights_BTHP[..., p, None].astype(self.dtype) * path for p, path in enumerate((*context, v_BTHV)))

    share_H = nn.sigmoid(self.param('residual_share', nn.initializers.constant(RESIDUAL_SHARE), (self.heads,)))
    bias = nn.initializers.constant(RESIDUAL_BIAS)
    residual_BTH = nn.sigmoid(nn.Dense(self.heads, dtype=self.dtype, bias_init=bias, name='residual')(x_BTD))
    o_BTHV += (share_H.astype(self.dtype) * residual_BTH)[..., None] * context[0]

    gate_BTH1 = self.output_gate(x_BTD, jnp.concatenate([statistics(o_BTHV), weights_BTHP], axis=-1))
    o_BTHV = gate_BTH1 * nn.RMSNorm(epsilon=1e-5, dtype=self.dtype, name='norm')(o_BTHV)
    o_BTD = rearrange(o_BTHV, 'b t h v -> b t (h v)')
    return nn.Dense(self.width, use_bias=False, dtype=self.dtype, name='output')(o_BTD)
