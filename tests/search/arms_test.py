"""Each arm takes one thing away."""

import dataclasses

import numpy as np
import pytest

from asiarch_jax import config
from asiarch_jax.search import arms, sampling
from tests import samples

EXPERIMENT = dataclasses.replace(
  config.Experiment(), search=config.Search(cold_start=3, refresh=1), researcher=config.Researcher(kind='llm')
)
OUTCOMES = samples.archive(40)


def parents(name):
  experiment = arms.arm(EXPERIMENT, name)
  chosen = [
    sampling.select(OUTCOMES, experiment.search, experiment.fitness, np.random.default_rng(seed)) for seed in range(20)
  ]
  return {one.parent.id if one.parent else None for one in chosen}, sum(len(one.references) for one in chosen)


def test_what_each_arm_builds_on():
  assert len(parents('search')[0]) > 3 and parents('search')[1] == 80
  assert parents('no_search') == ({0}, 0)
  assert parents('random') == ({None}, 0)


def test_who_proposes():
  kinds = {name: arms.arm(EXPERIMENT, name).researcher.kind for name in arms.ARMS}
  assert kinds == {
    'search': 'llm', 'evolution': 'evolution', 'llm': 'llm', 'no_search': 'llm', 'random': 'evolution', 'placebo': 'llm'
  }  # fmt: skip
  assert arms.arm(EXPERIMENT, 'placebo').evidence.placebo == 1.0
  assert arms.arm(EXPERIMENT, 'search') == dataclasses.replace(EXPERIMENT, name='default, arm search')


def test_another_arm_is_named():
  with pytest.raises(ValueError, match="'luck' is not an arm; there are search"):
    arms.arm(EXPERIMENT, 'luck')
