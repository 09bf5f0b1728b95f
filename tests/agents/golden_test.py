"""Every prompt is pinned: a prompt is code, and a change of it is to be read by people."""

import dataclasses
import os
import pathlib

import numpy as np
import pytest

from asiarch_jax import config, records
from asiarch_jax.agents import analyst, model_analyst, model_judge
from tests import fakes, samples
from tests.agents import researcher_test as team

GOLDEN = pathlib.Path(__file__).parent / 'golden'


@pytest.fixture(scope='module')
def prompts():
  """The first prompt of each role, from the same few records."""
  model = fakes.FakeModel()
  writer = team.author(model)
  drawn = [records.Drawn(samples.proposal('gated_again'), 'says the idea of entry 3 again')]
  writer.propose(team.SELECTION, team.OUTCOMES, np.random.default_rng(0), drawn)
  writer.repeats(samples.proposal('again'), team.OUTCOMES)
  writer.repair(samples.proposal('broken'), [records.Finding('error', False, 'TypeError: shapes differ')], None)
  marked = samples.judgement()
  base = dataclasses.replace(samples.baseline(), judgement=dataclasses.replace(marked, raw=(5.0, 5.0, 5.0)))
  outcomes = (base, *team.OUTCOMES[1:5])
  weights = config.Judge(kind='llm', calls=1)
  model_judge.ModelJudge(model, weights, team.TEMPLATES, 'delta_net')(team.OUTCOMES[5], outcomes)
  model_analyst.ModelAnalyst(model, analyst.MeasuredAnalyst(), team.TEMPLATES, 'delta_net')(team.OUTCOMES[5], outcomes)
  # Summaries are asked for at once, in any order.
  return {role: min(model.of(role), key=lambda prompt: prompt.text) for role in config.ROLES}


@pytest.mark.parametrize('role', config.ROLES)
def test_a_prompt_is_the_one_that_was_read_by_people(role, prompts):
  """Renew with ASIARCH_RENEW_GOLDEN=1 and read the difference."""
  for name, text in ((f'{role}_system', prompts[role].system), (role, prompts[role].text)):
    path = GOLDEN / f'{name}.txt'
    if os.environ.get('ASIARCH_RENEW_GOLDEN'):
      path.write_text(text)
    assert path.read_text() == text, f'{path} differs; read the difference, then ASIARCH_RENEW_GOLDEN=1 renews it'


def test_a_prompt_leaves_no_name_unfilled(prompts):
  assert [role for role, prompt in prompts.items() if '$' in prompt.system + prompt.text] == []
