"""The first kernel of the delta rule for Hopper GPUs: what chunks of tokens say to each other, before any state is known.

Each block of the grid takes one chunk of one value head and writes, in the terms of `chunk_math`,

    W = (I + A)^-1 diag(beta)      P = scale <q_i, k_j e^(G_i - G_j)>, i >= j

both C x C in bfloat16, for `gpu_sweep`. The inverse doubles its diagonal blocks as `chunk_math.unit_lower_inverse` does,
X <- X - X L X between neighbouring blocks. L and X are rounded to float16 for the products: with keys of at most unit
length no entry of either exceeds two, so its range is enough, and its three bits more than bfloat16 make a Newton step
unnecessary. X itself stays in float32 registers, and is the first factor of its products from there.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.gpu_layout import CHUNK, NEVER, Layout
from pallas_kernels.gpu_math import COLUMNS, LANES, ROWS, across, added_product, down, load, matrix, product

Array = jax.Array
SQUARE = (CHUNK, CHUNK)
PART = 32  # channels done at once where each has its own decay
BAND = 8  # tokens less than this apart meet entry by entry there


class Grams(NamedTuple):
  """What the kernel writes, [B, HV, N, C, C]: W, P and, where it is asked for, (I + A)^-1. With a decay a channel also
  e^G k, scale e^G q and e^(G_C - G) k, [B, T, HV, K], zero where `factors` are, and e^(G_C) [B, HV, N, K]."""

  written: Array
  read: Array
  inverse: Array | None = None
  k_in: Array | None = None
  q_in: Array | None = None
  k_out: Array | None = None
  keep: Array | None = None


def gram(
  layout: Layout, q: Array, k: Array, beta: Array, total: Array | None, run: Array | None, factors: Array | None = None,
  *, residuals: bool = False,
) -> Grams:  # fmt: skip
  """Returns the Gram matrices of all chunks.

  Args:
    q, k: [B, T, H, K] in bfloat16.
    beta: [B, HV, T] in float32.
    total: [B, HV, T], the inclusive sum of log2 decay inside the chunk and run; None without decay; with a decay a
      channel the log2 decay itself, [B, T, HV, K].
    run: int32 [B, T]: tokens of a chunk see each other where theirs are equal; None where all do.
    factors: those of `gpu_layout.Gates`, with a decay a channel.
    residuals: also returns the inverse, which the backward pass needs.
  """
  B, N, HV, K = layout.B, layout.N, layout.HV, layout.K
  channels = layout.decay == 'channel'
  result = jax.ShapeDtypeStruct
  square = result((B, HV, N, CHUNK, CHUNK), jnp.bfloat16)
  given = {'q': q, 'k': k, 'beta': beta, 'total': total, 'run': run, 'factors': factors if channels else None}
  given = {name: x for name, x in given.items() if x is not None}
  outputs = dict.fromkeys(('written', 'read', 'inverse')[: 3 if residuals else 2], square)
  wide = PART if channels else 64
  scratch = {'q_CK': matrix((CHUNK, K), width=wide), 'k_CK': matrix((CHUNK, K), width=wide)}
  scratch |= {name: matrix((CHUNK, CHUNK), jnp.float16) for name in ('lower_CC', 'inverse_CC')}
  scratch |= {name: matrix((CHUNK, CHUNK)) for name in outputs}
  scratch |= {name: plgpu.Barrier() for name in ('q_here', 'k_here')}
  if channels:
    outputs |= dict.fromkeys(('k_in', 'q_in', 'k_out'), result((B, layout.tokens, HV, K), jnp.bfloat16))
    outputs['keep'] = result((B, HV, N, K), jnp.float32)
    scratch |= {
      'part': matrix((CHUNK, PART), width=PART),
      'totals': plgpu.SMEM((BAND + CHUNK, PART + 8), jnp.float32),
      'keys': plgpu.SMEM((BAND + CHUNK, PART + 8), jnp.bfloat16),
    }

  def body(*refs, **scratch):
    ins = dict(zip(given, refs, strict=False))
    _chunk(layout, ins, dict(zip(outputs, refs[len(given) :], strict=True)), scratch)

  made = plgpu.kernel(
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
  """A chunk's row of the batch, value head, number and tokens; of each pair of its tokens i and j, and which i see j."""

  b: Any
  h: Any
  n: Any
  tokens: Any
  i: Array
  j: Array
  seen: Array


