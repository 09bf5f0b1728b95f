"""The kernels for Hopper GPUs: what their door refuses, and on such a GPU that they are the recurrence in float64.

`python -m pallas_kernels.bench --gpu` runs this file on the device; gpu_static_test.py compiles the kernels without.
"""

import dataclasses
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

from pallas_kernels import delta_rule, gpu_channels, gpu_gradient, gpu_levels, implementations, mosaic_gpu, specs
from pallas_kernels.gpu_layout import Channels, Kept, Layout, Operands
from pallas_kernels.rows import Call
from pallas_kernels.specs import Spec
from tests.pallas_kernels import draws

CALL = Call(
  2, 100, 2, 4, 128, 128, 'scalar', True, jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32), 0.1, None,
  jax.lax.Precision.DEFAULT, False, True,
)  # fmt: skip


def hopper():
  kind = AbstractDevice(device_kind='NVIDIA H100 80GB HBM3', platform='cuda', num_cores=None)
  return use_abstract_mesh(AbstractMesh((), (), abstract_device=kind))


@pytest.mark.parametrize(
  'change, reason',
  [
    ({'dtype': jnp.dtype(jnp.float32)}, 'bfloat16, not float32'),
    ({'compute_dtype': jnp.dtype(jnp.float64)}, 'not float64'),
    ({'precision': jax.lax.Precision.HIGHEST}, 'HIGHEST'),
    ({'K': 257}, 'K = 257'),
    ({'V': 300}, 'V = 300'),
    ({'chunk_size': 32}, 'not 32'),
  ],
)
def test_the_door_names_what_it_refuses(change, reason):
  with hopper():
    assert mosaic_gpu.refuses(CALL) is None
    assert reason in mosaic_gpu.refuses(dataclasses.replace(CALL, **change))
    for decay in ('none', 'scalar', 'channel'):
      assert mosaic_gpu.refuses(dataclasses.replace(CALL, K=256, V=256, decay=decay)) is None


@pytest.mark.parametrize(
  'change, kind',
  [
    ({}, None),
    ({'decay': 'none'}, None),
    ({'H': 4, 'K': 256}, None),
    ({'decay': 'channel'}, 'with a decay per channel'),
    ({'K': 256}, 'with grouped heads of more than 128'),
  ],
)
def test_what_has_not_run_on_a_device_is_not_chosen_without_its_name(change, kind):
  call = dataclasses.replace(CALL, **change)
  with hopper():
    assert mosaic_gpu.refuses(call) is None
    reason = mosaic_gpu.refuses(dataclasses.replace(call, requested=False))
    other = mosaic_gpu.refuses(dataclasses.replace(call, requested=False, dtype=jnp.dtype(jnp.float32)))
  assert reason is None if kind is None else reason.startswith(kind) and "implementation='mosaic_gpu'" in reason
  assert 'bfloat16, not float32' in other  # what its name would not help is said first


def test_the_package_is_imported_without_what_mosaic_gpu_wants():
  program = (
    "import sys; sys.modules['absl'] = None; import pallas_kernels; "
    "assert not [name for name in sys.modules if 'mosaic.gpu' in name]; import pallas_kernels.gpu_gram"
  )
  done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, check=False)
  assert done.stderr.splitlines()[-1].startswith('ModuleNotFoundError: import of absl'), (
    done.stderr
  )  # by the last import


@pytest.mark.skipif(mosaic_gpu.on_hopper(), reason='there is a Hopper GPU')
def test_elsewhere_another_row_answers():
  assert 'no Hopper GPU' in mosaic_gpu.refuses(CALL)
  x = jnp.ones((1, 3, 1, 8), jnp.bfloat16)
  assert delta_rule(x, x, x, x[..., 0])[0].shape == x.shape
  with pytest.raises(NotImplementedError, match='no Hopper GPU'):
    delta_rule(x, x, x, x[..., 0], implementation='mosaic_gpu')


