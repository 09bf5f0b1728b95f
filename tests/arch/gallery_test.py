"""Every mixer of the gallery is its reference, holds the published number of parameters, and passes the gate."""

import dataclasses
import functools
import importlib
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asiarch_jax import config
from asiarch_jax.arch import contract, lm
from asiarch_jax.arch.baselines import gla
from asiarch_jax.checks import behaviour, source
from tests.arch import gallery_references
from tests.marks import slow_but

FOLDER = pathlib.Path(__file__).parents[2] / 'asiarch_jax/arch/baselines'
NAMES = sorted(path.stem for path in FOLDER.glob('[a-z]*.py'))
GALLERY = tuple(gallery_references.REFERENCES)
SPEC = contract.MixerSpec(16, 2, jnp.dtype('float32'))
T = 101  # more than three chunks of 32, more than one of 64, and than the longest filter
# The verification model of ASI-ARCH: 24 x 1024, 8 heads, GPT-2's vocabulary untied, FLA's SwiGLU.
VERIFICATION = dataclasses.replace(
  config.Model(), width=1024, layers=24, heads=8, mlp_width=2816, vocabulary=50_257, tied=False
)
PUBLISHED = {  # millions of parameters, as printed with the shipped programs
  'delta_net': '411.75',
  'content_sharp_router_faithful': '425.44',
  'fusion_gated_fir_net_faithful': '466.90',
}
PARAMETERS = {  # renew with lm.parameter_count(mixer, VERIFICATION) after a change that is meant
  'ada_multi_path_gate_net': 428_821_752,
  'content_sharp_router': 425_436_096,
  'content_sharp_router_faithful': 425_436_096,
  'delta_net': 411_752_448,
  'fusion_gated_fir_net': 466_902_144,
  'fusion_gated_fir_net_faithful': 466_902_144,
  'gated_delta_net': 437_115_264,
  'gla': 411_887_616,
  'hier_gate_net': 414_162_624,
  'kda': 424_384_704,
  'mamba2': 468_403_776,
  'path_gate_fusion_net': 482_164_056,
  'retnet': 511_921_152,
  'softmax_attention': 411_257_856,
}


def mixer_of(name):
  return importlib.import_module(f'asiarch_jax.arch.baselines.{name}').Mixer


def inputs(B=2):
  return jax.random.normal(jax.random.key(T), (B, T, SPEC.width))


@functools.cache
def initial(name):
  """Fresh parameters, as NumPy."""
  mixer = contract.build(mixer_of(name), SPEC)
  parameters = compiled(lambda key: mixer.init(key, inputs()[:, :2])['params'], jax.random.key(1))(jax.random.key(1))
  return jax.tree.map(np.asarray, parameters)


@functools.cache
def moved(name):
  """Parameters off their initialisation, so that what starts at zero is seen: by a fifth of their size, or by 0.2."""
  rng = np.random.default_rng(2)

  def move(leaf):
    size = np.sqrt(np.mean(np.square(leaf))) or 1.0
    return (leaf + 0.2 * size * rng.normal(size=leaf.shape)).astype(np.float32)

  return jax.tree.map(move, initial(name))


@functools.cache
def forward(name):
  """The mixer as a compiled function of parameters and x_BTD: y_BTD and what is sown into `losses`."""
  mixer = contract.build(mixer_of(name), SPEC)

  def run(parameters, x_BTD):
    y_BTD, sown = mixer.apply({'params': parameters}, x_BTD, mutable=('losses',))
    return y_BTD, jax.tree.leaves(sown)

  return compiled(run, moved(name), inputs())


def compiled(function, *operands):
  """Quick to compile: each program runs a few times only."""
  options = behaviour.PROGRAM.get(jax.default_backend(), {})
  return jax.jit(function).lower(*operands).compile(dict(options))


def reference(name, parameters, x_BTD):
  wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), parameters)
  run = gallery_references.REFERENCES[name]
  return np.stack([run(wide, np.asarray(x_TD, np.float64), SPEC.heads) for x_TD in x_BTD])


