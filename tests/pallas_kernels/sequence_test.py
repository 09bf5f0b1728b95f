"""A sequence over several shards equals the sequence on one: outputs, states, gradients; and sends what is written."""

import functools
import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import IMPLEMENTATIONS, causal_conv, delta_rule, specs
from tests.devices import forced
from tests.pallas_kernels import across_shards, draws

ROOT = pathlib.Path(__file__).parents[2]


@functools.cache
def eight_devices(run):
  """What `across_shards` prints on eight forced devices; a deadlock is a timeout here."""
  command = [sys.executable, '-m', 'tests.pallas_kernels.across_shards', run]
  done = subprocess.run(command, cwd=ROOT, env=forced(8), capture_output=True, text=True, timeout=500)
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout.splitlines()[-1])


def assert_small(errors, tolerance=specs.FLOAT32):
  for name, error in errors.items():
    limit = tolerance.output if name in ('o', 'y', 'state') else tolerance.gradient
    if name in ('beta', 'log_decay'):
      limit = tolerance.gate_gradient
    assert error < limit, f'{name}: {error:.1e}, limit {limit}'


@pytest.mark.parametrize('name', ['none', 'packed_channel', 'two_axes_recomputed'])
def test_eight_shards_are_one_sequence(name):
  assert_small(eight_devices('')['delta_rule'][name]['errors'])


@pytest.mark.sweep
@pytest.mark.parametrize(
  'name', ['scalar', 'packed', 'channel', 'long', 'bfloat16', 'kernels', 'kernels_channel_bfloat16']
)
def test_eight_shards_are_one_sequence_in_every_form(name):
  tolerance = specs.BFLOAT16 if 'bfloat16' in name else specs.FLOAT32
  assert_small(eight_devices('sweep')['delta_rule'][name]['errors'], tolerance)


def test_bytes_sent_are_those_of_the_docstring():
  spec = across_shards.SPEC
  state = 4 * spec.B * spec.HV * spec.K * spec.V
  forward = ['all-gather', 8 * (state * spec.K // spec.V + state)]  # of which an eighth is the device's own
  backward = ['all-gather', 8 * state]
  found = eight_devices('')
  assert found['partial_programs']['forward'] == [forward]
  assert found['partial_programs']['gradients'] == sorted([backward, forward])
  of_states = [kind for kind in found['delta_rule']['none']['sent'] if kind[0] == 'all-reduce']
  assert sum(size for _, size in of_states) == 2 * state, 'the final state, and the gradient of the initial state'
  of_ids = [kind for kind in found['delta_rule']['packed_channel']['sent'] if kind[0] == 'collective-permute']
  assert of_ids == [['collective-permute', 4 * 6]]


@pytest.mark.sweep
def test_kept_residuals_spare_remat_a_gather():
  bare, kept = eight_devices('sweep')['remat']
  assert_small(bare['errors'])
  assert_small(kept['errors'])
  assert (bare['gathers'], kept['gathers']) == (3, 2)


def test_a_nan_does_not_reach_the_shards_before_it():
  assert eight_devices('')['partial_programs']['poison_stays_behind']


@pytest.mark.parametrize(
  'run, name',
  [('', 'packed_beyond_a_shard')]
  + [pytest.param('sweep', name, marks=pytest.mark.sweep) for name in ('packed', 'beyond_all_shards', 'short')],
)
def test_a_convolution_over_eight_shards_is_one_convolution_and_fetches_its_halo(run, name):
  found = eight_devices(run)['causal_conv'][name]
  assert_small(found['errors'])
  L, W, packed = across_shards.CONVOLUTIONS[name]
  B, D = found['shape']
  fetched = 4 * B * min(W - 1, 7 * L) * (D + packed)  # with a mark for each input
  assert sum(size for _, size in found['sent']) == fetched + 4 * B * packed
  assert {kind for kind, _ in found['sent']} == {'collective-permute'}


@pytest.mark.parametrize(
  'implementation, shards',
  [('reference', 3)]
  + [
    pytest.param(name, n, marks=pytest.mark.sweep)
    for name in IMPLEMENTATIONS
    for n in (1, 2, 3, 4)
    if name != 'mosaic_gpu'  # of bfloat16 alone
  ],
)
def test_shards_of_any_number_rest_on_any_implementation(implementation, shards):
  spec = specs.Spec(1, 3 * 8, 1, 2, 8, 12, 'scalar', decay_rate=10.0)
  drawn, _ = draws.operands(spec)
  cotangents = draws.seeds(spec)
  ids = np.array([[0] * 3 + [1] * 14 + [0] * 7])
  operands, (seed_o, seed_state) = draws.narrowed(drawn), draws.narrowed(cotangents)
  state = operands.pop('initial_state')

  def spread(x):
    return jnp.moveaxis(x.reshape(1, shards, -1, *x.shape[2:]), 1, 0)

  def gathered(x):
    return jnp.moveaxis(x, 0, 1).reshape(1, spec.T, *x.shape[3:])

  def shard(operands, ids, seed_o):
    call = functools.partial(delta_rule, segment_ids=ids, implementation=implementation, axis_name='tokens')
    (o, last), pull = jax.vjp(lambda x, state: call(**x, initial_state=state), operands, state)
    # Each shard holds a copy of the final state, and their cotangents add up.
    doperands, dstate = pull((seed_o, seed_state / shards))
    return {'o': o, **doperands}, {'state': last, 'initial_state': jax.lax.psum(dstate, 'tokens')}

  tokens, states = jax.jit(jax.vmap(shard, axis_name='tokens'))(
    jax.tree.map(spread, operands), spread(ids), spread(seed_o)
  )
  got = jax.tree.map(gathered, tokens) | jax.tree.map(lambda x: x[0], states)
  draws.assert_close(got, draws.truth(drawn, ids, cotangents), specs.FLOAT32)


@pytest.mark.parametrize('ids', [None, jnp.zeros((1, 4), jnp.int32)])
def test_outside_shard_map_the_error_names_the_remedy(ids):
  x = jnp.ones((1, 4, 1, 8))
  remedy = r"axis_name is 'tokens'.*inside jax.shard_map.*PartitionSpec\(None, 'tokens'\).*leave axis_name out"
  with pytest.raises(ValueError, match=remedy):
    delta_rule(x, x, x, x[..., 0], segment_ids=ids, axis_name='tokens')
  with pytest.raises(ValueError, match=remedy):
    causal_conv(x[..., 0], jnp.ones((4, 1)), segment_ids=ids, axis_name='tokens')
