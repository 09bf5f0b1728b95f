import json
import os
import re
import subprocess
import sys
import textwrap
import threading

import pytest
from etils import epath

from asiarch_jax import dialogue
from asiarch_jax.dialogue import Prompt, Reply, Usage
from asiarch_jax.records import Spend
from asiarch_jax.shell import exchanges, journal
from asiarch_jax.shell.exchanges import Recorded, Scripted, Traces

SCHEMA = {'type': 'object', 'properties': {'name': {'type': 'string'}}}
PROMPT = Prompt('researcher', 'You design mixers.', 'Parent: delta_net\nLoss: 1.5\nPropose a child.')
REPLY = Reply('{"name": "a"}', usage=Usage(100, 40, 20, 5), model='gemini-x', seconds=1.5, attempts=2)
AWKWARD = 'quo"te } \\ \n\r\u2028\x00 \ud800 \U0001f9ea {"usage": {}}'


def fill(workdir, count=3, cycle=7):
  traces = Traces(workdir)
  for number in range(count):
    prompt = Prompt('researcher', 'system', f'prompt {number}')
    traces.write(cycle, prompt, SCHEMA, Reply(f'reply {number}', usage=Usage(10, 0, 5, 1), seconds=2.0), 0.25)
  return traces


def test_a_trace_says_what_was_asked_answered_and_spent(tmp_path):
  traces = Traces(tmp_path, clock=lambda: 12.5)
  reply = Reply(AWKWARD, 'truncated', 'MAX_TOKENS', Usage(100, 40, 20, 5), 'gemini-x', 1.5, 2)
  traces.write(12, PROMPT, SCHEMA, reply, 0.125)
  (line,) = traces.read(12)
  assert line == {
    'time': 12.5,
    'event': 'exchange',
    'cycle': 12,
    'dollars': 0.125,
    'seconds': 1.5,
    'attempts': 2,
    'usage': {'prompt': 100, 'cached': 40, 'reply': 20, 'thoughts': 5},
    'role': 'researcher',
    'model': 'gemini-x',
    'key': dialogue.key_of(PROMPT, SCHEMA),
    'fault': 'truncated',
    'detail': 'MAX_TOKENS',
    'system': PROMPT.system,
    'prompt': PROMPT.text,
    'schema': SCHEMA,
    'reply': AWKWARD,
  }
  assert (tmp_path / 'traces' / '00000012.jsonl').read_text().count('\n') == 1


def test_traces_of_nothing_are_nothing(tmp_path):
  traces = Traces(tmp_path)
  assert (traces.read(3), traces.cycles(), traces.spent()) == ([], [], Spend())
  assert not list(tmp_path.iterdir())


def test_spend_adds_up_over_cycles_and_runs(tmp_path):
  fill(tmp_path, 3, cycle=7)
  fill(tmp_path, 2, cycle=123_456_789)
  (tmp_path / 'traces' / 'notes.txt').write_text('mine')
  assert Traces(tmp_path).cycles() == [7, 123_456_789]
  assert Traces(tmp_path).spent() == Spend(calls=5, tokens=80, dollars=1.25, seconds=10.0)


def test_spend_is_not_fooled_by_texts(tmp_path):
  traces = Traces(tmp_path)
  prompt = Prompt('judge', '{"usage": {"prompt": 1}}', AWKWARD)
  traces.write(1, prompt, {'}': '{'}, Reply('}}{{', detail='}', model='m}', usage=Usage(1, 0, 2, 3), seconds=1.0), 2.0)
  assert traces.spent() == Spend(1, 6, 2.0, 1.0)


def test_a_line_cut_by_a_kill_is_passed_over_and_does_not_spoil_the_next(tmp_path):
  traces = fill(tmp_path, 3)
  path = tmp_path / 'traces' / '00000007.jsonl'
  whole = path.read_bytes()
  start = whole[:-1].rindex(b'\n') + 1
  for cut in range(start, len(whole) - 1):
    path.write_bytes(whole[:cut])
    assert [line['reply'] for line in traces.read(7)] == ['reply 0', 'reply 1']
    assert traces.spent().calls in (2, 3), 'what was written of the numbers was spent'
    assert len(Recorded(tmp_path)) == 2
  traces.write(7, PROMPT, SCHEMA, REPLY, 0.0)
  assert [line['reply'] for line in traces.read(7)] == ['reply 0', 'reply 1', REPLY.text]


