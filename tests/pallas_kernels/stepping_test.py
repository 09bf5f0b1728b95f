import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from asiarch_jax.arch.baselines import delta_net, gated_delta_net, kda
from pallas_kernels import causal_conv, delta_rule
from pallas_kernels.stepping import carried, current

B, T, D = 2, 23, 16


def mixer_of(module):
  mixer = module.Mixer(width=D, heads=2)
  x_BTD = jax.random.normal(jax.random.key(1), (B, T, D))
  return mixer, jax.jit(mixer.init)(jax.random.key(0), x_BTD), x_BTD


def in_pieces(mixer, variables, x_BTD, sizes):
  @jax.jit
  def read(states, piece):
    with carried(states) as tape:
      y_BTD = mixer.apply(variables, piece)
    return tape.states, y_BTD

  states, parts = None, []
  for piece in np.split(np.asarray(x_BTD), np.cumsum(sizes)[:-1], axis=1):
    states, y_BTD = read(states, jnp.asarray(piece))
    parts.append(y_BTD)
  return jnp.concatenate(parts, 1)


@pytest.mark.parametrize(
  'module, sizes',
  [
    pytest.param(delta_net, [T], marks=pytest.mark.slow),
    (delta_net, [7, 1, 1, 9, 5]),
    (gated_delta_net, [20, 1, 1, 1]),
    pytest.param(kda, [7, 1, 1, 9, 5], marks=pytest.mark.slow),
  ],
)
def test_pieces_give_what_the_whole_gives(module, sizes):
  mixer, variables, x_BTD = mixer_of(module)
  whole = jax.jit(mixer.apply)(variables, x_BTD)
  np.testing.assert_allclose(in_pieces(mixer, variables, x_BTD, sizes), whole, atol=2e-5)


@pytest.mark.slow
def test_a_jitted_step_takes_and_gives_states():
  mixer, variables, x_BTD = mixer_of(gated_delta_net)

  @jax.jit
  def step(states, x_B1D):
    with carried(states) as tape:
      y_B1D = mixer.apply(variables, x_B1D)
    return tape.states, y_B1D

  with carried(None) as tape:
    first = mixer.apply(variables, x_BTD[:, :4])
  _, rest = jax.lax.scan(step, tape.states, jnp.moveaxis(x_BTD[:, 4:, None], 1, 0))
  got = jnp.concatenate([first, jnp.moveaxis(rest[:, :, 0], 0, 1)], 1)
  np.testing.assert_allclose(got, mixer.apply(variables, x_BTD), atol=2e-5)


class Starting(nn.Module):
  """A mixer with a state of its own before the first token, which a later piece must not see again."""

  @nn.compact
  def __call__(self, x_BTD):
    state = self.param('state', nn.initializers.normal(1.0), (1, 2, 8, 8))
    q = k = v = x_BTD.reshape(*x_BTD.shape[:2], 2, 8) / 4
    o, _ = delta_rule(q, k, v, jnp.full((*x_BTD.shape[:2], 2), 0.3), initial_state=jnp.repeat(state, B, 0))
    return o.reshape(x_BTD.shape)


def test_a_learned_first_state_is_for_the_first_piece_alone():
  x_BTD = jax.random.normal(jax.random.key(1), (B, T, D))
  mixer, variables = Starting(), Starting().init(jax.random.key(0), x_BTD)
  got = in_pieces(mixer, variables, x_BTD, [1] * T)
  np.testing.assert_allclose(got, mixer.apply(variables, x_BTD), atol=2e-5)
  assert jnp.abs(got[:, 0] - Starting().apply(jax.tree.map(jnp.zeros_like, variables), x_BTD)[:, 0]).max() > 1e-2


def test_segments_go_on_as_they_would():
  x_BTD, weight = jax.random.normal(jax.random.key(1), (B, T, D)), jnp.ones((3, D))
  ids_BT = jnp.repeat(jnp.arange(4), 6)[None, :T].repeat(B, 0)
  whole, _ = causal_conv(x_BTD, weight, segment_ids=ids_BT)
  with carried(None) as tape:
    first, _ = causal_conv(x_BTD[:, :8], weight, segment_ids=ids_BT[:, :8])
  with carried(tape.states):
    rest, _ = causal_conv(x_BTD[:, 8:], weight, segment_ids=ids_BT[:, 8:])
  np.testing.assert_allclose(jnp.concatenate([first, rest], 1), whole, atol=1e-6)


def test_outside_nothing_changes_and_after_an_error_neither():
  mixer, variables, x_BTD = mixer_of(delta_net)
  whole = mixer.apply(variables, x_BTD)
  with pytest.raises(RuntimeError), carried(None):
    raise RuntimeError
  assert current() is None
  np.testing.assert_array_equal(mixer.apply(variables, x_BTD), whole)


def test_pieces_that_make_other_calls_are_refused():
  x_BTD, weight = jnp.ones((B, 4, D)), jnp.ones((3, D))
  with carried(None) as tape:
    causal_conv(x_BTD, weight)
  with pytest.raises(ValueError, match='more than the 1 calls'), carried(tape.states):
    causal_conv(x_BTD, weight)
    causal_conv(x_BTD, weight)
  with pytest.raises(ValueError, match='made 0 calls and has 1 states'), carried(tape.states):
    pass
  with pytest.raises(ValueError, match='initial_state has shape'), carried(tape.states):
    causal_conv(x_BTD[:1], weight)


def test_tokens_over_devices_are_refused():
  x_BTD, weight = jnp.ones((B, 4, D)), jnp.ones((3, D))
  with pytest.raises(ValueError, match='axis_name'), carried(None):
    causal_conv(x_BTD, weight, axis_name='tokens')
