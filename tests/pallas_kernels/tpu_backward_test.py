"""The backward kernel for TPU, interpreted on CPU, gives the gradients of the recurrence in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import specs, tpu_adjoints, tpu_backward, tpu_forward, tpu_math
from tests.marks import slow_but
from tests.pallas_kernels import draws

Spec = specs.Spec
QUICK = {'xla_backend_optimization_level': 0}  # a program that runs once: half the time to compile


def lanes(x_BTHD):
  return jnp.asarray(x_BTHD, jnp.float32).reshape(*x_BTHD.shape[:2], -1)


def by_head(x_BTH):
  return jnp.asarray(x_BTH, jnp.float32).swapaxes(1, 2)


def residuals(drawn, runs_BT, C):
  """Returns (inverse [B, HV, N, C, C], received states [B, HV, N, K, V]): what the forward pass keeps, in float64.

  T is a multiple of C. Token by token, and by NumPy's inverse: nothing here is shared with the kernel.
  """
  k, v, beta, state = drawn['k'], drawn['v'], drawn['beta'], drawn['initial_state']
  B, T, HV, _ = v.shape
  k = np.repeat(k, HV // k.shape[2], 2)
  log_decay = np.broadcast_to(drawn.get('log_decay', np.zeros(beta.shape)).reshape(B, T, HV, -1), k.shape)
  states = []
  for t in range(T):
    if t % C == 0:
      states.append(state)
    fresh_B = runs_BT[:, t] != (runs_BT[:, t - 1] if t else 0)
    state = np.where(fresh_B[:, None, None, None], 0.0, state) * np.exp(log_decay[:, t])[..., None]
    u = beta[:, t, :, None] * (v[:, t] - np.einsum('bhk,bhkv->bhv', k[:, t], state))
    state = state + k[:, t, :, :, None] * u[:, :, None]
  inverses = []
  for start in range(0, T, C):
    part = slice(start, start + C)
    total = np.cumsum(log_decay[:, part], 1)
    decay = np.exp(np.minimum(total[:, :, None] - total[:, None], 0.0))
    seen = (runs_BT[:, part, None] == runs_BT[:, None, part])[:, None] & np.tri(C, k=-1, dtype=bool)
    a = np.einsum('bih,bihk,bjhk,bijhk->bhij', beta[:, part], k[:, part], k[:, part], decay)
    inverses.append(np.linalg.inv(np.eye(C) + np.where(seen, a, 0.0)))
  return np.stack(inverses, 2), np.stack(states, 2)


def layout_of(drawn, C, segments, dtype, heads=None):
  """Returns the layout of operands whose T is a multiple of C; all heads in one step unless told."""
  (B, T, HV, V), (H, K) = drawn['v'].shape, drawn['k'].shape[2:]
  decay = {2: 'none', 3: 'scalar', 4: 'channel'}[drawn.get('log_decay', np.zeros((1, 1))).ndim]
  return tpu_forward.Layout(
    B, T // C, C, H, HV, K, V, heads or HV, decay, bool(segments), K**-0.5, dtype == jnp.float32
  )


@functools.cache
def compiled(layout, interpret):
  return jax.jit(functools.partial(tpu_backward.backward, layout, interpret=interpret), compiler_options=QUICK)


def gradients(drawn, segment_ids, seed_o, seed_state, C, dtype=jnp.float32, heads=None, interpret=True):
  """Returns the gradients by each operand as `draws.outputs_and_gradients` does, from float64 arrays, by the kernel."""
  T, pad = seed_o.shape[1], -seed_o.shape[1] % C

  def padded(x, **how):
    return np.pad(x, [(0, 0), (0, pad)] + [(0, 0)] * (x.ndim - 2), **how)

  x = {name: y if name == 'initial_state' else padded(y) for name, y in drawn.items()}
  runs_BT = np.zeros(x['beta'].shape[:2], np.int32)
  if segment_ids is not None:
    runs_BT = padded(np.cumsum(np.diff(segment_ids, axis=1, prepend=segment_ids[:, :1]) != 0, 1), mode='edge')
  inverse, states = residuals(x, runs_BT, C)
  layout = layout_of(x, C, runs_BT.any(), dtype, heads)
  log_decay = x.get('log_decay')
  if log_decay is not None:
    log_decay = lanes(log_decay) if layout.decay == 'channel' else by_head(log_decay)
  q, k, v, do = (lanes(y).astype(dtype) for y in (x['q'], x['k'], x['v'], padded(seed_o)))
  operands = tpu_forward.Operands(
    q, k, v, by_head(x['beta']), log_decay, jnp.asarray(x['initial_state'], jnp.float32),
    jnp.asarray(runs_BT, jnp.int32) if layout.segments else None,
  )  # fmt: skip
  found = compiled(layout, interpret)(
    operands, jnp.asarray(inverse, dtype), jnp.asarray(states, dtype), do, jnp.asarray(seed_state, 'float32')
  )
  assert found.q.dtype == found.k.dtype == found.v.dtype == dtype
  got = {'q': found.q, 'k': found.k, 'v': found.v, 'beta': found.beta.swapaxes(1, 2)}
  if log_decay is not None:
    got['log_decay'] = found.log_decay if layout.decay == 'channel' else found.log_decay.swapaxes(1, 2)
  got = {name: y.reshape(x[name].shape)[:, :T] for name, y in got.items()}
  return got | {'initial_state': found.state}


def both(spec, C, dtype=jnp.float32, change=lambda drawn: drawn, segment_ids=None, **options):
  """Returns (the kernel's gradients, those of the recurrence in float64) of one draw, rounded to `dtype` for both."""
  drawn, ids = draws.operands(spec)
  drawn, ids = change(drawn), ids if segment_ids is None else segment_ids
  seed_o, seed_state = draws.seeds(spec)
  drawn = {name: rounded(x, dtype if name in 'qkv' else jnp.float32) for name, x in drawn.items()}
  seed_o = rounded(seed_o, dtype)
  got = gradients(drawn, ids, seed_o, seed_state, C, dtype, **options)
  want = draws.truth(drawn, ids, (seed_o, seed_state))
  return got, {name: want[name] for name in got}


def rounded(x, dtype):
  return np.asarray(jnp.asarray(x, dtype), np.float64)


def cosine(a, b):
  a, b = (np.asarray(x, np.float64).ravel() for x in (a, b))
  return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


@pytest.mark.parametrize('decay', ['none', 'scalar', 'channel'])
def test_the_adjoints_of_a_chunk_are_those_of_the_recurrence(decay):
  """The algebra by itself, on values: two value heads on one key, two documents."""
  spec = Spec(1, 16, 1, 2, 4, 8, decay, boundary=0.15)
  drawn, ids = draws.operands(spec)
  seeds = draws.seeds(spec)
  runs_BT = np.cumsum(np.diff(ids, axis=1, prepend=ids[:, :1]) != 0, 1)
  assert runs_BT.max() > 0, 'there was to be a boundary'
  want = draws.truth(drawn, ids, seeds)
  inverse, states = residuals(drawn, runs_BT, spec.T)
  heads = range(spec.HV)
  x = draws.narrowed(drawn)
  log_decay = x.get('log_decay')
  if decay == 'scalar':
    log_decay = log_decay[0].T
  if decay == 'channel':
    log_decay = [log_decay[0, :, h] for h in heads]
  layout = layout_of(drawn, spec.T, True, jnp.float32)
  chunk = tpu_adjoints.Chunk(
    *([x[name][0, :, 0] for _ in heads] for name in 'qk'),
    *([jnp.asarray(y, 'float32')[0, :, h] for h in heads] for y in (x['v'], seeds[0])),
    tpu_math.turned_across(x['beta'][0].T, max(layout.C, layout.K, layout.V)),
    *([jnp.asarray(y, 'float32')[0, h, 0] for h in heads] for y in (inverse, states, seeds[1][:, :, None])),
  )
  found = jax.jit(functools.partial(tpu_adjoints.adjoints, layout), compiler_options=QUICK)(
    chunk, log_decay, jnp.asarray(runs_BT, jnp.float32)
  )
  got = {
    'q': sum(found.q)[None, :, None],
    'k': sum(found.k)[None, :, None],
    'v': jnp.stack(found.v, 1)[None],
    'beta': jnp.concatenate(found.beta).T[None],
    'initial_state': jnp.stack(found.state)[None],
  }
  if decay == 'scalar':  # the kernel sums it for all heads at once
    later_TT = np.tri(spec.T) * (runs_BT == runs_BT.T)
    got['log_decay'] = (np.concatenate(found.log_decay) @ later_TT).T[None]
  if decay == 'channel':
    got['log_decay'] = jnp.stack(found.log_decay, 1)[None]
  for name in got:
    assert draws.error(got[name], want[name]) < 3e-6, name


DEFAULT = ('plain', 'packed_scalar', 'packed_channel')  # the rest by name through the public door as well


@pytest.mark.parametrize(
  'name', [name if name in DEFAULT else pytest.param(name, marks=pytest.mark.sweep) for name in specs.SMALL]
)
def test_gradients_are_those_of_the_recurrence(name):
  draws.assert_close(*both(specs.SMALL[name], 16), specs.FLOAT32)


@pytest.mark.sweep
@pytest.mark.parametrize('decay', ['none', 'scalar', 'channel'])
@pytest.mark.parametrize('size', [32, 64, 128, 256])
def test_gradients_at_the_sizes_of_the_hardware(decay, size):
  spec = Spec(1, 200, 1, 2, size, 64 if size == 128 else size, decay, boundary=0.01)
  draws.assert_close(*both(spec, 64), specs.FLOAT32)
  draws.assert_close(*both(spec, 128, jnp.bfloat16), specs.BFLOAT16)


def hard(drawn, seed=0):
  """Returns the draw with keys that resemble each other, beta near one and decay near one."""
  rng = np.random.default_rng(seed)
  k = rng.standard_normal(drawn['k'].shape) + 1
  changed = {'k': k / np.linalg.norm(k, axis=-1, keepdims=True)}
  changed['beta'] = 1 / (1 + np.exp(-rng.standard_normal(drawn['beta'].shape) - 2))
  if 'log_decay' in drawn:
    changed['log_decay'] = -np.log1p(np.exp(-rng.standard_normal(drawn['log_decay'].shape) - 4))
  return drawn | changed


@pytest.mark.parametrize('decay', slow_but(['channel'], ['none', 'scalar', 'channel']))
def test_bfloat16_operands_stay_within_the_field_s_tolerance_on_hard_data(decay):
  got, want = both(Spec(1, 128, 1, 1, 64, 64, decay), 64, jnp.bfloat16, hard)
  draws.assert_close(got, want, specs.BFLOAT16)


@pytest.mark.slow
@pytest.mark.parametrize('decay, rate', [('scalar', 10.0), ('channel', 0.1)])
def test_gate_gradients_of_bfloat16_operands_point_where_float64_points(decay, rate):
  """The trap of this backward pass: sums over later tokens cancel nearly all that was added.

  What it does harm to is the gradient of a rate, which is summed over tokens once more. Where the factors of those sums
  are rounded apart from the products that they meet, its cosine here is 0.98 and its error 0.2.
  """
  spec = Spec(1, 256, 1, 1, 64, 64, decay, decay_rate=rate)
  drawn, _ = draws.operands(spec)
  got, want = both(spec, 128, jnp.bfloat16)
  draws.assert_close(got, want, specs.BFLOAT16)
  assert cosine(got['log_decay'], want['log_decay']) > 0.9999
  of_rate, wanted = (np.sum(np.asarray(x['log_decay'], np.float64) * drawn['log_decay'], 1) for x in (got, want))
  assert draws.error(of_rate, wanted) < 2e-2
  assert cosine(of_rate, wanted) > 0.999


@pytest.mark.parametrize('decay', ['scalar', 'channel'])
def test_boundaries_at_every_offset_of_a_chunk(decay):
  T = 18
  ids = (np.arange(T)[None] > np.arange(T - 1)[:, None]).astype(np.int32)
  draws.assert_close(*both(Spec(T - 1, T, 1, 1, 8, 8, decay), 8, segment_ids=ids), specs.FLOAT32)


STRESS = {
  'decay to -100 a token': {'log_decay': lambda g: -100 * np.random.default_rng(0).random(g.shape)},
  'decay of -100 or none': {'log_decay': lambda g: -100.0 * (np.random.default_rng(0).random(g.shape) < 0.2)},
  'identical keys, beta 2': {
    'k': lambda k: np.broadcast_to(k[:, :1], k.shape), 'beta': lambda beta: np.full_like(beta, 2.0)
  },
  'zero keys': {'k': np.zeros_like},
}  # fmt: skip


@pytest.mark.parametrize('name', STRESS)
@pytest.mark.parametrize('decay', ['scalar', 'channel'])
def test_hard_operands(name, decay):
  def change(drawn):
    return drawn | {operand: make(drawn[operand]) for operand, make in STRESS[name].items()}

  draws.assert_close(*both(Spec(2, 40, 1, 1, 16, 8, decay, boundary=0.05), 16, change=change), specs.FLOAT32)


@pytest.mark.parametrize('HV, H, heads', slow_but([(4, 2, 4)], [(4, 1, 2), (4, 2, 4)]))
def test_heads_may_be_taken_in_any_number_a_step(HV, H, heads):
  """A group of value heads over several steps, or several groups in one."""
  spec = Spec(1, 20, H, HV, 8, 8, 'scalar')
  draws.assert_close(*both(spec, 16, heads=heads), specs.FLOAT32)


def test_no_two_steps_race_and_scratch_that_begins_as_nan_is_written_first():
  spec = Spec(1, 40, 1, 2, 8, 8, 'channel', boundary=0.1)
  watched = pltpu.InterpretParams(detect_races=True, uninitialized_memory='nan', num_cores_or_threads=2)
  got, want = both(spec, 16, interpret=watched)
  draws.assert_close(got, want, specs.FLOAT32)
  from jax._src.pallas.mosaic.interpret import interpret_pallas_call

  assert not interpret_pallas_call.races.races_found


def typed(layout, dtype, sharding=None):
  """Returns the types of the arguments of `tpu_backward.backward` after the layout."""
  B, T, HV, K, V = layout.B, layout.tokens, layout.HV, layout.K, layout.V

  def array(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

  keys, values = array(B, T, layout.H * K, dtype=dtype), array(B, T, HV * V, dtype=dtype)
  log_decay = {'none': None, 'scalar': array(B, HV, T), 'channel': array(B, T, HV * K)}[layout.decay]
  run = array(B, T, dtype=jnp.int32) if layout.segments else None
  state = array(B, HV, K, V)
  operands = tpu_forward.Operands(keys, keys, values, array(B, HV, T), log_decay, state, run)
  inverse, states = array(B, HV, layout.N, layout.C, layout.C), array(B, HV, layout.N, K, V)
  inverse, states = (x.update(dtype=layout.products.dtype) for x in (inverse, states))
  return operands, inverse, states, values, state


LAYOUTS = {
  'none': tpu_forward.Layout(1, 2, 128, 8, 8, 128, 128, 8, 'none', False, 1.0, False),
  'scalar': tpu_forward.Layout(1, 2, 128, 8, 8, 128, 128, 8, 'scalar', False, 1.0, False),
  'channel': tpu_forward.Layout(1, 2, 128, 8, 8, 128, 128, 8, 'channel', False, 1.0, False),
  'packed, shared over steps': tpu_forward.Layout(2, 2, 64, 1, 16, 64, 128, 8, 'scalar', True, 1.0, False),
  'packed, small, grouped': tpu_forward.Layout(2, 2, 64, 4, 8, 32, 32, 8, 'channel', True, 1.0, False),
  'large': tpu_forward.Layout(1, 2, 128, 2, 8, 256, 256, 8, 'channel', False, 1.0, False),
  'float32': tpu_forward.Layout(1, 2, 128, 4, 4, 128, 128, 4, 'channel', False, 1.0, True),
}


def lowered(layout, device_kind, sharding=None):
  kind = jax.sharding.AbstractDevice(device_kind=device_kind, platform='tpu', num_cores=1)
  arguments = typed(layout, jnp.float32 if layout.exact else jnp.bfloat16, sharding)
  with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=kind)):
    call = jax.jit(functools.partial(tpu_backward.backward, layout))
    return call.trace(*arguments).lower(lowering_platforms=('tpu',))


