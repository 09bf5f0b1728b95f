"""The backward pass of the chunked delta rule as one Mosaic TPU kernel: a sweep from the last chunk to the first.

A grid step takes one chunk of a group of heads and carries dS, the cotangent of the state, in VMEM. Every stage is
written over all heads of the group before the next stage begins, so that the products of one head hide the latency of
another's.

With G the inclusive sum of log decay inside the chunk, S the state it receives, and

    A_ij = beta_i <k_i, k_j e^(G_i - G_j)>, i > j      P_ij = scale <q_i, k_j e^(G_i - G_j)>, i >= j
    u = (I + A)^-1 r,   r = beta v - (beta e^G k) S    o = (scale e^G q) S + P u
    S' = e^(G_C) S + (e^(G_C - G) k)^T u

the adjoints of one chunk follow from do and dS' by reading these lines backwards:

    du = P^T do + (e^(G_C - G) k) dS'                  dr = (I + A)^-T du
    dA = -tril(dr u^T, -1)                             dP = tril(do u^T)
    dS = e^(G_C) dS' + (scale e^G q)^T do - (beta e^G k)^T dr
    dv = beta dr

since u = (I + A)^-1 r gives dA = -(I + A)^-T du u^T: the adjoint of the inverse is one outer product of vectors that are
needed anyway. With E = dA * e^(G_i - G_j) and F = scale dP * e^(G_i - G_j) (entry by entry, for one decay a head), the
keys meet three sums, by their role:

    x = E k - e^G (dr S^T)                  as the row of A and of beta e^G k, without its factor beta
    y = F k + scale e^G (do S^T)            dq
    z = E^T (beta k) + F^T q + e^(G_C - G) (u dS'^T)

    dk = beta x + z      dbeta = <k, x> + <v, dr>      dG = <q, y> + <beta k, x> - <k, z>, and for the last row
    of the chunk also sum_i <k_i, e^(G_C - G_i) (u dS'^T)_i> + e^(G_C) <S, dS'>

and d log_decay is the sum of dG from a token to the end of the chunk. For a decay a channel the inner products in dG
are left unsummed, and E, F act level by level of the dyadic anchors of `chunk_math`.

The sum of dG over later tokens cancels nearly all of what it adds: a pair i > j enters once with each sign. Rounding
that differs between <q, F k> and <k, F^T q> would remain. It does not differ here: the factors that multiply the
products are the very ones, already rounded, that went into them, so that both are the same sum in another order.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

Array = jax.Array
_MASKED = -1e30  # an exponent that gives zero; minus infinity minus itself would be no number
_OVER = {'nn': ((1,), (0,)), 'nt': ((1,), (1,)), 'tn': ((0,), (0,))}


def _dot(a: Array, b: Array, over: str = 'nn') -> Array:
  """Returns the product of two matrices, one pass for bfloat16 operands and all passes for wider ones."""
  narrow = a.dtype == jnp.bfloat16
  return lax.dot_general(
    a,
    b,
    (_OVER[over], ((), ())),
    preferred_element_type=jnp.float32 if narrow else a.dtype,
    precision=None if narrow else lax.Precision.HIGHEST,
  )


def _parts(x: Array) -> list[Array]:
  """Returns three bfloat16 arrays whose sum is the float32 array `x`."""
  parts = []
  for _ in range(3):
    parts.append(x.astype(jnp.bfloat16))
    x = x - parts[-1].astype(x.dtype)
  return parts


def _row_sums(x_HC: Array, chosen_CC: Array) -> Array:
  """Returns x_HC @ chosen_CC for a matrix of zeros and ones, exact but for the order of the sum."""
  if x_HC.dtype != jnp.float32:
    return _dot(x_HC, chosen_CC.astype(x_HC.dtype))
  H = x_HC.shape[0]
  sums = _dot(jnp.concatenate(_parts(x_HC), 0), chosen_CC.astype(jnp.bfloat16))
  return sums[:H] + sums[H : 2 * H] + sums[2 * H :]


def _column_sums(chosen_CC: Array, x_CK: Array) -> Array:
  """Returns chosen_CC @ x_CK for a matrix of zeros and ones, exact but for the order of the sum."""
  if x_CK.dtype != jnp.float32:
    return _dot(chosen_CC.astype(x_CK.dtype), x_CK)
  chosen_CC = chosen_CC.astype(jnp.bfloat16)
  high, middle, low = (_dot(chosen_CC, part) for part in _parts(x_CK))
  return high + middle + low


def _each(function: Any, *lists: Any) -> list[Any]:
  """Returns `function` of the first entries, of the second entries ...: one stage over all heads."""
  return [function(*values) for values in zip(*lists, strict=True)]


class Masks(NamedTuple):
  """What tokens of a chunk are to each other: `seen` j by i, `counted` in the running sum, and the segments' borders."""

  seen_CC: Array  # i >= j, and in one segment
  first_1C: Array | None  # the token continues the segment that the received state belongs to
  last_1C: Array | None  # the token is in the segment that the chunk ends with


