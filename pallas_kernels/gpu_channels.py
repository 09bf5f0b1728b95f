"""The gradients of a delta rule with a decay a channel, on Hopper GPUs, chunk by chunk, once both sweeps are done.

In the terms of `gpu_gradient`, with E = -tril(dr u^T, -1) and F = scale tril(do u^T), which all channels share, and the
decay of each channel between the tokens of a pair,

    x_i = sum_j E_ij e^(G_i - G_j) k_j - (e^G (dr S^T))_i
    y_i = sum_j F_ij e^(G_i - G_j) k_j + scale (e^G (do S^T))_i
    z_j = sum_i e^(G_i - G_j) (E_ij beta_i k_i + F_ij q_i)     w = e^(G_C - G) (u dS'^T)
    dq = y    dk = beta x + z + w    dv = beta dr    dbeta = <k, x> + <v, dr>    dG = q y + beta k x - k z
    dlog_decay_t = sum_(i >= t) dG_i + sum_(i < t) k_i w_i + e^(G_C) sum_v S dS'

where sums end at the borders of runs. The sums are written so that nothing in them cancels but dG, in which a pair of
tokens enters once with each sign, each time as the product of the very factors, rounded, that met (see `tpu_adjoints`).

Each block of the grid takes one chunk of one value head; where K or V is 256, only a slice of it, as in `gpu_gradient`.
Its two warpgroups make E and F, one each, and then the gradients of half of the channels each, `PART` at a time, level
by level of `gpu_levels`, the lowest at once where the gates of the chunk are gentle.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import gpu_levels
from pallas_kernels.gpu_gradient import Reversed, Slices, grouped
from pallas_kernels.gpu_layout import CHUNK, Channels, Kept, Layout, Operands
from pallas_kernels.gpu_levels import PART, SQUARE, Place, widened
from pallas_kernels.gpu_math import (
  LANES,
  ROWS,
  added_product,
  down,
  kernel,
  load,
  load_turned,
  matrix,
  product,
  store,
  summed_products,
)

Array = jax.Array
GROUPS = 2
E, F, E_TURNED, F_TURNED = range(4)
K_MET, WRITE_MET, QUERY_MET = range(gpu_levels.PIECES)  # factors of a level, where `pieces` of a sum lie at other times


class Found(NamedTuple):
  """What the kernel writes: dq, dk [B, T, HV, K] of each value head, dv [B, T, HV, V], dlog_decay [B, T, HV, K] in
  float32, and parts of dbeta [B, HV, N, parts, C] in float32."""

  q: Array
  k: Array
  v: Array
  log_decay: Array
  beta: Array


def gradients(
  layout: Layout, operands: Operands, gates: Channels, kept: Kept, back: Reversed, do: Array
) -> Operands:  # fmt: skip
  """Returns the cotangents of `operands` (None of `run`)."""
  return collected(layout, back, found(layout, operands, gates, kept, back, do))


def collected(layout: Layout, back: Reversed, got: Found) -> Operands:
  """Returns the cotangents of the operands: of key heads summed over those that read them."""
  dbeta = got.beta.sum(3).reshape(layout.B, layout.HV, layout.tokens)
  return Operands(grouped(layout, got.q), grouped(layout, got.k), got.v, dbeta, got.log_decay, back.dstate, None)


def found(
  layout: Layout, operands: Operands, gates: Channels, kept: Kept, back: Reversed, do: Array
) -> Found:  # fmt: skip
  """Returns what the kernel makes of all chunks."""
  B, N, HV, K, V, T = layout.B, layout.N, layout.HV, layout.K, layout.V, layout.tokens
  given = {
    **{name: getattr(operands, name) for name in ('q', 'k', 'v', 'beta', 'log_decay', 'run')},
    'do': do,
    'update': kept.update,
    'dr': back.dr,
    'states': kept.states,
    'after': back.after,
    'steepest': gates.steepest,
  }
  given = {name: x for name, x in given.items() if x is not None}
  slices = Slices.of(layout)
  values, keys, states = matrix((V, CHUNK)), gpu_levels.parts(slices.keys), gpu_levels.parts(slices.keys, V)
  late = V > 128  # the states after the chunk take the place of do
  if late and slices.keys != GROUPS * PART:
    raise ValueError(f'{slices.keys} channels a block, not {GROUPS * PART}: a second turn would find do gone')
  scratch = {
    'do_and_after': plgpu.RefUnion(matrix((CHUNK, V)), states) if late else (matrix((CHUNK, V)), states),
    'update': values,
    'dr': values,
    'q': keys,
    'k': keys,
    'states': states,
    'met': matrix((4, *SQUARE)),
    'steps': gpu_levels.pieces(GROUPS, count=gpu_levels.STEP_PIECES),
    'factors': gpu_levels.pieces(GROUPS),
    'diagonal': plgpu.SMEM((CHUNK,), jnp.float32),
    'beta': plgpu.SMEM((CHUNK,), jnp.float32),
    'values_here': plgpu.Barrier(num_arrivals=4 if layout.segments else 3),
    'keys_here': plgpu.Barrier(num_arrivals=(3 if late else 4) * slices.keys // PART),
    'both_met': plgpu.Barrier(num_arrivals=GROUPS),
  }
  if layout.segments:
    scratch |= {'run': plgpu.SMEM((CHUNK,), jnp.int32)}
  if late:
    scratch |= {'do_read': plgpu.Barrier(num_arrivals=GROUPS)}
    scratch |= {'after_here': plgpu.Barrier(num_arrivals=slices.keys // PART)}
  result = jax.ShapeDtypeStruct

  def body(*refs, do_and_after, **here):
    here['do'], here['after'] = do_and_after
    _block(layout, slices, dict(zip(given, refs, strict=False)), Found(*refs[len(given) :]), here)

  made = kernel(
    body,
    out_type=[
      result((B, T, HV, K), jnp.bfloat16),
      result((B, T, HV, K), jnp.bfloat16),
      result((B, T, HV, V), jnp.bfloat16),
      result((B, T, HV, K), jnp.float32),
      result((B, HV, N, K // PART + V // CHUNK, CHUNK), jnp.float32),
    ],
    # The slices of a head are neighbours, for what they all read to be in the second level cache.
    grid=(HV * slices.count, N, B),
    grid_names=('head', 'chunk', 'row'),
    num_threads=GROUPS,
    thread_name='warpgroup',
    scratch_types=scratch,
    compiler_params=plgpu.CompilerParams(approx_math=True, lowering_semantics=LANES),
    kernel_name='delta_rule_channel_gradient',
  )(*given.values())
  return Found(*made)


def _block(layout: Layout, slices: Slices, ins: dict, outs: Any, here: dict) -> None:
  place = gpu_levels.place(ins)
  cut: Any = 0
  if slices.count > 1:
    place, cut = place._replace(h=lax.div(place.h, jnp.int32(slices.count))), lax.rem(place.h, jnp.int32(slices.count))
  b, h, n, tokens = place[:4]
  group, parts, tiles = lax.axis_index('warpgroup'), slices.keys // PART, _tiles(layout)

  def fetch(names, arrived):
    for part in range(parts):
      columns = pl.ds((cut * parts + part) * PART, PART)
      for name in names:
        place_of = (b, tokens, layout.key_head(h)) if name in 'qk' else (b, h, n, slice(None))
        plgpu.copy_gmem_to_smem(ins[name].at[*place_of, columns], here[name].at[part], here[arrived])

  @pl.when(group == 0)
  def _():
    plgpu.copy_gmem_to_smem(ins['do'].at[b, tokens, h], here['do'], here['values_here'])
    for name in ('update', 'dr'):
      plgpu.copy_gmem_to_smem(ins[name].at[b, h, n], here[name], here['values_here'])
    if layout.segments:
      plgpu.copy_gmem_to_smem(place.run, here['run'], here['values_here'])
    fetch(('q', 'k', 'states') if 'after_here' in here else ('q', 'k', 'states', 'after'), 'keys_here')

  plgpu.barrier_wait(here['values_here'])
  place = place._replace(run=here.get('run'))

  @pl.when(group == 0)
  def _():
    # The sign is in the mask: a fresh accumulator that is negated before it is multiplied came out as zeros on 0.11.2.
    made = summed_products([(load_turned(here['dr'].at[tile]), here['update'].at[tile]) for tile in tiles])
    anew = place.anew()
    _both_ways(here['met'], E, E_TURNED, made * jnp.where(anew.seen() & (anew.i > anew.j), -1.0, 0.0))

  @pl.when(group == 1)
  def _():
    made = summed_products([(here['do'].at[:, tile], here['update'].at[tile]) for tile in tiles])
    anew = place.anew()
    # Registers have no room for what each token has but once: it is read where it is wanted.
    here['beta'][...] = load(ins['beta'].at[b, h, tokens], ROWS, optimized=False)
    here['diagonal'][...] = (made * jnp.where(anew.i == anew.j, layout.scale, 0.0)).sum(1)
    _both_ways(here['met'], F, F_TURNED, made * jnp.where(anew.seen() & (anew.i > anew.j), layout.scale, 0.0))

  plgpu.barrier_arrive(here['both_met'])
  beta = load(ins['beta'].at[b, h, tokens], ROWS, optimized=False)
  _values(layout, slices, cut, ins, outs, here, place, group, beta)
  plgpu.barrier_wait(here['both_met'])
  plgpu.barrier_wait(here['keys_here'])
  turns = parts // GROUPS
  first = gpu_levels.direct_level(ins['steepest'][b, h, n, 0])

  def do_read():
    """Says that this warpgroup reads do no more; when none does, the states after the chunk take its place."""
    if 'after_here' in here:
      plgpu.commit_smem()
      plgpu.barrier_arrive(here['do_read'])

      @pl.when(group == 0)
      def _():
        plgpu.barrier_wait(here['do_read'])
        fetch(('after',), 'after_here')

  @pl.loop(0, turns)
  def _(turn):
    part = cut * parts + group * turns + turn
    _channels(layout, slices, ins, outs, here, place, group, part, first, do_read)

  plgpu.wait_smem_to_gmem(0)


def _tiles(layout: Layout) -> list[Any]:
  """Returns the rows of V that a product over all of them takes at once: a first factor has at most 128 columns."""
  return [pl.ds(start, min(layout.V, 128)) for start in range(0, layout.V, 128)]


def _both_ways(met: Any, slot: int, turned: int, x: Array) -> None:
  """Writes x and its transpose to shared memory: turned once, it need not be at each level."""
  met.at[slot][...] = x.astype(jnp.bfloat16)
  plgpu.commit_smem()
  met.at[turned][...] = load_turned(met.at[slot])
  plgpu.commit_smem()


def _values(
  layout: Layout, slices: Slices, cut: Any, ins: dict, outs: Any, here: dict, place: Place, group: Any, beta: Array
) -> None:  # fmt: skip
  """Makes dv, and <v, dr>, of 64 columns of V."""
  tiles = slices.values // CHUNK

  @pl.when(group < tiles)
  def _():
    tile = cut * tiles + jnp.minimum(group, tiles - 1)
    columns = pl.ds(tile * CHUNK, CHUNK)
    dr = load_turned(here['dr'].at[columns]).astype(jnp.float32)
    values = ins['v'].at[place.b, place.tokens, place.h, columns]
    v_dr = (load(values, plgpu.Layout.WGMMA, optimized=False).astype(jnp.float32) * dr).sum(1)
    store(outs.beta.at[place.b, place.h, place.n, layout.K // PART + tile], v_dr)
    store(outs.v.at[place.b, place.tokens, place.h, columns], (dr * down(beta, SQUARE)).astype(jnp.bfloat16))


def _channels(
  layout: Layout, slices: Slices, ins: dict, outs: Any, here: dict, place: Place, group: Any, part: Any, first: Any,
  do_read: Any,
) -> None:  # fmt: skip
  """Makes the gradients of `PART` channels, and <k, x> over them.

  `part` is their number, `first` that of the level that meets directly. `do_read` is called when do has been read.
  """
  shape, columns, tiles = (CHUNK, PART), pl.ds(part * PART, PART), _tiles(layout)

  def own(name):
    """Returns what is this warpgroup's own, its address made anew, for the reason that `Place.anew` has."""
    return here[name].at[lax.optimization_barrier(group)]

  def held(name):
    return here[name].at[part if slices.count == 1 else lax.rem(part, jnp.int32(slices.keys // PART))]

  steps = gpu_levels.wide_steps(ins['log_decay'].at[place.b, place.tokens, place.h, columns])
  gpu_levels.split(steps, own('steps'))

  def operand(name):
    return widened(load(held(name), plgpu.Layout.WGMMA))

  def of_token(name):
    return down(load(here[name], ROWS, optimized=False), shape)

  def beta_k():
    return operand('k') * of_token('beta')

  def decay(counts, mask=None):
    anew = place.anew()
    made = jnp.exp2(gpu_levels.summed(gpu_levels.ones(counts(anew.i, anew.j)), own('steps')))
    return made if mask is None else made * down(mask, shape)

  def within_run(counts, of):
    """Returns sums of [C, PART] over the tokens j of the run of i that count."""
    gpu_levels.split(of, own('factors'))
    anew = place.anew()
    return gpu_levels.summed(gpu_levels.ones(counts(anew.i, anew.j) & anew.same_run()), own('factors'))

  rise = decay(lambda i, j: i >= j, place.ends().sees)
  states = held('states')
  x = summed_products([(load_turned(here['dr'].at[tile]), states.at[tile]) for tile in tiles]) * (-1.0 * rise)
  y = summed_products([(load(here['do'].at[:, tile], plgpu.Layout.WGMMA), states.at[tile]) for tile in tiles])
  y = y * (layout.scale * rise)
  do_read()
  dG = operand('q') * y + beta_k() * x
  itself = of_token('diagonal')  # cancels in dG
  x, y, z, dG = lax.fori_loop(
    jnp.maximum(first, 0),
    gpu_levels.LEVELS,
    lambda log_half, sums: _level(here, own, place, operand, beta_k, log_half, log_half == first, sums),
    (x, y + itself * operand('k'), itself * operand('q'), dG),
  )

  def handed_out(source, target, x):
    """Writes x by way of what it is the gradient of, which nothing reads any more."""
    source[...] = x.astype(source.dtype)
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(source, target.at[place.b, place.tokens, place.h, columns])

  handed_out(held('q'), outs.q, y)
  store(outs.beta.at[place.b, place.h, place.n, part], (operand('k') * x).sum(1))
  if 'after_here' in here:
    plgpu.barrier_wait(here['after_here'])
  after = held('after')
  w = summed_products([(load_turned(here['update'].at[tile]), after.at[tile]) for tile in tiles])
  w = w * decay(lambda i, j: i < j, place.ends().counts)
  k_w = operand('k') * w
  handed_out(held('k'), outs.k, x * of_token('beta') + z + w)
  dlog_decay = within_run(lambda i, j: i > j, k_w) + within_run(lambda i, j: i <= j, dG)
  dlog_decay = dlog_decay + _ends(layout, held, own, place, 0.0 * of_token('beta'), decay, place.ends().survives)
  part, b, h, n = lax.optimization_barrier((part, place.b, place.h, place.n))
  store(outs.log_decay.at[b, pl.ds(n * CHUNK, CHUNK), h, pl.ds(part * PART, PART)], dlog_decay)


def _ends(layout: Layout, held: Any, own: Any, place: Place, zero: Array, decay: Any, survives: Any) -> Array:
  """Returns e^(G_C) sum_v S dS' of each channel, the same for all tokens: each step decays all of what is kept."""

  def add_tile(tile, sums):
    state, after = (
      load(held(name).at[pl.ds(tile * CHUNK, CHUNK)], plgpu.Layout.WGMMA).astype(jnp.float32)
      for name in ('states', 'after')
    )
    return sums + state * after

  gpu_levels.split(lax.fori_loop(0, layout.V // CHUNK, add_tile, zero), own('factors'))
  sums = gpu_levels.summed(gpu_levels.ones(place.anew().i >= 0), own('factors'))
  keep = decay(lambda i, j: i >= 0)
  return sums * keep if survives is None else sums * keep * survives


def _level(here: dict, own: Any, place: Place, operand: Any, beta_k: Any, log_half: Any, direct: Any, sums: Any) -> Any:
  """Returns the sums with the pairs of tokens that meet at one level."""
  x, y, z, dG = sums
  factors = own('factors')
  fall = gpu_levels.summed(gpu_levels.between(place.anew(), log_half, direct), own('steps'))
  rise, fall = jnp.exp2(fall), jnp.exp2(fall * jnp.where(direct, -1.0, 1.0))
  factors.at[K_MET][...] = (operand('k') * fall).astype(jnp.bfloat16)
  factors.at[WRITE_MET][...] = (beta_k() * rise).astype(jnp.bfloat16)
  factors.at[QUERY_MET][...] = (operand('q') * rise).astype(jnp.bfloat16)
  plgpu.commit_smem()

  def factor(slot):
    return load(factors.at[slot], plgpu.Layout.WGMMA).astype(jnp.float32)

  pairs = gpu_levels.ones(gpu_levels.met(place.anew(), log_half, direct))

  def met(slot):
    return load(here['met'].at[slot], plgpu.Layout.WGMMA) * pairs

  rows = product(met(E), factors.at[K_MET])
  x, dG = x + rise * rows, dG + factor(WRITE_MET) * rows
  rows = product(met(F), factors.at[K_MET])
  y, dG = y + rise * rows, dG + factor(QUERY_MET) * rows
  columns = product(met(E_TURNED), factors.at[WRITE_MET])
  columns = added_product(columns, met(F_TURNED), factors.at[QUERY_MET])
  return x, y, z + fall * columns, dG - factor(K_MET) * columns
