"""The equations of the GPU's backward pass, written again in plain JAX, against the derivative of the XLA form.

The kernels themselves run on a Hopper GPU only (mosaic_gpu_test.py); what is the same there as here is checked here.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from pallas_kernels import chunk_math, gpu_channels, gpu_gradient, gpu_layout, specs, xla
from pallas_kernels.gpu_layout import CHUNK, Layout, Operands
from tests.pallas_kernels import draws


def laid_out(spec, drawn, ids):
  """Returns (Layout, Operands) in the type of the draw; T is a multiple of the chunk."""
  layout = Layout(
    spec.B, spec.T // CHUNK, spec.H, spec.HV, spec.K, spec.V, spec.decay, ids is not None, spec.K**-0.5
  )  # fmt: skip
  run = None
  if ids is not None:
    run = jnp.pad(jnp.cumsum(jnp.asarray(ids[:, 1:] != ids[:, :-1]), 1, dtype=jnp.int32), [(0, 0), (1, 0)])
  rows = {name: jnp.swapaxes(drawn[name], 1, 2) for name in ('beta', 'log_decay') if name in drawn}
  state = jnp.swapaxes(drawn['initial_state'], 2, 3)
  return layout, Operands(*(drawn[x] for x in 'qkv'), rows['beta'], rows.get('log_decay'), state, run)


def gates_of(layout, log_decay, run_BT):
  """Returns the gates of all chunks, as `gpu_gram` makes them."""
  B, N, HV = layout.B, layout.N, layout.HV
  rise = fall = jnp.ones((B, HV, N, CHUNK), jnp.float32)
  run_BNC, before_BN1, total = None, None, None
  if run_BT is not None:
    run_BNC = run_BT.reshape(B, 1, N, CHUNK)
    before_BN1 = jnp.pad(run_BNC[:, :, :-1, -1:], [(0, 0), (0, 0), (1, 0), (0, 0)])
  if log_decay is not None and layout.decay == 'scalar':
    i, j = (lax.broadcasted_iota(jnp.int32, (CHUNK, CHUNK), axis) for axis in (0, 1))
    counted = i >= j
    if run_BNC is not None:
      counted = counted & (run_BNC[..., :, None] == run_BNC[..., None, :])
    steps = (log_decay * gpu_layout.LOG2_E).reshape(B, HV, N, CHUNK)
    # As products and sums of its own, in full precision: a matrix product of float32 would be one of 10 bits here.
    total = jnp.sum(jnp.where(counted, steps[..., None, :], 0.0), -1)
    rise, fall = jnp.exp2(total), jnp.exp2(jnp.minimum(total[..., -1:] - total, 0.0))
    total = total.reshape(B, HV, layout.tokens)
  if run_BNC is not None:
    rise = jnp.where(run_BNC == before_BN1, rise, 0.0)
    fall = jnp.where(run_BNC == run_BNC[..., -1:], fall, 0.0)
  return gpu_layout.Gates(total, jnp.stack([rise, fall, rise * layout.scale], 3))


def swept(layout, operands, gates):
  """Returns (o, S^T after the last token, what the forward kernels keep), chunk after chunk."""
  B, N, HV = layout.B, layout.N, layout.HV
  q, k, v = (jnp.repeat(x, HV // x.shape[2], 2).reshape(B, N, CHUNK, HV, -1) for x in operands[:3])
  q, k, v = (x.transpose(0, 3, 1, 2, 4) for x in (q, k, v))
  beta = operands.beta.reshape(B, HV, N, CHUNK)
  total = None if gates.total is None else gates.total.reshape(B, HV, N, CHUNK) * np.log(2)
  run = None if operands.run is None else operands.run.reshape(B, 1, N, CHUNK)
  kk, read = chunk_math.decayed_grams(q * layout.scale, k, total, run, 'highest')
  inverse = chunk_math.unit_lower_inverse(beta[..., None] * kk, 'highest')

  def step(state, chunk):
    q, k, v, beta, inverse, read, (rise, fall, reads) = chunk
    wrong = v - rise[..., None] * jnp.einsum('bhck,bhvk->bhcv', k, state)
    u = jnp.einsum('bhij,bhjv->bhiv', inverse, beta[..., None] * wrong)
    o = reads[..., None] * jnp.einsum('bhck,bhvk->bhcv', q, state) + jnp.einsum('bhij,bhjv->bhiv', read, u)
    after = rise[..., -1, None, None] * state + jnp.einsum('bhcv,bhck->bhvk', u * fall[..., None], k)
    return after, (o, state, u.swapaxes(2, 3))

  def by_chunk(x):
    return jnp.moveaxis(x, 2, 0)

  factors = tuple(by_chunk(gates.factors[..., row, :]) for row in range(3))
  last, (o, states, update) = lax.scan(step, operands.state, (*map(by_chunk, (q, k, v, beta, inverse, read)), factors))
  o = o.transpose(1, 0, 3, 2, 4).reshape(B, layout.tokens, HV, -1)
  return o, last, gpu_layout.Kept(inverse, jnp.moveaxis(states, 0, 2), read, jnp.moveaxis(update, 0, 2))


def reversed_sweep(layout, operands, gates, kept, do, dlast):
  """Returns what `gpu_reverse.reverse` does, chunk before chunk."""
  B, N, HV = layout.B, layout.N, layout.HV
  q, k, do = (
    jnp.repeat(x, HV // x.shape[2], 2).reshape(B, N, CHUNK, HV, -1).transpose(0, 3, 1, 2, 4)
    for x in (operands.q, operands.k, do)
  )
  beta = operands.beta.reshape(B, HV, N, CHUNK)

  def step(after, chunk):
    q, k, do, beta, inverse, read, (rise, fall, reads) = chunk
    du = jnp.einsum('bhiv,bhij->bhvj', do, read) + jnp.einsum('bhvk,bhck->bhvc', after, k) * fall[..., None, :]
    dr = jnp.einsum('bhvi,bhij->bhvj', du, inverse)
    before = rise[..., -1, None, None] * after + jnp.einsum('bhcv,bhck->bhvk', do * reads[..., None], q)
    before = before - jnp.einsum('bhvc,bhck->bhvk', dr * (beta * rise)[..., None, :], k)
    return before, (after, dr)

  def by_chunk(x):
    return jnp.moveaxis(x, 2, 0)

  factors = tuple(by_chunk(gates.factors[..., row, :]) for row in range(3))
  chunks = (*map(by_chunk, (q, k, do, beta, kept.inverse, kept.read)), factors)
  dstate, (after, dr) = lax.scan(step, dlast, chunks, reverse=True)
  return gpu_gradient.Reversed(jnp.moveaxis(after, 0, 2), jnp.moveaxis(dr, 0, 2), dstate)


def products(layout, operands, gates, kept, back, do):
  """Returns what `gpu_gradient.found` does, by products of all chunks at once."""
  B, N, HV = layout.B, layout.N, layout.HV

  def chunks(x):
    return jnp.repeat(x, HV // x.shape[2], 2).reshape(B, N, CHUNK, HV, -1).transpose(0, 3, 1, 2, 4)

  def tokens(x):
    return x.transpose(0, 2, 3, 1, 4).reshape(B, layout.tokens, HV, -1)

  q, k, v, do = map(chunks, (operands.q, operands.k, operands.v, do))
  beta = operands.beta.reshape(B, HV, N, CHUNK, 1)
  rise, fall, read = (gates.factors[..., row, :, None] for row in range(3))
  i, j = np.indices((CHUNK, CHUNK))
  seen = i >= j
  if layout.segments:
    run = operands.run.reshape(B, 1, N, CHUNK)
    seen = seen & (run[..., :, None] == run[..., None, :])
  decay = jnp.where(seen, 1.0, 0.0)
  if gates.total is not None:
    total = gates.total.reshape(B, HV, N, CHUNK)
    decay = jnp.exp2(jnp.where(seen, total[..., :, None] - total[..., None, :], gpu_layout.NEVER))

  dr, u = back.dr.swapaxes(3, 4), kept.update.swapaxes(3, 4)
  E, F = -(dr @ kept.update) * decay * (i > j), layout.scale * (do @ kept.update) * decay
  x, y = E @ k - rise * (dr @ kept.states), F @ k + read * (do @ kept.states)
  z_out = fall * (u @ back.after)
  z = E.swapaxes(3, 4) @ (beta * k) + F.swapaxes(3, 4) @ q + z_out
  states = (kept.states * back.after).sum(-1).reshape(B, HV, N, -1, 8).sum(-2)
  states = jnp.pad(states, [(0, 0)] * 3 + [(0, CHUNK - states.shape[-1])])
  rows = ((q * y).sum(-1), (beta * k * x).sum(-1), (k * z).sum(-1), (k * z_out).sum(-1), states)
  sums = jnp.stack([*rows, (k * x).sum(-1) + (v * dr).sum(-1)], 3)
  return gpu_gradient.Found(tokens(y), tokens(beta * x + z), tokens(beta * dr), sums)


CASES = {
  'plain': specs.Spec(2, 128, 2, 2, 16, 8),
  'scalar': specs.Spec(1, 192, 2, 2, 8, 16, 'scalar'),
  'grouped': specs.Spec(2, 128, 1, 3, 8, 8, 'scalar'),
  'packed': specs.Spec(2, 192, 2, 2, 16, 16, 'none', boundary=0.05),
  'packed_scalar': specs.Spec(2, 192, 1, 2, 16, 16, 'scalar', boundary=0.05),
  'forgets_at_once': specs.Spec(1, 128, 2, 2, 16, 16, 'scalar', decay_rate=0.01),
}


CHANNELS = {
  'channel': specs.Spec(1, 128, 2, 2, 8, 16, 'channel'),
  'grouped': specs.Spec(1, 128, 1, 2, 8, 8, 'channel'),
  'packed': specs.Spec(2, 128, 2, 2, 8, 8, 'channel', boundary=0.05),
}


def channel_gradients(layout, operands, do, dlast):
  """Returns the gradients of a decay a channel, from sweeps written chunk after chunk."""
  B, N, HV = layout.B, layout.N, layout.HV

  def chunks(x):
    return jnp.repeat(x, HV // x.shape[2], 2).reshape(B, N, CHUNK, HV, 1, -1).transpose(0, 3, 1, 4, 2, 5)

  runs = (None, None)
  if operands.run is not None:
    run = operands.run.reshape(B, 1, N, 1, CHUNK)
    runs = run, jnp.pad(run[:, :, :-1, :, -1:], [(0, 0), (0, 0), (1, 0), (0, 0), (0, 0)])
  made = xla.factors_of(
    xla.Plan(layout.scale, CHUNK), runs, *map(chunks, operands[:3]), operands.beta.reshape(B, HV, N, 1, CHUNK),
    chunks(operands.log_decay),
  )  # fmt: skip
  made = jax.tree.map(lambda x: x[:, :, :, 0], made)
  inverse = chunk_math.unit_lower_inverse(made.lower, 'highest')
  state, states, updates, after, afters, drs = operands.state.mT, [], [], dlast.mT, [], []
  for n in range(N):
    states.append(state)
    updates.append(inverse[:, :, n] @ (made.v_in[:, :, n] - made.k_in[:, :, n] @ state))
    state = made.keep[:, :, n] * state + made.k_out[:, :, n].mT @ updates[-1]
  for n in reversed(range(N)):
    do_n = chunks(do)[:, :, n, 0]
    afters.append(after)
    drs.append(inverse[:, :, n].mT @ (made.read[:, :, n].mT @ do_n + made.k_out[:, :, n] @ after))
    after = made.keep[:, :, n] * after + made.q_in[:, :, n].mT @ do_n - made.k_in[:, :, n].mT @ drs[-1]
  states, updates, afters, drs = (jnp.stack(x, 2).mT for x in (states, updates, afters[::-1], drs[::-1]))
  kept, back = gpu_layout.Kept(inverse, states, made.read, updates), gpu_gradient.Reversed(afters, drs, after.mT)
  return gpu_channels.collected(layout, back, channel_products(layout, operands, kept, back, do))


def channel_products(layout, operands, kept, back, do):
  """Returns what `gpu_channels.found` does, a pair of tokens and a channel at a time."""
  B, N, HV = layout.B, layout.N, layout.HV

  def chunks(x):
    return jnp.repeat(x, HV // x.shape[2], 2).reshape(B, N, CHUNK, HV, -1).transpose(0, 3, 1, 2, 4)

  def tokens(x):
    return x.transpose(0, 2, 3, 1, 4).reshape(B, layout.tokens, HV, -1)

  q, k, v, do, steps = map(chunks, (*operands[:3], do, operands.log_decay))
  beta = operands.beta.reshape(B, HV, N, CHUNK, 1)
  i, j = np.indices((CHUNK, CHUNK))
  run = jnp.zeros((B, layout.tokens), jnp.int32) if operands.run is None else operands.run
  run = run.reshape(B, 1, N, CHUNK)
  before = jnp.pad(run[:, :, :-1, -1:], [(0, 0), (0, 0), (1, 0), (0, 0)])
  sees, counts = (run == before)[..., None], (run == run[..., -1:])[..., None]
  survives = (run[..., -1:] == before)[..., None]
  same = run[..., :, None] == run[..., None, :]
  total = jnp.cumsum(steps, 3)
  pairs = jnp.where((same & (i >= j))[..., None], total[..., :, None, :] - total[..., None, :, :], -np.inf)
  decay = jnp.exp(pairs)  # [B, HV, N, C, C, K]
  rise, fall = jnp.exp(total) * sees, jnp.exp(total[..., -1:, :] - total) * counts

  dr, u = back.dr.mT, kept.update.mT
  E, F = -(dr @ kept.update) * (i > j), layout.scale * (do @ kept.update)
  x = jnp.einsum('bhnij,bhnijk,bhnjk->bhnik', E, decay, k) - rise * (dr @ kept.states)
  y = jnp.einsum('bhnij,bhnijk,bhnjk->bhnik', F, decay, k) + layout.scale * rise * (do @ kept.states)
  z = jnp.einsum('bhnij,bhnijk,bhnik->bhnjk', E, decay, beta * k)
  z = z + jnp.einsum('bhnij,bhnijk,bhnik->bhnjk', F, decay, q)
  w = fall * (u @ back.after)

  def within_run(counted, of):
    masks = jnp.broadcast_to(same & counted, (B, HV, N, CHUNK, CHUNK)).astype(of.dtype)
    return jnp.einsum('bhnij,bhnjk->bhnik', masks, of)

  ends = jnp.exp(total[..., -1:, :]) * survives * (kept.states * back.after).sum(3, keepdims=True)
  dlog_decay = within_run(i <= j, q * y + beta * k * x - k * z) + within_run(i > j, k * w) + ends
  dbeta = jnp.stack([(k * x).sum(-1), (v * dr).sum(-1)], 3)
  return gpu_channels.Found(*map(tokens, (y, beta * x + z + w, beta * dr, dlog_decay)), dbeta)


@pytest.mark.parametrize('name', [pytest.param(x, marks=[] if x == 'packed' else pytest.mark.sweep) for x in CHANNELS])
def test_the_gradients_of_a_decay_a_channel_are_those_of_the_xla_form(name):
  spec = CHANNELS[name]
  drawn, ids = draws.operands(spec)
  do, dlast = draws.seeds(spec)
  with jax.enable_x64(True):
    layout, operands = laid_out(spec, {**drawn, 'log_decay': np.swapaxes(drawn['log_decay'], 1, 2)}, ids)
    operands = jax.tree.map(jnp.asarray, operands)

    def outputs(q, k, v, beta, log_decay, state):
      o, last = xla.delta_rule(
        xla.Plan(layout.scale, CHUNK), q, k, v, beta.swapaxes(1, 2), log_decay, state.swapaxes(2, 3), operands.run
      )
      return o, last.swapaxes(2, 3)

    def plain(operands, do, dlast):
      return Operands(*jax.vjp(outputs, *operands[:-1])[1]((do, dlast)), None)

    seeds = jnp.asarray(do), jnp.asarray(dlast).swapaxes(2, 3)
    want = jax.jit(plain)(operands, *seeds)
    got = jax.jit(lambda operands, do, dlast: channel_gradients(layout, operands, do, dlast))(operands, *seeds)
  for found, wanted in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    assert found.shape == wanted.shape
    assert draws.error(found, wanted) < 1e-10


@pytest.mark.parametrize(
  'name', [pytest.param(x, marks=[] if x in ('grouped', 'packed') else pytest.mark.sweep) for x in CASES]
)
def test_the_equations_are_the_derivative_of_the_xla_form(name):
  spec = CASES[name]
  drawn, ids = draws.operands(spec)
  seed_o, seed_state = draws.seeds(spec)
  with jax.enable_x64(True):

    def twin(drawn, do, dlast):
      layout, operands = laid_out(spec, drawn, ids)
      gates = gates_of(layout, operands.log_decay, operands.run)
      gates = jax.tree.map(lambda x: x.astype(jnp.float64), gates)
      o, last, kept = swept(layout, operands, gates)
      back = reversed_sweep(layout, operands, gates, kept, do, dlast)
      got = products(layout, operands, gates, kept, back, do)
      return (o, last), gpu_gradient.collected(layout, operands, gates, back, got)

    def plain(drawn, do, dlast):
      layout, operands = laid_out(spec, drawn, ids)
      plan = xla.Plan(layout.scale, CHUNK)

      def outputs(q, k, v, beta, log_decay, state):
        rows = (None if x is None else x.swapaxes(1, 2) for x in (beta, log_decay))
        o, last = xla.delta_rule(plan, q, k, v, *rows, state.swapaxes(2, 3), operands.run)
        return o, last.swapaxes(2, 3)

      found, pull = jax.vjp(outputs, *operands[:-1])
      return found, Operands(*pull((do, dlast)), None)

    given = jax.tree.map(jnp.asarray, (drawn, seed_o, seed_state.swapaxes(2, 3)))
    got, want = jax.jit(twin)(*given), jax.jit(plain)(*given)
  for found, wanted in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    assert draws.error(found, wanted) < 1e-6  # gates are made of float32