@pytest.mark.parametrize(
  'T, K, V', [(1, 64, 64), (64, 64, 128), (65, 100, 60), (300, 128, 128), (65, 200, 60), (64, 64, 256)]
)
def test_operands_are_padded_to_whole_chunks_and_known_channels(T, K, V):
  call = dataclasses.replace(CALL, T=T, K=K, V=V)
  layout = mosaic_gpu.plan(call).layout
  assert layout.tokens - T in range(64) and layout.K >= K and layout.V >= V
  q, v = jnp.ones((2, T, 2, K), jnp.bfloat16), jnp.ones((2, T, 4, V), jnp.bfloat16)
  beta, state = jnp.ones((2, T, 4)), jnp.ones((2, 4, K, V))
  laid = mosaic_gpu.laid_out(layout, q, q, v, beta, -beta, state, jnp.ones((2, T), jnp.int32))
  assert laid.k.shape == (2, layout.tokens, 2, layout.K) and laid.state.shape == (2, 4, layout.V, layout.K)
  assert (
    float(laid.k.astype(jnp.float32).sum()) == q.size and float(laid.state.sum()) == state.size
  )  # what is appended changes nothing
  assert float(laid.beta.sum()) == beta.size and float(laid.log_decay.sum()) == -beta.size
  assert (laid.run == 1).all()


@pytest.mark.parametrize(
  'decay, made',
  [('scalar', {'total', 'factors'}), ('none', {'factors'}), ('channel', {'q_in', 'k_in', 'k_out', 'keep', 'steepest'})],
)
def test_residuals_carry_the_names_that_remat_policies_keep(decay, made):
  B, T, H, HV, K = 1, 128, 2, 4, 64
  x, gates = jnp.ones((B, T, HV, K), jnp.bfloat16), jnp.ones((B, T, HV))
  log_decay = {'none': None, 'scalar': -gates, 'channel': -jnp.ones((B, T, HV, K))}[decay]

  def loss(x):
    q = x[:, :, :H]
    return delta_rule(q, q, x, gates, log_decay, implementation='mosaic_gpu')[0].astype(jnp.float32).sum()

  with hopper():
    names = set(re.findall(r'name=(delta_rule_\w+)\]', str(jax.make_jaxpr(jax.grad(loss))(x))))
  assert names == {f'delta_rule_{name}' for name in {'inverse', 'states', 'read', 'update'} | made}
  assert names <= set(implementations.RESIDUALS)


def test_a_block_whose_states_take_the_place_of_do_has_one_turn(monkeypatch):
  layout = Layout(1, 1, 1, 1, 256, 256, 'channel', False, 1.0)
  assert gpu_gradient.Slices.of(layout).keys == 64
  monkeypatch.setattr(gpu_gradient.Slices, 'of', lambda layout: gpu_gradient.Slices(2, 128, 128))
  nothing = Operands(*[None] * 7), Channels(*[None] * 5), Kept(*[None] * 4), gpu_gradient.Reversed(*[None] * 3), None
  with pytest.raises(ValueError, match='128 channels a block, not 64'):
    gpu_channels.found(layout, *nothing)


def test_the_steepest_step_says_at_which_level_tokens_meet_directly():
  level = {bits: int(gpu_levels.direct_level(jnp.float32(bits))) for bits in (0, 3, 3.1, 24, 96, 96.1, 1e9)}
  assert level == {0: 5, 3: 5, 3.1: 4, 24: 2, 96: 0, 96.1: -1, 1e9: -1}
  assert [int(gpu_levels.direct_level(jnp.float32(odd))) for odd in (jnp.inf, jnp.nan)] == [-1, -1]


def as_drawn(drawn):
  return drawn


def hard(drawn):
  """Correlated keys, beta and decay near one: what an inverse of too few bits gets wrong."""
  rng = np.random.default_rng(5)
  k = rng.standard_normal(drawn['k'].shape) + 1
  drawn = {**drawn, 'k': k / np.linalg.norm(k, axis=-1, keepdims=True)}
  drawn['beta'] = 1 / (1 + np.exp(-rng.standard_normal(drawn['beta'].shape) - 2))
  if 'log_decay' in drawn:
    drawn['log_decay'] = -np.log1p(np.exp(-rng.standard_normal(drawn['log_decay'].shape) - 4))
  return {**drawn, 'initial_state': 0 * drawn['initial_state']}


def hundreds(drawn):
  """Decays of e^-100 at one token in five, none elsewhere."""
  return {**drawn, 'log_decay': -100.0 * (np.random.default_rng(0).random(drawn['log_decay'].shape) < 0.2)}