def test_a_killed_writer_leaves_whole_lines_and_what_it_spent(tmp_path):
  script = """
    import sys
    from asiarch_jax.dialogue import Prompt, Reply, Usage
    from asiarch_jax.shell.exchanges import Traces
    traces = Traces(sys.argv[1])
    for number in range(10**9):
      traces.write(number // 50, Prompt('judge', '', 'x' * 5000), {}, Reply(str(number), usage=Usage(1)), 1.0)
      if number == 200:
        print('ready', flush=True)
  """
  process = subprocess.Popen(
    [sys.executable, '-c', textwrap.dedent(script), str(tmp_path)],
    stdout=subprocess.PIPE,
    env=os.environ | {'PYTHONPATH': os.pathsep.join(sys.path)},
  )
  assert process.stdout.readline() == b'ready\n'
  process.kill()
  process.communicate()
  traces = Traces(tmp_path)
  replies = [int(line['reply']) for cycle in traces.cycles() for line in traces.read(cycle)]
  assert len(replies) > 200 and replies == list(range(len(replies)))
  assert traces.spent().dollars in (len(replies), len(replies) + 1)


def test_threads_do_not_mix_their_lines(tmp_path):
  traces = Traces(tmp_path)

  def write(role):
    for number in range(25):
      traces.write(number % 3, Prompt(role, '', 'x' * 20_000), SCHEMA, REPLY, 0.1)

  threads = [threading.Thread(target=write, args=(role,)) for role in ('judge', 'analyst', 'novelty', 'researcher')]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert sum(len(traces.read(cycle)) for cycle in traces.cycles()) == 100
  assert traces.spent().calls == 100


def test_stores_that_cannot_append_hold_traces_in_parts(tmp_path, monkeypatch):
  monkeypatch.setattr(journal, 'AppendedFile', journal.Parts)
  traces = fill(tmp_path, 3)
  fill(tmp_path, 1)
  assert not (tmp_path / 'traces' / '00000007.jsonl').exists()
  assert [line['reply'] for line in traces.read(7)] == ['reply 0', 'reply 1', 'reply 2', 'reply 0']
  assert traces.cycles() == [7] and traces.spent().calls == 4
  assert Recorded(epath.Path(tmp_path)).complete(Prompt('researcher', 'system', 'prompt 2'), SCHEMA).text == 'reply 2'


def test_a_replay_gives_each_reply_byte_for_byte(tmp_path):
  traces = Traces(tmp_path)
  told = [
    Reply(AWKWARD, '', '', Usage(5, 1, 2, 3), 'model-a', 9.0, 4),
    Reply('', 'blocked', 'SAFETY', Usage(5, 0, 0, 0), 'model-b', 9.0, 1),
    Reply('third', '', '', Usage(), 'model-a', 9.0, 1),
  ]
  for cycle, reply in zip((2, 2, 11), told, strict=True):
    traces.write(cycle, PROMPT, SCHEMA, reply, 0.0)
  recorded = Recorded(tmp_path)
  for reply in told:
    again = recorded.complete(PROMPT, SCHEMA)
    assert (again.text, again.fault, again.detail, again.usage, again.model) == (
      reply.text,
      reply.fault,
      reply.detail,
      reply.usage,
      reply.model,
    )
    assert (again.seconds, again.attempts) == (0.0, 1)
  with pytest.raises(ValueError, match='3 replies to this prompt of the researcher, and it is asked once more'):
    recorded.complete(PROMPT, SCHEMA)


