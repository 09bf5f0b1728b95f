"""The causal convolution equals its token-by-token form: outputs, state, all gradients; and keeps its laws."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import causal_conv, causal_conv_step
from tests.pallas_kernels import draws


def operands(B, T, D, W, segments=False):
  rng = np.random.default_rng([B, T, D, W])
  drawn = {
    'x': rng.standard_normal((B, T, D)),
    'weight': rng.standard_normal((W, D)) / W**0.5,
    'initial_state': rng.standard_normal((B, W - 1, D)),
  }
  return drawn, np.cumsum(rng.random((B, T)) < 0.2, 1) if segments else None


@functools.partial(jax.jit, static_argnames='implementation')
def outputs_and_gradients(drawn, segment_ids, seed_y, seed_state, implementation=None):
  call = functools.partial(causal_conv, segment_ids=segment_ids, implementation=implementation)
  (y, state), pull = jax.vjp(lambda drawn: call(**drawn), drawn)
  (gradients,) = pull((seed_y, seed_state))
  return {'y': y, 'state': state, **gradients}


@pytest.mark.parametrize(
  'B, T, D, W, segments',
  [(2, 19, 5, 1, False), (2, 21, 5, 4, True), (2, 35, 3, 7, False), (2, 33, 3, 9, True), (1, 3, 2, 8, False),
   (2, 70, 3, 64, False), (1, 20, 2, 40, True), (1, 17, 2, 128, False)],
)  # fmt: skip
def test_outputs_and_gradients_are_those_of_the_token_form(B, T, D, W, segments):
  drawn, ids = operands(B, T, D, W, segments)
  rng = np.random.default_rng(1)
  seeds = rng.standard_normal((B, T, D)), rng.standard_normal((B, W - 1, D))
  got = outputs_and_gradients(draws.narrowed(drawn), ids, *draws.narrowed(seeds))
  with jax.enable_x64(True):
    wide = jax.tree.map(jnp.asarray, drawn)
    want = outputs_and_gradients(wide, ids, *map(jnp.asarray, seeds), implementation='reference')
    want = jax.tree.map(np.asarray, want)
  for name in want:
    assert got[name].shape == want[name].shape
    if want[name].size:
      assert draws.error(got[name], want[name]) < 1e-5, name


def test_the_token_form_is_numpy_s_convolution():
  drawn, _ = operands(1, 12, 2, 5)
  y, _ = causal_conv(**draws.narrowed(drawn), implementation='reference')
  for d in range(2):
    seen = np.concatenate([drawn['initial_state'][0, :, d], drawn['x'][0, :, d]])
    np.testing.assert_allclose(y[0, :, d], np.convolve(seen, drawn['weight'][::-1, d], 'valid'), rtol=1e-5, atol=1e-5)


def test_the_last_tap_meets_the_current_token():
  x = jnp.arange(1.0, 7.0).reshape(1, 6, 1)
  taps = jnp.zeros((3, 1))
  np.testing.assert_array_equal(causal_conv(x, taps.at[-1].set(1))[0], x)
  np.testing.assert_array_equal(causal_conv(x, taps.at[0].set(1))[0][0, :, 0], [0, 0, 1, 2, 3, 4])


@pytest.mark.parametrize('W', [1, 4, 20])
def test_steps_and_split_calls_continue_the_state(W):
  drawn, _ = operands(2, 13, 3, W)
  x = draws.narrowed(drawn)
  whole, last = causal_conv(**x)
  first, state = causal_conv(x['x'][:, :6], x['weight'], initial_state=x['initial_state'])
  np.testing.assert_allclose(first, whole[:, :6], rtol=1e-5, atol=1e-6)
  for t in range(6, 13):
    y, state = causal_conv_step(x['x'][:, t], x['weight'], state)
    np.testing.assert_allclose(y, whole[:, t], rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(state, last)


def test_a_step_rounds_as_the_whole_does():
  drawn, _ = operands(2, 13, 64, 4)
  x = {name: jnp.asarray(value, jnp.bfloat16) for name, value in drawn.items()}
  whole, _ = causal_conv(**x)
  _, state = causal_conv(x['x'][:, :6], x['weight'], initial_state=x['initial_state'])
  for t in range(6, 13):
    y, state = causal_conv_step(x['x'][:, t], x['weight'], state)
    np.testing.assert_array_equal(np.asarray(y, np.float32), np.asarray(whole[:, t], np.float32))


@pytest.mark.parametrize('W', [4, 20])
def test_the_past_does_not_see_the_future_not_even_a_nan(W):
  drawn, _ = operands(2, 30, 3, W)
  x = draws.narrowed(drawn)
  before, _ = causal_conv(**x)
  after, _ = causal_conv(**{**x, 'x': x['x'].at[:, 17:].set(jnp.nan)})
  np.testing.assert_array_equal(before[:, :17], after[:, :17])
  assert np.isnan(after[:, 17:]).all()


def test_segments_do_not_leak_and_a_nan_stays_in_its_document():
  drawn, _ = operands(1, 24, 3, 5)
  x = draws.narrowed(drawn)
  ids = jnp.array([[0] * 9 + [1] * 2 + [0] * 13])
  poisoned = x['x'].at[:, :11].set(jnp.nan)
  y, state = causal_conv(poisoned, x['weight'], segment_ids=ids)
  alone, state_alone = causal_conv(x['x'][:, 11:], x['weight'])
  np.testing.assert_allclose(y[:, 11:], alone, rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(state, state_alone)


def test_replicas_under_vmap_are_single_calls():
  drawn, _ = operands(4, 20, 3, 8)
  x = draws.narrowed(drawn)
  weights = jnp.stack([x['weight'] * r for r in range(1, 5)])

  def loss(x, weight):
    return jnp.sum(jnp.square(causal_conv(x[None], weight)[0]))

  together = jax.vmap(jax.grad(loss, argnums=(0, 1)))(x['x'], weights)
  for r in range(4):
    alone = jax.grad(loss, argnums=(0, 1))(x['x'][r], weights[r])
    for mine, other in zip(together, alone, strict=True):
      assert draws.error(mine[r], other) < 1e-5


@pytest.mark.parametrize(
  'shapes, message',
  [
    (((2, 9, 3), (129, 3)), 'weight has 129 taps; 1 to 128'),
    (((2, 9, 3), (4, 2)), 'weight has shape'),
    (((2, 9), (4, 3)), 'x has shape'),
  ],
)
def test_contradictions_are_named(shapes, message):
  with pytest.raises(ValueError, match=message):
    causal_conv(*map(jnp.zeros, shapes))
