"""Parameters shared out over the devices of a batch, and gradients summed over parts of it: the losses stay."""

import pathlib
import runpy

import jax
import numpy as np
import pytest

from asiarch_jax import config
from asiarch_jax.arch import lm
from asiarch_jax.arch.baselines import delta_net
from asiarch_jax.training import sharding
from tests.training import across_devices, tiny

ROOT = pathlib.Path(__file__).parents[2]
RULES = sharding.Rules(tuple(map(config.sharding_rule, ('mlp/.*kernel$ -,fsdp', 'kernel$ fsdp,-', 'bias$ -'))))
ONE = {'mlp': {'up': {'kernel': np.zeros((4, 8))}}, 'mixer': {'kernel': np.zeros((6, 2)), 'bias': np.zeros(6)}}


@pytest.mark.parametrize('rung', ['verification', 'final'])
@pytest.mark.parametrize('name', ['tpu_pod', 'gpu_pod'])
def test_the_pods_share_out_most_of_a_candidate_whatever_its_feed_forward(name, rung):
  settings = config.from_dict(runpy.run_path(str(ROOT / f'configs/{name}.py'))['get_config']()).rungs[rung]
  rules = sharding.Rules(tuple(map(config.sharding_rule, settings.training.sharded)))
  host = lm.LanguageModel(delta_net.Mixer, settings.model, settings.model.mlp_width + 1)
  parameters = jax.eval_shape(host.initial_parameters, jax.random.key(0))
  rules.check(parameters, settings.training.fsdp)
  shares = [rules.axis(path, leaf) is not None for path, leaf in jax.tree_util.tree_leaves_with_path(parameters)]
  sizes = [leaf.size for leaf in jax.tree.leaves(parameters)]
  assert sum(shares) == 5 and sum(size for size, shared in zip(sizes, shares, strict=True) if shared) > 0.7 * sum(sizes)


def test_layers_that_run_one_by_one_are_not_shared_out():
  with pytest.raises(ValueError, match=r'training\.sharded shares the axis of the layers out for layers/'):
    across_devices.of_blocks(1, **across_devices.DEEP | {'sharded': ('layers/mlp/.*kernel$ fsdp,-,-',)})


@pytest.mark.parametrize(
  'layout, microbatches',
  [('map', 2), ('vmap', 4), *(pytest.param(*one, marks=pytest.mark.sweep) for one in (('map', 4), ('vmap', 2)))],
)
def test_gradients_summed_over_parts_of_a_batch_give_its_losses(layout, microbatches):
  found, alone = (
    across_devices.losses(1, 1, seeds=2, microbatches=parts, layout=layout) for parts in (microbatches, 1)
  )
  np.testing.assert_allclose(found['losses'], alone['losses'], rtol=2e-5)
  np.testing.assert_allclose(found['kernel'], alone['kernel'], atol=2e-5)


def test_parts_that_do_not_divide_the_rows_are_refused():
  with pytest.raises(ValueError, match=r'training\.microbatches = 3 does not divide the 4 rows of a device'):
    tiny.trainer(microbatches=3)


def test_the_first_rule_that_matches_a_path_holds():
  assert RULES.specs(ONE) == {
    'mlp': {'up': {'kernel': sharding.P('replica', None, 'fsdp')}},
    'mixer': {'kernel': sharding.P('replica', 'fsdp', None), 'bias': sharding.REPLICAS},
  }
  assert sharding.Rules().specs(ONE)['mixer']['kernel'] == sharding.REPLICAS


def test_a_rule_that_does_not_fit_is_refused_with_both_sizes():
  RULES.check(ONE, 2)
  with pytest.raises(ValueError, match=r'axis 0 of mixer/kernel, of shape \(6, 2\), out over 4 devices'):
    RULES.check(ONE, 4)
  with pytest.raises(ValueError, match=r'a rule of 2 axes for kernel, whose shape is \(3,\)'):
    RULES.specs({'kernel': np.zeros(3)})


@pytest.mark.parametrize(
  'rule', ['kernel$', 'kernel$ fsdp,fsdp', 'kernel$ model,-', '[ fsdp', ' fsdp', 'kernel$ data,-']
)
def test_what_is_no_rule_is_refused(rule):
  with pytest.raises(ValueError, match=r'training\.sharded has'):
    config.sharding_rule(rule)


def test_optimiser_state_lies_as_its_parameters_do():
  trainer = tiny.trainer(sharded=('hidden/kernel$ fsdp,-',))
  specs = jax.tree.leaves(trainer._states, is_leaf=lambda leaf: isinstance(leaf, sharding.P))
  assert sum(spec == sharding.P('replica', 'fsdp', None) for spec in specs) == 3  # parameter and two moments
