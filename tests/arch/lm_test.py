import dataclasses
import re
import runpy
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from asiarch_jax import config
from asiarch_jax.arch import lm
from asiarch_jax.arch.baselines import delta_net, gated_delta_net, softmax_attention
from tests.cli import ROOT
from tests.training.tiny import Shift

TINY = config.Model(width=16, layers=3, heads=2, mlp_width=24, vocabulary=11)
TOKENS = np.random.default_rng(0).integers(0, 11, (2, 9)).astype(np.int32)
KEY = jax.random.key(0)


def run(model, parameters, mixer=Shift, mlp_width=None):
  """Returns logits, gradient of their sum of squares, and what was sown."""
  host = lm.LanguageModel(mixer, model, mlp_width)

  def objective(parameters):
    logits, sown = host.apply({'params': parameters}, TOKENS, mutable=['losses', 'diagnostics'])
    return jnp.sum(jnp.square(logits)) + sum(map(jnp.sum, jax.tree.leaves(sown['losses']))), (logits, sown)

  gradient, (logits, sown) = jax.jit(jax.grad(objective, has_aux=True))(parameters)
  return logits, gradient, sown


def trees_agree(one, other, **tolerance):
  assert jax.tree.structure(one) == jax.tree.structure(other)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), one, other)


@pytest.mark.parametrize('remat', [False, True])
@pytest.mark.parametrize('scan_layers', [False, True])
def test_scan_and_remat_equal_the_loop(scan_layers, remat):
  parameters = lm.LanguageModel(Shift, TINY).initial_parameters(KEY)
  logits, gradient, sown = run(TINY, parameters)
  model = dataclasses.replace(TINY, scan_layers=scan_layers, remat=remat)
  form = lm.stacked if scan_layers else dict
  other_logits, other_gradient, other_sown = run(model, form(parameters))
  np.testing.assert_allclose(other_logits, logits, rtol=1e-5, atol=1e-6)
  trees_agree(other_gradient, form(gradient), rtol=1e-4, atol=1e-5)
  for name in ('losses', 'diagnostics'):
    total = np.sort(np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(sown[name])]))
    other = np.sort(np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(other_sown[name])]))
    assert len(total) == TINY.layers
    np.testing.assert_allclose(other, total, rtol=1e-5)


def test_scan_and_loop_start_from_the_same_numbers():
  scanned = lm.LanguageModel(Shift, dataclasses.replace(TINY, scan_layers=True)).initial_parameters(KEY)
  looped = lm.LanguageModel(Shift, TINY).initial_parameters(KEY)
  trees_agree(lm.stacked(looped), scanned)
  trees_agree(lm.unstacked(scanned), looped)
  first, second = looped['layer_0'], looped['layer_1']
  assert not np.allclose(first['mixer']['mix']['kernel'], second['mixer']['mix']['kernel']), 'layers start apart'


def test_layers_are_stacked_in_order_beyond_ten():
  model = dataclasses.replace(TINY, layers=12)
  parameters = lm.LanguageModel(Shift, model).initial_parameters(KEY)
  kernels = lm.stacked(parameters)['layers']['mixer']['mix']['kernel']
  np.testing.assert_array_equal(kernels[11], parameters['layer_11']['mixer']['mix']['kernel'])


