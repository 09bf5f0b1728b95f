"""Prices, spend and the names of exchanges; and the examples in the docstrings of this part of the program."""

import doctest
import importlib

import pytest

from asiarch_jax import config, dialogue
from asiarch_jax.dialogue import Prompt, Reply, Usage


@pytest.mark.parametrize(
  'name', ['dialogue', 'search.screening', 'agents.prompting', 'agents.components', 'agents.judge', 'config']
)
def test_examples_in_docstrings_hold(name):
  result = doctest.testmod(importlib.import_module(f'asiarch_jax.{name}'))
  assert result.attempted > 0 and result.failed == 0


def test_the_table_that_comes_along_is_dated_and_covers_the_default_model():
  table = dialogue.prices(config.Llm().prices)
  assert config.Llm().model in table and all(len(price.date) == 10 for price in table.values())


@pytest.mark.parametrize('row', ['gemini-x', 'gemini-x 1 2 3', 'gemini-x one 0 0 2026-01-01', ''])
def test_a_row_of_another_form_is_named(row):
  with pytest.raises(ValueError, match='MODEL PROMPT CACHED REPLY DATE'):
    dialogue.prices([row])


def test_spend_counts_cached_tokens_at_their_price_and_thoughts_as_reply():
  table = dialogue.prices(['m 1 0.1 4 2026-11-25'])
  reply = Reply('{}', usage=Usage(prompt=1_000_000, cached=500_000, reply=100_000, thoughts=150_000), model='m-001')
  spend = dialogue.spend_of(reply, table)
  assert spend.dollars == pytest.approx(0.5 + 0.05 + 1.0) and spend.tokens == 1_250_000 and spend.calls == 1
  assert dialogue.spend_of(Reply('', model='unknown', usage=Usage(prompt=9)), table).dollars == 0.0


def test_an_exchange_is_named_by_all_that_was_asked():
  prompt, schema = Prompt('judge', 's', 't'), {'type': 'object'}
  others = [Prompt('analyst', 's', 't'), Prompt('judge', 'x', 't'), Prompt('judge', 's', 'x')]
  keys = {dialogue.key_of(p, schema) for p in (prompt, *others)} | {dialogue.key_of(prompt, {'type': 'array'})}
  assert len(keys) == 5 and dialogue.key_of(prompt, schema) == dialogue.key_of(Prompt('judge', 's', 't'), schema)


def test_a_role_that_is_not_one_is_named():
  with pytest.raises(ValueError, match="'poet' is not a role; there are researcher"):
    dialogue.settings_of(config.Llm(), 'poet')