def _grid(C: int) -> tuple[Array, Array]:
  return lax.broadcasted_iota(jnp.int32, (C, C), 0), lax.broadcasted_iota(jnp.int32, (C, C), 1)


def masks(C: int, run_1C: Array | None) -> Masks:
  """Returns the masks of a chunk; `run_1C` numbers its segments in float32, 0 for the one that reaches into it."""
  i_CC, j_CC = _grid(C)
  if run_1C is None:
    return Masks(i_CC >= j_CC, None, None)
  run_CC = jnp.broadcast_to(run_1C, (C, C))
  return Masks((i_CC >= j_CC) & (run_CC.T == run_CC), run_1C == 0, run_1C == run_1C[:, -1:])


class Gates(NamedTuple):
  """The gates of a group, a list entry a head: columns [C, 1], or [C, K] for a decay a channel.

  `rise` is e^G where the received state is seen, `fall` e^(G_C - G) where the next state is written, `keep` e^(G_C),
  [1, 1] or [1, K], where the received state reaches the next. Those that are one throughout are None.
  """

  beta: list[Array]
  rise: list[Array] | None
  fall: list[Array] | None
  keep: list[Array] | None
  total: list[Array] | None  # G
  total_row: list[Array] | None  # G as [1, C], for one decay a head


def _columns(*rows_HC: Array) -> list[list[Array]]:
  """Returns for each array the list of its rows as columns [C, 1]: one transposition for all of them."""
  stacked = jnp.concatenate(rows_HC, 0).T
  columns = iter([stacked[:, i : i + 1] for i in range(stacked.shape[1])])
  return [[next(columns) for _ in range(x_HC.shape[0])] for x_HC in rows_HC]


def gates(beta_HC: Array, log_decay: Any, mask: Masks) -> Gates:
  """Returns the gates; `log_decay` is None, an array [heads, C] or a list of [C, K]."""
  heads, C = beta_HC.shape
  first, last = mask.first_1C, mask.last_1C

  if log_decay is None:
    if first is None:
      return Gates(*_columns(beta_HC), None, None, None, None, None)
    ones_HC = jnp.ones_like(beta_HC)
    rise_HC, fall_HC = jnp.where(first, ones_HC, 0), jnp.where(last, ones_HC, 0)
    beta, rise, fall = _columns(beta_HC, rise_HC, fall_HC)
    return Gates(beta, rise, fall, [rise_HC[:1, -1:]] * heads, None, None)

  if isinstance(log_decay, list):
    total = [_column_sums(mask.seen_CC, x) for x in log_decay]
    rise, keep = _each(jnp.exp, total), [jnp.exp(x[-1:]) for x in total]
    fall = [jnp.exp(x[-1:] - x) for x in total]
    if first is None:
      return Gates(*_columns(beta_HC), rise, fall, keep, total, None)
    sees_HC, stays_HC = (jnp.where(x, jnp.ones_like(beta_HC[:1]), 0) for x in (first, last))
    beta, (sees,), (stays,) = _columns(beta_HC, sees_HC, stays_HC)
    # The last token's own segment ends the chunk; elsewhere the exponent may be above zero.
    fall = [jnp.where(stays > 0, jnp.exp(jnp.minimum(x[-1:] - x, 0.0)), 0.0) for x in total]
    return Gates(beta, [x * sees for x in rise], fall, [x * sees[-1:] for x in keep], total, None)

  total_HC = _row_sums(log_decay, mask.seen_CC.T)
  rise_HC = jnp.exp(total_HC)
  fall_HC = jnp.exp(total_HC[:, -1:] - total_HC)
  if first is not None:
    rise_HC = jnp.where(first, rise_HC, 0)
    fall_HC = jnp.where(last, jnp.exp(jnp.minimum(total_HC[:, -1:] - total_HC, 0.0)), 0)
  beta, rise, fall, total = _columns(beta_HC, rise_HC, fall_HC, total_HC)
  keep = [rise_HC[h : h + 1, -1:] for h in range(heads)]
  return Gates(beta, rise, fall, keep, total, [total_HC[h : h + 1] for h in range(heads)])


