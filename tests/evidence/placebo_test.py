"""Which cycles are placebos."""

import dataclasses

from asiarch_jax import config
from asiarch_jax.evidence import placebo
from tests import samples


def at(rate, seed=0):
  experiment = dataclasses.replace(config.Experiment(seed=seed), evidence=config.Evidence(placebo=rate))
  return [placebo.is_placebo(cycle, experiment) for cycle in range(3000)]


def test_the_rate_is_kept_and_baselines_are_none():
  assert abs(sum(at(0.1)) / 3000 - 0.1) < 0.02
  assert not any(at(0.0)) and all(at(1.0)[3:]) and not any(at(1.0)[:3])


def test_the_draw_follows_from_seed_and_cycle():
  assert at(0.1) == at(0.1) and at(0.1) != at(0.1, seed=1)


def test_the_envelope_can_be_opened_afterwards():
  experiment = dataclasses.replace(config.Experiment(), evidence=config.Evidence(placebo=0.3))
  found = placebo.placebos(samples.archive(40), experiment)
  assert found and all(placebo.is_placebo(outcome.id, experiment) for outcome in found)
