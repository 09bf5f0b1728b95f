"""The forward kernel of the delta rule for TPU: one sweep over chunks for each row and group of value heads.

The state stays in VMEM from chunk to chunk. Grid (B, HV / heads, N): the chunks of a group follow each other. The maths
stands in `tpu_math`; here is which block of which operand a step sees.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import tpu_math
from pallas_kernels.variance import varying_like

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Layout:
  """The static sizes of a call to the kernels: T is N chunks of C tokens, a grid step does `heads` of HV value heads.

  `heads` divides HV, and either holds whole groups of HV / H value heads or divides one.
  """

  B: int
  N: int
  C: int
  H: int
  HV: int
  K: int
  V: int
  heads: int
  decay: str  # 'none', 'scalar' or 'channel'
  segments: bool
  scale: float
  exact: bool  # float32 products at HIGHEST, else bfloat16 ones
  vmem_bytes: int | None = None

  @property
  def tokens(self) -> int:
    return self.N * self.C

  @property
  def groups(self) -> int:
    """How many value heads of one step read the same key head."""
    return min(self.HV // self.H, self.heads)

  @property
  def key_heads(self) -> int:
    return self.heads // self.groups

  @property
  def products(self) -> tpu_math.Products:
    return tpu_math.Products(self.exact)


class Operands(NamedTuple):
  """Operands as the kernels take them: q, k [B, T, H*K]; v [B, T, HV*V]; beta [B, HV, T]; log_decay None, [B, HV, T]
  or [B, T, HV*K]; state [B, HV, K, V]; run [B, T], as in `xla.delta_rule`, or None. Gates and state are float32."""

  q: Any
  k: Any
  v: Any
  beta: Any
  log_decay: Any
  state: Any
  run: Any


class Blocks(NamedTuple):
  """The operands of a kernel and the block of each that a step sees; None where there is no such operand."""

  arrays: Operands
  specs: Operands


def blocks(layout: Layout, operands: Operands, chunk=lambda n: n) -> Blocks:
  """Returns the operands cut into blocks of one chunk and group; step n of the grid sees chunk `chunk(n)`.

  Rows of gates come as [B, HV / heads, N, heads, C] and runs as [B, N, 1, C], counted from the last token of the chunk
  before (0 sees the state that the chunk receives), so that a block is a whole tile whatever the sizes.
  """
  B, N, C, heads = layout.B, layout.N, layout.C, layout.heads
  key_step = layout.heads * layout.H // (layout.HV * layout.key_heads) if layout.heads >= layout.HV // layout.H else 0

  def key_group(h):
    return h * key_step if key_step else h * layout.heads * layout.H // layout.HV

  def tokens(width, group=lambda h: h):
    return pl.BlockSpec((1, C, width), lambda b, h, n: (b, chunk(n), group(h)))

  def rows(x_BHT):
    return x_BHT.reshape(B, layout.HV // heads, heads, N, C).swapaxes(2, 3)

  keys = tokens(layout.key_heads * layout.K, key_group)
  row_spec = pl.BlockSpec((1, 1, 1, heads, C), lambda b, h, n: (b, h, chunk(n), 0, 0))
  log_decay, log_decay_spec = operands.log_decay, None
  if layout.decay == 'scalar':
    log_decay, log_decay_spec = rows(log_decay), row_spec
  elif layout.decay == 'channel':
    log_decay_spec = tokens(heads * layout.K)
  run, run_spec = None, None
  if operands.run is not None:
    run_BNC = operands.run.reshape(B, N, C)
    before_BN = jnp.pad(run_BNC[:, :-1, -1], [(0, 0), (1, 0)])
    run = (run_BNC - before_BN[..., None]).astype(jnp.float32)[:, :, None]
    run_spec = pl.BlockSpec((1, 1, 1, C), lambda b, h, n: (b, chunk(n), 0, 0))
  return Blocks(
    Operands(operands.q, operands.k, operands.v, rows(operands.beta), log_decay, operands.state, run),
    Operands(keys, keys, tokens(heads * layout.V), row_spec, log_decay_spec, state_spec(layout), run_spec),
  )


def state_spec(layout: Layout) -> pl.BlockSpec:
  return pl.BlockSpec((1, layout.heads, layout.K, layout.V), lambda b, h, n: (b, h, 0, 0))


def residual_specs(layout: Layout, chunk=lambda n: n) -> tuple[pl.BlockSpec, pl.BlockSpec]:
  """Returns the blocks of `inverse` [B, HV, N, C, C] and of `states` [B, HV, N, K, V]."""

  def spec(*shape):
    return pl.BlockSpec((1, layout.heads, 1, *shape), lambda b, h, n: (b, h, chunk(n), 0, 0))

  return spec(layout.C, layout.C), spec(layout.K, layout.V)


def head_slices(x_CD: Array, heads: int) -> list[Array]:
  """Returns the heads of [C, heads * D], each [C, D]."""
  D = x_CD.shape[1] // heads
  return [x_CD[:, h * D : (h + 1) * D] for h in range(heads)]


class Chunk(NamedTuple):
  """A chunk of a group made ready, a list over value heads: what is known before the state is."""

  q: list[Array]
  k: list[Array]
  beta: list[Array]
  gates: tpu_math.Gates
  lower: list[Array]  # I + A, A of `chunk_math`
  read: list[Array]  # P


def prepared(layout: Layout, q_CK: Array, k_CK: Array, beta_HC: Array, log_decay, run_1C: Array | None) -> Chunk:
  """Returns the chunk whose blocks are given: q and k of all key heads side by side, gates of all value heads."""
  products, groups = layout.products, layout.groups
  grid = tpu_math.grid(layout.C, run_1C)
  qs, ks = (head_slices(x, layout.key_heads) for x in (q_CK, k_CK))
  every_q, every_k = ([x for x in xs for _ in range(groups)] for xs in (qs, ks))
  if layout.decay == 'channel':
    every_q, every_k = ([x.astype(jnp.float32) for x in xs] for xs in (every_q, every_k))
    log_decays = head_slices(log_decay * tpu_math.LOG2_E, layout.heads)
    totals = tpu_math.running_sums_down(log_decays, grid)
    gates = tpu_math.channel_gates(totals, run_1C)
    (betas,) = tpu_math.spread([beta_HC])
    kks, reads = tpu_math.anchored_grams(products, every_q, every_k, totals, grid)
  else:
    betas, gates = tpu_math.scalar_gates(beta_HC, log_decay, run_1C, grid)
    kks, reads = tpu_math.decayed_grams(*tpu_math.grams(products, qs, ks), gates.decay, grid, groups)
  identity = grid.identity()
  lowers = [
    jnp.where(grid.below, kk * tpu_math.across(beta, layout.C), identity) for kk, beta in zip(kks, betas, strict=True)
  ]
  return Chunk(every_q, every_k, betas, gates, lowers, reads)


class Outputs(NamedTuple):
  """What the kernel writes; the two residuals where they are asked for."""

  o: Any
  last: Any
  inverse: Any = None
  states: Any = None


def _kernel(layout: Layout, ins: Operands, outs: Outputs, state, scratch) -> None:
  """One grid step: from blocks to blocks, the state carried in VMEM."""
  n = pl.program_id(2)

  @pl.when(n == 0)
  def _():
    state[...] = ins.state[0]

  products = layout.products
  run_1C = None if ins.run is None else ins.run[0, 0]
  log_decay = None if ins.log_decay is None else ins.log_decay[(0,) * (len(ins.log_decay.shape) - 2)]
  chunk = prepared(layout, ins.q[0], ins.k[0], ins.beta[0, 0, 0], log_decay, run_1C)
  grid = tpu_math.grid(layout.C, None)
  inverses = tpu_math.unit_lower_inverses(products, chunk.lower, grid, scratch)
  received = [state[h] for h in range(layout.heads)]
  vs = head_slices(ins.v[0], layout.heads)
  done = tpu_math.applied(
    products, chunk.q, chunk.k, vs, chunk.beta, chunk.gates, inverses, chunk.read, received, layout.decay == 'channel'
  )
  V = layout.V
  for h in range(layout.heads):
    if outs.inverse is not None:
      outs.inverse[0, h, 0] = inverses[h].astype(outs.inverse.dtype)
      outs.states[0, h, 0] = received[h].astype(outs.states.dtype)
    outs.o[0, :, h * V : (h + 1) * V] = (done.o[h] * layout.scale).astype(outs.o.dtype)
    state[h] = done.states[h]

  @pl.when(n == layout.N - 1)
  def _():
    outs.last[0] = state[...]


def forward(
  layout: Layout, operands: Operands, *, residuals: bool = False, interpret: Any = False
) -> tuple[Array, ...]:
  """Returns (o [B, T, HV*V] in the type of v, final state [B, HV, K, V] in float32), and where `residuals` is asked
  for (inverse [B, HV, N, C, C], states [B, HV, N, K, V] that the chunks receive) in the type of the products."""
  B, N, C, HV, K, V = layout.B, layout.N, layout.C, layout.HV, layout.K, layout.V
  given = blocks(layout, operands)
  result = functools.partial(varying_like, operands.v)
  out_shapes = [result((B, layout.tokens, HV * V), operands.v.dtype), result((B, HV, K, V), jnp.float32)]
  out_specs = [given.specs.v, state_spec(layout)]
  if residuals:
    dtype = layout.products.dtype
    out_shapes += [result((B, HV, N, C, C), dtype), result((B, HV, N, K, V), dtype)]
    out_specs += residual_specs(layout)
  present = [n for n, x in enumerate(given.arrays) if x is not None]

  def kernel(*refs):
    ins = dict(zip(present, refs, strict=False))
    *outs, state, scratch = refs[len(present) :]
    _kernel(layout, Operands(*map(ins.get, range(len(Operands._fields)))), Outputs(*outs), state, scratch)

  kinds = [layout.decay] + ['packed'] * layout.segments + ['grouped'] * (layout.HV > layout.H)
  return pl.pallas_call(
    kernel,
    grid=(B, HV // layout.heads, N),
    in_specs=[given.specs[n] for n in present],
    out_specs=out_specs,
    out_shape=out_shapes,
    scratch_shapes=[
      pltpu.VMEM((layout.heads, K, V), jnp.float32),
      pltpu.VMEM((tpu_math.LANES, tpu_math.LANES), jnp.float32),
    ],
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=('parallel', 'parallel', 'arbitrary'), vmem_limit_bytes=layout.vmem_bytes
    ),
    interpret=interpret,
    name='delta_rule_forward_' + '_'.join(kinds),
  )(*(given.arrays[n] for n in present))