class Operands(NamedTuple):
  """A chunk of a group, a list entry a value head; q and k repeat their key head. S and dS' are K x V."""

  q: list[Array]
  k: list[Array]
  v: list[Array]
  do: list[Array]
  inverse: list[Array]  # (I + A)^-1
  state: list[Array]  # S
  dafter: list[Array]  # dS'


class Adjoints(NamedTuple):
  """The cotangents of a chunk, a list entry a value head; those of the gates as columns, decay a channel as [C, K]."""

  dq: list[Array]
  dk: list[Array]
  dv: list[Array]
  dbeta: list[Array]
  dtotal: list[Array] | None  # of G
  dstate: list[Array]


class Turned(NamedTuple):
  """The Gram matrices' part of x (negated), y and z, and of dG by channel where the decay is one."""

  x: list[Array]
  y: list[Array]
  z: list[Array]
  dtotal: list[Array] | None


def _narrow(like: Array) -> Any:
  return lambda x: x.astype(like.dtype)


def _times(x_CX: Array, factor: Array | None) -> Array:
  return x_CX if factor is None else x_CX * factor


def adjoints(scale: float, x: Operands, gate: Gates, mask: Masks) -> Adjoints:
  """Returns the cotangents of one chunk of a group of heads: the equations in the head of this module."""
  heads = len(x.q)
  narrow = _narrow(x.k[0])
  wide = lambda values: [y.astype(gate.beta[0].dtype) for y in values]  # noqa: E731
  q, k, v = wide(x.q), wide(x.k), wide(x.v)
  none = [None] * heads
  rise, fall, keep = (none if y is None else y for y in (gate.rise, gate.fall, gate.keep))
  minus_beta_k = [narrow(-b * y) for b, y in zip(gate.beta, k, strict=True)]
  channel = gate.total is not None and gate.total_row is None

  read_T, decays = (_channel_read if channel else _read)(scale, x, q, k, gate, mask)

  # The state is read in the precision of the operands, as in the forward pass.
  state, dafter = [narrow(y) for y in x.state], [narrow(y) for y in x.dafter]
  q_in = [narrow(scale * y if f is None else y * (scale * f)) for y, f in zip(q, rise, strict=True)]
  minus_k_in = [y if f is None else narrow(y.astype(f.dtype) * f) for y, f in zip(minus_beta_k, rise, strict=True)]
  k_out = [y if f is None else narrow(z * f) for y, z, f in zip(x.k, k, fall, strict=True)]

  r = [narrow(b * y + _dot(z, s)) for b, y, z, s in zip(gate.beta, v, minus_k_in, state, strict=True)]
  u = [narrow(_dot(t, y)) for t, y in zip(x.inverse, r, strict=True)]
  du = [
    narrow(_dot(jnp.concatenate([p, y], 1), jnp.concatenate([d, s], 0)))
    for p, y, d, s in zip(read_T, k_out, x.do, dafter, strict=True)
  ]
  dr = [_dot(t, y, 'tn') for t, y in zip(x.inverse, du, strict=True)]
  C, K = x.k[0].shape
  dr_do = [jnp.concatenate([narrow(y), d], 0) for y, d in zip(dr, x.do, strict=True)]
  # Against u come the adjoints of A and P, against S those of the two reads of the state.
  against = [_dot(y, jnp.concatenate([z, s], 0), 'nt') for y, z, s in zip(dr_do, u, state, strict=True)]
  from_state = [y[:, C:] for y in against]
  turned = (_channel_turned if channel else _turned)(
    scale, x, q, k, minus_beta_k, [y[:, :C] for y in against], decays, gate, mask
  )
  dk_out = [_dot(y, s, 'nt') for y, s in zip(u, dafter, strict=True)]
  x_state = [_times(y[:C], f) for y, f in zip(from_state, rise, strict=True)]
  y_state = [y[C:] * (scale if f is None else scale * f) for y, f in zip(from_state, rise, strict=True)]
  z_state = [_times(y, f) for y, f in zip(dk_out, fall, strict=True)]
  add = lambda a, b: a + b  # noqa: E731
  row, dq, column = _each(add, turned.x, x_state), _each(add, turned.y, y_state), _each(add, turned.z, z_state)

  dstate = [
    _dot(jnp.concatenate([y, z], 0), jnp.concatenate([d[C:], d[:C]], 0), 'tn')
    for y, z, d in zip(q_in, minus_k_in, dr_do, strict=True)
  ]
  keep_K1 = [f if f is None or f.shape[1] == 1 else f.T for f in keep]
  dstate = [y + _times(d, f) for y, d, f in zip(dstate, x.dafter, keep_K1, strict=True)]

  sums = lambda y: jnp.sum(y, 1, keepdims=True)  # noqa: E731
  dbeta = [sums(y * d) - sums(z * w) for y, d, z, w in zip(v, dr, k, row, strict=True)]
  dk = [y - b * z for y, b, z in zip(column, gate.beta, row, strict=True)]
  dv = [b * y for b, y in zip(gate.beta, dr, strict=True)]
  if gate.total is None:
    return Adjoints(dq, dk, dv, dbeta, None, dstate)

  minus_beta_k_wide = wide(minus_beta_k)
  last = lax.broadcasted_iota(jnp.int32, (C, 1), 0) == C - 1
  written = _each(lambda a, b: a * b, k, z_state)
  kept = [s.astype(d.dtype) * d for s, d in zip(x.state, x.dafter, strict=True)]
  if channel:
    dtotal = [
      t + a * b + c * d - e
      for t, a, b, c, d, e in zip(turned.dtotal, q, y_state, minus_beta_k_wide, x_state, written, strict=True)
    ]
    whole = [
      jnp.sum(y, 0, keepdims=True) + f * sums(z).T for y, f, z in zip(written, keep, kept, strict=True)
    ]
  else:
    dtotal = [
      sums(a * b + c * d - e * f)
      for a, b, c, d, e, f in zip(q, dq, minus_beta_k_wide, row, k, column, strict=True)
    ]
    whole = [
      sums(jnp.sum(y, 0, keepdims=True)) + f * sums(jnp.sum(z, 0, keepdims=True))
      for y, f, z in zip(written, keep, kept, strict=True)
    ]
  dtotal = [y + jnp.where(last, z, 0) for y, z in zip(dtotal, whole, strict=True)]
  return Adjoints(dq, dk, dv, dbeta, dtotal, dstate)