def _chunk(layout: Layout, ins: dict, outs: dict, here: dict) -> None:
  b, h, n = (lax.axis_index(axis) for axis in ('row', 'head', 'chunk'))
  tokens = pl.ds(n * CHUNK, CHUNK)
  for name in 'kq':
    plgpu.copy_gmem_to_smem(ins[name].at[b, tokens, layout.key_head(h)], here[f'{name}_CK'], here[f'{name}_here'])
  i, j = (plgpu.broadcasted_iota(jnp.int32, SQUARE, axis, layout=plgpu.Layout.WGMMA) for axis in (0, 1))
  seen = i >= j
  if 'run' in ins:
    row, column = _spread(ins['run'].at[b, tokens])
    seen = seen & (row == column)
  place = Place(b, h, n, tokens, i, j, seen)
  beta_row, beta_column = _spread(ins['beta'].at[b, h, tokens])
  lower, read = (_channel_grams if layout.decay == 'channel' else _head_grams)(layout, ins, outs, here, place)
  lower = jnp.where(i > j, lower * beta_row, 0.0)
  here['lower_CC'][...] = lower.astype(jnp.float16)
  plgpu.commit_smem()
  here['read'][...] = (read() * layout.scale).astype(jnp.bfloat16)
  inverse = _unit_lower_inverse(lower, here['lower_CC'], here['inverse_CC'], i, j)
  here['written'][...] = (inverse * beta_column).astype(jnp.bfloat16)
  if 'inverse' in outs:
    here['inverse'][...] = inverse.astype(jnp.bfloat16)
  plgpu.commit_smem()
  for name in ('written', 'read', 'inverse'):
    if name in outs:
      plgpu.copy_smem_to_gmem(here[name], outs[name].at[b, h, n])
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
  """Returns (k k^T, a function that gives q k^T), decayed, where tokens see each other."""
  decay = None
  if 'total' in ins:
    row, column = _spread(ins['total'].at[place.b, place.h, place.tokens])
    decay = jnp.exp2(jnp.where(place.seen, row - column, NEVER))

  def decayed(name):
    plgpu.barrier_wait(here[f'{name}_here'])
    gram = product(here[f'{name}_CK'], here['k_CK'].transpose((1, 0)))
    return jnp.where(place.seen, gram, 0.0) if decay is None else gram * decay

  return decayed('k'), lambda: decayed('q')


