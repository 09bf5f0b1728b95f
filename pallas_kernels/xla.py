"""Chunkwise delta rule in plain JAX: runs on every backend, and is the CPU path. The maths of a chunk: `chunk_math`.

Everything inside the chunks is done for all chunks at once. Between them only the state is carried, by an affine map
that was made beforehand, S' = M S + N: one K x K by K x V product a chunk. The backward pass walks the transposed map.

Axes: B batch, H key heads, N chunks, G value heads a key head, then C x K or C x V.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from pallas_kernels import chunk_math
from pallas_kernels.chunk_math import dot

Array = jax.Array
RESIDUALS = ('delta_rule_inverse', 'delta_rule_states')


@dataclasses.dataclass(frozen=True)
class Plan:
  """What is static about a call: read scale, chunk, precision of products, and whether residuals are recomputed."""

  scale: float
  chunk: int
  precision: lax.PrecisionLike = lax.Precision.HIGHEST
  recompute: bool = False


class Factors(NamedTuple):
  """A chunk made ready: u = (I + lower)^-1 (v_in - k_in S), o = q_in S + read u, S' = keep S + k_out^T u.

  Sizes: lower and read C x C; k_in, q_in and k_out C x K; v_in C x V; keep K x 1 or 1 x 1.
  """

  lower: Array
  read: Array
  k_in: Array
  v_in: Array
  q_in: Array
  k_out: Array
  keep: Array


def delta_rule(
  plan: Plan,
  q_BTHK: Array,
  k_BTHK: Array,
  v_BTHV: Array,
  beta_BTH: Array,
  log_decay: Array | None,
  state_BHKV: Array,
  run_BT: Array | None,
) -> tuple[Array, Array]:
  """Returns (o_BTHV, final state_BHKV) of the recurrence in `reference.delta_rule`, in the type of the operands.

  `run_BT` numbers the segments: 0 while the initial state is visible, one more at each start; None for one segment.
  T need not be a multiple of the chunk: tokens that change nothing are appended.
  """
  B, T, _, _ = q_BTHK.shape
  _, _, HV, V = v_BTHV.shape
  if q_BTHK.shape[2] == 1 < HV:
    # With a single key head XLA CPU crashes on the mapped gradient (jaxlib 0.10.2, SIGSEGV while compiling), so here
    # the one head is repeated.
    q_BTHK, k_BTHK = (jnp.broadcast_to(x, (B, T, HV, x.shape[-1])) for x in (q_BTHK, k_BTHK))
  H = q_BTHK.shape[2]
  G, C = HV // H, plan.chunk
  pad = -T % C

  def chunks(x_BT, groups):
    x_BT = jnp.pad(x_BT, [(0, 0), (0, pad)] + [(0, 0)] * (x_BT.ndim - 2))
    x_BNCHG = x_BT.reshape(B, (T + pad) // C, C, H, groups, *x_BT.shape[3:])
    return jnp.moveaxis(x_BNCHG, (3, 1, 4, 2), (1, 2, 3, 4))

  run = before = None
  if run_BT is not None:
    run_BNC = jnp.pad(run_BT, [(0, 0), (0, pad)], mode='edge').reshape(B, -1, C)
    before_BN = jnp.pad(run_BNC[:, :-1, -1], [(0, 0), (1, 0)])
    run, before = run_BNC[:, None, :, None], before_BN[:, None, :, None, None]
  o_BHNGCV, state_BHGKV = _chunkwise(
    plan,
    chunks(q_BTHK, 1),
    chunks(k_BTHK, 1),
    chunks(v_BTHV, G),
    chunks(beta_BTH, G),
    None if log_decay is None else chunks(log_decay, G),
    state_BHKV.reshape(B, H, G, *state_BHKV.shape[2:]),
    (run, before),
  )
  o_BTHV = jnp.moveaxis(o_BHNGCV, (2, 4), (1, 2)).reshape(B, -1, HV, V)[:, :T]
  return o_BTHV, state_BHGKV.reshape(state_BHKV.shape)


def _factors(plan: Plan, runs, q_CK, k_CK, v_CV, beta_C, log_decay) -> Factors:
  """Returns the factors of all chunks; its derivative is left to JAX (elementwise work and two Gram products)."""
  run_C, before = runs
  q_CK = q_CK * plan.scale
  ones_C1 = jnp.ones_like(beta_C)[..., None]  # made of beta, so that it varies over the mesh axes that beta does
  total = None
  rise = fall = ones_C1
  keep = ones_C1[..., :1, :]
  if log_decay is not None:
    total = chunk_math.running_sum(log_decay, run_C, 4)
    wide = total if log_decay.ndim == k_CK.ndim else total[..., None]
    last = wide[..., -1:, :]
    row_C1 = lax.broadcasted_iota(jnp.int32, (plan.chunk, 1), 0)
    rise, keep = jnp.exp(wide), jnp.exp(last.mT)
    fall = jnp.exp(jnp.where(row_C1 < plan.chunk - 1, last - wide, 0.0))
  if run_C is not None:
    rise = jnp.where((run_C == before)[..., None], rise, 0.0)
    fall = jnp.where((run_C == run_C[..., -1:])[..., None], fall, 0.0)
    keep = jnp.where((run_C[..., -1:] == before)[..., None], keep, 0.0)
  changing = log_decay is not None or run_C is not None
  kk_CC, read_CC = chunk_math.decayed_grams(q_CK, k_CK, total, run_C, plan.precision)
  beta_C1 = beta_C[..., None]
  return Factors(
    lower=_scaled(beta_C1, kk_CC),
    read=read_CC,
    k_in=_scaled(beta_C1 * rise, k_CK),
    v_in=_scaled(beta_C1, v_CV),
    q_in=_scaled(rise, q_CK) if changing else q_CK,
    k_out=_scaled(fall, k_CK) if changing else k_CK,
    keep=keep,
  )


def _scaled(factor: Array, x_CX: Array) -> Array:
  """Returns `x_CX` with each row times its factor, [C, 1], or each entry times its own."""
  return x_CX * (factor if factor.shape[-1] > 1 else chunk_math.columns(factor[..., 0], x_CX.shape[-1]))


def _transition(factors: Factors, w_CK: Array, precision) -> Array:
  """Returns M_KK of S' = M S + N, which is keep I - k_out^T W with W = (I + lower)^-1 k_in."""
  K = w_CK.shape[-1]
  return factors.keep * jnp.eye(K, dtype=w_CK.dtype) - dot(factors.k_out, w_CK, 'tn', precision)