def _read(scale: float, x: Operands, q: list[Array], k: list[Array], gate: Gates, mask: Masks):
  """Returns (P^T a head, (e^(G_i - G_j) from the diagonal down, times scale; the same below it, without scale))."""
  C = k[0].shape[0]
  i_CC, j_CC = _grid(C)
  below_CC = mask.seen_CC & (i_CC > j_CC)
  one = jnp.ones((), k[0].dtype)
  if gate.total is None:
    read = [jnp.where(mask.seen_CC, scale * one, 0)] * len(q)
    below = [jnp.where(below_CC, one, 0)] * len(q)
  else:
    decay = [
      jnp.exp(jnp.where(mask.seen_CC, y - z, _MASKED)) for y, z in zip(gate.total, gate.total_row, strict=True)
    ]
    read = [scale * y for y in decay]
    below = [jnp.where(i_CC > j_CC, y, 0) for y in decay]
  qk = _each(lambda a, b: _dot(a, b, 'nt'), x.q, x.k)
  read_T = [(y * z).astype(x.k[0].dtype).T for y, z in zip(qk, read, strict=True)]
  return read_T, (read, below)


def _turned(scale, x: Operands, q, k, minus_beta_k, against, decays, gate, mask) -> Turned:
  C = k[0].shape[0]
  narrow = _narrow(x.k[0])
  read, below = decays
  both = [
    jnp.concatenate([narrow(y[:C] * low), narrow(y[C:] * upto)], 0)
    for y, low, upto in zip(against, below, read, strict=True)
  ]
  rows = _each(_dot, both, x.k)
  columns = [
    _dot(y, jnp.concatenate([b, z], 0), 'tn') for y, b, z in zip(both, minus_beta_k, x.q, strict=True)
  ]
  return Turned([y[:C] for y in rows], [y[C:] for y in rows], columns, None)


