"""Counts against counts by hand, and fingerprints that know a function under other names."""

import pathlib

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from jax.experimental import pallas as pl
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

from asiarch_jax import config
from asiarch_jax.arch import contract
from asiarch_jax.checks import cost
from asiarch_jax.checks.cost import flops, jaxprs

ROOT = pathlib.Path(__file__).parents[2]
HERE = pathlib.Path(__file__).parent
SPEC = contract.spec_of(config.Model())
D, H, T = SPEC.width, SPEC.heads, 128


def module(path):
  return contract.build(contract.load(path.read_text(), path.stem), SPEC)


def baseline(name):
  return module(ROOT / f'asiarch_jax/arch/baselines/{name}.py')


def counted(function, *shapes):
  jaxpr = jax.make_jaxpr(function)(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes))
  return sum(part.flops for part in flops.parts(jaxpr))


@pytest.mark.parametrize(
  'name, kind, platform',
  [
    ('gated_delta_net', 'NVIDIA H100 80GB HBM3', 'cuda'),
    pytest.param('kda', 'NVIDIA H100 80GB HBM3', 'cuda', marks=pytest.mark.slow),
    ('delta_net', 'TPU v5 lite', 'tpu'),
  ],
)
def test_a_mixer_costs_and_computes_the_same_where_its_delta_rule_is_a_kernel(name, kind, platform):
  spec = contract.spec_of(config.Model(dtype='bfloat16'))

  def found():
    # Of a class loaded anew: what is traced for a module is remembered.
    path = ROOT / f'asiarch_jax/arch/baselines/{name}.py'
    mixer = contract.build(contract.load(path.read_text(), path.stem), spec)
    return cost.count(mixer, D, T), cost.fingerprint(mixer, D)

  here = found()
  with use_abstract_mesh(AbstractMesh((), (), abstract_device=AbstractDevice(kind, None, platform))):
    assert found() == here


def test_a_dense_layer_costs_two_for_each_weight_and_one_for_each_bias():
  counts = cost.count(nn.Dense(D, dtype=jnp.float32), D, T)
  assert counts.mixer_parameters == D * D + D
  assert counts.flops_per_token == 2 * D * D + D
  assert counts.state_bytes == 0
  assert counts.growth == pytest.approx(1, abs=1e-3)


def test_attention_costs_what_the_textbook_says():
  counts = cost.count(baseline('softmax_attention'), D, T)
  assert counts.mixer_parameters == 4 * D * D
  products = 8 * D * D + 4 * T * D  # four projections, scores and sums, a token
  assert products <= counts.flops_per_token <= products + 12 * T * H + 10 * D
  assert counts.state_bytes == 2 * T * D * 4, 'keys and values of every token'
  assert counts.growth > 1.9


