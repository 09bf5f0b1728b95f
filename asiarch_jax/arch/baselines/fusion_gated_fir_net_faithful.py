"""FusionGatedFIRNet as it was published: the state fades in jumps, once every 32 tokens.

Paths that do not compete: beside the delta rule the values pass through causal filters of 3 and 63 taps and an
identity, and each path of a head has a sigmoid gate of its own, never below a floor. The gates read the token and the
mean size of each path in every head:

    g = [x_t ; mean |short|, mean |long|, mean |delta|, mean |identity| of all heads],   z = W_2 GELU(W_1 g + b_1) + b_2
    w = 0.02 + 0.98 sigmoid(z / exp(t_h)),      o_h = w_0 short + w_1 long + w_2 delta + w_3 identity

The published bug, kept here: the learned retention lambda_h = 0.6 + 0.4 sigmoid(r_h) acts where the chunks of the
algorithm meet. Inside a chunk of 32 tokens the delta rule runs without decay from the state S that it was given; then

    S <- lambda_h S + K^T U',      U' = U - W S,

that is, the state that the chunk left, less (1 - lambda_h) times the state before it. What a token recalls so depends
on its position modulo 32, what the chunk wrote has not faded at all, what it erased was not yet faded, and below 64
tokens r has no effect. As published, r starts at logit(0.9999), where the sigmoid is almost flat: lambda is 0.99996.
`fusion_gated_fir_net` fades at every token. The rest is the same in both: b_2 starts at (-1, -1, 1, 3), filters at the
identity with noise of 0.01. That the program detaches the last state has no counterpart: a mixer returns none.
(Found by ASI-ARCH, arXiv 2507.18074, record 879, `delta_net_psfr`.)
"""

from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from pallas_kernels import causal_conv, delta_rule, l2_normalise

TAPS = 4  # of the short convolutions; the last one is the present token
SHORT, LONG, NOISE = 3, 63, 0.01  # taps of the filters, and how far from the identity they start
CHUNK = 32  # tokens between two jumps of the state
LEAST, RETENTION = 0.6, 9.2102404  # smallest lambda, and r at the start: logit(0.9999)
FLOOR, BIASES = 0.02, (-1.0, -1.0, 1.0, 3.0)  # of the gates of short, long, delta, identity


def near_identity(key, shape):
  """A filter that lets the present token through, and noise."""
  return jnp.zeros(shape).at[-1].set(1.0) + NOISE * jax.random.normal(key, shape)


def initial_biases(key, shape):
  return jnp.broadcast_to(jnp.array(BIASES), shape)


def retained_delta_rule(q_BTHK, k_BTHK, v_BTHV, beta_BTH, loss_H):
  """The delta rule in chunks; after each, the state that it began with is taken away again in part."""
  B, T, H, K = q_BTHK.shape

  def chunks(x_BT):
    x_BT = jnp.pad(x_BT, ((0, 0), (0, -T % CHUNK)) + ((0, 0),) * (x_BT.ndim - 2))
    return rearrange(x_BT, 'b (n c) ... -> n b c ...', c=CHUNK)

  def step(state_BHKV, chunk):
    o_BCHV, left_BHKV = delta_rule(*chunk, scale=1.0, initial_state=state_BHKV)
    return left_BHKV - loss_H[:, None, None] * state_BHKV, o_BCHV

  start_BHKV = jnp.zeros((B, H, K, v_BTHV.shape[3]), jnp.float32)
  _, o_NBCHV = jax.lax.scan(step, start_BHKV, tuple(chunks(x) for x in (q_BTHK, k_BTHK, v_BTHV, beta_BTH)))
  return rearrange(o_NBCHV, 'n b c h v -> b (n c) h v')[:, :T]


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
    """What each path counts in each head; they need not sum to one."""
    sizes = [jnp.abs(path).mean(-1, dtype=jnp.float32).astype(self.dtype) for path in paths]
    hidden_BTF = nn.Dense(2 * self.width, dtype=self.dtype, name='gate_hidden')(
      jnp.concatenate([x_BTD, *sizes], axis=-1)
    )
    logits_BTQ = nn.Dense(len(paths) * self.heads, use_bias=False, dtype=self.dtype, name='gate')(
      nn.gelu(hidden_BTF, approximate=False)
    )
    bias_HP = self.param('gate_bias', initial_biases, (self.heads, len(paths)))
    logits_BTHP = rearrange(logits_BTQ, 'b t (h p) -> b t h p', h=self.heads).astype(jnp.float32) + bias_HP
    temperature_H1 = jnp.exp(self.param('log_temperature', nn.initializers.zeros, (self.heads,)))[:, None]
    return FLOOR + (1 - FLOOR) * nn.sigmoid(logits_BTHP / temperature_H1)

  @nn.compact
  def __call__(self, x_BTD: jax.Array) -> jax.Array:
    q_BTHK = l2_normalise(self.project(x_BTD, 'query'))
    k_BTHK = l2_normalise(self.project(x_BTD, 'key'))
    v_BTHV = self.project(x_BTD, 'value')
    beta_BTH = nn.sigmoid(nn.Dense(self.heads, use_bias=False, dtype=self.dtype, name='beta')(x_BTD))

    # 1 - lambda, since lambda itself would lose half its digits.
    loss_H = (1 - LEAST) * nn.sigmoid(-self.param('retention', nn.initializers.constant(RETENTION), (self.heads,)))
    delta_BTHV = retained_delta_rule(q_BTHK, k_BTHK, v_BTHV, beta_BTH, loss_H)

    paths = (self.filtered(v_BTHV, 'short', SHORT), self.filtered(v_BTHV, 'long', LONG), delta_BTHV, v_BTHV)
    weights_BTHP = self.weights(x_BTD, paths)
    o_BTHV = sum(weights_BTHP[..., p, None].astype(self.dtype) * path for p, path in enumerate(paths))

    o_BTHV = nn.RMSNorm(epsilon=1e-5, dtype=self.dtype, name='norm')(o_BTHV)
    o_BTD = rearrange(o_BTHV, 'b t h v -> b t (h v)')
    return nn.Dense(self.width, use_bias=False, dtype=self.dtype, name='output')(o_BTD)