def _channel_read(scale, x: Operands, q, k, gate: Gates, mask: Masks):
  """Returns (P^T a head, None), by the dyadic anchors of `chunk_math`.

  A factor holds q at the later half of each pair of blocks and k at the earlier one, both decayed to the anchor
  between them: its product with itself is P below the diagonal and P^T above it, in that level's blocks.
  """
  C = k[0].shape[0]
  i_CC, j_CC = _grid(C)
  narrow = _narrow(x.k[0])
  scaled_q = [scale * y for y in q]
  read_T = [
    jnp.where((i_CC == j_CC), _dot(narrow(y), z, 'nt'), 0) for y, z in zip(scaled_q, x.k, strict=True)
  ]
  for half in _halves(C):
    late_CK = _late(half, k[0].shape)
    pairs_CC = _pairs(half, C)
    decays = [_to_anchor(y, half) for y in gate.total]
    factors = [
      narrow(jnp.where(late_CK, y, z) * d) for y, z, d in zip(scaled_q, k, decays, strict=True)
    ]
    read_T = [jnp.where(pairs_CC, _dot(y, y, 'nt'), z) for y, z in zip(factors, read_T, strict=True)]
  upper_CC = mask.seen_CC.T
  return [narrow(jnp.where(upper_CC, y, 0)) for y in read_T], None


def _halves(C: int) -> list[int]:
  return [1 << level for level in range(C.bit_length() - 1)]


def _late(half: int, shape: tuple[int, int]) -> Array:
  return lax.broadcasted_iota(jnp.int32, shape, 0) % (2 * half) >= half


