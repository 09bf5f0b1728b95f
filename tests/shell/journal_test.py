import json
import os
import subprocess
import sys
import textwrap
import threading

import pytest

from asiarch_jax.shell import journal as journals
from asiarch_jax.shell.journal import JsonLines
from tests.fakes import MemoryJournal


@pytest.fixture(params=['memory', 'file'])
def journal(request, tmp_path):
  return MemoryJournal() if request.param == 'memory' else JsonLines(tmp_path / 'run' / 'journal.jsonl')


def test_events_come_back_in_the_order_written_with_their_fields(journal):
  journal.write('proposed', cycle=3, name='gated_mean', parent=None)
  journal.write('measured', cycle=3, fitness=0.5, loss=float('nan'), lessons=('a', 'b'))
  first, second = journal.events()
  assert first['event'] == 'proposed' and first['cycle'] == 3 and first['parent'] is None
  assert second['loss'] == 'nan' and second['lessons'] == ['a', 'b']
  assert first['time'] <= second['time']


def test_no_journal_gives_no_events_and_makes_no_file(tmp_path):
  assert JsonLines(tmp_path / 'journal.jsonl', read_only=True).events() == []
  assert not list(tmp_path.iterdir())


def test_a_journal_for_reading_cannot_be_written(tmp_path):
  with pytest.raises(ValueError, match='read_only=False'):
    JsonLines(tmp_path / 'journal.jsonl', read_only=True).write('x')


def test_a_second_run_appends(tmp_path):
  for run in range(3):
    journal = JsonLines(tmp_path / 'journal.jsonl')
    journal.write('began', run=run)
    journal.close()
  assert [event['run'] for event in journal.events()] == [0, 1, 2]


def test_text_with_line_breaks_stays_on_its_line(tmp_path):
  journal = JsonLines(tmp_path / 'journal.jsonl', clock=lambda: 12.0)
  journal.write('rejected', reason='first\nsecond\u2028third\r\x00')
  (event,) = journal.events()
  assert event == {'time': 12.0, 'event': 'rejected', 'reason': 'first\nsecond\u2028third\r\x00'}


@pytest.mark.parametrize('cut', [1, 10, 25])
def test_a_last_line_cut_short_is_passed_over_and_does_not_spoil_the_next(tmp_path, cut):
  path = tmp_path / 'journal.jsonl'
  journal = JsonLines(path)
  for number in range(3):
    journal.write('measured', number=number)
  journal.close()
  path.write_bytes(path.read_bytes()[:-cut])
  again = JsonLines(path)
  kept = [event['number'] for event in again.events()]
  assert kept[:2] == [0, 1]
  again.write('measured', number=3)
  assert [event['number'] for event in again.events()] == [*kept, 3]


def test_lines_that_are_no_events_are_passed_over(tmp_path):
  path = tmp_path / 'journal.jsonl'
  path.write_bytes(b'[1]\n\xff\xfe\n{"event": "kept", "time": 1}\n{"no": "event"}\n\n')
  assert [event['event'] for event in JsonLines(path).events()] == ['kept']


def test_threads_do_not_mix_their_lines(tmp_path):
  journal = JsonLines(tmp_path / 'journal.jsonl')
  threads = [
    threading.Thread(target=lambda name=name: [journal.write('line', who=name, pad='x' * 3000) for _ in range(50)])
    for name in 'abcd'
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert sorted(event['who'] for event in journal.events()) == sorted('abcd' * 50)


def test_a_killed_writer_leaves_whole_lines(tmp_path):
  script = """
    import sys
    from asiarch_jax.shell.journal import JsonLines
    journal = JsonLines(sys.argv[1])
    for number in range(10**9):
      journal.write('line', number=number, pad='x' * 500)
      if number == 200:
        print('ready', flush=True)
  """
  process = subprocess.Popen(
    [sys.executable, '-c', textwrap.dedent(script), str(tmp_path / 'journal.jsonl')],
    stdout=subprocess.PIPE,
    env=os.environ | {'PYTHONPATH': os.pathsep.join(sys.path)},
  )
  assert process.stdout.readline() == b'ready\n'
  process.kill()
  process.communicate()
  journal = JsonLines(tmp_path / 'journal.jsonl')
  numbers = [event['number'] for event in journal.events()]
  assert len(numbers) > 200 and numbers == list(range(len(numbers)))
  journal.write('line', number=-1)
  assert journal.events()[-1]['number'] == -1


def test_parts_hold_a_bounded_number_of_lines_and_are_read_in_order(tmp_path):
  path = tmp_path / 'journal.jsonl'
  for first in (0, 150):
    lines = journals.Parts(journals.epath.Path(path))
    for number in range(first, first + 150):
      lines.append(json.dumps({'event': 'line', 'number': number}))
  assert all(
    len(part.read_text().splitlines()) <= journals.PART for part in journals.parts_of(journals.epath.Path(path))
  )
  events = JsonLines(path, read_only=True).events()
  assert [event['number'] for event in events] == list(range(300))
