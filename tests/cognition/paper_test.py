"""Papers of the cognition base: what a file may be, and that all that are here are so."""

import dataclasses
import json

import pytest

from asiarch_jax.cognition import paper
from asiarch_jax.records import to_json
from asiarch_jax.shell import library

INSIGHT = paper.Insight(
  idea='An idea that is named in some words',
  trigger='Recall falls. ' * 20,
  algorithm='S_t = a S_{t-1} + k v^T. ' * 12,
  guidance='Use delta_rule. ' * 20,
  history='It descends from linear attention. ' * 3,
  fails='Where nothing is to be forgotten. ' * 3,
)
PAPER = paper.Paper(
  'A Title', ('A. Author',), 2024, '2412.06464', 'https://arxiv.org/abs/2412.06464', 'delta rule', True, '', (INSIGHT,)
)
GUILTY = {
  'topic': ({'topic': 'cooking'}, "topic 'cooking' is none of"),
  'no entries': ({'entries': ()}, '0 entries; a paper has 1 to 3'),
  'no authors': ({'authors': ()}, 'title and authors are needed'),
  'year': ({'year': 24}, 'year 24'),
  'id': ({'arxiv': 'abs/2412'}, "arxiv 'abs/2412' is not an id"),
  'url': ({'url': 'arxiv.org'}, 'does not begin with https://'),
  'not checked': ({'checked': False}, 'does not say what could not be confirmed'),
  'short': ({'entries': (dataclasses.replace(INSIGHT, trigger='Bad.'),)}, 'entries[0].trigger has 4 characters'),
  'long': ({'entries': (dataclasses.replace(INSIGHT, fails='x' * 2000),)}, 'entries[0].fails has 2000 characters'),
  'same trigger': ({'entries': (INSIGHT, INSIGHT)}, 'share a trigger'),
}


def test_a_good_paper_has_no_faults():
  assert paper.faults(PAPER) == []
  assert paper.parsed(json.dumps(to_json(PAPER)), 'a.json') == PAPER


@pytest.mark.parametrize('name', GUILTY)
def test_a_fault_is_named(name):
  change, said = GUILTY[name]
  assert any(said in fault for fault in paper.faults(dataclasses.replace(PAPER, **change)))


def test_two_files_of_one_paper_are_found():
  again = dataclasses.replace(PAPER, arxiv='2501.00001')
  assert paper.lint([('a', PAPER), ('b', PAPER)])[0] == "b: the id '2412.06464' is that of a too"
  assert paper.lint([('a', PAPER), ('b', again)]) == ["b: the title 'a title' is that of a too"]


@pytest.mark.parametrize(
  'text, said',
  [
    ('{', 'not JSON at line 1'),
    ('[]', 'written as an object'),
    ('{"title": "x", "colour": 1}', "no field 'colour'"),
    (json.dumps({**to_json(PAPER), 'year': 'soon'}), 'Paper.year'),
    (json.dumps({**to_json(PAPER), 'entries': [{'idea': 'x'}]}), 'Paper.entries'),
  ],
)
def test_a_file_that_is_no_paper_says_where(text, said):
  with pytest.raises(ValueError, match=r'a\.json: ') as caught:
    paper.parsed(text, 'a.json')
  assert said in str(caught.value)


def test_every_paper_of_the_package_is_without_fault_and_named_by_its_key():
  papers = [(name, paper.parsed(text, name)) for name, text in library.packaged().items()]
  assert paper.lint(papers) == []
  assert all(name == f'{each.key}.json' for name, each in papers)