def _pairs(half: int, C: int) -> Array:
  """Returns where two tokens lie in the two halves of one pair of blocks, either way round."""
  i_CC, j_CC = _grid(C)
  return (i_CC // (2 * half) == j_CC // (2 * half)) & (i_CC // half != j_CC // half)


def _to_anchor(total_CK: Array, half: int) -> Array:
  """Returns e^-|G_i - G_m| with m the last token of the earlier half block of i's pair: at most one for any decay."""
  C, K = total_CK.shape
  anchor = [
    jnp.broadcast_to(total_CK[m : m + 1], (2 * half, K)) for m in range(half - 1, C, 2 * half)
  ]
  return jnp.exp(-jnp.abs(total_CK - jnp.concatenate(anchor, 0)))


def _channel_turned(scale, x: Operands, q, k, minus_beta_k, against, decays, gate, mask) -> Turned:
  C, K = k[0].shape
  i_CC, j_CC = _grid(C)
  narrow = _narrow(x.k[0])
  wide = lambda y: y.astype(k[0].dtype)  # noqa: E731
  scaled_q = [scale * y for y in q]
  minus_beta_k = [-b * y for b, y in zip(gate.beta, k, strict=True)]
  below_CC = mask.seen_CC & (i_CC > j_CC)
  low = [narrow(jnp.where(below_CC, y[:C], 0)) for y in against]
  read = [narrow(jnp.where(below_CC, y[C:], 0)) for y in against]
  diagonal = [jnp.sum(jnp.where(i_CC == j_CC, y[C:], 0), 1, keepdims=True) for y in against]
  row = [jnp.zeros_like(y) for y in k]
  dq = [scale * d * y for d, y in zip(diagonal, k, strict=True)]
  column = [d * y for d, y in zip(diagonal, scaled_q, strict=True)]
  dtotal = [jnp.zeros_like(y) for y in k]
  for half in _halves(C):
    pairs_CC = _pairs(half, C)
    decays = [_to_anchor(y, half) for y in gate.total]
    k_to = [narrow(y * d) for y, d in zip(k, decays, strict=True)]
    bk_to = [narrow(y * d) for y, d in zip(minus_beta_k, decays, strict=True)]
    q_to = [narrow(y * d) for y, d in zip(scaled_q, decays, strict=True)]
    low_pairs = [jnp.where(pairs_CC, y, 0) for y in low]
    read_pairs = [jnp.where(pairs_CC, y, 0) for y in read]
    from_low, from_read = _each(_dot, low_pairs, k_to), _each(_dot, read_pairs, k_to)
    from_late = [
      _dot(jnp.concatenate([a, b], 0), jnp.concatenate([c, d], 0), 'tn')
      for a, b, c, d in zip(low_pairs, read_pairs, bk_to, q_to, strict=True)
    ]
    row = [y + d * z for y, d, z in zip(row, decays, from_low, strict=True)]
    dq = [y + scale * (d * z) for y, d, z in zip(dq, decays, from_read, strict=True)]
    column = [y + d * z for y, d, z in zip(column, decays, from_late, strict=True)]
    dtotal = [
      t + wide(a) * b + wide(c) * d - wide(e) * f
      for t, a, b, c, d, e, f in zip(dtotal, bk_to, from_low, q_to, from_read, k_to, from_late, strict=True)
    ]
  return Turned(row, dq, column, dtotal)


@dataclasses.dataclass(frozen=True)
class Sizes:
  """The sizes of a call: `heads` value heads a grid step, and `keys` key heads that they read."""

  B: int
  N: int
  C: int
  H: int
  HV: int
  K: int
  V: int
  heads: int

  @property
  def group(self) -> int:
    return self.HV // self.H

  @property
  def keys(self) -> int:
    return max(1, self.heads // self.group)

  @property
  def shares(self) -> int:
    """How many grid steps share a key head; each writes its part of dq and dk."""
    return max(1, self.group // self.heads)


def heads_a_step(H: int, HV: int, K: int, V: int, most: int = 8) -> int:
  """Returns how many value heads one grid step takes, at most `most`.

  Blocks must be whole lanes of 128 or the whole array, and a step must hold whole groups or a part of one.

  Raises:
    NotImplementedError: no number of heads gives blocks that TPU kernels can address.
  """
  group = HV // H
  for heads in range(min(most, HV), 0, -1):
    fits = HV % heads == 0 and (heads % group == 0 or group % heads == 0)
    keys = max(1, heads // group)
    shares = max(1, group // heads)
    if fits and (heads * V % 128 == 0 or heads == HV) and (keys * K % 128 == 0 or keys == H and shares == 1):
      return heads
  raise NotImplementedError(f'{H} key heads of {K} and {HV} value heads of {V} do not fill lanes of 128')


def delta_rule_backward(
  q: Array,
  k: Array,
  v: Array,
  beta: Array,
  log_decay: Array | None,
  run: Array | None,
  inverse: Array,
  states: Array,
  do: Array,
  dlast: Array,
  *,
  scale: float,
  heads: int | None = None,
  interpret: Any = False,
) -> tuple[Array, Array, Array, Array, Array | None, Array]:
  """Returns the cotangents (dq, dk, dv, dbeta, dlog_decay, dinitial) of the chunked delta rule, by one kernel.

  T is N chunks of C tokens. dq, dk and dv come in the type of the operands and their layout, the rest in float32; dq
  and dk are summed over the value heads that share a key head. Operands of bfloat16 are multiplied in one pass, those
  of float32 with all passes.

  Args:
    q, k: [B, T, H * K].
    v: [B, T, HV * V].
    beta: [B, HV, T], float32.
    log_decay: None, [B, HV, T] or [B, T, HV * K], float32.
    run: [B, T], how many segments began up to a token, 0 while the initial state is seen; None for one segment.
    inverse: [B, HV, N, C, C], (I + A)^-1 of each chunk, in the type of the operands.
    states: [B, HV, N, K, V], the state that each chunk receives.
    do: [B, T, HV * V], the cotangent of the output.
    dlast: [B, HV, K, V], the cotangent of the final state, float32.
    scale: of the reads.
    heads: value heads a grid step; chosen from the sizes if None.
    interpret: what `pl.pallas_call` takes, to run on CPU.

  Raises:
    NotImplementedError: sizes that fill no lanes.
  """
  B, HV, N, K, V = states.shape
  C = inverse.shape[-1]
  H = q.shape[-1] // K
  size = Sizes(B, N, C, H, HV, K, V, heads or heads_a_step(H, HV, K, V))
  decay = 'none' if log_decay is None else 'scalar' if log_decay.shape == beta.shape else 'channel'
  by_head, f32 = _by_head(size), jnp.float32

  operands = {
    'q': (q, _tokens(size, size.keys * K, shared=True)),
    'k': (k, _tokens(size, size.keys * K, shared=True)),
    'v': (v, _tokens(size, size.heads * V)),
    'do': (do, _tokens(size, size.heads * V)),
    'beta': (_rows(size, beta), _row_block(size)),
    'inverse': (inverse, by_head(C, C)),
    'states': (states, by_head(K, V)),
    'dlast': (dlast, pl.BlockSpec((1, size.heads, K, V), lambda b, h, n: (b, h, 0, 0))),
  }
  if decay == 'scalar':
    operands['log_decay'] = (_rows(size, log_decay), _row_block(size))
  if decay == 'channel':
    operands['log_decay'] = (log_decay, _tokens(size, size.heads * K))
  if run is not None:
    operands['run'] = (_relative_runs(size, run), pl.BlockSpec((1, 1, 1, C), lambda b, h, n: (b, N - 1 - n, 0, 0)))

  part = q.dtype if size.shares == 1 else f32
  dkeys = jax.ShapeDtypeStruct((B, N * C, H * size.shares * K), part)
  gate_rows = jax.ShapeDtypeStruct((B, HV // size.heads, N, size.heads, C), f32)
  results = {
    'dq': (dkeys, _tokens(size, size.keys * K)),
    'dk': (dkeys, _tokens(size, size.keys * K)),
    'dv': (jax.ShapeDtypeStruct(v.shape, v.dtype), _tokens(size, size.heads * V)),
    'dbeta': (gate_rows, _row_block(size)),
    'dinitial': (jax.ShapeDtypeStruct((B, HV, K, V), f32), operands['dlast'][1]),
  }
  if decay == 'scalar':
    results['dlog_decay'] = (gate_rows, _row_block(size))
  if decay == 'channel':
    results['dlog_decay'] = (jax.ShapeDtypeStruct(log_decay.shape, f32), _tokens(size, size.heads * K))

  outputs = pl.pallas_call(
    functools.partial(_kernel, size, scale, decay, tuple(operands), tuple(results)),
    grid=(B, HV // size.heads, N),
    in_specs=[spec for _, spec in operands.values()],
    out_specs=[spec for _, spec in results.values()],
    out_shape=[shape for shape, _ in results.values()],
    scratch_shapes=[pltpu.VMEM((size.heads, K, V), f32)],
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=('parallel', 'parallel', 'arbitrary'), vmem_limit_bytes=64 * 2**20
    ),
    name=f'delta_rule_backward_{decay}',
    interpret=interpret,
  )(*(x for x, _ in operands.values()))
  got = dict(zip(results, outputs, strict=True))
  dq, dk = (_summed(size, got[name]).astype(q.dtype) for name in ('dq', 'dk'))
  dlog_decay = got.get('dlog_decay')
  if decay == 'scalar':
    dlog_decay = _unrowed(size, dlog_decay)
  return dq, dk, got['dv'], _unrowed(size, got['dbeta']), dlog_decay, got['dinitial']


def _tokens(size: Sizes, lanes: int, shared: bool = False) -> pl.BlockSpec:
  """Returns the block of one chunk of [B, T, heads * lanes], chunks from the last to the first."""
  share = size.shares if shared else 1
  return pl.BlockSpec((1, size.C, lanes), lambda b, h, n: (b, size.N - 1 - n, h // share))


def _by_head(size: Sizes) -> Any:
  def block(rows: int, columns: int) -> pl.BlockSpec:
    return pl.BlockSpec((1, size.heads, 1, rows, columns), lambda b, h, n: (b, h, size.N - 1 - n, 0, 0))

  return block


def _rows(size: Sizes, x_BHT: Array) -> Array:
  """Returns [B, groups, N, heads, C] of [B, HV, T]: any chunk and any number of heads is then a whole block."""
  return x_BHT.reshape(size.B, -1, size.heads, size.N, size.C).swapaxes(2, 3)


def _unrowed(size: Sizes, x: Array) -> Array:
  return x.swapaxes(2, 3).reshape(size.B, size.HV, -1)


def _row_block(size: Sizes) -> pl.BlockSpec:
  return pl.BlockSpec((1, 1, 1, size.heads, size.C), lambda b, h, n: (b, h, size.N - 1 - n, 0, 0))


def _relative_runs(size: Sizes, run_BT: Array) -> Array:
  """Returns [B, N, 1, C]: the number of segments begun since the token before the chunk."""
  run_BNC = run_BT.reshape(size.B, size.N, size.C)
  before_BN = jnp.pad(run_BNC[:, :-1, -1], [(0, 0), (1, 0)])
  return (run_BNC - before_BN[..., None]).astype(jnp.float32)[:, :, None]


def _summed(size: Sizes, x: Array) -> Array:
  """Returns the sum over the grid steps that share a key head."""
  if size.shares == 1:
    return x
  B, T, _ = x.shape
  return x.reshape(B, T, size.H, size.shares, size.K).sum(3).reshape(B, T, -1)


def _kernel(size: Sizes, scale: float, decay: str, names_in, names_out, *refs) -> None:
  """Takes one chunk of a group of heads; the scratch holds the cotangent of the state after it."""
  inputs, outputs = refs[: len(names_in)], refs[len(names_in) : -1]
  ref = dict(zip(names_in, inputs, strict=True)) | dict(zip(names_out, outputs, strict=True))
  dstate_ref = refs[-1]

  @pl.when(pl.program_id(2) == 0)
  def _():
    dstate_ref[...] = ref['dlast'][0]

  def heads(name: str, count: int, lanes: int) -> list[Array]:
    return [ref[name][0, :, h * lanes : (h + 1) * lanes] for h in range(count)]

  HV, K, V = size.heads, size.K, size.V
  mask = masks(size.C, ref['run'][0, 0] if 'run' in ref else None)
  log_decay = None
  if decay == 'scalar':
    log_decay = ref['log_decay'][0, 0, 0]
  if decay == 'channel':
    log_decay = heads('log_decay', HV, K)
  gate = gates(ref['beta'][0, 0, 0], log_decay, mask)
  per_key = HV // size.keys
  q, k = ([x for x in heads(name, size.keys, K) for _ in range(per_key)] for name in ('q', 'k'))
  got = adjoints(
    scale,
    Operands(
      q,
      k,
      heads('v', HV, V),
      heads('do', HV, V),
      [ref['inverse'][0, h, 0] for h in range(HV)],
      [ref['states'][0, h, 0] for h in range(HV)],
      [dstate_ref[h] for h in range(HV)],
    ),
    gate,
    mask,
  )
  for h in range(HV):
    dstate_ref[h] = got.dstate[h]
    ref['dv'][0, :, h * V : (h + 1) * V] = got.dv[h].astype(ref['dv'].dtype)
  for name, parts in (('dq', got.dq), ('dk', got.dk)):
    for h in range(size.keys):
      total = functools.reduce(jnp.add, parts[h * per_key : (h + 1) * per_key])
      ref[name][0, :, h * K : (h + 1) * K] = total.astype(ref[name].dtype)
  ref['dbeta'][0, 0, 0] = jnp.concatenate(got.dbeta, 1).T
  if decay == 'scalar':
    ref['dlog_decay'][0, 0, 0] = _row_sums(jnp.concatenate(got.dtotal, 1).T, mask.seen_CC)
  if decay == 'channel':
    later_CC = mask.seen_CC.T
    for h in range(HV):
      ref['dlog_decay'][0, :, h * K : (h + 1) * K] = _column_sums(later_CC, got.dtotal[h])

  @pl.when(pl.program_id(2) == size.N - 1)
  def _():
    ref['dinitial'][0] = dstate_ref[...]