def test_the_block_is_the_one_in_the_docstring():
  """One layer, an identity mixer, by hand."""

  class Identity(nn.Module):
    width: int
    heads: int
    dtype: Any = jnp.float32

    def __call__(self, x_BTD):
      return x_BTD

  model = dataclasses.replace(TINY, layers=1)
  host = lm.LanguageModel(Identity, model)
  p = host.initial_parameters(KEY)

  def norm(x, scale):
    return x / np.sqrt(np.mean(x * x, -1, keepdims=True) + model.norm_epsilon) * scale

  block = p['layer_0']
  x = np.asarray(p['embedding'])[TOKENS]
  x = x + norm(x, block['mixer_norm']['scale'])
  y, mlp = norm(x, block['mlp_norm']['scale']), block['mlp']
  x = x + (nn.silu(y @ mlp['gate']['kernel']) * (y @ mlp['up']['kernel'])) @ mlp['down']['kernel']
  logits = norm(x, p['norm']['scale']) @ np.asarray(p['embedding']).T
  np.testing.assert_allclose(host.apply({'params': p}, TOKENS), logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('tied', [False, True])
def test_an_untied_head_is_a_matrix_of_its_own(tied):
  parameters = lm.LanguageModel(Shift, dataclasses.replace(TINY, tied=tied)).initial_parameters(KEY)
  assert ('head' in parameters) is not tied


def test_bfloat16_computes_low_and_keeps_parameters_and_logits_high():
  model = dataclasses.replace(TINY, dtype='bfloat16')
  parameters = lm.LanguageModel(Shift, model).initial_parameters(KEY)
  assert {leaf.dtype for leaf in jax.tree.leaves(parameters)} == {jnp.dtype('float32')}
  logits, gradient, _ = run(model, parameters)
  assert logits.dtype == jnp.float32
  assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {jnp.dtype('float32')}
  exact, _, _ = run(TINY, parameters)
  error = np.abs(logits - exact).max() / np.abs(exact).max()
  assert 1e-5 < error < 5e-2, 'bfloat16 is coarser than float32, and close to it'


# The published totals of DeltaNet, `docs` of asi-arch section 3: GPT-2 vocabulary, 19.73M and 411.75M.
ASI_ARCH = config.from_dict(runpy.run_path(str(ROOT / 'configs/asi_arch.py'))['get_config']())
PAPER = {
  'exploration': (ASI_ARCH.model, 19.73e6),
  'verification': (ASI_ARCH.rungs['verification'].model, 411.75e6),
  'final': (ASI_ARCH.rungs['final'].model, 411.75e6),
}


@pytest.mark.parametrize('name', PAPER)
def test_delta_net_has_the_parameters_of_the_paper(name):
  model, published = PAPER[name]
  assert lm.parameter_count(delta_net.Mixer, model) == pytest.approx(published, abs=0.005e6)
  loop = dataclasses.replace(model, scan_layers=not model.scan_layers)
  assert lm.parameter_count(delta_net.Mixer, loop) == lm.parameter_count(delta_net.Mixer, model)


def test_the_count_is_what_initialisation_makes():
  host = lm.LanguageModel(Shift, TINY, 7)
  made = sum(leaf.size for leaf in jax.tree.leaves(host.initial_parameters(KEY)))
  assert lm.parameter_count(Shift, TINY, 7) == made


@pytest.mark.parametrize('mixer', [gated_delta_net.Mixer, softmax_attention.Mixer])
def test_a_candidate_is_brought_to_the_parameters_of_the_baseline(mixer):
  model = config.Model()
  target = lm.parameter_count(delta_net.Mixer, model)
  width, parameters = lm.matched_mlp_width(mixer, model, target, 0.01, 0.5)
  assert parameters == lm.parameter_count(mixer, model, width)
  assert abs(parameters - target) <= 3 * model.width * model.layers / 2 + 1, 'no other width comes nearer'
  assert (width < model.mlp_width) == (lm.parameter_count(mixer, model) > target)


def test_the_baseline_matches_itself():
  model = config.Model()
  target = lm.parameter_count(delta_net.Mixer, model)
  assert lm.matched_mlp_width(delta_net.Mixer, model, target, 0.01, 0.5) == (model.mlp_width, target)


def test_a_mixer_that_is_too_large_is_refused_with_both_numbers_and_the_remedy():
  model = config.Model()
  target = lm.parameter_count(delta_net.Mixer, model) // 2
  with pytest.raises(ValueError, match=rf'parameters at best, {target} wanted.*parameters a layer'):
    lm.matched_mlp_width(gated_delta_net.Mixer, model, target, 0.01, 0.5)


def test_a_tolerance_finer_than_one_unit_is_refused_with_the_remedy():
  with pytest.raises(ValueError, match='wanted within'):
    lm.matched_mlp_width(Shift, TINY, lm.parameter_count(Shift, TINY) + 50, 1e-6, 0.5)


def test_the_remedy_is_enough():
  """Taking away as many parameters a layer as the message asks for makes the mixer fit."""
  model = config.Model()
  target = lm.parameter_count(delta_net.Mixer, model) // 2
  with pytest.raises(ValueError) as refused:
    lm.matched_mlp_width(delta_net.Mixer, model, target, 0.0, 0.5)
  asked = int(str(refused.value).split('smaller by ')[1].split()[0])
  floor = lm.parameter_count(delta_net.Mixer, model, model.mlp_width // 2)
  assert floor - asked * model.layers <= target < floor - (asked - 1) * model.layers


def test_flops_a_token_are_those_of_the_matrices():
  assert lm.flops_per_token(TINY) == 2 * (3 * 16 * 24 * 3 + 16 * 11)
  assert lm.flops_per_token(TINY, 10) == 2 * (3 * 16 * 10 * 3 + 16 * 11)


def kept_by(saves, capsys):
  """Returns the gradient of a model of DeltaNet layers, and what is kept for its backward pass, in words."""
  model = dataclasses.replace(TINY, remat=True, remat_saves=saves)
  host = lm.LanguageModel(delta_net.Mixer, model)
  parameters, tokens = host.initial_parameters(jax.random.key(0)), jnp.arange(64)[None] % model.vocabulary

  def loss(parameters):
    return host.apply({'params': parameters}, tokens).astype(jnp.float32).var()

  gradient = jax.jit(jax.grad(loss))(parameters)
  capsys.readouterr()
  jax.ad_checkpoint.print_saved_residuals(loss, parameters)
  return gradient, capsys.readouterr().out


@pytest.mark.slow
def test_a_rematerialised_block_keeps_what_was_asked_for(capsys):
  found = {saves: kept_by(saves, capsys) for saves in ('nothing', 'kernels', 'products', 'both')}
  for gradient, _ in found.values():
    for one, other in zip(jax.tree.leaves(gradient), jax.tree.leaves(found['nothing'][0]), strict=True):
      np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
  named = {saves: set(re.findall("named '(delta_rule_[a-z]+)'", said)) for saves, (_, said) in found.items()}
  both = {'delta_rule_inverse', 'delta_rule_states'}
  assert named == {'nothing': set(), 'kernels': both, 'products': set(), 'both': both}
  lines = {saves: said.count('\n') for saves, (_, said) in found.items()}
  assert lines['nothing'] < min(lines['kernels'], lines['products']) and lines['both'] > lines['products']