@pytest.mark.parametrize('name', slow_but(['large'], LAYOUTS))
def test_it_lowers_for_tpu_without_one(name):
  assert 'tpu_custom_call' in lowered(LAYOUTS[name], 'TPU v6 lite').as_text()


@pytest.mark.sweep
@pytest.mark.parametrize('name', LAYOUTS)
@pytest.mark.parametrize('topology', ['v4:2x2x1', 'v5e:2x2', 'v5p:2x2x1', 'v6e:2x2', 'tpu7x:2x2x1'])
def test_it_compiles_ahead_of_time(topology, name):
  pytest.importorskip('libtpu', reason='to compile for a TPU without one, install libtpu')
  device = topologies.get_topology_desc(platform='tpu', topology_name=topology).devices[0]
  lowered(LAYOUTS[name], device.device_kind, jax.sharding.SingleDeviceSharding(device)).compile()


def test_fewer_heads_are_taken_where_vmem_is_small():
  heads = {name: tpu_backward.step_heads(layout, 16 * 2**20) for name, layout in LAYOUTS.items()}
  assert 8 > heads['scalar'] > heads['channel'] > heads['large'] >= 1
  assert all(tpu_backward.step_heads(layout, 128 * 2**20) == layout.heads for layout in LAYOUTS.values())
  # Four heads of 32 fill the lanes of a register; fewer could not be addressed.
  assert heads['packed, small, grouped'] >= 4