def test_the_delta_rule_keeps_its_state_and_the_taps_of_its_convolutions():
  for name in ('delta_net', 'gated_delta_net'):
    counts = cost.count(baseline(name), D, T)
    assert counts.state_bytes == 4 * (H * (D // H) ** 2 + 3 * 3 * D)
    assert counts.growth == pytest.approx(1, abs=0.01)
    assert 8 * D * D < counts.flops_per_token < 8 * D * D + 100 * D * (D // H)


@pytest.mark.parametrize(
  'path, kept',
  [
    ('innocent/zero_gate', D),  # one token back
    ('innocent/running_mean', D),  # one running sum
    ('innocent/token_scan', D),  # the carry
    ('innocent/associative', 2 * D),  # both parts of the pair, as documented
    ('innocent/causal_convolution', 3 * D),  # three taps back
    ('innocent/stacked_taps', 7 * D),  # seven taps back
    ('innocent/previous_chunk', 2 * 16 * D),  # keys and values of a chunk back
    ('innocent/padded_fourier', T * D),  # all of the past
    ('guilty/quadratic_attention', 2 * T * D),
    ('guilty/quadratic_in_a_scan', 2 * T * D),
  ],
)
def test_state_is_what_a_decoder_would_keep(path, kept):
  assert cost.count(module(HERE / f'{path}.py'), D, T).state_bytes == 4 * kept


def test_state_of_attention_grows_with_the_length_and_that_of_a_recurrence_does_not():
  attention, recurrence = baseline('softmax_attention'), module(HERE / 'innocent/token_scan.py')
  assert cost.count(attention, D, 512).state_bytes == 4 * cost.count(attention, D, 128).state_bytes
  assert cost.count(recurrence, D, 512).state_bytes == cost.count(recurrence, D, 128).state_bytes


def test_a_loop_counts_as_often_as_it_turns():
  def loop(x, w):
    return jax.lax.scan(lambda h, _: (h @ w, None), x, None, length=7)[0]

  assert counted(loop, (3, 5), (5, 5)) == 7 * 2 * 3 * 5 * 5
  assert counted(lambda x, w: jax.lax.fori_loop(0, 4, lambda i, h: loop(h, w), x), (3, 5), (5, 5)) >= 4 * 7 * 150


def test_wrappers_are_looked_through():
  @jax.custom_vjp
  def product(a, b):
    return a @ b

  product.defvjp(lambda a, b: (a @ b, (a, b)), lambda kept, d: (d, d))
  assert counted(jax.jit(jax.checkpoint(product)), (4, 4), (4, 4)) == 2 * 4**3


@pytest.mark.parametrize(
  'function, shapes, wanted',
  [
    (lambda a, b: jnp.einsum('bij,bjk->bik', a, b), [(2, 3, 4), (2, 4, 5)], 2 * 2 * 3 * 4 * 5),
    (lambda a: jnp.exp(a) + a, [(3, 4)], 24),
    (lambda a: jax.lax.reduce_sum_p.bind(a, axes=(0,), out_sharding=None), [(3, 4)], 12),
    (lambda a: jnp.cumsum(a, 0), [(3, 4)], 12),
    (lambda a: a.T.reshape(2, 6)[:, ::2], [(3, 4)], 0),
    (lambda a: jnp.fft.fft(a).real, [(3, 8)], 5 * 3 * 8 * 3),
    (lambda a: jnp.fft.rfft(a).real, [(3, 8)], 2.5 * 3 * 8 * 3),
    (lambda a: jax.lax.sort(a), [(3, 8)], 3 * 8 * 3),
    (
      lambda x, w: jax.lax.conv_general_dilated(x, w, (1,), 'VALID', dimension_numbers=('NWC', 'WIO', 'NWC')),
      [(1, 10, 3), (4, 3, 5)],
      2 * 7 * 5 * 4 * 3,
    ),
    (lambda a, b: jax.scipy.linalg.solve_triangular(a, b, lower=True), [(4, 4), (4, 3)], 4 * 4 * 3),
    (lambda a: jax.lax.cond(a[0] > 0, lambda v: jnp.exp(jnp.exp(v)), lambda v: v, a), [(6,)], 12 + 2),
  ],
)
def test_primitives_cost_what_the_table_says(function, shapes, wanted):
  assert counted(function, *shapes) == pytest.approx(wanted, abs=3)


def test_an_open_loop_is_refused():
  with pytest.raises(cost.UnboundedLoopError, match='while loop'):
    cost.count(module(HERE / 'guilty/open_loop.py'), D, T)


def test_growth_names_the_dearest_of_the_steepest():
  grown = cost.growth(module(HERE / 'guilty/quadratic_in_a_scan.py'), D)
  assert grown.exponent > 1.9 and grown.steepest == pytest.approx(2, abs=0.01)
  assert 'dot_general' in grown.culprit and str(grown.lengths[1]) in grown.culprit


def test_a_python_loop_over_tokens_is_counted_at_short_lengths():
  class Unrolled(nn.Module):
    width: int = D
    dtype: type = jnp.float32

    @nn.compact
    def __call__(self, x_BTD):
      x_BTD = nn.Dense(self.width)(x_BTD)
      h_BD, out = jnp.zeros_like(x_BTD[:, 0]), []
      for t in range(x_BTD.shape[1]):
        h_BD = 0.9 * h_BD + x_BTD[:, t]
        out.append(h_BD)
      return jnp.stack(out, 1)

  grown = cost.growth(Unrolled(), D)
  assert grown.lengths == cost.UNROLLED_LENGTHS
  assert grown.exponent == pytest.approx(1, abs=0.02)
  assert grown.steepest == pytest.approx(1, abs=0.02)


TEXT = """
import jax.numpy as jnp
from flax import linen as nn
from typing import Any

class Mixer(nn.Module):
  width: int
  heads: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x):
    v = nn.Dense(self.width, use_bias=False, name='value')(x)
    g = nn.Dense(self.width, use_bias=False, name='gate')(x)
    a = self.param('scale', nn.initializers.constant(0.5), (self.width,))
    y = jnp.cumsum(v, 1) * nn.sigmoid(g)
    return a * y + 0.25 * x
"""
SAME = {
  'comments': TEXT.replace('    y =', '    # a comment\n    y ='),
  'names of variables': TEXT.replace('(v, 1)', '(value, 1)').replace('    v =', '    value ='),
  'names of parameters': TEXT.replace("'value'", "'zz'").replace("'gate'", "'aa'").replace("'scale'", "'bb'"),
  'order of parameters': TEXT.replace('    a = self', '    b = self', 1)
  .replace("    b = self.param('scale', nn.initializers.constant(0.5), (self.width,))\n", '')
  .replace('    v = nn', "    a = self.param('scale', nn.initializers.constant(0.5), (self.width,))\n    v = nn"),
  'order of factors': TEXT.replace('a * y + 0.25 * x', 'x * 0.25 + y * a'),
  'dead code': TEXT.replace('    return', '    unused = jnp.fft.fft(x, axis=1).real\n    return'),
  'a wrapped part': TEXT.replace('jnp.cumsum(v, 1)', 'jax.jit(jax.checkpoint(lambda u: jnp.cumsum(u, 1)))(v)').replace(
    'import jax.numpy', 'import jax\nimport jax.numpy'
  ),
  'a method': TEXT.replace('jnp.cumsum(v, 1)', 'self.summed(v)') + '\n  def summed(self, u):\n    return u.cumsum(1)\n',
}
OTHER = {
  'a constant': TEXT.replace('0.25', '0.26'),
  'an initial value': TEXT.replace('constant(0.5)', 'constant(0.6)'),
  'an initialiser': TEXT.replace("name='gate'", "kernel_init=nn.initializers.normal(0.1), name='gate'"),
  'an axis': TEXT.replace('jnp.cumsum(v, 1)', 'jnp.cumsum(v, 2)'),
  'an activation': TEXT.replace('nn.sigmoid', 'nn.tanh'),
  'a stopped gradient': TEXT.replace('nn.sigmoid(g)', 'jax.lax.stop_gradient(nn.sigmoid(g))').replace(
    'import jax.numpy', 'import jax\nimport jax.numpy'
  ),
  'a shared parameter': TEXT.replace('nn.sigmoid(g)', 'nn.sigmoid(v)'),
  'a tied layer': TEXT.replace("nn.Dense(self.width, use_bias=False, name='gate')(x)", 'v'),
  'another power': TEXT.replace('a * y', 'a * a * y'),
  'a loss': TEXT.replace('    return', "    self.sow('losses', 'size', 0.1 * y.mean())\n    return"),
}


def fingerprint(text):
  return cost.fingerprint(contract.build(contract.load(text), contract.MixerSpec(8, 2, jnp.dtype('float32'))), 8)


@pytest.mark.parametrize('change', SAME)
def test_the_same_function_has_the_same_fingerprint_whatever(change):
  assert SAME[change] != TEXT
  assert fingerprint(SAME[change]) == fingerprint(TEXT)


@pytest.mark.parametrize('change', OTHER)
def test_another_function_has_another_fingerprint_through(change):
  assert OTHER[change] != TEXT
  assert fingerprint(OTHER[change]) != fingerprint(TEXT)


@pytest.mark.slow
def test_fingerprints_of_baselines_and_innocents_differ_and_repeat():
  paths = [*sorted((HERE / 'innocent').glob('*.py')), *sorted((ROOT / 'asiarch_jax/arch/baselines').glob('[a-z]*.py'))]
  first = {path.stem: cost.fingerprint(module(path), D) for path in paths}
  assert len(set(first.values())) == len(first)
  assert all(len(value) == 32 and int(value, 16) >= 0 for value in first.values())
  assert all(cost.fingerprint(module(path), D) == first[path.stem] for path in paths[::5])


LOOP = """
import jax
import jax.numpy as jnp
from flax import linen as nn
from typing import Any

class Mixer(nn.Module):
  width: int
  heads: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x):
    v = nn.Dense(self.width)(x).swapaxes(0, 1)
    def step(carry, u):
      fast, slow = carry['fast'], carry['slow']
      fast, slow = 0.5 * fast + u, 0.9 * slow + u
      return {'fast': fast, 'slow': slow}, fast - slow
    start = {'fast': jnp.zeros_like(v[0]), 'slow': jnp.zeros_like(v[0])}
    return jax.lax.scan(step, start, v)[1].swapaxes(0, 1)
"""


def test_the_parts_of_a_carry_have_no_order():
  assert fingerprint(LOOP.replace("'fast'", "'z'")) == fingerprint(LOOP)
  assert fingerprint(LOOP.replace('fast - slow', 'slow - fast')) != fingerprint(LOOP)
  assert fingerprint(LOOP.replace('0.9', '0.8')) != fingerprint(LOOP)


def test_a_trace_is_the_same_function_as_itself_only():
  one, two = (jaxprs.trace(baseline(name), D, 32, 1) for name in ('delta_net', 'gated_delta_net'))
  assert cost.same_function(one, jaxprs.trace(baseline('delta_net'), D, 32, 1))
  assert not cost.same_function(one, two)


def test_a_kernel_counts_as_often_as_its_grid_says():
  def double(x_ref, o_ref):
    o_ref[...] = jnp.dot(x_ref[...], x_ref[...])

  def run(x):
    block = pl.BlockSpec((8, 8), lambda i: (i, 0))
    return pl.pallas_call(
      double, grid=(4,), in_specs=[block], out_specs=block, out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype)
    )(x)

  assert counted(run, (32, 8)) == 4 * 2 * 8**3
