"""Where a search ends, and what it is expected to take."""

import dataclasses

import pytest

from asiarch_jax import config, dialogue
from asiarch_jax.records import Spend, Timing
from asiarch_jax.search import budget
from tests import samples

LLM = dataclasses.replace(
  config.Experiment(),
  researcher=config.Researcher(kind='llm'),
  judge=config.Judge(kind='llm'),
  analyst=config.Analyst(kind='llm'),
)
PRICES = dialogue.prices(LLM.llm.prices)


@pytest.mark.parametrize('name', ['dollars', 'tokens', 'accelerator_seconds', 'wall_seconds'])
def test_each_limit_ends_the_search_and_is_named_with_both_numbers(name):
  limit = dataclasses.replace(config.Budget(), **{name: 10})
  assert budget.exhausted(limit, budget.Spent(**{name: 9.0})) == ''
  said = budget.exhausted(limit, budget.Spent(**{name: 12.5}))
  assert f'budget.{name} = 10' in said and '12.5' in said
  assert budget.exhausted(config.Budget(), budget.Spent(1e9, 1e9, 1e9, 1e9)) == ''


def test_a_cycle_that_would_go_over_is_not_begun():
  limit = config.Budget(dollars=1.0)
  assert budget.exhausted(limit, budget.Spent(dollars=0.8), budget.Spent(dollars=0.15)) == ''
  said = budget.exhausted(limit, budget.Spent(dollars=0.8), budget.Spent(dollars=0.3))
  assert 'no room' in said and '0.8 spent' in said and '0.3 to come' in said


def test_the_estimate_is_guessed_from_roles_and_prices_and_then_measured():
  guessed = budget.expectation(LLM, samples.baselines(), PRICES)
  assert guessed.measured == 0 and guessed.spent.dollars > 0 and 'guessed' in budget.told(guessed, 12)
  spent = Spend(10, 40_000, 0.2, 60.0)
  outcomes = [
    *samples.baselines(),
    *(dataclasses.replace(samples.entry(n), spend=spent, timing=Timing(30.0, 4.0, 24.0)) for n in range(3, 7)),
  ]
  measured = budget.expectation(LLM, outcomes, PRICES)
  assert (measured.measured, measured.calls, measured.spent) == (4, 10, budget.Spent(0.2, 40_000, 24.0, 90.0))
  assert '$0.20 a candidate; 5 to come: $1.00 (measured over 4' in budget.told(measured, 5)


def test_more_samples_references_and_calls_are_expected_to_cost_more():
  def cost(**changes):
    return budget.expectation(dataclasses.replace(LLM, **changes), (), PRICES).spent.dollars

  assert cost(researcher=config.Researcher(kind='llm', samples=4)) > 2 * cost()
  assert cost(judge=config.Judge(kind='llm', calls=9)) > cost() > cost(judge=config.Judge())
  assert cost(researcher=config.Researcher(kind='llm', summaries='cached')) < cost()


def test_other_prices_give_another_estimate():
  dear = dialogue.prices(['gemini-3.8-flash 75 7.5 375 2026-11-25'])
  ours, theirs = (budget.expectation(LLM, (), table).spent for table in (PRICES, dear))
  assert theirs.dollars == pytest.approx(100 * ours.dollars) and theirs.tokens == ours.tokens
