"""Sequence parallelism: the delta rule and the causal convolution with the tokens spread over a mesh axis.

Everything here runs inside `jax.shard_map`, on one of P shards of T neighbouring tokens.
What the tokens of a shard make of the state S that they receive is affine in it:

    the state after them: M S + N        their outputs: o_0 + R S

The op itself says what M, N and R are, whichever implementation stands behind it: from S = 0 it leaves N; with v = 0,
so that nothing new is written, and the identity as initial state it leaves M and puts out R. One `all_gather` brings
(M, N) of every shard to every shard, each of which applies those before its own to the initial state. Then the op runs
from the state received, so that o is rounded as on a single device that had come that far.

The backward pass needs no derivative of M or N. The gradient of the state that a shard received,

    dS = R^T do + M^T dS_after,

is affine again: R^T do is gathered, each shard applies those after its own, and the op's own gradient does the rest.

Communication, received by each device, independent of T; w bytes an entry of the state, 4 in float32 (counted in the
compiled program by tests/pallas_kernels/sequence_test.py):

    forward    (P - 1) B HV K (K + V) w     one all_gather; 14 MiB at P = 8, B = 1, HV = 16, K = V = 128
    backward   (P - 1) B HV K V w           one all_gather; 7 MiB
    the final state, where it is read, and the gradient of the initial state: an all-reduce of B HV K V w each;
    segment_ids: B ids from the left neighbour

Why not the log2 P exchanges of a parallel prefix: each device would receive fewer pairs, but it pays log2 P latencies
for one, needs products M M as well and M a second time in the backward pass, and on a ring, where an exchange over a
distance d occupies d links, its pairs cross each link P - 1 times all the same. The gathered pairs take P times the
memory of one: with hundreds of shards that, and a switched network, would speak for the prefix.

Work: three forwards of the op and its own backward. Where XLA sees into the op
and a shard is one block of chunks, the calls share Gram matrices and inverses: 1.6 times the plain forward and 1.4
times its forward and backward by XLA's count (K = V = 128, chunks of 64; K = V = 64: 1.4 and 1.3). Kernels, and loops
over several blocks, share nothing. To that come the P - 1 maps applied in either direction, 2 (P - 1) K^2 V a head, as
much as the forward of some 100 tokens at P = 8: little where a shard holds thousands.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

Array = jax.Array
RESIDUALS = ('delta_rule_shard_state', 'delta_rule_shard_maps', 'delta_rule_shard_reads')


@dataclasses.dataclass(frozen=True)
class Op:
  """A delta rule on the tokens of one shard: how to run a call, its static facts, and the axis of the shards.

  `run(call, q, k, v, beta, log_decay, state, run_BT)` answers as the rows of `implementations.IMPLEMENTATIONS` do.
  """

  run: Callable[..., tuple[Array, Array]]
  call: Any
  axis_name: Any


def position(axis_name: Any) -> Array:
  """Returns the number of this shard along the axis, from 0.

  Raises:
    ValueError: no such axis is mapped here; says what to do.
  """
  try:
    return lax.axis_index(axis_name)
  except NameError as unbound:
    raise ValueError(
      f'axis_name is {axis_name!r}, and no mesh axis of that name is mapped here: call this inside jax.shard_map over '
      f'a mesh that has it, with T split over it (in_specs=PartitionSpec(None, {axis_name!r})); where each device '
      'holds whole sequences, leave axis_name out'
    ) from unbound


def runs(segment_ids: Array, axis_name: Any) -> Array:
  """Returns how often the id has changed up to each token, [B, T], counted from the last token of the shard before.

  So 0 marks the tokens that see the state received. The first token of all continues the initial state.
  """
  return jnp.cumsum(_changes(segment_ids, axis_name), 1, dtype=jnp.int32)


def _changes(segment_ids: Array, axis_name: Any) -> Array:
  """Returns 1 where a token's id differs from that of the token before it, on whichever shard that is; else 0."""
  first = position(axis_name) == 0
  before_B1 = jnp.where(first, segment_ids[:, :1], _from_left(segment_ids[:, -1:], axis_name))
  return (segment_ids != jnp.concatenate([before_B1, segment_ids[:, :-1]], 1)).astype(jnp.int32)


def _from_left(x: Array, axis_name: Any) -> Array:
  """Returns what the shard to the left holds; zeros on the first."""
  size = lax.axis_size(axis_name)
  # The whole ring turns, since `vmap` knows no other permutations; what came around it is dropped.
  turned = lax.ppermute(x, axis_name, [(source, (source + 1) % size) for source in range(size)])
  return jnp.where(position(axis_name) > 0, turned, jnp.zeros_like(turned))


