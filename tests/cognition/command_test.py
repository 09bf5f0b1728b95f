"""`asiarch cognition` as a user meets it."""

import json

import pytest

from asiarch_jax import main
from asiarch_jax.records import to_json
from tests.cognition.paper_test import PAPER

NEW = {**to_json(PAPER), 'arxiv': '2912.00001', 'title': 'A paper of the user about zebra finches'}


@pytest.fixture
def file(tmp_path):
  path = tmp_path / 'new.json'
  path.write_text(json.dumps(NEW))
  return path


def said(capsys, *arguments):
  """Returns (status, standard output, standard error) of `asiarch cognition ARGUMENTS`."""
  status = main.main(['cognition', *map(str, arguments)])
  return status, *capsys.readouterr()


def test_search_prints_what_a_designer_needs_and_json_the_same(capsys):
  query = 'state tracking of permutations fails'
  status, out, _ = said(capsys, 'search', query)
  assert status == 0 and out.count('\n    how: ') == 3 and 'https://arxiv.org' in out
  hits = json.loads(said(capsys, 'search', query, '--json', '--limit=2')[1])['hits']
  assert len(hits) == 2 and out.startswith(hits[0]['key'])
  assert 'nothing' in said(capsys, 'search', 'zzyzx')[1]


def test_list_counts_and_lint_finds_no_faults(capsys):
  assert 'papers not confirmed' in said(capsys, 'list')[1]
  assert len(json.loads(said(capsys, 'list', '--json')[1])['papers']) >= 70
  assert said(capsys, 'lint')[:2] == (0, 'no faults\n')


def test_a_paper_is_added_once_and_found(capsys, tmp_path, file):
  own = f'--papers={tmp_path / "own"}'
  status, out, _ = said(capsys, 'add', file, own)
  assert status == 0 and (tmp_path / 'own/2912.00001.json').read_text() == file.read_text() and own in out
  assert json.loads(said(capsys, 'search', 'zebra finches', own, '--json')[1])['hits'][0]['key'] == '2912.00001#1'
  status, _, err = said(capsys, 'add', file, own)
  assert status == 2 and "the id '2912.00001' is that of" in err
  assert [path.name for path in (tmp_path / 'own').iterdir()] == ['2912.00001.json']


def test_a_faulty_paper_is_not_added_and_every_fault_is_said(capsys, tmp_path, file):
  file.write_text(json.dumps({**NEW, 'topic': 'birds', 'year': 3}))
  status, _, err = said(capsys, 'add', file, f'--papers={tmp_path / "own"}')
  assert status == 2 and 'birds' in err and 'year 3' in err and not (tmp_path / 'own').exists()


def test_lint_of_a_folder_names_the_file(capsys, tmp_path):
  (tmp_path / 'bad.json').write_text(json.dumps({**NEW, 'url': 'nowhere'}))
  status, out, _ = said(capsys, 'lint', f'--papers={tmp_path}')
  assert status == 1 and 'bad.json: url' in out


@pytest.mark.parametrize(
  'arguments, message',
  [
    (['burn'], "'burn' is not something cognition does; it does search, list, lint, add"),
    (['search'], 'takes a QUERY'),
    (['lint', 'x'], 'takes no argument'),
    (['add', 'nowhere.json'], 'nowhere.json: no such file'),
    (['list', '--papers=nowhere'], 'nowhere is not a folder'),
    (['search', 'x', '--limit=0'], 'limit'),
  ],
)
def test_bad_input_gets_a_sentence(capsys, arguments, message):
  status, out, err = said(capsys, *arguments)
  assert status == 2 and message in err and out == ''


def test_a_file_that_is_no_text_is_named(capsys, tmp_path):
  (tmp_path / 'a.json').write_bytes(b'\xff\xfe')
  status, _, err = said(capsys, 'add', tmp_path / 'a.json')
  assert status == 2 and 'not UTF-8 at byte 0' in err
