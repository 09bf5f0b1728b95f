"""The TPU kernels by interpretation: what the shared suite in delta_rule_test.py does not ask of them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import Mesh, PartitionSpec

from pallas_kernels import api, delta_rule, pallas_tpu, specs, tiling, tpu_forward, tpu_math
from tests.pallas_kernels import draws
from tests.pallas_kernels.delta_rule_test import composed

kernel = jax.jit(
  functools.partial(delta_rule, implementation='pallas_tpu'),
  static_argnames=('chunk_size',),
  compiler_options={'xla_backend_optimization_level': 0},
)


def rounded(drawn, dtype=jnp.bfloat16):
  """Returns (operands as the kernel takes them, the same numbers in float64): q, k, v in `dtype`."""
  given = {name: jnp.asarray(x, dtype if name in 'qkv' else jnp.float32) for name, x in drawn.items()}
  return given, {name: np.asarray(x, np.float64) for name, x in given.items()}


def recurrence(drawn, ids=None):
  with jax.enable_x64(True):
    o, state = delta_rule(**jax.tree.map(jnp.asarray, drawn), segment_ids=ids, implementation='reference')
    return np.asarray(o), np.asarray(state)


def hard(drawn):
  """Correlated keys, beta and decay near one: what single-pass products of the inverse get wrong by 1.4 %."""
  rng = np.random.default_rng(5)
  k = rng.standard_normal(drawn['k'].shape) + 1
  drawn = {**drawn, 'k': k / np.linalg.norm(k, axis=-1, keepdims=True)}
  drawn['beta'] = 1 / (1 + np.exp(-rng.standard_normal(drawn['beta'].shape) - 2))
  if 'log_decay' in drawn:
    drawn['log_decay'] = -np.log1p(np.exp(-rng.standard_normal(drawn['log_decay'].shape) - 4))
  return {**drawn, 'initial_state': 0 * drawn['initial_state']}


@pytest.mark.slow
@pytest.mark.parametrize('decay', [pytest.param('none', marks=pytest.mark.sweep), 'scalar', 'channel'])
def test_bfloat16_is_accurate_on_hard_operands(decay):
  drawn, _ = draws.operands(specs.Spec(1, 256, 1, 1, 128, 128, decay))
  given, exact = rounded(hard(drawn))
  o, state = kernel(**given)
  want_o, want_state = recurrence(exact)
  assert o.dtype == jnp.bfloat16 and state.dtype == jnp.float32
  assert draws.error(np.asarray(o, np.float64), want_o) < specs.BFLOAT16.output
  assert draws.error(state, want_state) < specs.BFLOAT16.output


@pytest.mark.slow
@pytest.mark.parametrize('decay', ['scalar', pytest.param('channel', marks=pytest.mark.sweep)])
def test_boundaries_at_every_offset_of_a_chunk_are_the_recurrence(decay, T=130):
  ids = (np.arange(T)[None] > np.arange(T - 1)[:, None]).astype(np.int32)
  drawn, _ = draws.operands(specs.Spec(T - 1, T, 1, 1, 8, 8, decay))
  o, state = kernel(**draws.narrowed(drawn), segment_ids=ids, chunk_size=64)
  want_o, want_state = recurrence(drawn, ids)
  for got, want in ((o, want_o), (state, want_state)):
    row = np.sqrt(((np.asarray(got) - want) ** 2).reshape(T - 1, -1).mean(1))
    assert row.max() < 1e-5, f'boundary before token {row.argmax() + 1}: {row.max():.1e}'


@pytest.mark.parametrize('T', [1, *(pytest.param(T, marks=pytest.mark.sweep) for T in (63, 64, 65, 128)), 193])
def test_any_length_is_the_recurrence(T):
  drawn, _ = draws.operands(specs.Spec(1, T, 1, 1, 8, 8, 'scalar'))
  got = kernel(**draws.narrowed(drawn), chunk_size=64)
  for mine, want in zip(got, recurrence(drawn), strict=True):
    assert draws.error(mine, want) < specs.FLOAT32.output


@pytest.mark.parametrize('exact', [False, pytest.param(True, marks=pytest.mark.sweep)])
def test_equal_keys_written_twice_over_do_not_break_the_inverse(exact):
  """beta = 2, equal keys: powers of L reach 2e6 within 16 rows, the inverse stays within 2."""
  unit = np.eye(64) + 2 * np.tril(np.ones((64, 64)), -1)
  products = tpu_math.Products(exact)

  def body(unit, inverse, scratch):
    inverse[...] = tpu_math.unit_lower_inverses(products, [unit[...]], tpu_math.grid(64, None), scratch)[0]

  found = tpu_forward.pl.pallas_call(
    body,
    out_shape=jax.ShapeDtypeStruct((64, 64), jnp.float32),
    scratch_shapes=[pltpu.VMEM((128, 128), jnp.float32)],
    interpret=True,
  )(jnp.asarray(unit, jnp.float32))
  np.testing.assert_allclose(found, np.linalg.inv(unit), atol=1e-5 if exact else 1e-2)


@pytest.mark.parametrize('decay', ['scalar', pytest.param('channel', marks=pytest.mark.sweep)])
def test_no_race_and_no_use_of_memory_before_it_is_written(decay):
  """Two chunks, two groups of heads, residuals as well, in the interpreter that fills memory with NaN."""
  spec = specs.Spec(1, 128, 2, 2, 128, 128, decay, boundary=0.05)
  drawn, ids = draws.operands(spec)
  given, exact = rounded(drawn)
  layout = tpu_forward.Layout(1, 2, 64, 2, 2, 128, 128, 1, decay, True, 128**-0.5, False)
  interpret = pltpu.InterpretParams(detect_races=True, uninitialized_memory='nan', num_cores_or_threads=2)
  run = np.pad(np.cumsum(np.diff(ids, axis=1) != 0, 1), [(0, 0), (1, 0)]).astype(np.int32)
  operands = pallas_tpu.laid_out(
    layout, *(given[n] for n in ('q', 'k', 'v', 'beta', 'log_decay', 'initial_state')), jnp.asarray(run)
  )
  o, state, inverse, states = tpu_forward.forward(layout, operands, residuals=True, interpret=interpret)
  want_o, want_state = recurrence(exact, ids)
  assert draws.error(np.asarray(o, np.float64).reshape(want_o.shape), want_o) < specs.BFLOAT16.output
  assert draws.error(state, want_state) < specs.BFLOAT16.output
  assert np.isfinite(np.asarray(inverse, np.float32)).all() and np.isfinite(np.asarray(states, np.float32)).all()
  from jax._src.pallas.mosaic.interpret import interpret_pallas_call

  assert not interpret_pallas_call.races.races_found


KINDS = ['shard_map', *(pytest.param(kind, marks=pytest.mark.sweep) for kind in ('vmap', 'scan', 'remat', 'recompute'))]


@pytest.mark.slow
@pytest.mark.parametrize('kind', KINDS)
def test_transformations_change_nothing(kind):
  drawn, _ = draws.operands(specs.Spec(2, 21, 1, 2, 8, 8, 'scalar'))
  mesh = Mesh(np.array(jax.devices()[:1]), ('data',))

  def sharded(x):
    # JAX 0.10.2: interpretation makes scratch that does not vary over the mesh, which the check refuses. For a TPU
    # the same call compiles with the check (bench_test.py).
    rows = PartitionSpec('data')
    call = functools.partial(delta_rule, implementation='pallas_tpu', chunk_size=64)
    return jax.shard_map(lambda x: call(**x), mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False)(x)

  @functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})
  @jax.value_and_grad
  def loss(x):
    o, state = sharded(x) if kind == 'shard_map' else composed(kind, x, mesh, 'pallas_tpu', 64)
    return jnp.sum(jnp.square(o)) + jnp.sum(jnp.sin(state))

  @jax.jit
  @jax.value_and_grad
  def wanted(x):
    o, state = delta_rule(**x, implementation='reference')
    return jnp.sum(jnp.square(o)) + jnp.sum(jnp.sin(state))

  x = draws.narrowed(drawn)
  for mine, want in zip(jax.tree.leaves(loss(x)), jax.tree.leaves(wanted(x)), strict=True):
    assert draws.error(mine, want) < 1e-5


def call(T=8, decay='none'):
  """Returns a call of this implementation by its name."""
  float32 = jnp.dtype('float32')
  return api.Call(1, T, 1, 1, 8, 8, decay, False, float32, float32, 1.0, None, None, False, True)


def test_without_a_tpu_it_runs_only_where_it_is_asked_for():
  asked = call()
  assert 'there is no TPU' in pallas_tpu.refuses(dataclasses.replace(asked, requested=False))
  assert pallas_tpu.refuses(asked) is None
  for change, reason in (
    ({'dtype': jnp.dtype('float16')}, 'float16'),
    ({'compute_dtype': jnp.dtype('float64')}, 'float64'),
    ({'K': 300}, '300'),
    ({'chunk_size': 32}, 'not 32'),
  ):
    assert reason in pallas_tpu.refuses(dataclasses.replace(asked, **change))


def test_a_decay_per_channel_takes_short_chunks_where_vmem_is_small(monkeypatch):
  calls = {decay: call(1000, decay) for decay in ('scalar', 'channel')}
  assert {pallas_tpu.plan(asked).layout.C for asked in calls.values()} == {128}
  monkeypatch.setattr(pallas_tpu.tpu_backward, 'vmem_capacity', lambda: 16 * 2**20)
  assert {decay: pallas_tpu.plan(asked).layout.C for decay, asked in calls.items()} == {'scalar': 128, 'channel': 64}
  long = dataclasses.replace(calls['channel'], chunk_size=128)
  assert 'chunks of 128 tokens do not fit' in pallas_tpu.refuses(long)


@pytest.mark.parametrize(
  'H, HV, K, V',
  [(2, 2, 8, 8), (16, 16, 128, 128), (4, 16, 64, 128), (1, 16, 128, 64), (17, 17, 32, 32), (3, 9, 100, 200)],
)
def test_tiles_are_whole_registers_or_all_there_is(H, HV, K, V):
  tiles = tiling.tpu_tiles(H, HV, K, V, tiling.tpu_chunk(1000))
  group, keys = HV // H, max(tiles.heads // (HV // H), 1)
  assert HV % tiles.heads == 0 and (tiles.heads % group == 0 or group % tiles.heads == 0)
  assert tiles.K >= K and tiles.V >= V and 1 <= tiles.heads <= 8
  assert keys * tiles.K % 128 == 0 or keys == H
  assert tiles.heads * tiles.V % 128 == 0 or tiles.heads == HV