def of_last_shard(x: Array, axis_name: Any) -> Array:
  """Returns what the last shard holds, on every shard: an all-reduce, and none where nobody reads it."""
  last = position(axis_name) == lax.axis_size(axis_name) - 1
  return lax.psum(jnp.where(last, x, jnp.zeros_like(x)), axis_name)


def delta_rule(
  op: Op,
  q_BTHK: Array,
  k_BTHK: Array,
  v_BTHV: Array,
  beta_BTH: Array,
  log_decay: Array | None,
  state_BHKV: Array,
  run_BT: Array | None,
) -> tuple[Array, Array]:
  """Returns (o_BTHV of this shard's tokens, the state after the last token of all, the same on every shard).

  `state_BHKV` stands before the first token of all: shard 0 reads it and has all of its gradient. `run_BT` as `runs`
  gives it, or None.
  """
  o_BTHV, last_BHKV = _sharded(op, (q_BTHK, k_BTHK, v_BTHV, beta_BTH, log_decay), state_BHKV, run_BT)
  return o_BTHV, of_last_shard(last_BHKV, op.axis_name)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sharded(op: Op, operands, state_BHKV: Array, run_BT: Array | None) -> tuple[Array, Array]:
  """Returns (o_BTHV, the state after this shard's own last token)."""
  received_BHKV, _ = _received(op, _affine(op, operands, state_BHKV, run_BT), state_BHKV)
  return op.run(op.call, *operands, received_BHKV, run_BT)


def _sharded_forward(op: Op, operands, state_BHKV, run_BT):
  affine = _affine(op, operands, state_BHKV, run_BT)
  kept = (*_received(op, affine, state_BHKV), affine[0])
  received_BHKV, maps, read_BTHK = (checkpoint_name(x, name) for x, name in zip(kept, RESIDUALS, strict=True))
  outputs, pull = jax.vjp(lambda *x: op.run(op.call, *x, run_BT), *operands, received_BHKV)
  return outputs, (pull, maps, None if op.call.recompute else read_BTHK, operands, state_BHKV, run_BT)


def _sharded_backward(op: Op, residuals, cotangents):
  pull, maps, kept, operands, state_BHKV, run_BT = residuals
  do_BTHV, dlast_BHKV = cotangents
  read_BTHK = _affine(op, operands, state_BHKV, run_BT)[0] if kept is None else kept
  left_BHKV = jnp.einsum(
    'bthk,bthv->bhkv', read_BTHK, do_BTHV, precision=op.call.precision, preferred_element_type=dlast_BHKV.dtype
  )
  left_BHKV = left_BHKV + _product(maps[position(op.axis_name)], dlast_BHKV, back=True)
  lefts = lax.all_gather(left_BHKV, op.axis_name)
  later_BHKV = _folded(maps, lefts, jnp.zeros_like(dlast_BHKV), op.axis_name, back=True)
  *doperands, dreceived_BHKV = pull((do_BTHV, dlast_BHKV + later_BHKV))
  first = position(op.axis_name) == 0
  return tuple(doperands), jnp.where(first, dreceived_BHKV, jnp.zeros_like(dreceived_BHKV)), None


_sharded.defvjp(_sharded_forward, _sharded_backward)


def _affine(op: Op, operands, state_BHKV: Array, run_BT: Array | None) -> tuple[Array, Array, Array]:
  """Returns (R_BTHK, M_BHKK, N_BHKV): from a received S, outputs o_0 + R S and M S + N after the shard.

  Two calls, since XLA shares all that does not touch v or the state between them and the one that follows: one call
  on K more values a head does 11 to 14 % more, forward and backward, and may be of a size that no kernel takes.
  """
  q_BTHK, k_BTHK, v_BTHV, beta_BTH, log_decay = operands
  K = q_BTHK.shape[-1]
  zero_BHKV = jnp.zeros_like(state_BHKV)
  _, add_BHKV = op.run(op.call, q_BTHK, k_BTHK, v_BTHV, beta_BTH, log_decay, zero_BHKV, run_BT)
  eye_BHKK = zero_BHKV[..., :1] + jnp.eye(K, dtype=zero_BHKV.dtype)
  nothing_BTHK = jnp.broadcast_to(jnp.zeros_like(v_BTHV[..., :1]), (*v_BTHV.shape[:-1], K))
  call = dataclasses.replace(op.call, V=K)
  read_BTHK, map_BHKK = op.run(call, q_BTHK, k_BTHK, nothing_BTHK, beta_BTH, log_decay, eye_BHKK, run_BT)
  return read_BTHK, map_BHKK, add_BHKV


