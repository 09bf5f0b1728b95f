"""The delta rule and the causal convolution, token by token: the specification of every faster form.

One head holds a state S of K x V. Token t decays it, corrects what the key recalls towards the value, and reads it:

    S <- exp(g_t) S                  g_t: none (DeltaNet, arXiv 2406.06484), one number a head (Gated DeltaNet,
    u  = beta_t (v_t - S^T k_t)      arXiv 2412.06464), or one number a key channel (Kimi Delta Attention,
    S <- S + k_t u^T                 arXiv 2510.26692)
    o_t = scale S^T q_t

A token whose segment differs from that of the token before starts from S = 0.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array


def delta_rule_step(
  q_BHK: Array,
  k_BHK: Array,
  v_BHV: Array,
  beta_BH: Array,
  log_decay: Array | None,
  state_BHKV: Array,
  *,
  scale: float,
  precision: lax.PrecisionLike = lax.Precision.HIGHEST,
) -> tuple[Array, Array]:
  """Returns (o_BHV, state_BHKV) after one token, in the type of the state.

  q and k may have fewer heads than v: value head h reads key head h * H / HV.
  """
  B, H, _ = q_BHK.shape
  state_BHGKV = state_BHKV.reshape(B, H, -1, *state_BHKV.shape[-2:])
  grouped = state_BHGKV.shape[:3]
  if log_decay is not None:
    state_BHGKV = state_BHGKV * jnp.exp(log_decay).reshape(*grouped, -1, 1)
  recalled_BHGV = jnp.einsum('bhk,bhgkv->bhgv', k_BHK, state_BHGKV, precision=precision)
  u_BHGV = beta_BH.reshape(*grouped, 1) * (v_BHV.reshape(*grouped, -1) - recalled_BHGV)
  state_BHGKV = state_BHGKV + k_BHK[:, :, None, :, None] * u_BHGV[..., None, :]
  o_BHGV = scale * jnp.einsum('bhk,bhgkv->bhgv', q_BHK, state_BHGKV, precision=precision)
  return o_BHGV.reshape(v_BHV.shape), state_BHGKV.reshape(state_BHKV.shape)


def delta_rule(
  q_BTHK: Array,
  k_BTHK: Array,
  v_BTHV: Array,
  beta_BTH: Array,
  log_decay: Array | None,
  state_BHKV: Array,
  starts_BT: Array | None,
  *,
  scale: float,
  precision: lax.PrecisionLike = lax.Precision.HIGHEST,
) -> tuple[Array, Array]:
  """Returns (o_BTHV, final state_BHKV). `starts_BT` marks tokens that begin a segment, None for none."""

  def step(state_BHKV, token):
    q_BHK, k_BHK, v_BHV, beta_BH, decay, start_B = token
    if start_B is not None:
      state_BHKV = jnp.where(start_B[:, None, None, None], 0.0, state_BHKV)
    o_BHV, state_BHKV = delta_rule_step(
      q_BHK, k_BHK, v_BHV, beta_BH, decay, state_BHKV, scale=scale, precision=precision
    )
    return state_BHKV, o_BHV

  tokens = (q_BTHK, k_BTHK, v_BTHV, beta_BTH, log_decay, starts_BT)
  state_BHKV, o_TBHV = lax.scan(step, state_BHKV, jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), tokens))
  return jnp.moveaxis(o_TBHV, 0, 1), state_BHKV


def causal_conv(x_BTD: Array, weight_WD: Array, state_BWD: Array, starts_BT: Array | None) -> tuple[Array, Array]:
  """Returns (y_BTD, the last W - 1 inputs) token by token; `state_BWD` holds the W - 1 inputs before the first."""

  def step(state_BWD, token):
    x_BD, start_B = token
    if start_B is not None:
      state_BWD = jnp.where(start_B[:, None, None], 0.0, state_BWD)
    window_BWD = jnp.concatenate([state_BWD, x_BD[:, None]], 1)
    return window_BWD[:, 1:], (window_BWD * weight_WD).sum(1)

  tokens = (jnp.moveaxis(x_BTD, 1, 0), None if starts_BT is None else starts_BT.T)
  state_BWD, y_TBD = lax.scan(step, state_BWD, tokens)
  return jnp.moveaxis(y_TBD, 0, 1), state_BWD
