"""The public operations: what they check, and which implementation answers: the first row that does not refuse."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels import reference, sequence, stepping, variance
from pallas_kernels.implementations import IMPLEMENTATIONS
from pallas_kernels.rows import CONVOLUTIONS, Call, ConvolutionCall, Implementation, wide

Array = jax.Array
FORGETS = -105.0  # exp of it is zero in float32


def delta_rule(
  q: Array,
  k: Array,
  v: Array,
  beta: Array,
  log_decay: Array | None = None,
  *,
  scale: float | None = None,
  initial_state: Array | None = None,
  segment_ids: Array | None = None,
  chunk_size: int | None = None,
  precision: lax.PrecisionLike = None,
  recompute: bool = False,
  implementation: str | None = None,
  axis_name: Any = None,
) -> tuple[Array, Array]:
  """Returns (o [B, T, HV, V] in the type of v, final state [B, HV, K, V] in float32) of the delta rule.

  Each value head keeps a state S of K x V. A token decays it, S <- exp(log_decay) S, writes what its key recalls
  wrongly, S <- S + k (beta (v - S^T k))^T, and reads, o = scale S^T q. Keys are expected to be normalised
  (`l2_normalise`); beta lies in [0, 1], or in [0, 2] where negative eigenvalues are wanted.

  Differentiable in every array but `segment_ids`, and through the final state. Works under `jit`, `vmap`, `scan`,
  `shard_map` over batch, heads or tokens (`axis_name`), and remat; residuals carry the names in
  `implementations.RESIDUALS`.

  Args:
    q, k: [B, T, H, K].
    v: [B, T, HV, V]; HV is a multiple of H, and value head h reads key head h * H // HV.
    beta: [B, T, HV], the strength of each write.
    log_decay: at most zero; -105 and less forgets all. None (DeltaNet), [B, T, HV] (Gated DeltaNet) or [B, T, HV, K]
      (Kimi Delta Attention).
    scale: of the reads; K ** -0.5 if None.
    initial_state: [B, HV, K, V], the state before the first token; zero if None. `stepping.carried` replaces it.
    segment_ids: integers [B, T]. A token whose id differs from the one before starts from a zero state. The first
      token continues from `initial_state`; the final state is that of the last segment.
    chunk_size: tokens done at once, a power of two; chosen from the shapes if None. T may be any length.
    precision: of the matrix products; None is HIGHEST for operands of 32 bits and more.
    recompute: keep only the operands for the backward pass and make the rest again: less memory, more work.
    implementation: a key of IMPLEMENTATIONS, or None for the first that supports the call. 'mosaic_gpu' answers by name
      alone what is compiled, not yet run on hardware: a decay a channel, and grouped heads of more than 128.
    axis_name: the mesh axis that the tokens are spread over, inside `shard_map`: each shard gives its own T tokens, in
      the order of the axis, and `segment_ids` of them. The result is that of all tokens on one device: `initial_state`
      comes before the first token of all, and the final state after the last of all, both the same on every shard.
      Where P shards do not divide a length, append tokens of beta 0, log_decay 0 and the last id: they change no state.
      Each device receives (P - 1) B HV K (K + V) entries forward and (P - 1) B HV K V backward; details in `sequence`.

  Raises:
    ValueError: shapes or options that contradict each other; `axis_name` where no such axis is mapped.
    NotImplementedError: the implementation asked for, or every one, refuses the call; names each reason.
  """
  B, T, H, K = _shape('q', q, 4)
  HV, V = _shape('v', v, 4)[2:]
  _expect('k', k, (B, T, H, K))
  _expect('v', v, (B, T, HV, V))
  _expect('beta', beta, (B, T, HV))
  if HV % H:
    raise ValueError(f'v has {HV} heads, which is no multiple of the {H} heads of q and k')
  if T == 0:
    raise ValueError('T is 0: the delta rule needs at least one token')
  decay = 'none'
  if log_decay is not None:
    decay = 'scalar' if log_decay.ndim == 3 else 'channel'
    _expect('log_decay', log_decay, (B, T, HV) if decay == 'scalar' else (B, T, HV, K))
  if (tape := _tape(axis_name)) is not None:
    initial_state = tape.begin(initial_state)
  if initial_state is not None:
    _expect('initial_state', initial_state, (B, HV, K, V))
  if chunk_size is not None and (chunk_size < 1 or chunk_size & (chunk_size - 1)):
    raise ValueError(f'chunk_size is {chunk_size}; it must be a power of two, such as 32 or 64')
  run_BT = None if segment_ids is None else _runs(segment_ids, (B, T), axis_name)
  if tape is not None and T == 1 and initial_state is not None and run_BT is None:
    decay_BH = None if log_decay is None else log_decay[:, 0]
    o, state = delta_rule_step(q[:, 0], k[:, 0], v[:, 0], beta[:, 0], decay_BH, initial_state, scale=scale)
    tape.left.append(state)
    return o[:, None], state

  log_decay = _bounded(log_decay)
  dtype = jnp.result_type(q, k, v)
  compute = jnp.promote_types(jnp.result_type(dtype, beta, *(() if log_decay is None else (log_decay,))), jnp.float32)
  if precision is None:
    precision = lax.Precision.HIGHEST if dtype.itemsize >= 4 else lax.Precision.DEFAULT
  call = Call(
    B, T, H, HV, K, V, decay, run_BT is not None, dtype, compute,
    K**-0.5 if scale is None else scale, chunk_size, precision, recompute, implementation is not None,
  )  # fmt: skip
  if initial_state is None:
    initial_state = jnp.zeros((B, HV, K, V), compute)
  run = functools.partial(_answer, implementation)
  if axis_name is None:
    o, state = run(call, *_same_variance(q, k, v, beta, log_decay, initial_state, run_BT))
  else:  # what shards hand on is not rounded
    operands = wide(call, q, k, v, beta, log_decay, initial_state)
    *operands, _ = _same_variance(*operands, run_BT, sequence.position(axis_name))
    o, state = sequence.delta_rule(sequence.Op(run, call, axis_name), *operands)
  if tape is not None:
    tape.left.append(state)
  return o.astype(v.dtype), state


def _bounded(log_decay: Array | None) -> Array | None:
  """Returns log decays that sums of a chunk's can be made of: what is below `FORGETS` forgets all, and would round away
  whatever is added to it later, or as -inf become NaN."""
  return None if log_decay is None else jnp.maximum(log_decay, FORGETS)


def _answer(implementation: str | None, call: Call, *operands):
  return chosen(IMPLEMENTATIONS, 'delta_rule', implementation, call).run(call, *operands)


def delta_rule_step(
  q: Array,
  k: Array,
  v: Array,
  beta: Array,
  log_decay: Array | None,
  state: Array,
  *,
  scale: float | None = None,
) -> tuple[Array, Array]:
  """Returns (o [B, HV, V] in the type of v, state [B, HV, K, V]) after one token: `delta_rule` for decoding.

  Args:
    q, k: [B, H, K].
    v: [B, HV, V].
    beta: [B, HV].
    log_decay: None, [B, HV] or [B, HV, K].
    state: [B, HV, K, V], as `delta_rule` or the last step returned it; zeros to begin.
    scale: of the read; K ** -0.5 if None.

  Raises:
    ValueError: shapes that contradict each other.
  """
  B, H, K = _shape('q', q, 3)
  HV, V = _shape('v', v, 3)[1:]
  _expect('k', k, (B, H, K))
  _expect('v', v, (B, HV, V))
  _expect('beta', beta, (B, HV))
  _expect('state', state, (B, HV, K, V))
  if HV % H:
    raise ValueError(f'v has {HV} heads, which is no multiple of the {H} heads of q and k')
  if log_decay is not None:
    _expect('log_decay', log_decay, (B, HV) if log_decay.ndim == 2 else (B, HV, K))
  log_decay = _bounded(log_decay)
  compute = jnp.promote_types(jnp.result_type(q, k, v, state), jnp.float32)
  operands: list[Any] = [None if x is None else x.astype(compute) for x in (q, k, v, beta, log_decay, state)]
  o, state = reference.delta_rule_step(*operands, scale=K**-0.5 if scale is None else scale)
  return o.astype(v.dtype), state


def causal_conv(
  x: Array,
  weight: Array,
  *,
  initial_state: Array | None = None,
  segment_ids: Array | None = None,
  implementation: str | None = None,
  axis_name: Any = None,
) -> tuple[Array, Array]:
  """Returns (y [B, T, D] in the type of x, final state [B, W - 1, D]) of a depthwise causal convolution.

  y_t = sum over w of weight[w] x[t - (W - 1) + w]: the last tap meets the current token. The final state holds the
  last W - 1 inputs of the last segment, and is what the next call takes as `initial_state`.

  Args:
    x: [B, T, D].
    weight: [W, D], W from 1 to 128.
    initial_state: [B, W - 1, D], the inputs before the first token; zero if None.
    segment_ids: integers [B, T]; taps do not reach over a change of id. The first token continues `initial_state`.
    implementation: a key of CONVOLUTIONS, or None for the first that supports the call.
    axis_name: the mesh axis that the tokens are spread over, inside `shard_map`, as `delta_rule` has it: both states
      are those of all tokens, the same on every shard. Each device receives the B (W - 1) D inputs before its own.

  Raises:
    ValueError: shapes that contradict each other, W out of range, or `axis_name` where no such axis is mapped.
    NotImplementedError: the implementation asked for, or every one, refuses the call; names each reason.
  """
  B, T, D = _shape('x', x, 3)
  W = _shape('weight', weight, 2)[0]
  _expect('weight', weight, (W, D))
  if not 1 <= W <= 128:
    raise ValueError(f'weight has {W} taps; 1 to 128 are supported: use a recurrence or an FFT for longer filters')
  if (tape := _tape(axis_name)) is not None:
    initial_state = tape.begin(initial_state)
  if initial_state is not None:
    _expect('initial_state', initial_state, (B, W - 1, D))
  run_BT = None if segment_ids is None else _runs(segment_ids, (B, T), axis_name)
  if tape is not None and T == 1 and initial_state is not None and run_BT is None:
    y, state = causal_conv_step(x[:, 0], weight, initial_state)
    tape.left.append(state)
    return y[:, None], state
  if initial_state is None:
    initial_state = jnp.zeros((B, W - 1, D), x.dtype)
  place = None if axis_name is None else sequence.position(axis_name)
  x, weight, initial_state, run_BT, _ = _same_variance(x, weight, initial_state.astype(x.dtype), run_BT, place)
  if axis_name is not None:
    initial_state = sequence.halo(x, initial_state, segment_ids, axis_name)
  call = ConvolutionCall(B, T, D, W, run_BT is not None)
  compute = jnp.promote_types(jnp.result_type(x, weight), jnp.float32)
  operands = (operand.astype(compute) for operand in (x, weight, initial_state))
  y = chosen(CONVOLUTIONS, 'causal_conv', implementation, call).run(*operands, run_BT)
  seen = jnp.concatenate([initial_state, x], 1)[:, T:]
  if run_BT is not None:
    run_seen = jnp.pad(run_BT, [(0, 0), (W - 1, 0)])[:, T:]
    seen = jnp.where((run_seen == run_BT[:, -1:])[..., None], seen, 0)
  if tape is not None:
    tape.left.append(seen)
  return y.astype(x.dtype), seen if axis_name is None else sequence.of_last_shard(seen, axis_name)


def _tape(axis_name: Any) -> stepping.Tape | None:
  tape = stepping.current()
  if tape is not None and axis_name is not None:
    raise ValueError('tokens that are spread over devices (axis_name) cannot be carried from piece to piece')
  return tape


def causal_conv_step(x: Array, weight: Array, state: Array) -> tuple[Array, Array]:
  """Returns (y [B, D], state [B, W - 1, D]) after one token x [B, D]: `causal_conv` for decoding.

  Raises:
    ValueError: shapes that contradict each other.
  """
  B, D = _shape('x', x, 2)
  W = _shape('weight', weight, 2)[0]
  _expect('weight', weight, (W, D))
  _expect('state', state, (B, W - 1, D))
  window = jnp.concatenate([state, x[:, None].astype(state.dtype)], 1)
  compute = jnp.promote_types(jnp.result_type(x, weight), jnp.float32)  # as `causal_conv` does
  return (window.astype(compute) * weight.astype(compute)).sum(1).astype(x.dtype), window[:, 1:]


def _shape(name: str, x: Array, rank: int) -> tuple[int, ...]:
  if x.ndim != rank:
    raise ValueError(f'{name} has shape {x.shape}; {rank} axes are expected')
  return x.shape


def _expect(name: str, x: Array, shape: tuple[int, ...]) -> None:
  if x.shape != shape:
    raise ValueError(f'{name} has shape {x.shape}; the other operands imply {shape}')


def _runs(segment_ids: Array, shape: tuple[int, int], axis_name: Any = None) -> Array:
  """Returns how many times the id has changed up to each token: ids that come back are new segments."""
  _expect('segment_ids', segment_ids, shape)
  if axis_name is not None:
    return sequence.runs(segment_ids, axis_name)
  changes = segment_ids[:, 1:] != segment_ids[:, :-1]
  return jnp.pad(jnp.cumsum(changes, 1, dtype=jnp.int32), [(0, 0), (1, 0)])


def _same_variance(*arrays: Any) -> list[Any]:
  """Returns the arrays, each made to vary over every mesh axis that one of them varies over inside `shard_map`."""
  axes = [variance.axes(x) for x in arrays]
  every = frozenset().union(*axes)
  return [
    x if x is None or not every - mine else lax.pcast(x, tuple(sorted(every - mine)), to='varying')
    for x, mine in zip(arrays, axes, strict=True)
  ]


def chosen(table: dict[str, Implementation], operation: str, name: str | None, call: Any) -> Implementation:
  if name is not None and name not in table:
    raise ValueError(f'{operation} has no implementation {name!r}; there are {", ".join(table)}')
  reasons = {row: table[row].refuses(call) for row in (table if name is None else (name,))}
  for row, reason in reasons.items():
    if reason is None:
      return table[row]
  listed = '; '.join(f'{row}: {reason}' for row, reason in reasons.items())
  raise NotImplementedError(f'no implementation of {operation} supports this call ({listed})')