def _channel_grams(layout: Layout, ins: dict, outs: dict, here: dict, place: Place) -> tuple[Array, Any]:
  """Returns what `_head_grams` does for a decay a channel, and writes the operands of the sweep, 32 channels at a time.

  Tokens less than 8 apart meet channel by channel, entry by entry. Others meet by dyadic anchors, as in `chunk_math`:
  a half block of 8, 16 or 32 tokens meets the one beside it through the last token m between them, so that
  e^(G_i - G_m) and e^(G_m - G_j) are at most one whatever the decay.
  """
  plgpu.barrier_wait(here['k_here'])
  plgpu.barrier_wait(here['q_here'])
  kk = qk = jnp.where(place.seen, 0.0, 0.0)
  for part in range(layout.K // PART):
    columns = pl.ds(part * PART, PART)
    total = _running_sum(load(ins['total'].at[place.b, place.tokens, place.h, columns], plgpu.Layout.WGMMA, optimized=False), here, place)
    here['totals'].at[pl.ds(BAND, CHUNK), pl.ds(0, PART)][...] = total
    k, q = (load(here[f'{name}_CK'].at[:, columns], plgpu.Layout.WGMMA) for name in 'kq')
    here['keys'].at[pl.ds(BAND, CHUNK), pl.ds(0, PART)][...] = k
    kk, qk = _near(kk, qk, k, q, total, here, place)
    kk, qk = _far(kk, qk, k, q, total, here, place)
    _operands(layout, ins, outs, here, place, columns, k, q, total)
  return jnp.where(place.seen, kk, 0.0), lambda: jnp.where(place.seen, qk, 0.0)


def _running_sum(steps: Array, here: dict, place: Place) -> Array:
  """Returns the inclusive sums of [C, 32] over the tokens of a run, as products with ones of three parts of 8 bits."""
  counted = jnp.where(place.seen, 1.0, 0.0).astype(jnp.bfloat16)
  total = None
  for _ in range(3):
    narrow = steps.astype(jnp.bfloat16)
    here['part'][...] = narrow
    plgpu.commit_smem()
    total = product(counted, here['part']) if total is None else added_product(total, counted, here['part'])
    steps = steps - narrow.astype(jnp.float32)
  return total


def _widened(x: Array) -> Array:
  """Returns x in float32, made anew: kept from one use to the next, it would not fit registers."""
  return lax.optimization_barrier(x).astype(jnp.float32)


def _near(kk: Array, qk: Array, k: Array, q: Array, total: Array, here: dict, place: Place) -> tuple[Array, Array]:
  """Returns both sums with what tokens less than 8 apart add."""

  def meet(back, sums):
    kk, qk = sums
    rows = pl.ds(BAND - back, CHUNK)

    def earlier(name):
      return load(here[name].at[rows, pl.ds(0, PART)], plgpu.Layout.WGMMA, optimized=False)

    met = jnp.exp2(total - earlier('totals')) * earlier('keys').astype(jnp.float32)
    apart = place.i - place.j == back
    kk = jnp.where(apart, kk + down((_widened(k) * met).sum(1), SQUARE), kk)
    qk = jnp.where(apart, qk + down((_widened(q) * met).sum(1), SQUARE), qk)
    return kk, qk

  qk = qk + jnp.where(place.i == place.j, down((_widened(q) * _widened(k)).sum(1), SQUARE), 0.0)
  return lax.fori_loop(1, BAND, meet, (kk, qk))


def _far(kk: Array, qk: Array, k: Array, q: Array, total: Array, here: dict, place: Place) -> tuple[Array, Array]:
  """Returns both sums with what tokens further apart add."""
  apart = place.i ^ place.j
  rows = plgpu.broadcasted_iota(jnp.int32, total.shape, 0, layout=plgpu.Layout.WGMMA)
  half = BAND
  while half < CHUNK:
    anchor = None
    for block in reversed(range(CHUNK // (2 * half))):
      row = here['totals'].at[BAND + 2 * half * block + half - 1, pl.ds(0, PART)]
      row = across(load(row, COLUMNS, optimized=False), total.shape)
      anchor = row if anchor is None else jnp.where(rows < 2 * half * (block + 1), row, anchor)
    factor = jnp.exp2(-jnp.abs(total - anchor))
    here['part'][...] = (_widened(k) * factor).astype(jnp.bfloat16)
    plgpu.commit_smem()
    earlier = here['part'].transpose((1, 0))
    met = (apart >= half) & (apart < 2 * half) & (place.i - place.j >= BAND)
    late = (_widened(q) * factor).astype(jnp.bfloat16)
    kk = kk + jnp.where(met, product(here['part'], earlier), 0.0)
    qk = qk + jnp.where(met, product(late, earlier), 0.0)
    half *= 2
  return kk, qk


def _operands(layout: Layout, ins, outs, here, place: Place, columns, k: Array, q: Array, total: Array) -> None:
  factors = ins['factors'].at[place.b, place.h, place.n]
  rise, fall, read = (down(load(factors.at[row], ROWS, optimized=False), total.shape) for row in range(3))
  last = load(here['totals'].at[BAND + CHUNK - 1, pl.ds(0, PART)], COLUMNS, optimized=False)
  made = {
    'k_in': lambda: _widened(k) * jnp.exp2(total) * rise,
    'q_in': lambda: _widened(q) * jnp.exp2(total) * read,
    'k_out': lambda: _widened(k) * jnp.exp2(jnp.minimum(across(last, total.shape) - total, 0.0)) * fall,
  }
  for name, make in made.items():
    here['part'][...] = make().astype(jnp.bfloat16)
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(here['part'], outs[name].at[place.b, place.tokens, place.h, columns])
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)
  survives = factors[0, CHUNK - 1]
  outs['keep'].at[place.b, place.h, place.n, columns][...] = jnp.exp2(last) * survives
