import ast
import functools
import importlib
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asiarch_jax.arch import contract
from asiarch_jax.arch.baselines import delta_net, gated_delta_net, softmax_attention
from pallas_kernels import causal_conv, l2_normalise
from tests.marks import slow_but

MODULES = {module.__name__.rpartition('.')[2]: module for module in (delta_net, gated_delta_net, softmax_attention)}
ALLOWED = {'jax', 'jax.numpy', 'jax.lax', 'jax.nn', 'flax', 'math', 'functools', 'typing', 'einops', 'pallas_kernels'}
SPEC = contract.MixerSpec(16, 2, jnp.dtype('float32'))
KEY = jax.random.key(1)


def inputs(T, B=2, dtype=jnp.float32):
  return jax.random.normal(jax.random.key(T), (B, T, SPEC.width)).astype(dtype)


def applied(name, x_BTD, spec=SPEC):
  return np.asarray(called(contract.build(MODULES[name].Mixer, spec))(x_BTD))


@functools.cache
def called(mixer):
  """The mixer as a compiled function, with fresh parameters."""
  variables = initialised(mixer)
  return jax.jit(lambda x_BTD: mixer.apply(variables, x_BTD))


@functools.cache
def initialised(mixer):
  return jax.jit(mixer.init)(KEY, inputs(2))


@pytest.mark.parametrize('name', MODULES)
def test_a_baseline_is_written_as_a_proposal(name):
  source = inspect.getsource(importlib.import_module(f'asiarch_jax.arch.baselines.{name}'))
  tree = ast.parse(source)
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      assert {alias.name for alias in node.names} <= ALLOWED
    elif isinstance(node, ast.ImportFrom):
      assert node.module in ALLOWED
  assert len(ast.get_docstring(tree).split()) > 40, 'the docstring is the motivation'
  loaded = contract.load(source, name)
  x_BTD = inputs(5)
  mixer = contract.build(loaded, SPEC)
  np.testing.assert_array_equal(called(mixer)(x_BTD), applied(name, x_BTD))