def test_a_replay_of_threads_gives_every_reply_once(tmp_path):
  traces = Traces(tmp_path)
  for number in range(64):
    traces.write(0, PROMPT, SCHEMA, Reply(str(number)), 0.0)
  recorded, got = Recorded(tmp_path), []
  threads = [
    threading.Thread(target=lambda: got.extend(recorded.complete(PROMPT, SCHEMA).text for _ in range(8)))
    for _ in range(8)
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert sorted(got, key=int) == [str(number) for number in range(64)]


@pytest.mark.parametrize(
  'asked, schema, said',
  [
    (
      Prompt('researcher', PROMPT.system, PROMPT.text.replace('1.5', '1.25')),
      SCHEMA,
      "of cycle 4, differs first in line 2 of its text: 'Loss: 1.25', recorded 'Loss: 1.5'",
    ),
    (
      Prompt('researcher', PROMPT.system, PROMPT.text + '\nNow.'),
      SCHEMA,
      "differs first in line 4 of its text: 'Now.', recorded no further line",
    ),
    (Prompt('researcher', 'You doze.', PROMPT.text), SCHEMA, "line 1 of its system: 'You doze.', recorded 'You design"),
    (PROMPT, {'type': 'object'}, 'differs in its schema'),
    (Prompt('judge', '', ''), SCHEMA, 'it recorded no prompt of that role'),
  ],
)
def test_a_prompt_that_was_not_recorded_is_told_from_the_nearest(tmp_path, asked, schema, said):
  traces = Traces(tmp_path)
  traces.write(3, Prompt('researcher', 'Quite', 'another'), SCHEMA, REPLY, 0.0)
  traces.write(4, PROMPT, SCHEMA, REPLY, 0.0)
  traces.write(5, Prompt('analyst', asked.system, asked.text), schema, REPLY, 0.0)
  with pytest.raises(ValueError, match=rf'no reply to this prompt of the {asked.role}; .*{re.escape(said)}'):
    Recorded(tmp_path).complete(asked, schema)


def test_long_lines_are_shown_where_they_differ(tmp_path):
  Traces(tmp_path).write(0, Prompt('judge', '', 'x' * 5000 + 'left' + 'y' * 5000), SCHEMA, REPLY, 0.0)
  with pytest.raises(ValueError, match=r"'\.\.\.x{60}right.*recorded '\.\.\.x{60}left") as caught:
    Recorded(tmp_path).complete(Prompt('judge', '', 'x' * 5000 + 'right' + 'y' * 5000), SCHEMA)
  assert len(str(caught.value)) < 700


@pytest.mark.parametrize('made', [False, True])
def test_a_workdir_without_exchanges_cannot_be_replayed(tmp_path, made):
  if made:
    (tmp_path / 'traces').mkdir()
  with pytest.raises(FileNotFoundError, match='holds no exchanges'):
    Recorded(tmp_path)


def script_of(tmp_path, *lines):
  path = tmp_path / 'replies.jsonl'
  path.write_text(''.join((line if isinstance(line, str) else json.dumps(line)) + '\n' for line in lines))
  return path


def test_a_script_answers_each_role_in_its_own_order(tmp_path):
  path = script_of(
    tmp_path,
    {'role': 'researcher', 'reply': {'name': 'Grüße', 'list': [1.5, None]}},
    {'role': 'judge', 'reply': 'no JSON', 'usage': {'prompt': 9, 'reply': 1}},
    '',
    {'role': 'researcher', 'fault': 'blocked', 'detail': 'SAFETY'},
    {'role': 'analyst', 'reply': {'n': 1}},
    {'role': 'analyst', 'reply': {'n': 2}, 'always': True},
    {'role': 'analyst', 'reply': {'n': 3}},
  )
  scripted = Scripted(path)
  say = lambda role: scripted.complete(Prompt(role, '', 'anything'), SCHEMA)  # noqa: E731
  first = say('researcher')
  assert json.loads(first.text) == {'name': 'Grüße', 'list': [1.5, None]} and 'Grüße' in first.text
  assert say('judge') == Reply('no JSON', usage=Usage(prompt=9, reply=1), model='scripted')
  assert say('researcher') == Reply('', 'blocked', 'SAFETY', model='scripted')
  assert [json.loads(say('analyst').text)['n'] for _ in range(5)] == [1, 2, 2, 2, 2]
  with pytest.raises(ValueError, match=r'replies\.jsonl has 2 replies of the researcher, and one more'):
    say('researcher')
  with pytest.raises(ValueError, match='has 0 replies of the novelty'):
    say('novelty')


@pytest.mark.parametrize(
  'line, said',
  [
    ('{"role": ', 'not JSON'),
    ('[]', 'not an object'),
    ({'role': 'author', 'reply': ''}, "role 'author'; use one of researcher"),
    ({'reply': ''}, 'role None'),
    ({'role': 'judge'}, 'neither reply nor fault'),
    ({'role': 'judge', 'fault': 'lost'}, "fault 'lost'; use one of blocked"),
    ({'role': 'judge', 'reply': '', 'usage': {'tokens': 1}}, "no field 'tokens'"),
    ({'role': 'judge', 'reply': '', 'usage': {'prompt': 'many'}}, 'Usage.prompt'),
    ({'role': 'judge', 'reply': '', 'always': 1}, 'always is true or false'),
    ({'role': 'judge', 'answer': ''}, "no field 'answer'"),
  ],
)
def test_a_wrong_line_of_a_script_is_named(tmp_path, line, said):
  path = script_of(tmp_path, {'role': 'judge', 'reply': ''}, line)
  with pytest.raises(ValueError, match=rf'replies\.jsonl, line 2: .*{re.escape(said)}'):
    Scripted(path)


def test_a_missing_script_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match=r'none\.jsonl: no such file; llm\.exchanges'):
    Scripted(tmp_path / 'none.jsonl')


def test_a_cycle_is_named_by_eight_digits():
  assert exchanges.FOLDER == 'traces'
  assert Traces('gs://bucket/run')._path(12) == epath.Path('gs://bucket/run/traces/00000012.jsonl')