def of_every_level(drawn):
  """Steps twice as steep from chunk to chunk: from one whose tokens all meet directly to one where none do."""
  shape = drawn['log_decay'].shape
  steepest = np.log(2) * gpu_levels.REACH / 2.0 ** (gpu_levels.LEVELS - 1 - np.arange(shape[1]) // 64)
  spread = np.random.default_rng(1).random(shape)
  spread[:, ::64] = 0.99
  return {**drawn, 'log_decay': -steepest[:, None, None] * spread}


# Many heads: each block then takes two tiles of V.
CASES = {
  'one_chunk': (Spec(1, 64, 1, 1, 64, 64), as_drawn),
  'plain_64': (Spec(1, 256, 2, 2, 64, 64), as_drawn),
  'plain_128': (Spec(1, 320, 2, 2, 128, 128), as_drawn),
  'scalar_128': (Spec(1, 320, 2, 2, 128, 128, 'scalar'), as_drawn),
  'scalar_64_128': (Spec(1, 200, 2, 2, 64, 128, 'scalar'), as_drawn),
  'scalar_128_64': (Spec(1, 200, 2, 2, 128, 64, 'scalar'), as_drawn),
  'odd_sizes': (Spec(2, 130, 3, 3, 60, 100, 'scalar'), as_drawn),
  'grouped': (Spec(2, 200, 2, 6, 64, 128, 'scalar'), as_drawn),
  'packed': (Spec(2, 300, 2, 2, 128, 128, 'scalar', boundary=0.05), as_drawn),
  'packed_plain': (Spec(2, 300, 1, 2, 64, 64, boundary=0.02), as_drawn),
  'forgets_at_once': (Spec(1, 200, 2, 2, 64, 64, 'scalar', decay_rate=0.01), as_drawn),
  'forgets_slowly': (Spec(2, 1024, 2, 2, 128, 128, 'scalar', decay_rate=10.0), as_drawn),
  'many_heads': (Spec(2, 256, 70, 70, 128, 128, 'scalar'), as_drawn),
  'many_heads_packed': (Spec(2, 200, 70, 70, 128, 128, 'scalar', boundary=0.05), as_drawn),
  'hundreds': (Spec(1, 150, 2, 2, 64, 64, 'scalar'), hundreds),
  'hard': (Spec(1, 256, 1, 1, 128, 128, 'scalar'), hard),
  'hard_plain': (Spec(1, 256, 1, 1, 128, 128), hard),
  'plain_256': (Spec(1, 192, 2, 2, 256, 256), as_drawn),
  'scalar_256': (Spec(1, 320, 2, 2, 256, 256, 'scalar'), as_drawn),
  'scalar_128_256': (Spec(1, 200, 2, 2, 128, 256, 'scalar'), as_drawn),
  'scalar_256_128': (Spec(1, 200, 2, 2, 256, 128, 'scalar'), as_drawn),
  'scalar_64_256': (Spec(1, 130, 2, 2, 64, 256, 'scalar'), as_drawn),
  'odd_200': (Spec(1, 130, 3, 3, 200, 136, 'scalar'), as_drawn),
  'grouped_256': (Spec(2, 128, 2, 6, 256, 256, 'scalar'), as_drawn),
  'packed_256': (Spec(2, 300, 2, 2, 256, 256, 'scalar', boundary=0.05), as_drawn),
  'many_heads_128_256': (Spec(2, 128, 40, 40, 128, 256, 'scalar'), as_drawn),
  'hard_256': (Spec(1, 256, 1, 1, 256, 256, 'scalar'), hard),
  'channel_64': (Spec(1, 256, 2, 2, 64, 64, 'channel'), as_drawn),
  'channel_128': (Spec(1, 320, 2, 2, 128, 128, 'channel'), as_drawn),
  'channel_grouped': (Spec(2, 150, 1, 3, 60, 100, 'channel'), as_drawn),
  'channel_packed': (Spec(2, 300, 2, 2, 128, 64, 'channel', boundary=0.05), as_drawn),
  'channel_forgets_at_once': (Spec(1, 200, 2, 2, 64, 64, 'channel', decay_rate=0.01), as_drawn),
  'channel_hundreds': (Spec(1, 150, 2, 2, 64, 64, 'channel'), hundreds),
  'channel_slowly': (Spec(1, 512, 2, 2, 128, 64, 'channel', decay_rate=10.0), as_drawn),
  'channel_of_every_level': (Spec(1, 448, 1, 1, 64, 64, 'channel'), of_every_level),
  'channel_of_every_level_packed': (Spec(1, 448, 1, 1, 128, 64, 'channel', boundary=0.05), of_every_level),
  'channel_hard': (Spec(1, 256, 1, 1, 128, 128, 'channel'), hard),
  'channel_one_chunk': (Spec(1, 64, 1, 1, 128, 128, 'channel'), as_drawn),
  'channel_one_chunk_256': (Spec(1, 64, 1, 1, 256, 256, 'channel', boundary=0.05), as_drawn),
  'channel_one_chunk_256_128': (Spec(1, 64, 1, 1, 256, 128, 'channel'), as_drawn),
  'channel_256': (Spec(1, 192, 2, 2, 256, 256, 'channel'), as_drawn),
  'channel_128_256': (Spec(1, 100, 2, 2, 128, 256, 'channel'), as_drawn),
  'channel_256_128': (Spec(1, 130, 2, 2, 256, 128, 'channel'), as_drawn),
  'channel_grouped_200': (Spec(1, 100, 1, 3, 200, 136, 'channel'), as_drawn),
  'channel_packed_256': (Spec(1, 300, 1, 1, 256, 256, 'channel', boundary=0.05), as_drawn),
  'channel_of_every_level_256': (Spec(1, 448, 1, 1, 256, 64, 'channel'), of_every_level),
  'channel_hard_256': (Spec(1, 256, 1, 1, 256, 256, 'channel'), hard),
}


def posed(name):
  """Returns (operands, ids and seeds of a case, as the kernels take them; its outputs and gradients in float64)."""
  spec, change = CASES[name]
  drawn, ids = draws.operands(spec)
  seed_o, seed_state = draws.seeds(spec)
  given = {
    operand: jnp.asarray(x, jnp.bfloat16 if operand in 'qkv' else jnp.float32) for operand, x in change(drawn).items()
  }
  seeds = jnp.asarray(seed_o, jnp.bfloat16), jnp.asarray(seed_state, jnp.float32)
  exact, exact_seeds = jax.tree.map(lambda x: np.asarray(x, np.float64), (given, seeds))
  return (given, ids, *seeds), draws.truth(exact, ids, exact_seeds)


@pytest.mark.skipif(not mosaic_gpu.on_hopper(), reason='no Hopper GPU; there: python -m pallas_kernels.bench --gpu')
@pytest.mark.parametrize(
  'name, recompute', [*((name, False) for name in CASES), ('scalar_128', True), ('channel_128', True)]
)
def test_outputs_and_gradients_are_those_of_the_recurrence(name, recompute):
  given, truth = posed(name)
  got = draws.outputs_and_gradients(*given, implementation='mosaic_gpu', recompute=recompute)
  again = draws.outputs_and_gradients(*given, implementation='mosaic_gpu', recompute=recompute)
  draws.assert_close(got, truth, specs.BFLOAT16)
  for first, second in zip(jax.tree.leaves(got), jax.tree.leaves(again), strict=True):
    assert (first == second).all(), 'two runs differ: warpgroups race'


def side_by_side(name):
  """Returns, for each result, how far two replicas by `vmap`, as training runs them on a GPU, are from each alone."""
  (given, ids, *seeds), _ = posed(name)
  other = {**given, 'v': given['v'][:, ::-1], 'beta': given['beta'] / 2}
  stacked = jax.tree.map(lambda *x: jnp.stack(x), given, other)

  def run(operands):
    return draws.outputs_and_gradients(operands, ids, *seeds, implementation='mosaic_gpu')

  both, alone = jax.vmap(run)(stacked), jax.tree.map(lambda *x: jnp.stack(x), run(given), run(other))
  return {result: draws.error(both[result], alone[result]) for result in both}


@pytest.mark.skipif(not mosaic_gpu.on_hopper(), reason='no Hopper GPU; there: python -m pallas_kernels.bench --gpu')
@pytest.mark.parametrize('name', ['grouped', 'packed', 'channel_packed'])
def test_replicas_side_by_side_are_each_alone(name):
  apart = side_by_side(name)
  assert max(apart.values()) < 1e-5, apart  # what XLA adds up, it adds in another order
