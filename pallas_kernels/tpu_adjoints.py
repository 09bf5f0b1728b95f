"""The adjoints of one chunk of the delta rule inside a TPU kernel, on values.

Every stage is written over all heads of a group before the next begins, so that the products of one head hide the
latency of another's.

With G the inclusive sum of log decay inside the chunk, S the state it receives, and

    A_ij = beta_i <k_i, k_j e^(G_i - G_j)>, i > j      P_ij = scale <q_i, k_j e^(G_i - G_j)>, i >= j
    u = (I + A)^-1 r,   r = beta v - (beta e^G k) S    o = (scale e^G q) S + P u
    S' = e^(G_C) S + (e^(G_C - G) k)^T u

the adjoints of one chunk follow from do and dS' by reading these lines backwards:

    du = P^T do + (e^(G_C - G) k) dS'                  dr = (I + A)^-T du
    dA = -tril(dr u^T, -1)                             dP = tril(do u^T)
    dS = e^(G_C) dS' + (scale e^G q)^T do - (beta e^G k)^T dr
    dv = beta dr

since u = (I + A)^-1 r gives dA = -(I + A)^-T du u^T: the adjoint of the inverse is one outer product of vectors that
are needed anyway. With E = dA * e^(G_i - G_j) and F = scale dP * e^(G_i - G_j) (entry by entry, for one decay a
head), the keys meet three sums, by their role:

    x = E k - e^G (dr S^T)                  as the row of A and of beta e^G k, without its factor beta
    y = F k + scale e^G (do S^T)            dq
    z = E^T (beta k) + F^T q + e^(G_C - G) (u dS'^T)

    dk = beta x + z      dbeta = <k, x> + <v, dr>      dG = <q, y> + <beta k, x> - <k, z>, and for the last row
    of the chunk also sum_i <k_i, e^(G_C - G_i) (u dS'^T)_i> + e^(G_C) <S, dS'>

and d log_decay is the sum of dG from a token to the end of the chunk. For a decay a channel the inner products in dG
are left unsummed, and E, F act level by level of the dyadic anchors of `chunk_math`.

The sum of dG over later tokens cancels nearly all of what it adds: a pair i > j enters once with each sign. Rounding
that differs between <q, F k> and <k, F^T q> would remain, and grow once more where a caller sums over tokens, as the
gradient of a decay rate does. It does not differ here: the factors that multiply the products are the very ones,
already rounded, that went into them, so that both are the same sum in another order. One bfloat16 pass is then enough.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels import tpu_grams, tpu_math
from pallas_kernels.tpu_forward import Layout
from pallas_kernels.tpu_grams import Turned
from pallas_kernels.tpu_math import Grid, column_sums, each, sums_as_row, sums_by, times, turned_across, wide

Array = jax.Array


class Chunk(NamedTuple):
  """A chunk of a group of heads, a list entry a value head; q and k repeat their key head.

  q, k, do, the inverse, S and dS' are in the type of the products, v and what sums are made of in float32.
  """

  q: list[Array]
  k: list[Array]
  v: list[Array]
  do: list[Array]
  beta: list[Array]  # by `turned_across`
  inverse: list[Array]  # (I + A)^-1
  state: list[Array]  # S
  after: list[Array]  # dS', float32


class Adjoints(NamedTuple):
  """The cotangents of a chunk in float32, a list entry a value head.

  Of beta [1, C]; of one log decay a head [1, C] before it is summed over later tokens, of a log decay a channel [C, K];
  of the state K x V.
  """

  q: list[Array]
  k: list[Array]
  v: list[Array]
  beta: list[Array]
  log_decay: Any
  state: list[Array]


def adjoints(layout: Layout, x: Chunk, log_decay: Any, run_1C: Array | None) -> Adjoints:
  """Returns the cotangents of one chunk of a group of heads, by the equations in the head of this module.

  `log_decay` is None, [heads, C] or a list of [C, K]; `run_1C` numbers the runs, 0 sees the state, None for one.
  """
  products, scale, C = layout.products, layout.scale, layout.C
  dot, narrow = products.dot, lambda x: x.astype(products.dtype)
  grid = tpu_math.grid(C, run_1C)
  later = tpu_grams.later(grid, layout.segments)
  q, k = wide(x.q), wide(x.k)
  # Rounded here, once: the product with it and the factor that meets that product must be the same number.
  minus_beta_k = [narrow(-times(y, beta)) for beta, y in zip(x.beta, k, strict=True)]
  if layout.decay == 'channel':
    scaled = [y * tpu_math.LOG2_E for y in log_decay]
    totals = [sums_by(products, [grid.seen], [y]) for y in scaled]
    gates = tpu_math.channel_gates(totals, run_1C)
    grams: Any = tpu_grams.ChannelGrams.made(
      products, scale, grid, later, layout.segments, x.beta, q, k, scaled, totals
    )
  else:
    gates = _head_gates(layout, log_decay, run_1C, grid)
    grams = tpu_grams.HeadGrams(products, scale, grid, later, x.q, x.k, minus_beta_k, gates.decay)
  none = [None] * len(q)
  rise, fall, keep = (none if y is None else y for y in (gates.rise, gates.fall, gates.keep))

  q_in = [narrow(times(y * scale, f)) for y, f in zip(q, rise, strict=True)]
  minus_k_in = [narrow(times(y.astype(jnp.float32), f)) for y, f in zip(minus_beta_k, rise, strict=True)]
  k_out = [narrow(times(y, f)) for y, f in zip(k, fall, strict=True)]
  after = each(narrow, x.after)

  r = [times(y, b) + dot(z, s) for b, y, z, s in zip(x.beta, x.v, minus_k_in, x.state, strict=True)]
  u = [narrow(dot(t, y)) for t, y in zip(x.inverse, r, strict=True)]
  du = [
    dot(jnp.concatenate([p, y], 1), jnp.concatenate([d, s], 0))
    for p, y, d, s in zip(grams.reads_turned(), k_out, x.do, after, strict=True)
  ]
  dr = [dot(t, y, 'tn') for t, y in zip(x.inverse, du, strict=True)]
  dr_do = [jnp.concatenate([narrow(y), d], 0) for y, d in zip(dr, x.do, strict=True)]
  # Against u they are the adjoints of A and P, against S those of the two reads of the state.
  against = [dot(y, jnp.concatenate([z, s], 0), 'nt') for y, z, s in zip(dr_do, u, x.state, strict=True)]
  inside: Turned = grams.turned([y[:C, :C] for y in against], [y[C:, :C] for y in against])
  outside = Turned(
    [times(y[:C, C:], f) for y, f in zip(against, rise, strict=True)],
    [times(y[C:, C:] * scale, f) for y, f in zip(against, rise, strict=True)],
    [times(dot(y, s, 'nt'), f) for y, s, f in zip(u, after, fall, strict=True)],
  )
  minus_x, y, z = (each(jnp.add, a, b) for a, b in zip(inside[:3], outside[:3], strict=True))

  added = [
    dot(jnp.concatenate([a, b], 0), jnp.concatenate([d[C:], d[:C]], 0), 'tn')
    for a, b, d in zip(q_in, minus_k_in, dr_do, strict=True)
  ]
  dstate = [a + (d if f is None else d * f) for a, d, f in zip(added, x.after, keep, strict=True)]
  dbeta = [sums_as_row(a * d, -b * w) for a, d, b, w in zip(x.v, dr, k, minus_x, strict=True)]
  dk = [a - times(b, beta) for a, beta, b in zip(z, x.beta, minus_x, strict=True)]
  dv = [times(d, beta) for beta, d in zip(x.beta, dr, strict=True)]
  dlog_decay = None
  if layout.decay == 'channel':
    dtotal = _channel_totals(x, q, k, wide(minus_beta_k), outside, keep)
    dlog_decay = grams.summed(dtotal, inside.log_decay)
  elif layout.decay == 'scalar':
    dlog_decay = _head_totals(x, q, k, wide(minus_beta_k), Turned(minus_x, y, z), outside.z, keep)
  return Adjoints(y, dk, dv, dbeta, dlog_decay, dstate)


def _kept(x: Chunk) -> list[Array]:
  return [state.astype(jnp.float32) * after for state, after in zip(x.state, x.after, strict=True)]


def _channel_totals(x: Chunk, q, k, minus_beta_k, outside: Turned, keep: list[Any]) -> list[Array]:
  """Returns dG of a decay a channel, [C, K], but for what goes through the Gram matrices."""
  last_C1 = lax.broadcasted_iota(jnp.int32, (k[0].shape[0], 1), 0) == k[0].shape[0] - 1
  written = each(jnp.multiply, k, outside.z)
  totals = [
    a * b + c * d - e for a, b, c, d, e in zip(q, outside.y, minus_beta_k, outside.minus_x, written, strict=True)
  ]
  whole = [
    column_sums(a) + (jnp.sum(b, 1, keepdims=True) * f).T for a, b, f in zip(written, _kept(x), keep, strict=True)
  ]
  return [jnp.where(last_C1, a + b, a) for a, b in zip(totals, whole, strict=True)]


def _head_totals(x: Chunk, q, k, minus_beta_k, sums: Turned, z_out: list[Array], keep: list[Any]) -> list[Array]:
  """Returns dG of one decay a head, [1, C]; `sums` are -x, y and z in full, `z_out` the last term of z."""
  C = k[0].shape[0]
  last_1C = lax.broadcasted_iota(jnp.int32, (1, C), 1) == C - 1
  totals = [
    sums_as_row(a * b + c * d - e * f)
    for a, b, c, d, e, f in zip(q, sums.y, minus_beta_k, sums.minus_x, k, sums.z, strict=True)
  ]
  whole = [
    jnp.sum(column_sums(a * b), 1, keepdims=True) + jnp.sum(column_sums(c), 1, keepdims=True) * f
    for a, b, c, f in zip(k, z_out, _kept(x), keep, strict=True)
  ]
  return [jnp.where(last_1C, a + b, a) for a, b in zip(totals, whole, strict=True)]


def _head_gates(layout: Layout, log_decay_HC: Array | None, run_1C: Array | None, grid: Grid) -> tpu_math.Gates:
  """Returns what `tpu_math.scalar_gates` does, its columns by `turned_across`."""
  heads, lanes, total_HC, decay = layout.heads, max(layout.C, layout.K, layout.V), None, None
  rise_HC = fall_HC = jnp.ones((1, layout.C), jnp.float32)
  if log_decay_HC is not None:
    total_HC = tpu_math.running_sums(log_decay_HC * tpu_math.LOG2_E, grid)
    rise_HC, fall_HC = jnp.exp2(total_HC), jnp.exp2(jnp.minimum(total_HC[:, -1:] - total_HC, 0.0))
    decay = [
      jnp.exp2(jnp.where(grid.seen, down[:, : layout.C] - total_HC[h : h + 1], tpu_math.NEVER))
      for h, down in enumerate(turned_across(total_HC, lanes))
    ]
  elif run_1C is None:
    return tpu_math.Gates(None, None, None, None)
  if run_1C is not None:
    rise_HC = jnp.where(run_1C == 0, rise_HC, 0.0)
    fall_HC = jnp.where(run_1C == run_1C[:, -1:], fall_HC, 0.0)
  repeats = heads // rise_HC.shape[0]
  keep = [rise_HC[h : h + 1, -1:] for h in range(rise_HC.shape[0])]
  return tpu_math.Gates(
    turned_across(rise_HC, lanes) * repeats,
    turned_across(fall_HC, lanes) * repeats,
    keep * repeats,
    decay,
  )