@functools.cache
def expected(name):
  return reference(name, moved(name), inputs())


def distance(got, wanted):
  """Returns the largest difference over the root mean square of what was wanted."""
  return float(np.abs(np.asarray(got, np.float64) - wanted).max() / np.sqrt(np.mean(np.square(wanted))))


# The variants of one design share most of their lines.
@pytest.mark.parametrize('name', slow_but([name for name in GALLERY if not name.endswith('_faithful')], GALLERY))
def test_a_mixer_is_its_reference(name):
  y_BTD, _ = forward(name)(moved(name), inputs())
  assert distance(y_BTD, expected(name)) < 1e-4


@pytest.mark.parametrize('name', slow_but(GALLERY[::3], GALLERY))
def test_the_reference_would_notice_a_parameter_that_is_not_used(name):
  leaves, tree = jax.tree.flatten(moved(name))
  for at, (path, _) in enumerate(jax.tree_util.tree_leaves_with_path(moved(name))):
    without = tree.unflatten([0 * leaf if i == at else leaf for i, leaf in enumerate(leaves)])
    change = distance(reference(name, without, inputs()[:1]), expected(name)[:1])
    assert change > 1e-3, f'{jax.tree_util.keystr(path)} at zero changes nothing'


def test_entropy_is_rewarded():
  _, (loss,) = forward('ada_multi_path_gate_net')(moved('ada_multi_path_gate_net'), inputs())
  wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), moved('ada_multi_path_gate_net'))
  rows = [gallery_references.ada_entropy(wide, np.asarray(x_TD, np.float64), SPEC.heads) for x_TD in inputs()]
  assert loss == pytest.approx(-0.02 * np.mean(rows), rel=1e-4)


@pytest.mark.parametrize('name, first', [('fusion_gated_fir_net_faithful', 64), ('fusion_gated_fir_net', 1)])
def test_the_published_state_fades_in_jumps_and_the_clean_one_at_every_token(name, first):
  """The first chunk begins with an empty state, so the first jump that is felt comes after two chunks."""
  y_BTD, _ = forward(name)(moved(name), inputs())
  other_BTD, _ = forward(name)(moved(name) | {'retention': np.full(SPEC.heads, -2.0, np.float32)}, inputs())
  change_T = np.abs(y_BTD - other_BTD).max((0, 2))
  assert change_T[:first].max() < 1e-5 < 1e-4 < change_T[first:].max()
  assert change_T[first] > 1e-5


def test_mixers_start_as_their_docstrings_say():
  def softplus(x):
    return np.log1p(np.exp(x))

  for name in GALLERY[4:]:
    for key in {'short_taps', 'middle_taps', 'long_taps'} & set(initial(name)):
      noise = initial(name)[key] - np.eye(len(initial(name)[key]))[-1][:, None]
      assert np.abs(noise).max() < 0.1, (name, key)

  clean, faithful = initial('content_sharp_router'), initial('content_sharp_router_faithful')
  np.testing.assert_allclose(softplus(clean['sharpness']), 1.5, rtol=1e-6)
  np.testing.assert_array_equal(clean['route_bias'], [[0, 0, 0, 2]] * 2)
  np.testing.assert_array_equal(faithful['route_bias'], [0, 0, 0, 2, 0, 0, 0, 2])

  fusion = initial('fusion_gated_fir_net')
  np.testing.assert_allclose(0.6 + 0.4 / (1 + np.exp(-fusion['retention'])), 0.99996, atol=1e-6)
  np.testing.assert_array_equal(fusion['gate_bias'], [[-1, -1, 1, 3]] * 2)

  path_gate = initial('path_gate_fusion_net')
  np.testing.assert_allclose(softplus(path_gate['temperature']) + 0.05, 1.0, rtol=1e-6)
  np.testing.assert_allclose(4 / (1 + np.exp(-path_gate['output_gate']['bias'])), 1.0, rtol=1e-6)
  np.testing.assert_allclose(0.2 / (1 + np.exp(-initial('hier_gate_net')['floor_bias'])), 0.05, rtol=1e-6)
  np.testing.assert_allclose(softplus(initial('ada_multi_path_gate_net')['temperature']) + 0.5, 1.0, rtol=1e-6)