def _carry(plan: Plan, map_NKK: Array, add_NKV: Array, first_KV: Array, *, back: bool = False) -> tuple[Array, Array]:
  """Returns (the state that each chunk receives, the last state) of S <- M S + N over chunks, axis 2.

  `back` walks from the last chunk to the first with the transposed maps.
  """
  N = map_NKK.shape[2]
  over = 'tn' if back else 'nn'
  order = slice(None, None, -1) if back else slice(None)

  def step(state_KV, affine):
    map_KK, add_KV = affine
    after_KV = dot(map_KK, state_KV, over, plan.precision) + add_KV
    return after_KV, after_KV

  # The first step stands outside the scan, so that the carry has one type under shard_map whatever the first state's.
  maps, adds = jnp.moveaxis(map_NKK, 2, 0)[order], jnp.moveaxis(add_NKV, 2, 0)[order]
  second_KV, _ = step(first_KV, (maps[0], adds[0]))
  last_KV, later = lax.scan(step, second_KV, (maps[1:], adds[1:]), unroll=min(N, 8))
  received = jnp.concatenate([first_KV[None], second_KV[None], later[:-1]])[:N]
  return jnp.moveaxis(received[order], 0, 2), last_KV


def _sweep(plan: Plan, operands, state_KV):
  """Returns (o, last state, inverse, received states) of all chunks."""
  factors = _factors(plan, operands[-1], *operands[:-1])
  product = functools.partial(dot, precision=plan.precision)
  inverse_CC = checkpoint_name(chunk_math.unit_lower_inverse(factors.lower, plan.precision), RESIDUALS[0])
  w_CK, u_CV = product(inverse_CC, factors.k_in), product(inverse_CC, factors.v_in)
  map_KK = _transition(factors, w_CK, plan.precision)
  states_KV, last_KV = _carry(plan, map_KK, product(factors.k_out, u_CV, 'tn'), state_KV)
  states_KV = checkpoint_name(states_KV, RESIDUALS[1])
  o_CV = product(factors.q_in, states_KV) + product(factors.read, u_CV - product(w_CK, states_KV))
  return o_CV, last_KV, inverse_CC, states_KV


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _chunkwise(plan, q_CK, k_CK, v_CV, beta_C, log_decay, state_KV, runs):
  o_CV, last_KV, _, _ = _sweep(plan, (q_CK, k_CK, v_CV, beta_C, log_decay, runs), state_KV)
  return o_CV, last_KV


