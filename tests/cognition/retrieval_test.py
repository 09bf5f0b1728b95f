"""Retrieval finds what a designer would want, on queries labelled by what the papers are about."""

import json
import pathlib
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from asiarch_jax.cognition import retrieval
from asiarch_jax.commands.cognition import base_of
from tests.benchmarks.retrieval import quality
from tests.cognition.paper_test import PAPER

QUERIES = json.loads((pathlib.Path(__file__).parent / 'queries.json').read_text())


@pytest.fixture(scope='module')
def base():
  return base_of()


def test_labelled_queries_are_answered(base):
  found, reciprocal = quality(base, QUERIES)
  assert found >= 0.8 and reciprocal >= 0.65, 'python -m tests.benchmarks.retrieval says which are missed'


def test_every_label_is_a_paper(base):
  keys = {paper.key for paper in base.papers}
  assert all(keys & set(query['papers']) for query in QUERIES)


def test_an_insight_is_found_by_its_own_trigger(base):
  for paper in base.papers:
    for number, insight in enumerate(paper.entries):
      best, *_ = base.search(insight.trigger)
      assert (best.paper.key, best.number) == (paper.key, number)


def test_at_most_one_insight_of_a_paper_and_k_in_all(base):
  hits = base.search('gated delta rule with forgetting', 5)
  assert len(hits) == 5 == len({hit.paper.key for hit in hits})
  assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


def test_no_shared_word_finds_nothing(base):
  assert base.search('zzyzx qwrt') == () == base.search('') == base.search('the of and')
  assert retrieval.Base(()).search('delta rule') == ()


def test_a_base_of_one_paper_answers():
  (hit,) = retrieval.Base((PAPER,)).search('recall falls')
  assert hit.insight == PAPER.entries[0] and hit.key == '2412.06464#1'


def test_threads_may_search_at_once():
  """The stemmer holds the word in hand: shared by threads it gave wrong words, and raised."""
  texts = ['gated recurrences forgetting normalised keys', 'interference of associations in the states'] * 40
  wanted = [retrieval.words(text) for text in texts]
  before = sys.getswitchinterval()
  sys.setswitchinterval(1e-5)
  try:
    with ThreadPoolExecutor(4) as pool:
      assert list(pool.map(retrieval.words, texts)) == wanted
  finally:
    sys.setswitchinterval(before)