def test_gates_that_close_overflow_nothing():
  """One chunk with gates at one, at e^-1 and at e^-200: exponents of both signs would leave float32."""
  q, k, v, choice = jax.random.normal(jax.random.key(4), (4, 1, 70, 1, 8))
  log_decay = jnp.where(choice > 1, -200.0, jnp.where(choice > 0, -1.0, 0.0))

  def total(log_decay):
    o = gla.gated_sums(q, k, v, log_decay)
    return o.sum(), o

  gradient, o = compiled(jax.grad(total, has_aux=True), log_decay)(log_decay)
  state_KV, wanted = np.zeros((8, 8)), []
  for t in range(70):
    state_KV = np.exp(np.float64(log_decay[0, t, 0]))[:, None] * state_KV + np.outer(k[0, t, 0], v[0, t, 0])
    wanted.append(q[0, t, 0] @ state_KV)
  assert distance(o[0, :, 0], np.array(wanted)) < 1e-5
  assert np.isfinite(gradient).all()


@pytest.mark.parametrize('name', NAMES)
def test_the_number_of_parameters_at_the_verification_size(name):
  """Where ASI-ARCH shipped the program, to the digits that it printed: no tensor differs, none is left out."""
  parameters = lm.parameter_count(mixer_of(name), VERIFICATION)
  assert parameters == PARAMETERS[name]
  if name in PUBLISHED:
    assert f'{parameters / 1e6:.2f}' == PUBLISHED[name]


def test_what_a_champion_adds_to_delta_net_is_its_filters_and_its_gate():
  D, H, layers = VERIFICATION.width, VERIFICATION.heads, VERIFICATION.layers
  router = (3 + 25) * D + (D * D // 2 + D // 2) + ((D // 2 + 8) * 4 * H + 4 * H) + H
  fusion = (3 + 63) * D + ((D + 4 * H) * 2 * D + 2 * D) + (2 * D * 4 * H + 4 * H) + 2 * H
  assert PARAMETERS['content_sharp_router_faithful'] - PARAMETERS['delta_net'] == layers * router
  assert PARAMETERS['fusion_gated_fir_net_faithful'] - PARAMETERS['delta_net'] == layers * fusion


def test_every_file_of_the_folder_is_counted_and_keeps_to_the_text_of_the_contract():
  assert sorted(PARAMETERS) == NAMES and set(GALLERY) < set(NAMES)
  for name in NAMES:
    assert all(finding.passed for finding in source.check((FOLDER / f'{name}.py').read_text())), name


@pytest.mark.sweep
@pytest.mark.parametrize('name', GALLERY)
def test_a_mixer_passes_the_gate_at_the_default_size(name):
  mixer = contract.load((FOLDER / f'{name}.py').read_text(), name)
  findings = behaviour.gate(mixer, contract.spec_of(config.Model()), config.Checks())
  assert [finding.detail for finding in findings if not finding.passed] == []
  assert [finding.check for finding in findings] == list(behaviour.CHECKS)


@pytest.mark.sweep
@pytest.mark.parametrize('name', GALLERY)
def test_bfloat16_is_near_float32(name):
  low = contract.build(mixer_of(name), dataclasses.replace(SPEC, dtype=jnp.dtype('bfloat16')))
  run = compiled(lambda p, x: low.apply({'params': p}, x), moved(name), inputs().astype(jnp.bfloat16))
  coarse = run(moved(name), inputs().astype(jnp.bfloat16))
  assert coarse.dtype == jnp.bfloat16
  assert distance(coarse.astype(jnp.float32), expected(name)) < 0.1