@pytest.mark.parametrize('T', slow_but([1, 70], [1, 37, 70]))
@pytest.mark.parametrize('name', MODULES)
def test_the_future_and_the_other_rows_do_not_matter(name, T):
  x_BTD = inputs(T)
  whole = applied(name, x_BTD)
  assert whole.shape == x_BTD.shape and whole.dtype == x_BTD.dtype
  cut = max(1, T // 2)
  np.testing.assert_allclose(applied(name, x_BTD[:, :cut]), whole[:, :cut], rtol=2e-4, atol=2e-5)
  np.testing.assert_allclose(applied(name, x_BTD[1:]), whole[1:], rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize('name', MODULES)
def test_every_parameter_has_a_gradient_and_there_is_nothing_but_parameters(name):
  mixer, x_BTD = contract.build(MODULES[name].Mixer, SPEC), inputs(24)
  variables = initialised(mixer)
  assert set(variables) == {'params'}
  gradient = jax.jit(jax.grad(lambda p: jnp.sum(jnp.square(mixer.apply({'params': p}, x_BTD)))))(variables['params'])
  for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
    assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0, path


@pytest.mark.parametrize('name', MODULES)
def test_bfloat16_is_near_float32(name):
  low = contract.MixerSpec(16, 2, jnp.dtype('bfloat16'))
  exact, coarse = applied(name, inputs(24)), applied(name, inputs(24, dtype=jnp.bfloat16), low)
  assert coarse.dtype == jnp.bfloat16
  assert np.abs(exact - coarse.astype(np.float32)).max() < 0.06 * np.abs(exact).max()


def recurrence(name, p, x_TD, H=2):
  """The published recurrence token by token in numpy for one sequence, from a mixer's own parameters."""
  T, D = x_TD.shape
  K = D // H

  def silu(x):
    return x / (1 + np.exp(-x))

  def heads(which):
    y_TD = np.pad(x_TD @ p[which]['kernel'], ((3, 0), (0, 0)))
    taps_WD = p[f'{which}_taps']
    return silu(sum(y_TD[tap : tap + T] * taps_WD[tap] for tap in range(4))).reshape(T, H, K)

  def unit(x):
    return x / np.sqrt((x * x).sum(-1, keepdims=True) + 1e-6)

  q, k, v = unit(heads('query')), unit(heads('key')), heads('value')
  beta_TH = 1 / (1 + np.exp(-(x_TD @ p['beta']['kernel'])))
  decay_TH = np.ones((T, H))
  if name == 'gated_delta_net':
    step_TH = np.log1p(np.exp(x_TD @ p['step']['kernel'] + p['step_bias']))
    decay_TH = np.exp(-np.exp(p['log_rate']) * step_TH)
  state_HKV, outputs = np.zeros((H, K, K)), []
  for t in range(T):
    state_HKV = decay_TH[t][:, None, None] * state_HKV
    held_HV = np.einsum('hk,hkv->hv', k[t], state_HKV)
    state_HKV = state_HKV + beta_TH[t][:, None, None] * np.einsum('hk,hv->hkv', k[t], v[t] - held_HV)
    outputs.append(np.einsum('hk,hkv->hv', q[t], state_HKV))
  o = np.stack(outputs)
  o = o / np.sqrt((o * o).mean(-1, keepdims=True) + 1e-5) * p['norm']['scale']
  o_TD = o.reshape(T, D)
  if name == 'gated_delta_net':
    o_TD = o_TD * silu(x_TD @ p['gate']['kernel'])
  return o_TD @ p['output']['kernel']


@pytest.mark.parametrize('name', ['delta_net', 'gated_delta_net'])
def test_a_delta_mixer_is_the_published_recurrence(name):
  mixer, x_BTD = contract.build(MODULES[name].Mixer, SPEC), inputs(45, B=1)
  variables = initialised(mixer)
  expected = recurrence(name, jax.tree.map(np.asarray, variables['params']), np.asarray(x_BTD[0], np.float64))
  np.testing.assert_allclose(called(mixer)(x_BTD)[0], expected, rtol=5e-3, atol=5e-4)


def test_a_zero_decay_net_is_not_a_gated_one():
  """The reference above would notice a missing decay."""
  mixer, x_BTD = contract.build(gated_delta_net.Mixer, SPEC), inputs(45, B=1)
  p = jax.tree.map(np.asarray, initialised(mixer)['params'])
  frozen = p | {'log_rate': p['log_rate'] - 50}
  assert (
    np.abs(recurrence('gated_delta_net', p, x_BTD[0]) - recurrence('gated_delta_net', frozen, x_BTD[0])).max() > 0.01
  )


def test_initial_decays_are_spread_as_in_mamba2():
  step = jax.nn.softplus(gated_delta_net.initial_step_bias(KEY, (2000,)))
  assert 9e-4 < step.min() < 2e-3 and 0.08 < step.max() < 0.11
  assert np.median(step) == pytest.approx(1e-2, rel=0.2), 'even on a log scale'
  rate = jnp.exp(gated_delta_net.initial_log_rate(KEY, (2000,)))
  assert rate.min() >= 1 and rate.max() <= 16


def attention(p, x_TD, H=2, scale=None):
  """Softmax attention token by token, its rotary positions by complex numbers."""
  T, D = x_TD.shape
  K = D // H

  def heads(name):
    return (x_TD @ p[name]['kernel']).reshape(T, H, K)

  turn_TK = np.exp(1j * np.arange(T)[:, None] * 10_000.0 ** (-np.arange(K // 2) / (K // 2)))
  q, k = ((one[..., : K // 2] + 1j * one[..., K // 2 :]) * turn_TK[:, None] for one in (heads('query'), heads('key')))
  v, outputs = heads('value'), np.zeros((T, H, K))
  for t in range(T):
    for h in range(H):
      scores = (q[t, h] * k[: t + 1, h].conj()).real.sum(-1) * (scale or K**-0.5)
      weights = np.exp(scores - scores.max())
      outputs[t, h] = weights @ v[: t + 1, h] / weights.sum()
  return outputs.reshape(T, D) @ p['output']['kernel']


def test_softmax_attention_is_the_published_sum_and_not_one_without_its_scale():
  mixer, x_BTD = contract.build(softmax_attention.Mixer, SPEC), 2.0 * inputs(45, B=1)
  p, x_TD = jax.tree.map(np.asarray, initialised(mixer)['params']), np.asarray(x_BTD[0], np.float64)
  np.testing.assert_allclose(called(mixer)(x_BTD)[0], attention(p, x_TD), rtol=5e-3, atol=5e-4)
  assert np.abs(attention(p, x_TD, scale=1.0) - attention(p, x_TD)).max() > 0.01


def test_rotary_products_see_distances_only():
  q, k = (jnp.broadcast_to(x, (1, 9, 1, 8)) for x in jax.random.normal(KEY, (2, 8)))
  products = jnp.einsum('bthk,bshk->ts', softmax_attention.rotate(q), softmax_attention.rotate(k))
  np.testing.assert_allclose(products[1:, 1:], products[:-1, :-1], rtol=1e-3, atol=1e-4)
  assert abs(products[8, 0] - products[0, 0]) > 1e-2, 'and they do see them'


def test_kernels_are_the_ones_that_the_baselines_were_written_for():
  """The last tap is the present token; a unit vector has length one."""
  x_BTD = inputs(6)
  y_BTD, _ = causal_conv(x_BTD, jnp.zeros((4, 16)).at[3].set(1.0))
  np.testing.assert_allclose(y_BTD, x_BTD, rtol=1e-6)
  np.testing.assert_allclose(jnp.linalg.norm(l2_normalise(x_BTD), axis=-1), 1.0, rtol=1e-4)
