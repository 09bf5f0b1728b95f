"""Every implementation equals the recurrence in float64: outputs, final state, all gradients; and keeps its laws."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from pallas_kernels import IMPLEMENTATIONS, api, delta_rule, delta_rule_step, l2_normalise, specs
from tests.marks import slow_but
from tests.pallas_kernels import draws

# The kernels for Hopper GPUs take bfloat16 alone and run there alone: mosaic_gpu_test.py.
CHUNKED = [name for name in IMPLEMENTATIONS if name not in ('mosaic_gpu', 'reference')]
SMALLEST_CHUNK = {'pallas_tpu': 64, 'xla': 16}
# Compiled as one program: op by op the same call takes ten times as long.
jitted = jax.jit(delta_rule, static_argnames=('chunk_size', 'implementation', 'scale'))
SPEC = specs.Spec(2, 21, 1, 2, 8, 8, 'scalar')


def both(spec, *, implementation='xla', chunk_size=16, change=lambda drawn: drawn, segment_ids=None, **options):
  """Returns (got in float32, truth in float64) of the outputs and gradients of one draw."""
  drawn, drawn_ids = draws.operands(spec)
  drawn, ids = change(drawn), drawn_ids if segment_ids is None else segment_ids
  cotangents = draws.seeds(spec)
  got = draws.outputs_and_gradients(
    draws.narrowed(drawn), ids, *draws.narrowed(cotangents), implementation=implementation,
    chunk_size=chunk_size, **options,
  )  # fmt: skip
  return got, draws.truth(drawn, ids, cotangents)


# What other cases and the hard operands below have in them.
COVERED = ('grouped_channel', 'packed', 'half_masked', 'forgets_at_once', 'forgets_channels_at_once')
# Kernels are interpreted on CPU, slowly: two specs meet both kinds of decay, packing and grouping.
INTERPRETED = {'packed_scalar': [], 'grouped_channel': [pytest.mark.slow]}


def small(implementation):
  def marks(name):
    if implementation == 'pallas_tpu':
      return INTERPRETED.get(name, [pytest.mark.sweep])
    return [pytest.mark.sweep] if implementation == 'xla' and name in COVERED else []

  return [pytest.param(name, implementation, marks=marks(name)) for name in specs.SMALL]


@pytest.mark.parametrize('name, implementation', [case for name in CHUNKED for case in small(name)])
def test_outputs_and_gradients_are_those_of_the_recurrence(name, implementation):
  chunk = SMALLEST_CHUNK[implementation]
  draws.assert_close(*both(specs.SMALL[name], implementation=implementation, chunk_size=chunk), specs.FLOAT32)


@pytest.mark.sweep
@pytest.mark.parametrize('name', specs.FULL)
@pytest.mark.parametrize('implementation', CHUNKED)
def test_full_shapes_are_those_of_the_recurrence(name, implementation):
  draws.assert_close(*both(specs.FULL[name], implementation=implementation, chunk_size=None), specs.FLOAT32)


def test_reference_in_float64_is_a_loop_over_tokens_written_in_numpy():
  spec = dataclasses.replace(specs.SMALL['packed_channel'], T=9, boundary=0.3, HV=4)
  drawn, ids = draws.operands(spec)
  x, state, o = drawn, drawn['initial_state'].copy(), np.zeros((spec.B, spec.T, spec.HV, spec.V))
  for b in range(spec.B):
    for t in range(spec.T):
      for h in range(spec.HV):
        q, k = x['q'][b, t, h // 2], x['k'][b, t, h // 2]
        S = np.exp(x['log_decay'][b, t, h])[:, None] * state[b, h] * (t == 0 or ids[b, t] == ids[b, t - 1])
        S = S + np.outer(k, x['beta'][b, t, h] * (x['v'][b, t, h] - k @ S))
        state[b, h], o[b, t, h] = S, spec.K**-0.5 * q @ S
  want = draws.truth(drawn, ids, draws.seeds(spec))
  assert draws.error(want['o'], o) < 1e-14
  assert draws.error(want['state'], state) < 1e-14


def test_bfloat16_operands_stay_within_the_field_s_tolerance():
  spec = dataclasses.replace(specs.SMALL['scalar'], K=32, V=32)
  drawn, _ = draws.operands(spec)
  rounded = {name: np.asarray(jnp.asarray(x, jnp.bfloat16), np.float64) for name, x in drawn.items()}
  cotangents = draws.seeds(spec)
  narrow = {name: jnp.asarray(x, jnp.bfloat16) for name, x in rounded.items() if name != 'initial_state'}
  narrow['initial_state'] = jnp.asarray(rounded['initial_state'], jnp.float32)
  seed_o = jnp.asarray(cotangents[0], jnp.bfloat16)
  got = draws.outputs_and_gradients(narrow, None, seed_o, jnp.asarray(cotangents[1], jnp.float32))
  assert got['o'].dtype == jnp.bfloat16 and got['state'].dtype == jnp.float32
  want = draws.truth(rounded, None, (np.asarray(seed_o, np.float64), cotangents[1]))
  draws.assert_close(got, want, specs.BFLOAT16)


def packed_at_every_offset(decay, T=20):
  """Returns (spec, ids): row b has its boundary before token b + 1, so that one call holds every offset."""
  ids = (np.arange(T)[None] > np.arange(T - 1)[:, None]).astype(np.int32)
  return specs.Spec(T - 1, T, 1, 1, 8, 8, decay), ids


@pytest.mark.parametrize('decay', ['none', pytest.param('scalar', marks=pytest.mark.sweep), 'channel'])
def test_boundaries_at_every_offset_of_a_chunk_are_the_recurrence(decay):
  spec, ids = packed_at_every_offset(decay)
  draws.assert_close(*both(spec, chunk_size=8, segment_ids=ids), specs.FLOAT32)


def test_each_document_is_as_if_it_were_alone():
  spec, ids = packed_at_every_offset('scalar')
  drawn, _ = draws.operands(spec)
  x = draws.narrowed(drawn)
  o, state = jitted(**x, segment_ids=ids, chunk_size=8)
  initial_state = x.pop('initial_state')
  for b in (6, 7, 8, 11):
    early, late = ({name: y[b : b + 1, part] for name, y in x.items()} for part in (slice(b + 1), slice(b + 1, None)))
    o_early, _ = jitted(**early, initial_state=initial_state[b : b + 1], implementation='reference')
    o_late, state_late = jitted(**late, implementation='reference')
    assert draws.error(o[b : b + 1, : b + 1], o_early) < 1e-5
    assert draws.error(o[b : b + 1, b + 1 :], o_late) < 1e-5
    assert draws.error(state[b : b + 1], state_late) < 1e-5


def test_gradients_do_not_cross_a_boundary_in_either_direction():
  drawn, _ = draws.operands(dataclasses.replace(SPEC, B=1))
  x = draws.narrowed(drawn)
  ids = (np.arange(SPEC.T) >= 10).astype(np.int32)[None]

  @jax.jit
  @jax.grad
  def gradient(x, read_T, ids):
    return jnp.sum(jnp.square(delta_rule(**x, segment_ids=ids, chunk_size=16)[0]) * read_T[:, None, None])

  first = (np.arange(SPEC.T) < 10).astype(np.float32)
  early, late = gradient(x, first, ids), gradient(x, 1 - first, ids)
  for name in ('q', 'k', 'v', 'beta', 'log_decay'):
    assert not np.any(early[name][:, 10:]), f'{name} of the second document moves the first'
    assert not np.any(late[name][:, :10]), f'{name} of the first document moves the second'
  assert not np.any(late['initial_state'])
  # The same question without ids finds the leak: the check can fail.
  assert np.any(gradient(x, 1 - first, np.zeros_like(ids))['v'][:, :10])


def test_an_id_that_comes_back_is_a_new_segment():
  drawn, _ = draws.operands(dataclasses.replace(SPEC, B=1))
  x = draws.narrowed(drawn)
  again, fresh = ([0] * 7 + [1] * 7 + [end] * 7 for end in (0, 2))
  outputs = [jitted(**x, segment_ids=jnp.array([ids]), chunk_size=16)[0] for ids in (again, fresh)]
  np.testing.assert_array_equal(*outputs)


@pytest.mark.parametrize('T', slow_but([1, 8, 17], [1, 7, 8, 9, 17, 25]))
def test_any_length_is_the_recurrence(T):
  draws.assert_close(*both(specs.Spec(1, T, 1, 1, 8, 8, 'scalar'), chunk_size=8), specs.FLOAT32)


def hard(**changes):
  def change(drawn):
    return {**drawn, **{name: make(drawn[name]) for name, make in changes.items() if name in drawn}}

  return change


STRESS = {
  'decay to -100 a token': hard(log_decay=lambda g: -100 * np.random.default_rng(0).random(g.shape)),
  'decay of -100 or none': hard(log_decay=lambda g: -100.0 * (np.random.default_rng(0).random(g.shape) < 0.2)),
  'beta 2': hard(beta=lambda beta: np.full_like(beta, 2.0)),
  'identical keys': hard(k=lambda k: np.broadcast_to(k[:, :1], k.shape)),
  'identical keys, beta 2': hard(
    k=lambda k: np.broadcast_to(k[:, :1], k.shape), beta=lambda beta: np.full_like(beta, 2.0)
  ),
  'zero keys': hard(k=np.zeros_like),
  'no write': hard(beta=np.zeros_like),
}


@pytest.mark.parametrize('name', STRESS)
@pytest.mark.parametrize('decay', ['none', 'scalar', 'channel'])
def test_hard_operands_are_the_recurrence(name, decay):
  if decay == 'none' and name.startswith('decay'):
    pytest.skip('no decay to stress')
  got, want = both(specs.Spec(1, 70, 1, 1, 16, 8, decay), chunk_size=32, change=STRESS[name])
  draws.assert_close(got, want, specs.FLOAT32)


def test_scale_is_the_inverse_root_of_k_unless_given():
  drawn, _ = draws.operands(SPEC)
  x = draws.narrowed(drawn)
  np.testing.assert_allclose(4 * jitted(**x)[0], jitted(**x, scale=4 * SPEC.K**-0.5)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('decay', ['scalar', 'channel'])
def test_split_calls_continue_the_state(decay):
  spec = specs.Spec(2, 40, 2, 2, 8, 8, decay)
  drawn, _ = draws.operands(spec)
  x = draws.narrowed(drawn)
  state = x.pop('initial_state')
  whole, last = jitted(**x, initial_state=state, chunk_size=16)
  parts = []
  for start, stop in ((0, 13), (13, 14), (14, 27), (27, 40)):
    part = {name: value[:, start:stop] for name, value in x.items()}
    o, state = jitted(**part, initial_state=state, chunk_size=16)
    parts.append(o)
  assert draws.error(jnp.concatenate(parts, 1), whole) < 1e-6
  assert draws.error(state, last) < 1e-6


@pytest.mark.parametrize('decay', ['none', 'scalar', 'channel'])
def test_steps_equal_the_chunked_form_token_by_token(decay):
  spec = dataclasses.replace(SPEC, decay=decay)
  drawn, _ = draws.operands(spec)
  x = draws.narrowed(drawn)
  state = x.pop('initial_state')
  whole, last = jitted(**x, initial_state=state, chunk_size=8)
  step = jax.jit(delta_rule_step)
  for t in range(spec.T):
    o, state = step(*(x[name][:, t] for name in ('q', 'k', 'v', 'beta')), x.get('log_decay', [None])[:, t]
                    if 'log_decay' in x else None, state)  # fmt: skip
    assert draws.error(o, whole[:, t]) < 1e-5
  assert draws.error(state, last) < 1e-5


def test_the_past_does_not_see_the_future():
  drawn, _ = draws.operands(SPEC)
  x = draws.narrowed(drawn)
  call = jax.jit(functools.partial(delta_rule, chunk_size=8))
  before, _ = call(**x)
  for t in (1, 7, 8, 9, 20):
    swapped = {name: value if name == 'initial_state' else value.at[:, t:].multiply(-0.5) for name, value in x.items()}
    after, _ = call(**swapped)
    np.testing.assert_array_equal(before[:, :t], after[:, :t])
    assert np.any(before[:, t:] != after[:, t:])


def test_poison_beyond_the_length_and_in_other_rows_stays_there():
  drawn, _ = draws.operands(SPEC)
  x = draws.narrowed(drawn)
  state = x.pop('initial_state')
  poisoned = {name: jnp.pad(value, [(0, 1), (0, 11)] + [(0, 0)] * (value.ndim - 2), constant_values=jnp.nan)
              for name, value in x.items()}  # fmt: skip
  wide_state = jnp.pad(state, [(0, 1), (0, 0), (0, 0), (0, 0)], constant_values=jnp.nan)

  @jax.jit
  def cut(x, state):
    return delta_rule(**{name: value[:, : SPEC.T] for name, value in x.items()}, initial_state=state, chunk_size=16)

  got, want = cut(poisoned, wide_state), cut(x, state)
  for mine, clean in zip(got, want, strict=True):
    np.testing.assert_allclose(mine[: SPEC.B], clean, rtol=1e-6, atol=1e-6)
    assert np.isnan(mine[SPEC.B]).all()


def composed(kind, x, mesh, implementation='xla', chunk_size=8):
  """Returns (o, state) of all rows, by one call or as `kind` says."""
  call = functools.partial(delta_rule, chunk_size=chunk_size, implementation=implementation)

  def row(x):
    return jax.tree.map(lambda y: y[0], call(**jax.tree.map(lambda y: y[None], x)))

  if kind == 'vmap':
    return jax.vmap(row)(x)
  if kind == 'scan':
    return jax.lax.scan(lambda carry, x: (carry, row(x)), 0, x)[1]
  if kind == 'remat':
    policy = jax.checkpoint_policies.save_only_these_names('delta_rule_inverse', 'delta_rule_states')
    return jax.checkpoint(lambda x: call(**x), policy=policy)(x)
  if kind == 'shard_map':
    spec = PartitionSpec('data')
    return jax.shard_map(lambda x: call(**x), mesh=mesh, in_specs=spec, out_specs=spec)(x)
  return call(**x, recompute=kind == 'recompute')


@pytest.mark.parametrize('kind', slow_but(['vmap', 'shard_map'], ['vmap', 'scan', 'remat', 'shard_map', 'recompute']))
def test_transformations_change_nothing(kind):
  drawn, _ = draws.operands(SPEC)
  x = draws.narrowed(drawn)
  mesh = Mesh(np.array(jax.devices()[:1]), ('data',))

  def loss(x, kind):
    o, state = composed(kind, x, mesh)
    return jnp.sum(jnp.square(o)) + jnp.sum(jnp.sin(state))

  got, want = (jax.jit(jax.value_and_grad(loss), static_argnums=1)(x, name) for name in (kind, 'plain'))
  for mine, plain in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    assert draws.error(mine, plain) < 1e-5


def test_replicated_operands_inside_shard_map_get_their_gradient():
  drawn, _ = draws.operands(SPEC)
  x = draws.narrowed(drawn)
  mesh = Mesh(np.array(jax.devices()[:1]), ('data',))
  state = x.pop('initial_state')

  def loss(state, x):
    def local(state, x):
      return jax.lax.psum(jnp.sum(jnp.square(delta_rule(**x, initial_state=state, chunk_size=8)[0])), 'data')

    specs_in = (PartitionSpec(), PartitionSpec('data'))
    return jax.shard_map(local, mesh=mesh, in_specs=specs_in, out_specs=PartitionSpec())(state, x)

  def plain(state, x):
    return jnp.sum(jnp.square(delta_rule(**x, initial_state=state, chunk_size=8)[0]))

  assert draws.error(jax.jit(jax.grad(loss))(state, x), jax.jit(jax.grad(plain))(state, x)) < 1e-5


def test_gate_gradients_point_where_float64_points():
  """The trap of chunked backward passes: sums that nearly cancel (cosine 0.3 where products are too coarse)."""
  spec = specs.Spec(1, 128, 2, 2, 32, 32, 'scalar', decay_rate=10.0)
  got, want = both(spec, chunk_size=64)
  a, b = np.asarray(got['log_decay'], np.float64).ravel(), want['log_decay'].ravel()
  assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.99999


def test_an_implementation_that_cannot_names_its_reason():
  drawn, _ = draws.operands(SPEC)
  x = draws.narrowed(drawn)
  with pytest.raises(NotImplementedError, match='reference: it has no chunks'):
    delta_rule(**x, chunk_size=16, implementation='reference')
  with pytest.raises(ValueError, match=r'no implementation .cuda.; there are'):
    delta_rule(**x, implementation='cuda')


def test_if_none_supports_a_call_every_reason_is_listed():
  table = {name: api.Implementation(lambda call, name=name: f'{name} is tired', None) for name in ('one', 'two')}
  with pytest.raises(NotImplementedError, match='one: one is tired; two: two is tired'):
    api.chosen(table, 'delta_rule', None, None)
  table['three'] = api.Implementation(lambda call: None, None)
  assert api.chosen(table, 'delta_rule', None, None) is table['three']


@pytest.mark.parametrize(
  'change, message',
  [
    ({'v': jnp.zeros((2, 21, 3, 8)), 'q': jnp.zeros((2, 21, 2, 8)), 'k': jnp.zeros((2, 21, 2, 8))}, 'multiple'),
    ({'beta': jnp.zeros((2, 21, 1))}, 'beta has shape'),
    ({'log_decay': jnp.zeros((2, 21, 2, 9))}, 'log_decay has shape'),
    ({'initial_state': jnp.zeros((2, 2, 8, 9))}, 'initial_state has shape'),
    ({'segment_ids': jnp.zeros((2, 20), jnp.int32)}, 'segment_ids has shape'),
    ({'chunk_size': 24}, 'power of two'),
    ({'q': jnp.zeros((21, 1, 8))}, '4 axes'),
  ],
)
def test_contradictions_are_named(change, message):
  drawn, _ = draws.operands(SPEC)
  x = {**draws.narrowed(drawn), **change}
  if 'multiple' in message:
    x['beta'] = jnp.zeros((2, 21, 3))
  with pytest.raises(ValueError, match=message):
    delta_rule(**x)


@pytest.mark.parametrize('heads, tokens', slow_but([(2, 40)], [(1, 40), (2, 32), (2, 40)]))
@pytest.mark.parametrize('decay', [False, True])
def test_a_gradient_over_replicas_with_grouped_heads_does_not_end_the_process(heads, tokens, decay):
  """XLA CPU crashed while compiling this with one key head, while running it with several (jaxlib 0.10.2)."""
  keys = jax.random.split(jax.random.key(0), 4)
  q, k = (jax.random.normal(key, (2, 2, tokens, heads, 8)) for key in keys[:2])
  v = jax.random.normal(keys[2], (2, 2, tokens, 2 * heads, 8))
  beta = jax.nn.sigmoid(jax.random.normal(keys[3], (2, 2, tokens, 2 * heads)))
  k = l2_normalise(k)

  def loss(q, k, v, beta, **how):
    return jnp.sum(delta_rule(q, k, v, beta, -beta if decay else None, **how)[0] ** 2)

  ours = jax.jit(jax.vmap(jax.grad(loss, (0, 1, 2, 3))))(q, k, v, beta)
  wanted = jax.vmap(jax.grad(lambda *x: loss(*x, implementation='reference'), (0, 1, 2, 3)))(q, k, v, beta)
  for our, want in zip(ours, wanted, strict=True):
    np.testing.assert_allclose(our, want, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('decay', slow_but(['scalar'], ['none', 'scalar', 'channel']))
def test_several_blocks_of_chunks_are_the_recurrence(decay):
  """The XLA form loops over blocks of at most eight chunks: here three, packed, with tokens to spare."""
  spec = specs.Spec(2, 150, 1, 2, 8, 8, decay, boundary=0.05)
  draws.assert_close(*both(spec, chunk_size=8, recompute=decay == 'scalar'), specs.FLOAT32)


@pytest.mark.parametrize('decay', ['scalar', 'channel'])
def test_a_gate_that_forgets_all_costs_what_follows_no_digits(decay):
  drawn, _ = draws.operands(specs.Spec(1, 64, 1, 1, 8, 8, decay))

  def loss(x):
    o, state = delta_rule(**x, implementation='xla')
    return (o**2).sum(), (o, state)

  ours = jax.jit(jax.grad(loss, has_aux=True))
  wanted = jax.jit(lambda x: delta_rule(**x, implementation='reference'))
  one_step = jax.jit(delta_rule_step)
  for reset in (-1e9, -np.inf):
    x = draws.narrowed(drawn)
    x['log_decay'] = x['log_decay'].at[:, 10].set(reset)
    want, last = wanted(x)
    gradients, (o, state) = ours(x)
    np.testing.assert_allclose(o, want, atol=1e-4)
    np.testing.assert_allclose(state, last, atol=1e-4)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    step = {name: x[name][:, 10] for name in ('q', 'k', 'v', 'beta', 'log_decay')}
    assert np.isfinite(one_step(**step, state=jnp.ones((1, 1, 8, 8)))[1]).all()
