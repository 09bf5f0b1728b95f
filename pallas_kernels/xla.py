"""Chunkwise delta rule in plain JAX: runs on every backend, and is the CPU path. The maths of a chunk: `chunk_math`.

A loop walks over M blocks of N chunks and carries the state; the backward pass walks it from the end. Blocks are as
large as a processor's cache likes: what a block makes on its way is read again while it is still there, and the same
memory serves the next block. What does not need the state is done for all chunks of a block at once.

Axes: B batch, H key heads, N chunks of a block, G value heads a key head, then C x K or C x V; M blocks.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from pallas_kernels import chunk_math, target, tiling
from pallas_kernels.chunk_math import dot

Array = jax.Array
RESIDUALS = ('delta_rule_inverse', 'delta_rule_states')
BLOCK_CHUNKS = 8  # at most: they are written out one by one


@dataclasses.dataclass(frozen=True)
class Plan:
  """What is static about a call: read scale, chunk, precision of products, and whether residuals are recomputed."""

  scale: float
  chunk: int
  precision: lax.PrecisionLike = lax.Precision.HIGHEST
  recompute: bool = False
  blocks: int = 1


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


def _blocks(B: int, T: int, HV: int, size: int, chunk: int) -> tuple[int, int]:
  """Returns (M blocks, N chunks in each) for T tokens: M N chunks hold them, with fewer than M chunks to spare."""
  chunks = -(-T // chunk)
  entries = tiling.block_entries(target.device()[0])
  most = max(1, min(BLOCK_CHUNKS, entries // (B * HV * chunk * size)))
  M = -(-chunks // most)
  return M, -(-chunks // M)


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
  B, T, H, K = q_BTHK.shape
  HV, V = v_BTHV.shape[2:]
  if H < HV:
    # XLA CPU crashes on the mapped gradient of grouped heads (jaxlib 0.10.2: SIGSEGV while compiling with one key head,
    # while running with several), so here key heads are repeated. The TPU kernels read each one in place.
    q_BTHK, k_BTHK = (jnp.repeat(x, HV // H, axis=2) for x in (q_BTHK, k_BTHK))
    H = HV
  M, N = _blocks(B, T, HV, max(K, V), plan.chunk)
  pad = M * N * plan.chunk - T

  def padded(x_BT):
    return jnp.pad(x_BT, [(0, 0), (0, pad)] + [(0, 0)] * (x_BT.ndim - 2)) if pad else x_BT

  runs = None
  if run_BT is not None:
    run_BT = jnp.pad(run_BT, [(0, 0), (0, pad)], mode='edge')
    runs = run_BT, jnp.pad(run_BT[:, :-1], [(0, 0), (1, 0)])
  tokens = [None if x is None else padded(x) for x in (q_BTHK, k_BTHK, v_BTHV, beta_BTH, log_decay)]
  state_BHGKV = state_BHKV.reshape(B, H, HV // H, K, V)
  o_BTHV, state_BHGKV = _blockwise(dataclasses.replace(plan, blocks=M), *tokens, state_BHGKV, runs)
  return o_BTHV[:, :T], state_BHGKV.reshape(B, HV, K, V)


def factors_of(plan: Plan, runs, q_CK, k_CK, v_CV, beta_C, log_decay) -> Factors:
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


def _split(plan: Plan, x_BT: Array) -> Array:
  """Returns the tokens of each block, [M, B, N C, ...]: what the loop over blocks takes one by one."""
  B, T = x_BT.shape[:2]
  return jnp.moveaxis(x_BT.reshape(B, plan.blocks, T // plan.blocks, *x_BT.shape[2:]), 1, 0)


def _whole(x_MBT: Array) -> Array:
  """Returns the tokens of all blocks in one row: undoes `_split`."""
  M, B, T = x_MBT.shape[:3]
  return jnp.moveaxis(x_MBT, 0, 1).reshape(B, M * T, *x_MBT.shape[3:])


def _chunks(plan: Plan, x_BT: Array, H: int) -> Array:
  """Returns the tokens of a block as chunks, [B, H, N, G, C, ...] from [B, N C, H G, ...]."""
  B, T, HG = x_BT.shape[:3]
  x_BNCHG = x_BT.reshape(B, T // plan.chunk, plan.chunk, H, HG // H, *x_BT.shape[3:])
  return jnp.moveaxis(x_BNCHG, (3, 1, 4, 2), (1, 2, 3, 4))


def _tokens(x_BHNGC: Array) -> Array:
  """Returns the chunks of a block as tokens: undoes `_chunks`."""
  B, H, N, G, C = x_BHNGC.shape[:5]
  x_BNCHG = jnp.moveaxis(x_BHNGC, (1, 2, 3, 4), (3, 1, 4, 2))
  return x_BNCHG.reshape(B, N * C, H * G, *x_BHNGC.shape[5:])


def _operands(plan: Plan, tokens, runs):
  """Returns (the operands of `factors_of` as chunks, and their runs) from the tokens of one block."""
  H = tokens[0].shape[2]
  chunked = tuple(None if x is None else _chunks(plan, x, H) for x in tokens)
  if runs is None:
    return chunked, (None, None)
  run, before = (x.reshape(x.shape[0], 1, -1, 1, plan.chunk) for x in runs)
  return chunked, (run, before[..., :1])


def _over_blocks(plan: Plan, step, carry, items, *, back: bool = False):
  """Returns (carry, stacked results) of carry, result = step(carry, item) over all blocks."""
  if plan.blocks == 1:
    carry, result = step(carry, jax.tree.map(lambda x: x[0], items))
    return carry, jax.tree.map(lambda x: x[None], result)
  return lax.scan(step, carry, items, reverse=back)


def _sweep(plan: Plan, tokens, state_KV, runs):
  """Returns (o_BTHV, last state, inverses, received states), the last two of every block."""
  product = functools.partial(dot, precision=plan.precision)

  def step(state_KV, item):
    operands, run = _operands(plan, *item)
    factors = factors_of(plan, run, *operands)
    inverse_CC = chunk_math.unit_lower_inverse(factors.lower, plan.precision)
    states, writes = [], []
    for n in range(inverse_CC.shape[2]):
      each = jax.tree.map(lambda x, n=n: x[:, :, min(n, x.shape[2] - 1)], (inverse_CC, factors))
      inverse, chunk = each
      states.append(state_KV)
      writes.append(product(inverse, chunk.v_in - product(chunk.k_in, state_KV)))
      state_KV = chunk.keep * state_KV + product(chunk.k_out, writes[-1], 'tn')
    states_KV, u_CV = jnp.stack(states, 2), jnp.stack(writes, 2)
    o_CV = product(factors.q_in, states_KV) + product(factors.read, u_CV)
    return state_KV, (_tokens(o_CV), (inverse_CC, states_KV))

  items = jax.tree.map(functools.partial(_split, plan), (tokens, runs))
  last_KV, (o_MBTHV, kept) = _over_blocks(plan, step, state_KV, items)
  return _whole(o_MBTHV), last_KV, kept


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _blockwise(plan, q_BTHK, k_BTHK, v_BTHV, beta_BTH, log_decay, state_KV, runs):
  o_BTHV, last_KV, _ = _sweep(plan, (q_BTHK, k_BTHK, v_BTHV, beta_BTH, log_decay), state_KV, runs)
  return o_BTHV, last_KV


def _blockwise_forward(plan, q_BTHK, k_BTHK, v_BTHV, beta_BTH, log_decay, state_KV, runs):
  tokens = (q_BTHK, k_BTHK, v_BTHV, beta_BTH, log_decay)
  o_BTHV, last_KV, kept = _sweep(plan, tokens, state_KV, runs)
  kept = None if plan.recompute else tuple(map(checkpoint_name, kept, RESIDUALS))
  return (o_BTHV, last_KV), (tokens, state_KV, runs, kept)


def _blockwise_backward(plan, residuals, cotangents):
  """The adjoints of the triangular solve and of the state; those of the factors by `jax.vjp` of `factors_of`."""
  tokens, state_KV, runs, kept = residuals
  do_BTHV, dlast_KV = cotangents
  product = functools.partial(dot, precision=plan.precision)
  if kept is None:
    *_, kept = _sweep(plan, tokens, state_KV, runs)

  def step(dafter_KV, item):
    (tokens, runs, do_BTHV), (inverse_CC, states_KV) = item
    operands, run = _operands(plan, tokens, runs)
    do_CV = _chunks(plan, do_BTHV, tokens[0].shape[2])
    factors, pull = jax.vjp(functools.partial(factors_of, plan, run), *operands)
    u_CV = product(inverse_CC, factors.v_in - product(factors.k_in, states_KV))
    read_do_CV, q_do_KV = product(factors.read, do_CV, 'tn'), product(factors.q_in, do_CV, 'tn')
    afters, solved = [], []
    for n in reversed(range(inverse_CC.shape[2])):
      inverse, chunk = jax.tree.map(lambda x, n=n: x[:, :, min(n, x.shape[2] - 1)], (inverse_CC, factors))
      afters.append(dafter_KV)
      solved.append(product(inverse, read_do_CV[:, :, n] + product(chunk.k_out, dafter_KV), 'tn'))
      dafter_KV = chunk.keep * dafter_KV + q_do_KV[:, :, n] - product(chunk.k_in, solved[-1], 'tn')
    dafters_KV, dv_in_CV = jnp.stack(afters[::-1], 2), jnp.stack(solved[::-1], 2)
    dfactors = Factors(
      lower=-product(dv_in_CV, u_CV, 'nt'),
      read=product(do_CV, u_CV, 'nt'),
      k_in=-product(dv_in_CV, states_KV, 'nt'),
      v_in=dv_in_CV,
      q_in=product(do_CV, states_KV, 'nt'),
      k_out=product(u_CV, dafters_KV, 'nt'),
      keep=(states_KV * dafters_KV).sum(-1, keepdims=True),
    )
    # Factors that heads of a group share were met by every head of the group: their cotangents add up.
    dfactors = Factors(*(_summed_to(dx, x.shape) for dx, x in zip(dfactors, factors, strict=True)))
    return dafter_KV, jax.tree.map(_tokens, pull(dfactors))

  items = jax.tree.map(functools.partial(_split, plan), (tokens, runs, do_BTHV))
  dstate_KV, dtokens = _over_blocks(plan, step, dlast_KV, (items, kept), back=True)
  dtokens = jax.tree.map(_whole, dtokens)
  return *dtokens, dstate_KV, None


def _summed_to(x: Array, shape: tuple[int, ...]) -> Array:
  """Returns `x` summed over the axes that `shape` has as one."""
  axes = tuple(axis for axis, (m, n) in enumerate(zip(x.shape, shape, strict=True)) if n == 1 and m > 1)
  return x.sum(axes, keepdims=True) if axes else x


_blockwise.defvjp(_blockwise_forward, _blockwise_backward)