def _received(op: Op, affine: tuple[Array, Array, Array], state_BHKV: Array) -> tuple[Array, Array]:
  """Returns (the state before this shard's first token, M of every shard [P, B, HV, K, K])."""
  _, map_BHKK, add_BHKV = affine
  pairs = lax.all_gather(jnp.concatenate([map_BHKK, add_BHKV], -1), op.axis_name)
  maps, adds = jnp.split(pairs, [map_BHKK.shape[-1]], -1)
  return _folded(maps, adds, state_BHKV, op.axis_name), maps


def _product(map_BHKK: Array, state_BHKV: Array, *, back: bool = False) -> Array:
  """Returns M S, or M^T S, in full precision."""
  axes = 'bhjk,bhjv->bhkv' if back else 'bhkj,bhjv->bhkv'
  return jnp.einsum(axes, map_BHKK, state_BHKV, precision=lax.Precision.HIGHEST)


def _folded(maps: Array, adds: Array, state_BHKV: Array, axis_name: Any, *, back: bool = False) -> Array:
  """Returns S <- M S + N over the shards before this one; `back`: S <- M^T S + N over those after it, last first.

  The shards on the other side are left out by selection, so that not even a NaN comes from there.
  """
  mine, size = position(axis_name), lax.axis_size(axis_name)

  def apply(state_BHKV, shard):
    number, map_BHKK, add_BHKV = shard
    after_BHKV = _product(map_BHKK, state_BHKV, back=back) + add_BHKV
    return jnp.where(number > mine if back else number < mine, after_BHKV, state_BHKV), None

  met = slice(1, size) if back else slice(0, size - 1)
  shards = jnp.arange(size)[met], maps[met], adds[met]
  return lax.scan(apply, state_BHKV, shards, reverse=back, unroll=min(max(size - 1, 1), 8))[0]


def halo(x_BTD: Array, state_BWD: Array, segment_ids: Array | None, axis_name: Any) -> Array:
  """Returns the W - 1 inputs before this shard's first token, [B, W - 1, D], as `causal_conv` takes its initial state.

  `state_BWD` stands before the first token of all. W - 1 may exceed T: inputs come from as many shards as hold them.
  Inputs of other segments than the one that ends before this shard are zero. Received by each device:
  B (W - 1) D entries, and with segments B (W - 1) marks.
  """
  inputs_BWD = _before(x_BTD, state_BWD, axis_name)
  if segment_ids is None:
    return inputs_BWD
  changes_BW = _before(_changes(segment_ids, axis_name), jnp.zeros(state_BWD.shape[:2], jnp.int32), axis_name)
  changes_after_BW = lax.cumsum(changes_BW, 1, reverse=True) - changes_BW
  return jnp.where((changes_after_BW == 0)[..., None], inputs_BWD, jnp.zeros_like(inputs_BWD))


def _before(x_BT: Array, state_BW: Array, axis_name: Any) -> Array:
  """Returns the last entries before this shard, as many as `state_BW` has, which stands before the first of all."""
  T, size = x_BT.shape[1], lax.axis_size(axis_name)
  missing = wanted = state_BW.shape[1]
  pieces: list[Array] = []
  piece_BT = x_BT
  while missing > 0 and len(pieces) < size - 1:
    # Each shard hands on what it was handed: neighbours alone talk, one exchange at a time.
    piece_BT = _from_left(piece_BT[:, max(piece_BT.shape[1] - missing, 0) :], axis_name)
    pieces.insert(0, piece_BT)
    missing -= piece_BT.shape[1]
  # Early shards reach back beyond the first token: there the pieces are zero, and the last entries of the state count.
  tail = [(0, 0)] * (x_BT.ndim - 2)
  entries_BW = jnp.pad(jnp.concatenate([state_BW[:, :0], *pieces], 1), [(0, 0), (missing, 0), *tail])
  passed = jnp.minimum(position(axis_name) * T, wanted)
  return entries_BW + lax.dynamic_slice_in_dim(jnp.pad(state_BW, [(0, 0), (0, wanted), *tail]), passed, wanted, 1)