def _chunkwise_forward(plan, q_CK, k_CK, v_CV, beta_C, log_decay, state_KV, runs):
  operands = (q_CK, k_CK, v_CV, beta_C, log_decay, runs)
  o_CV, last_KV, inverse_CC, states_KV = _sweep(plan, operands, state_KV)
  kept = None if plan.recompute else (inverse_CC, states_KV)
  return (o_CV, last_KV), (operands, state_KV, kept)


def _chunkwise_backward(plan, residuals, cotangents):
  """The adjoints of the triangular solve and of the state; those of the factors by `jax.vjp` of `_factors`."""
  operands, state_KV, kept = residuals
  do_CV, dlast_KV = cotangents
  product = functools.partial(dot, precision=plan.precision)
  runs = operands[-1]
  factors, pull = jax.vjp(functools.partial(_factors, plan, runs), *operands[:-1])
  if kept is None:
    _, _, inverse_CC, states_KV = _sweep(plan, operands, state_KV)
  else:
    inverse_CC, states_KV = kept
  w_CK = product(inverse_CC, factors.k_in)
  u_CV = product(inverse_CC, factors.v_in - product(factors.k_in, states_KV))

  read_do_CV = product(factors.read, do_CV, 'tn')
  add_KV = product(factors.q_in, do_CV, 'tn') - product(w_CK, read_do_CV, 'tn')
  dafter_KV, dstate_KV = _carry(plan, _transition(factors, w_CK, plan.precision), add_KV, dlast_KV, back=True)
  du_CV = read_do_CV + product(factors.k_out, dafter_KV)
  dv_in_CV = product(inverse_CC, du_CV, 'tn')
  dkeep = (states_KV * dafter_KV).sum(-1, keepdims=True)
  dfactors = Factors(
    lower=-product(dv_in_CV, u_CV, 'nt'),
    read=product(do_CV, u_CV, 'nt'),
    k_in=-product(dv_in_CV, states_KV, 'nt'),
    v_in=dv_in_CV,
    q_in=product(do_CV, states_KV, 'nt'),
    k_out=product(u_CV, dafter_KV, 'nt'),
    keep=dkeep,
  )
  # Factors that heads of a group share were met by every head of the group: their cotangents add up.
  dfactors = Factors(*(_summed_to(dx, x.shape) for dx, x in zip(dfactors, factors, strict=True)))
  return *pull(dfactors), dstate_KV, None


def _summed_to(x: Array, shape: tuple[int, ...]) -> Array:
  """Returns `x` summed over the axes that `shape` has as one."""
  axes = tuple(axis for axis, (m, n) in enumerate(zip(x.shape, shape, strict=True)) if n == 1 and m > 1)
  return x.sum(axes, keepdims=True) if axes else x


_chunkwise.defvjp(_chunkwise_forward, _chunkwise_backward)
