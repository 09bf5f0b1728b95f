"""Copies of the baseline: the same function, other initial mixers, the same host."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asiarch_jax import config
from asiarch_jax.agents import placebo
from asiarch_jax.arch import contract, lm
from asiarch_jax.checks import cost, source
from asiarch_jax.commands import baseline_names, baseline_proposal
from asiarch_jax.records import Selection
from tests import samples
from tests.marks import slow_but

MODEL = config.Model(width=16, heads=2, mlp_width=24)


def copy(name='delta_net', outcomes=(), seed=0, **changes):
  author = placebo.Placebo(baseline_proposal(name), 'evolution', **changes)
  return author.propose(Selection(None), outcomes, np.random.default_rng(seed))


@pytest.mark.parametrize('name', slow_but(baseline_names()[::3], baseline_names()))
def test_a_copy_of_any_baseline_keeps_to_the_contract_and_computes_the_same_function(name):
  made = copy(name)
  assert source.failure(source.check(made.source)) is None
  ours = contract.load(made.source, made.name)
  theirs = contract.load(baseline_proposal(name).source, name)
  spec = contract.spec_of(MODEL)
  built = [contract.build(mixer, spec) for mixer in (ours, theirs)]
  assert cost.fingerprint(built[0], 16) == cost.fingerprint(built[1], 16)


@pytest.mark.slow
def test_its_mixers_start_elsewhere_and_its_host_does_not():
  mixers = [contract.load(p.source, p.name) for p in (copy(), copy(seed=1), baseline_proposal('delta_net'))]
  first, second, base = (lm.LanguageModel(m, MODEL).initial_parameters(jax.random.key(0)) for m in mixers)
  np.testing.assert_array_equal(first['embedding'], base['embedding'])
  np.testing.assert_array_equal(first['layer_0']['mlp']['up']['kernel'], base['layer_0']['mlp']['up']['kernel'])
  ours, others = (next(iter(p['layer_0']['mixer'].values()))['query']['kernel'] for p in (first, second))
  theirs = base['layer_0']['mixer']['query']['kernel']
  assert jnp.abs(ours - theirs).max() > 0.01 and jnp.abs(ours - others).max() > 0.01


def test_it_looks_like_a_candidate():
  outcomes = samples.archive(20)
  made = copy(outcomes=outcomes, genome={'decay': 'none'})
  motivations = {o.proposal.motivation for o in outcomes if getattr(o, 'role', '') == 'candidate'}
  assert made.motivation in motivations and made.parent_id == 0
  assert made.author == 'evolution' and made.genome == {'decay': 'none'}
  assert 'placebo' not in made.source.lower() and 'placebo' not in made.name
  assert copy(outcomes=outcomes, seed=1).name != made.name


def test_without_a_mixer_there_is_nothing_to_copy():
  with pytest.raises(ValueError, match='names no Mixer'):
    placebo.copy_of('x = 1', 'Other', 'other')
