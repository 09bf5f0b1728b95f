"""Read the past alone, and give the present token its own way out.

DeltaNet writes a token before it reads, so a query like its own key gets back the present value, and the norm behind
the memory then scales the past by how large the present is. Here the memory is read before the present pair is written
(keys, values and strengths come one token later), and the present value joins behind the norm through a sigmoid gate a
channel. The two can no longer drown each other, which should help recall of rare pairs and the loss of early tokens. It
may cost where the two were well balanced, and the first token reads nothing.
"""

from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from pallas_kernels import causal_conv, delta_rule, l2_normalise

TAPS = 4


def one_later(x_BTX: jax.Array) -> jax.Array:
  """The same tokens one place later; the first is zero."""
  pad = [(0, 0)] * x_BTX.ndim
  pad[1] = (1, 0)
  return jnp.pad(x_BTX, pad)[:, :-1]


class Mixer(nn.Module):
  width: int
  heads: int
  dtype: Any = jnp.float32

  def project(self, x_BTD: jax.Array, name: str) -> jax.Array:
    x_BTD = nn.Dense(self.width, use_bias=False, dtype=self.dtype, name=name)(x_BTD)
    taps_WD = self.param(
      f'{name}_taps', nn.initializers.variance_scaling(1.0, 'fan_in', 'uniform', 0, 1), (TAPS, self.width)
    )
    x_BTD, _ = causal_conv(x_BTD, taps_WD.astype(self.dtype))
    return rearrange(nn.silu(x_BTD), 'b t (h k) -> b t h k', h=self.heads)

  @nn.compact
  def __call__(self, x_BTD: jax.Array) -> jax.Array:
    q_BTHK = l2_normalise(self.project(x_BTD, 'query'))
    k_BTHK = l2_normalise(self.project(x_BTD, 'key'))
    v_BTHV = self.project(x_BTD, 'value')
    beta_BTH = nn.sigmoid(nn.Dense(self.heads, use_bias=False, dtype=self.dtype, name='beta')(x_BTD))

    past_BTHV, _ = delta_rule(q_BTHK, one_later(k_BTHK), one_later(v_BTHV), one_later(beta_BTH), scale=1.0)
    past_BTHV = nn.RMSNorm(epsilon=1e-5, dtype=self.dtype, name='norm')(past_BTHV)

    past_BTD, present_BTD = (rearrange(o_BTHV, 'b t h v -> b t (h v)') for o_BTHV in (past_BTHV, v_BTHV))
    gate_BTD = nn.sigmoid(nn.Dense(self.width, dtype=self.dtype, name='present')(x_BTD))
    return nn.Dense(self.width, use_bias=False, dtype=self.dtype, name='output')(past_BTD + gate_BTD * present_BTD)
