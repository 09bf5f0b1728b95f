"""One question: what a reply must be, and what is said to a model whose reply is not that."""

import json
import time

import pytest

from asiarch_jax.agents import asking, replies
from asiarch_jax.dialogue import Prompt, RefusedError, Reply, Usage
from tests import fakes

PROMPT = Prompt('summariser', 'system', 'Summarise.\n')
GOOD = {'summary': 'It keeps keys apart with a gate, and forgets them when the gate saturates.'}


def asked(*listed, kind=replies.SummaryReply, **options):
  model = fakes.FakeModel(summariser=listed)
  return model, asking.ask(model, PROMPT, kind, **options)


def test_a_valid_reply_is_taken_at_once_and_the_schema_goes_along():
  model, answer = asked(GOOD)
  assert answer.value.summary == GOOD['summary'] and answer.model == 'fake' and len(model.asked) == 1
  assert model.schemas[0]['properties']['summary']['description'].startswith('the experience')


FAULTS = {
  'blocked': (Reply('', 'blocked', 'SAFETY'), 'withheld the reply (SAFETY)'),
  'truncated': (Reply('{"summary": "It ke', 'truncated'), 'much shorter'),
  'empty': (Reply('', 'empty'), 'no text'),
  'no JSON': ('I would rather talk about it.', 'the reply: Invalid JSON'),
  'missing field': ({'summery': 'x'}, 'summary: Field required'),
  'too short': ({'summary': 'short'}, 'summary: String should have at least 20'),
  'another type': ({'summary': 7}, 'summary: Input should be a valid string'),
}


@pytest.mark.parametrize('name', FAULTS)
def test_a_reply_that_cannot_be_used_is_asked_for_again_with_the_fault_named(name):
  bad, said = FAULTS[name]
  model, answer = asked(bad, GOOD)
  assert answer.value is not None and len(model.asked) == 2
  assert model.asked[1].text.startswith(PROMPT.text) and said in model.asked[1].text


def test_after_two_more_tries_the_fault_is_the_answer():
  model, answer = asked({}, {}, {}, GOOD)
  assert answer.value is None and 'Field required' in answer.fault and len(model.asked) == 1 + asking.RE_ASKS


def test_an_objection_is_a_fault_too():
  other = {'summary': 'Another summary, of the length that was wanted.'}
  model, answer = asked(GOOD, other, objection=lambda reply: 'it says gate.' if 'gate' in reply.summary else '')
  assert answer.value.summary == other['summary'] and 'it says gate.' in model.asked[1].text


@pytest.mark.parametrize(
  'wrapped', ['```json\n{}\n```', 'Here it is:\n{}\nI hope it helps.', '\n\n{}'], ids=['fence', 'words', 'blank']
)
def test_an_object_in_its_wrapping_is_found(wrapped):
  assert asked(wrapped.replace('{}', json.dumps(GOOD)))[1].value.summary == GOOD['summary']


def proposal(**changes):
  return replies.ProposalReply.model_validate({**fakes.REPLIES['researcher'], **changes})


def test_a_source_loses_its_fence_and_a_name_becomes_snake_case():
  fenced = proposal(source=f'```python\n{fakes.MIXER}```', name='DeltaNet with 2 Speeds!')
  assert fenced.source == fakes.MIXER.strip() + '\n' and fenced.name == 'delta_net_with_2_speeds'
  assert len(proposal(name='x' * 190).name) == replies.LONGEST_NAME


@pytest.mark.parametrize('name', ['42', '../../etc/passwd', '…'])
def test_a_name_is_never_a_path_and_never_a_number(name):
  try:
    assert '/' not in proposal(name=name).name and '.' not in proposal(name=name).name
  except ValueError as error:
    assert 'snake_case' in str(error) or 'at least 3' in str(error)


def test_usage_totals():
  assert Usage(prompt=10, cached=4, reply=3, thoughts=2).total == 15


HOSTILE = {
  'deep in words': 'Here: ' + '{"a":' * 100_000,
  'deep': '[' * 100_000,
  'a number without end': 'Sure: {"summary": ' + '9' * 6_000 + '}',
  'blank lines without end': '```json' + '\n' * 200_000,
  'not a number': '{"summary": NaN}',
  'half a letter': '{"summary": "\\ud800 and more than twenty letters"}',
  'a null byte': '\x00{"summary": "x"}',
  'ten megabytes': '{"summary": "' + 'x' * 10_000_000 + '"}',
}


@pytest.mark.parametrize('name', HOSTILE)
def test_no_reply_ends_or_holds_the_loop(name):
  began = time.process_time()
  _, answer = asked(*[HOSTILE[name]] * 3)
  assert answer.value is None or len(answer.value.summary) > 20
  assert time.process_time() - began < 10.0


def test_a_request_that_the_provider_refuses_costs_a_term_but_a_researchers_is_said():
  class Refusing:
    def complete(self, prompt, schema):
      raise RefusedError('400: the prompt is too long')

  answer = asking.ask(Refusing(), PROMPT, replies.SummaryReply)
  assert answer.value is None and 'too long' in answer.fault
  with pytest.raises(RefusedError):
    asking.ask(Refusing(), Prompt('researcher', 's', 't'), replies.ProposalReply)


def test_lists_and_texts_of_a_reply_have_an_end():
  idea = {'component': 'gate', 'origin': 'original'}
  with pytest.raises(ValueError, match='ideas'):
    proposal(ideas=[idea] * 13)
  with pytest.raises(ValueError, match='diagnosis'):
    replies.RepairReply.model_validate({'diagnosis': 'x' * 3000, 'source': fakes.MIXER})
