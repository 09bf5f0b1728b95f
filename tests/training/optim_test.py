import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from asiarch_jax import config
from asiarch_jax.training import optim

SETTINGS = config.Training(warmup=0.1, decay=0.3, final=0.1)


@pytest.mark.parametrize(
  'step, share',
  [(0, 1 / 10), (4, 5 / 10), (9, 1.0), (10, 1.0), (69, 1.0), (84, 0.1 + 0.9 * 15 / 30), (99, 0.1)],
)
def test_wsd_at_its_corners(step, share):
  assert float(optim.wsd(step, 100, SETTINGS)) == pytest.approx(share, rel=1e-6)


@pytest.mark.parametrize('step, share', [(0, 1 / 10), (9, 1.0), (54, 0.1 + 0.9 / 2), (99, 0.1)])
def test_cosine_at_its_corners(step, share):
  assert float(optim.cosine(step, 100, SETTINGS)) == pytest.approx(share, rel=1e-5)


@pytest.mark.parametrize('name', optim.SCHEDULES)
@pytest.mark.parametrize('steps', [1, 2, 7, 100])
def test_a_schedule_never_leaves_zero_to_one_and_never_sleeps(name, steps):
  shares = np.asarray([optim.SCHEDULES[name](step, steps, SETTINGS) for step in range(steps)])
  assert (shares > 0).all() and (shares <= 1).all()


@pytest.mark.parametrize('name', optim.SCHEDULES)
def test_no_warm_up_and_no_decay_are_allowed(name):
  shares = np.asarray(
    [optim.SCHEDULES[name](s, 10, config.Training(warmup=0.0, decay=0.0, final=0.0)) for s in range(10)]
  )
  assert np.isfinite(shares).all() and shares[0] > 0.9


def test_only_matrices_decay_and_a_stack_of_layers_is_no_axis():
  tree = {
    'embedding': jnp.ones((4, 2)),
    'norm': {'scale': jnp.ones(2)},
    'layers': {'norm': {'scale': jnp.ones((3, 2))}, 'dense': {'kernel': jnp.ones((3, 2, 2))}},
    'layer_0': {'taps': jnp.ones((4, 2)), 'rate': jnp.ones(2)},
  }
  assert optim.matrices(tree) == {
    'embedding': True,
    'norm': {'scale': False},
    'layers': {'norm': {'scale': False}, 'dense': {'kernel': True}},
    'layer_0': {'taps': True, 'rate': False},
  }


def test_decay_is_decoupled_from_the_gradient():
  """With no gradient a matrix shrinks by rate x decay and a vector stays."""
  settings = dataclasses.replace(SETTINGS, weight_decay=0.5)
  parameters = {'w': jnp.full((2, 2), 3.0), 'b': jnp.full((2,), 3.0)}
  chain = optim.adamw(settings)
  update, _ = chain.update(jax.tree.map(jnp.zeros_like, parameters), chain.init(parameters), parameters)
  np.testing.assert_allclose(update['w'], 1.5)
  np.testing.assert_allclose(update['b'], 0.0)


def test_each_replica_is_clipped_by_its_own_norm():
  """A replica with a huge gradient does not shrink its neighbour's."""
  settings = dataclasses.replace(SETTINGS, weight_decay=0.0, clip=1.0)
  chain = optim.adamw(settings)
  parameters = {'w': jnp.zeros((2, 3))}
  state = jax.vmap(chain.init)(parameters)
  gradient = {'w': jnp.stack([jnp.full(3, 1e6), jnp.full(3, 0.1)])}
  gradient = jax.vmap(lambda one: optim.clipped(one, optax.global_norm(one), settings))(gradient)
  _, state = jax.vmap(chain.update)(gradient, state, parameters)
  moments = np.asarray(state[0].mu['w']) / (1 - settings.b1)
  np.testing.assert_allclose(np.linalg.norm(moments[0]), 1.0, rtol=1e-4)
  np.testing.assert_allclose(moments[1], 0.1, rtol=1e-4)


def test_adam_follows_its_paper():
  """Two steps by hand, epsilon outside the root."""
  settings = dataclasses.replace(SETTINGS, weight_decay=0.0, clip=1e9, b1=0.9, b2=0.95, epsilon=1e-8)
  chain, w = optim.adamw(settings), {'w': jnp.zeros((1, 2))}
  state, mean, square = chain.init(w), 0.0, 0.0
  for step, gradient in enumerate((np.array([[1.0, -2.0]]), np.array([[0.5, 0.5]])), 1):
    update, state = chain.update({'w': jnp.asarray(gradient, jnp.float32)}, state, w)
    mean, square = 0.9 * mean + 0.1 * gradient, 0.95 * square + 0.05 * gradient**2
    expected = (mean / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.95**step)) + 1e-8)
    np.testing.assert_allclose(update['w'], expected, rtol=1e-5)
