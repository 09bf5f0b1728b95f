"""The first kernel of the delta rule for Hopper GPUs: what tokens of a chunk say to each other, whatever the state.

Each block of the grid takes one chunk of one value head and writes, in the terms of `chunk_math`,

    W = (I + A)^-1 diag(beta)      P = scale <q_i, k_j e^(G_i - G_j)>, i >= j

both C x C in bfloat16, for `gpu_sweep`. The inverse doubles its diagonal blocks as `chunk_math.unit_lower_inverse`
does, X <- X - X L X between neighbouring blocks. L and X are rounded to float16 for the products: with keys of at most
unit length no entry of either exceeds two, so its range is enough, and its three bits more than bfloat16 make a Newton
step unnecessary. X itself stays in float32 registers, and is the first factor of its products from there.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.gpu_layout import CHUNK, LOG2_E, NEVER, Layout
from pallas_kernels.gpu_math import COLUMNS, LANES, ROWS, across, added_product, down, kernel, load, matrix, product

Array = jax.Array
SQUARE = (CHUNK, CHUNK)
PART = 32  # channels done at once where each has its own decay
BAND = 8  # tokens less than this apart meet entry by entry there


class Grams(NamedTuple):
  """What the kernel writes, [B, HV, N, C, C]: W, P and, where it is asked for, (I + A)^-1; and the gates of
  `gpu_layout.Gates`. With a decay a channel, instead of gates, e^G k, scale e^G q and e^(G_C - G) k, [B, T, HV, K], and
  e^(G_C), [B, HV, N, K]: zero where a token does not see the state its chunk receives, or its end the token."""

  written: Array
  read: Array
  inverse: Array | None = None
  factors: Array | None = None
  total: Array | None = None
  k_in: Array | None = None
  q_in: Array | None = None
  k_out: Array | None = None
  keep: Array | None = None


def gram(
  layout: Layout, q: Array, k: Array, beta: Array, log_decay: Array | None, run: Array | None,
  *, residuals: bool = False,
) -> Grams:  # fmt: skip
  """Returns the Gram matrices of all chunks, and the gates.

  Args:
    q, k: [B, T, H, K] in bfloat16.
    beta: [B, HV, T] in float32.
    log_decay: None, [B, HV, T] or [B, T, HV, K] in float32.
    run: int32 [B, T]: tokens of a chunk see each other where theirs are equal; None where all do.
    residuals: also returns the inverse and G, which the backward pass needs.
  """
  B, N, HV, K = layout.B, layout.N, layout.HV, layout.K
  channels = layout.decay == 'channel'
  result = jax.ShapeDtypeStruct
  square = result((B, HV, N, CHUNK, CHUNK), jnp.bfloat16)
  given = {'q': q, 'k': k, 'beta': beta, 'log_decay': log_decay, 'run': run}
  given = {name: x for name, x in given.items() if x is not None}
  outputs = dict.fromkeys(('written', 'read', 'inverse')[: 3 if residuals else 2], square)
  keys = matrix((K // PART, CHUNK, PART), width=PART) if channels else matrix((CHUNK, K))
  scratch = {'q_CK': keys, 'k_CK': keys}
  scratch |= {name: matrix((CHUNK, CHUNK), jnp.float16) for name in ('lower_CC', 'inverse_CC')}
  scratch |= {name: matrix((CHUNK, CHUNK)) for name in outputs}
  arrivals = K // PART if channels else 1
  scratch |= {name: plgpu.Barrier(num_arrivals=arrivals) for name in ('q_here', 'k_here')}
  if channels:
    outputs |= dict.fromkeys(('k_in', 'q_in', 'k_out'), result((B, layout.tokens, HV, K), jnp.bfloat16))
    outputs['keep'] = result((B, HV, N, K), jnp.float32)
    scratch |= {
      'part': matrix((CHUNK, PART), width=PART),
      'queries': matrix((CHUNK, PART), width=PART),
      'totals': plgpu.SMEM((BAND + CHUNK, PART + 8), jnp.float32),
      'keys': plgpu.SMEM((BAND + CHUNK, PART + 8), jnp.bfloat16),
    }
  else:
    outputs['factors'] = result((B, HV, N, 3, CHUNK), jnp.float32)
    scratch |= {'factors': plgpu.SMEM((3, CHUNK), jnp.float32), 'total': plgpu.SMEM((CHUNK,), jnp.float32)}
    if residuals and layout.decay == 'scalar':
      outputs['total'] = result((B, HV, layout.tokens), jnp.float32)

  def body(*refs, **scratch):
    ins = dict(zip(given, refs, strict=False))
    _chunk(layout, ins, dict(zip(outputs, refs[len(given) :], strict=True)), scratch)

  made = kernel(
    body,
    out_type=list(outputs.values()),
    grid=(HV, N, B),
    grid_names=('head', 'chunk', 'row'),
    scratch_types=scratch,
    compiler_params=plgpu.CompilerParams(approx_math=True, lowering_semantics=LANES),
    kernel_name='delta_rule_gram',
  )(*given.values())
  return Grams(**dict(zip(outputs, made, strict=True)))


class Place(NamedTuple):
  """A chunk's row of the batch, value head, number and tokens; of each pair of its tokens the numbers i and j.

  Where there are segments, also the runs of its tokens; which tokens see the state that the chunk receives, and its end
  them; and whether that state survives the chunk. None where all is seen.
  """

  b: Any
  h: Any
  n: Any
  tokens: Any
  i: Array
  j: Array
  run: Any = None
  sees: Any = None
  counts: Any = None
  survives: Any = None

  def seen(self) -> Array:
    """Returns which pairs i, j there are of a token i that sees j."""
    if self.run is None:
      return self.i >= self.j
    row, column = _spread(self.run)
    return (self.i >= self.j) & (row == column)

  def anew(self) -> Place:
    """Returns the same for the compiler to see as another: what it makes of places it would keep, and find no room."""
    return self._replace(i=self.i + lax.optimization_barrier(jnp.int32(0)))


def _place(ins: dict) -> Place:
  b, h, n = (lax.axis_index(axis) for axis in ('row', 'head', 'chunk'))
  tokens = pl.ds(n * CHUNK, CHUNK)
  i, j = (plgpu.broadcasted_iota(jnp.int32, SQUARE, axis, layout=plgpu.Layout.WGMMA) for axis in (0, 1))
  if 'run' not in ins:
    return Place(b, h, n, tokens, i, j)
  run = ins['run'].at[b]
  row = load(run.at[tokens], ROWS, optimized=False)
  before = jnp.where(n > 0, run[jnp.maximum(n * CHUNK - 1, 0)], 0)
  last = run[n * CHUNK + CHUNK - 1]
  sees, counts = (jnp.where(row == x, 1.0, 0.0) for x in (before, last))
  return Place(b, h, n, tokens, i, j, run.at[tokens], sees, counts, jnp.where(last == before, 1.0, 0.0))


def _chunk(layout: Layout, ins: dict, outs: dict, here: dict) -> None:
  place = _place(ins)
  b, h, n, tokens = place[:4]
  for name in 'kq':
    source, target, arrived = ins[name].at[b, tokens, layout.key_head(h)], here[f'{name}_CK'], here[f'{name}_here']
    if layout.decay != 'channel':
      plgpu.copy_gmem_to_smem(source, target, arrived)
      continue
    for part in range(layout.K // PART):
      plgpu.copy_gmem_to_smem(source.at[:, pl.ds(part * PART, PART)], target.at[part], arrived)
  if layout.decay == 'channel':  # which leaves no registers to hold the gates meanwhile
    lower, read = _channel_grams(layout, ins, outs, here, place)
    beta_row, beta_column = _spread(ins['beta'].at[b, h, tokens])
  else:
    beta_row, beta_column = _spread(ins['beta'].at[b, h, tokens])
    lower, read = _head_grams(layout, ins, outs, here, place)
  lower = jnp.where(place.i > place.j, lower * beta_row, 0.0)
  here['lower_CC'][...] = lower.astype(jnp.float16)
  plgpu.commit_smem()
  here['read'][...] = (read() * layout.scale).astype(jnp.bfloat16)
  inverse = _unit_lower_inverse(lower, here['lower_CC'], here['inverse_CC'], place.i, place.j)
  here['written'][...] = (inverse * beta_column).astype(jnp.bfloat16)
  if 'inverse' in outs:
    here['inverse'][...] = inverse.astype(jnp.bfloat16)
  plgpu.commit_smem()
  for name in ('written', 'read', 'inverse', 'factors'):
    if name in outs:
      plgpu.copy_smem_to_gmem(here[name], outs[name].at[b, h, n])
  if 'total' in outs:
    plgpu.copy_smem_to_gmem(here['total'], outs['total'].at[b, h, tokens])
  plgpu.wait_smem_to_gmem(0)


def _spread(ref: Any) -> tuple[Array, Array]:
  """Returns an entry a token of a chunk twice, by rows and by columns."""
  return down(load(ref, ROWS, optimized=False), SQUARE), across(load(ref, COLUMNS, optimized=False), SQUARE)


def _unit_lower_inverse(lower: Array, lower_CC: Any, inverse_CC: Any, i: Array, j: Array) -> Array:
  """Returns (I + L)^-1; L stands in `lower_CC` as well, and `inverse_CC` is free."""
  apart = i ^ j
  inverse = jnp.where(i == j, 1.0, 0.0) - jnp.where(apart == 1, lower, 0.0)
  block = 2
  while block < CHUNK:
    half = inverse.astype(jnp.float16)

    def stored(half=half):
      inverse_CC[...] = half
      plgpu.commit_smem()

    step, _ = product(half, lower_CC, stored)
    corner = product(step.astype(jnp.float16), inverse_CC)
    inverse = inverse - jnp.where((apart >= block) & (apart < 2 * block), corner, 0.0)
    block *= 2
  return inverse


def _head_grams(layout: Layout, ins: dict, outs: dict, here: dict, place: Place) -> tuple[Array, Any]:
  """Returns (k k^T, a function that gives q k^T), decayed, where tokens see each other; and leaves the gates."""
  decay, seen, rise, fall = None, place.seen(), jnp.where(place.i == place.i, 1.0, 0.0).max(1), None
  if 'log_decay' in ins:
    steps = across(load(ins['log_decay'].at[place.b, place.h, place.tokens], COLUMNS, optimized=False), SQUARE)
    total = jnp.where(seen, steps, 0.0).sum(1) * LOG2_E
    here['total'][...] = total
    decay = jnp.exp2(jnp.where(seen, down(total, SQUARE) - across(load(here['total'], COLUMNS), SQUARE), NEVER))
    rise, fall = jnp.exp2(total), jnp.exp2(jnp.minimum(here['total'][CHUNK - 1] - total, 0.0))
  fall = rise if fall is None else fall
  if place.sees is not None:
    rise, fall = rise * place.sees, fall * place.counts
  for row, factor in enumerate((rise, fall, rise * layout.scale)):
    here['factors'].at[row][...] = factor

  def decayed(name):
    plgpu.barrier_wait(here[f'{name}_here'])
    gram = product(here[f'{name}_CK'], here['k_CK'].transpose((1, 0)))
    return jnp.where(seen, gram, 0.0) if decay is None else gram * decay

  return decayed('k'), lambda: decayed('q')


def _channel_grams(layout: Layout, ins: dict, outs: dict, here: dict, place: Place) -> tuple[Array, Any]:
  """Returns what `_head_grams` does for a decay a channel, and writes the operands of the sweep, 32 channels at a time.

  Tokens less than 8 apart meet channel by channel, entry by entry. Others meet by dyadic anchors, as in `chunk_math`:
  a half block of 8, 16 or 32 tokens meets the one beside it through the last token m between them, so that
  e^(G_i - G_m) and e^(G_m - G_j) are at most one whatever the decay.
  """
  plgpu.barrier_wait(here['k_here'])
  plgpu.barrier_wait(here['q_here'])

  def add_part(part, sums):
    kk, qk = sums
    columns = pl.ds(part * PART, PART)
    anew = place.anew()
    steps = load(ins['log_decay'].at[place.b, place.tokens, place.h, columns], plgpu.Layout.WGMMA, optimized=False)
    total = _running_sum(steps * LOG2_E, here, anew)
    here['totals'].at[pl.ds(BAND, CHUNK), pl.ds(0, PART)][...] = total
    k, q = (load(here[f'{name}_CK'].at[part], plgpu.Layout.WGMMA) for name in 'kq')
    here['keys'].at[pl.ds(BAND, CHUNK), pl.ds(0, PART)][...] = k
    kk, qk = _near(kk, qk, k, q, total, here, anew)
    kk, qk = _far(kk, qk, k, q, total, here, anew)
    _operands(layout, outs, here, place, columns, k, q, total)
    return kk, qk

  zero = jnp.where(place.i == place.j, 0.0, 0.0)
  kk, qk = lax.fori_loop(0, layout.K // PART, add_part, (zero, zero))
  return jnp.where(place.anew().seen(), kk, 0.0), lambda: jnp.where(place.anew().seen(), qk, 0.0)


def _running_sum(steps: Array, here: dict, place: Place) -> Array:
  """Returns the inclusive sums of [C, 32] over the tokens of a run, as products with ones of three parts of 8 bits."""
  counted = jnp.where(place.anew().seen(), 1.0, 0.0).astype(jnp.bfloat16)
  total: Any = None
  for _ in range(3):
    narrow = steps.astype(jnp.bfloat16)
    here['part'][...] = narrow
    plgpu.commit_smem()
    total = product(counted, here['part']) if total is None else added_product(total, counted, here['part'])
    steps = steps - narrow.astype(jnp.float32)
  return total


def _widened(x: Array) -> Array:
  """Returns x in float32, made anew, for the reason `Place.anew` has."""
  return lax.optimization_barrier(x).astype(jnp.float32)


def _near(kk: Array, qk: Array, k: Array, q: Array, total: Array, here: dict, place: Place) -> tuple[Array, Array]:
  """Returns both sums with what tokens less than 8 apart add."""

  def meet(back, sums):
    kk, qk = sums
    rows = pl.ds(BAND - back, CHUNK)

    def earlier(name):
      return load(here[name].at[rows, pl.ds(0, PART)], plgpu.Layout.WGMMA, optimized=False)

    met = jnp.exp2(total - earlier('totals')) * earlier('keys').astype(jnp.float32)
    apart = place.i - back == place.j
    kk = jnp.where(apart, kk + down((_widened(k) * met).sum(1), SQUARE), kk)
    qk = jnp.where(apart, qk + down((_widened(q) * met).sum(1), SQUARE), qk)
    return kk, qk

  qk = qk + jnp.where(place.i == place.j, down((_widened(q) * _widened(k)).sum(1), SQUARE), 0.0)
  return lax.fori_loop(1, BAND, meet, (kk, qk))


def _far(kk: Array, qk: Array, k: Array, q: Array, total: Array, here: dict, place: Place) -> tuple[Array, Array]:
  """Returns both sums with what tokens further apart add."""
  rows = plgpu.broadcasted_iota(jnp.int32, total.shape, 0, layout=plgpu.Layout.WGMMA)

  def level(log_half, sums):
    kk, qk = sums
    half = jnp.left_shift(jnp.int32(1), log_half)
    anchor: Any = None
    for first in range(CHUNK - 2 * BAND, -1, -2 * BAND):  # of rows that share an anchor at every level
      row = BAND + (jnp.int32(first) & -2 * half) + half - 1
      row = across(load(here['totals'].at[row, pl.ds(0, PART)], COLUMNS, optimized=False), total.shape)
      anchor = row if anchor is None else jnp.where(rows < first + 2 * BAND, row, anchor)
    factor = jnp.exp2(-jnp.abs(total - anchor))
    here['part'][...] = (_widened(k) * factor).astype(jnp.bfloat16)
    here['queries'][...] = (_widened(q) * factor).astype(jnp.bfloat16)
    plgpu.commit_smem()
    earlier = here['part'].transpose((1, 0))

    def added(sum_, gram):
      anew = place.anew()
      apart = anew.i ^ anew.j
      return sum_ + jnp.where((apart >= half) & (apart < 2 * half) & (anew.i - BAND >= anew.j), gram, 0.0)

    kk = added(kk, product(here['part'], earlier))
    return kk, added(qk, product(here['queries'], earlier))

  return lax.fori_loop(BAND.bit_length() - 1, CHUNK.bit_length() - 1, level, (kk, qk))


def _operands(layout: Layout, outs, here, place: Place, columns, k: Array, q: Array, total: Array) -> None:
  last = load(here['totals'].at[BAND + CHUNK - 1, pl.ds(0, PART)], COLUMNS, optimized=False)

  def masked(x, mask):
    return x if mask is None else x * down(mask, x.shape)

  made = {
    'k_in': lambda: masked(_widened(k) * jnp.exp2(total), place.sees),
    'q_in': lambda: masked(_widened(q) * jnp.exp2(total) * layout.scale, place.sees),
    'k_out': lambda: masked(_widened(k) * jnp.exp2(jnp.minimum(across(last, total.shape) - total, 0.0)), place.counts),
  }
  for name, make in made.items():
    here['part'][...] = make().astype(jnp.bfloat16)
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(here['part'], outs[name].at[place.b, place.tokens, place.h, columns])
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)
  keep = jnp.exp2(last)
  outs['keep'].at[place.b, place.h, place.n, columns][...] = keep if place.survives is None else keep * place.survives
