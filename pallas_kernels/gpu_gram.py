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

from pallas_kernels import gpu_levels
from pallas_kernels.gpu_layout import CHUNK, LOG2_E, NEVER, Layout
from pallas_kernels.gpu_levels import SQUARE, Ends, Place, widened
from pallas_kernels.gpu_math import (
  COLUMNS,
  LANES,
  across,
  both_added,
  both_summed,
  down,
  kernel,
  load,
  matrix,
  product,
  store,
)

Array = jax.Array
PART = 64  # channels done at once, with a decay a channel


class Grams(NamedTuple):
  """What the kernel writes, [B, HV, N, C, C]: W, P and, where it is asked for, (I + A)^-1; and the gates of
  `gpu_layout.Gates`. With a decay a channel, instead of gates, e^G k, scale e^G q and e^(G_C - G) k, [B, T, HV, K], and
  e^(G_C), [B, HV, N, K]: zero where a token does not see the state its chunk receives, or its end the token; and with
  the inverse the steepest step of each chunk in powers of two, [B, HV, N, C], for every token the same."""

  written: Array
  read: Array
  inverse: Array | None = None
  factors: Array | None = None
  total: Array | None = None
  k_in: Array | None = None
  q_in: Array | None = None
  k_out: Array | None = None
  keep: Array | None = None
  steepest: Array | None = None


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
  keys = gpu_levels.parts(K, width=PART) if channels else matrix((CHUNK, K))
  scratch = {'q_CK': keys, 'k_CK': keys}
  squares = {name: matrix((CHUNK, CHUNK), jnp.float16) for name in ('lower_CC', 'inverse_CC')}
  squares |= {name: matrix((CHUNK, CHUNK)) for name in outputs}
  arrivals = K // PART if channels else 1
  scratch |= {name: plgpu.Barrier(num_arrivals=arrivals) for name in ('q_here', 'k_here')}
  if channels:
    outputs |= dict.fromkeys(('k_in', 'q_in', 'k_out'), result((B, layout.tokens, HV, K), jnp.bfloat16))
    outputs['keep'] = result((B, HV, N, K), jnp.float32)
    if residuals:
      outputs['steepest'] = result((B, HV, N, CHUNK), jnp.float32)
    steps = {'steps': gpu_levels.pieces(K // PART, count=gpu_levels.STEP_PIECES, width=PART)}
    direct = {
      name: gpu_levels.pieces(count=count, width=PART) for name, count in (('k_late', 2), ('q_late', 1), ('k_early', 2))
    }
    factors = {name: gpu_levels.parts(K, dtype=jnp.float16, width=PART) for name in ('keys', 'queries')}
    written = {'part': matrix((CHUNK, PART)), 'totals': plgpu.SMEM((CHUNK, PART + 8), jnp.float32)}
    written['read'] = squares.pop('read')
    rows = {'rows': plgpu.SMEM((2, CHUNK), jnp.float32)}
    # One after the other, so that a multiprocessor has room for two blocks.
    scratch |= {'first': plgpu.RefUnion(steps, squares), 'second': plgpu.RefUnion(rows, direct, factors, written)}
  else:
    scratch |= squares
    outputs['factors'] = result((B, HV, N, 3, CHUNK), jnp.float32)
    scratch |= {'factors': plgpu.SMEM((3, CHUNK), jnp.float32), 'total': plgpu.SMEM((CHUNK,), jnp.float32)}
    if residuals and layout.decay == 'scalar':
      outputs['total'] = result((B, HV, layout.tokens), jnp.float32)

  def body(*refs, **scratch):
    for name in ('first', 'second'):
      for some in scratch.pop(name, ()):
        scratch |= some
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


def _chunk(layout: Layout, ins: dict, outs: dict, here: dict) -> None:
  place = gpu_levels.place(ins)
  ends = place.ends()
  b, h, n, tokens = place[:4]
  for name in 'kq':
    source, target, arrived = ins[name].at[b, tokens, layout.key_head(h)], here[f'{name}_CK'], here[f'{name}_here']
    if layout.decay != 'channel':
      plgpu.copy_gmem_to_smem(source, target, arrived)
      continue
    for part in range(layout.K // PART):
      plgpu.copy_gmem_to_smem(source.at[:, pl.ds(part * PART, PART)], target.at[part], arrived)
  if layout.decay == 'channel':  # which leaves no registers to hold the gates meanwhile
    lower, read = _channel_grams(layout, ins, outs, here, place, ends)
    beta_row, beta_column = gpu_levels.spread(ins['beta'].at[b, h, tokens])
  else:
    beta_row, beta_column = gpu_levels.spread(ins['beta'].at[b, h, tokens])
    lower, read = _head_grams(layout, ins, outs, here, place, ends)
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


def _head_grams(layout: Layout, ins: dict, outs: dict, here: dict, place: Place, ends: Ends) -> tuple[Array, Any]:
  """Returns (k k^T, a function that gives q k^T), decayed, where tokens see each other; and leaves the gates."""
  decay, seen, rise, fall = None, place.seen(), jnp.where(place.i == place.i, 1.0, 0.0).max(1), None
  if 'log_decay' in ins:
    steps = across(load(ins['log_decay'].at[place.b, place.h, place.tokens], COLUMNS, optimized=False), SQUARE)
    total = jnp.where(seen, steps, 0.0).sum(1) * LOG2_E
    here['total'][...] = total
    decay = jnp.exp2(jnp.where(seen, down(total, SQUARE) - across(load(here['total'], COLUMNS), SQUARE), NEVER))
    rise, fall = jnp.exp2(total), jnp.exp2(jnp.minimum(here['total'][CHUNK - 1] - total, 0.0))
  fall = rise if fall is None else fall
  if ends.sees is not None:
    rise, fall = rise * ends.sees, fall * ends.counts
  for row, factor in enumerate((rise, fall, rise * layout.scale)):
    here['factors'].at[row][...] = factor

  def decayed(name):
    plgpu.barrier_wait(here[f'{name}_here'])
    gram = product(here[f'{name}_CK'], here['k_CK'].transpose((1, 0)))
    return jnp.where(seen, gram, 0.0) if decay is None else gram * decay

  return decayed('k'), lambda: decayed('q')


def _channel_grams(layout: Layout, ins: dict, outs: dict, here: dict, place: Place, ends: Ends) -> tuple[Array, Any]:
  """Returns what `_head_grams` does for a decay a channel, and writes the operands of the sweep, a part at a time.

  What meets is rounded to float16, as the inverse that it goes into: to bfloat16, the error of the output is a fifth
  larger on correlated keys.
  """
  plgpu.barrier_wait(here['k_here'])
  plgpu.barrier_wait(here['q_here'])
  parts, keys, queries = layout.K // PART, here['keys'], here['queries']

  def operand(name, part):
    return widened(load(here[f'{name}_CK'].at[part], plgpu.Layout.WGMMA))

  def prepare(part, rows):
    longest, itself, steepest = rows
    columns = pl.ds(part * PART, PART)
    steps = gpu_levels.wide_steps(ins['log_decay'].at[place.b, place.tokens, place.h, columns])
    gpu_levels.split(steps, here['steps'].at[part])
    q = operand('q', part)
    longest, steepest = (jnp.maximum(most, jnp.abs(x).max(1)) for most, x in ((longest, q), (steepest, steps)))
    return longest, itself + (q * operand('k', part)).sum(1), steepest

  zero = jnp.where(place.row < 0, 1.0, 0.0)
  # No query need be as short as a key is, and float16 does not reach as far as bfloat16.
  longest, itself, steepest = lax.fori_loop(0, parts, prepare, (zero + 1e-30, zero, zero))
  here['rows'].at[0][...] = steepest
  steepest = across(load(here['rows'].at[0], COLUMNS), SQUARE).max(1)
  here['rows'].at[1][...] = steepest
  if 'steepest' in outs:
    store(outs['steepest'].at[place.b, place.h, place.n], steepest)
  first = gpu_levels.direct_level(here['rows'][1, 0])
  plgpu.commit_smem()  # read by all before what shares its place is written

  def query(part):
    return operand('q', part) * down(1.0 / longest, (CHUNK, PART))

  def meet_directly(_, sums):
    counted = gpu_levels.between(place.anew(), first, direct=True)

    def add_part(part, sums):
      kk, qk = sums
      toward = gpu_levels.summed(counted, here['steps'].at[part])
      gpu_levels.split(operand('k', part) * jnp.exp2(toward), here['k_late'])
      gpu_levels.split(query(part) * jnp.exp2(toward), here['q_late'])
      gpu_levels.split(operand('k', part) * jnp.exp2(-toward), here['k_early'])
      # Factors this far apart lie beyond float16. The inverse magnifies what keys are rounded by, so they have two
      # pieces; queries, whose products are rounded to bfloat16 next, one.
      early = [here['k_early'].at[piece].transpose((1, 0)) for piece in range(2)]
      k_late, q_late = here['k_late'], here['q_late'].at[0]
      return both_added(
        kk,
        qk,
        [(k_late.at[0], early[0]), (k_late.at[0], early[1]), (k_late.at[1], early[0])],
        [(q_late, early[0]), (q_late, early[1])],
      )

    kk, qk = lax.fori_loop(0, parts, add_part, sums)
    anew = place.anew()
    met = gpu_levels.met(anew, first, direct=True) & (anew.i > anew.j)
    return jnp.where(met, kk, 0.0), jnp.where(met, qk, 0.0)

  def add_level(log_half, sums):
    kk, qk = sums
    counted = gpu_levels.between(place.anew(), log_half)

    def meet(part, _):
      fall = jnp.exp2(gpu_levels.summed(counted, here['steps'].at[part]))
      keys.at[part][...] = (operand('k', part) * fall).astype(jnp.float16)
      queries.at[part][...] = (query(part) * fall).astype(jnp.float16)
      return _

    lax.fori_loop(0, parts, meet, 0)
    plgpu.commit_smem()
    kk_met, qk_met = both_summed(
      *([(x.at[part], keys.at[part].transpose((1, 0))) for part in range(parts)] for x in (keys, queries))
    )
    later = gpu_levels.met_later(place.anew(), log_half)
    return jnp.where(later, kk_met, kk), jnp.where(later, qk_met, qk)

  sums = (down(zero, SQUARE), down(zero, SQUARE))
  sums = lax.fori_loop(0, jnp.where(first >= 0, 1, 0), meet_directly, sums)
  kk, qk = lax.fori_loop(first + 1, gpu_levels.LEVELS, add_level, sums)
  anew = place.anew()
  qk = jnp.where(anew.i == anew.j, down(itself, SQUARE), qk * down(longest, SQUARE))
  until, after = gpu_levels.ones(anew.i >= anew.j), gpu_levels.ones(anew.i < anew.j)
  lax.fori_loop(0, parts, lambda part, _: _operands(layout, outs, here, place, ends, part, operand, until, after), None)
  return jnp.where(place.anew().seen(), kk, 0.0), lambda: jnp.where(place.anew().seen(), qk, 0.0)


def _operands(
  layout: Layout, outs, here, place: Place, ends: Ends, part: Any, operand: Any, until: Array, after: Array
) -> None:  # fmt: skip
  """Writes what the sweep takes of one part of the channels; `until` has the tokens up to each, `after` the rest."""
  columns, steps = pl.ds(part * PART, PART), here['steps'].at[part]

  def masked(x, mask):
    return x if mask is None else x * down(mask, x.shape)

  total = gpu_levels.summed(until, steps)
  here['totals'].at[:, pl.ds(0, PART)][...] = total
  last = load(here['totals'].at[CHUNK - 1, pl.ds(0, PART)], COLUMNS, optimized=False)
  made = {
    'k_in': lambda: masked(operand('k', part) * jnp.exp2(total), ends.sees),
    'q_in': lambda: masked(operand('q', part) * jnp.exp2(total) * layout.scale, ends.sees),
    'k_out': lambda: masked(operand('k', part) * jnp.exp2(gpu_levels.summed(after, steps)), ends.counts),
  }
  for name, make in made.items():
    here['part'][...] = make().astype(jnp.bfloat16)
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(here['part'], outs[name].at[place.b, place.tokens, place.h, columns])
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)
  keep = jnp.exp2(last)
  outs['keep'].at[place.b, place.h, place.n, columns][...] = keep if ends.survives is None else keep * ends.survives
