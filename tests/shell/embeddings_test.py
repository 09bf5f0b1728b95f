import threading

import pytest

from asiarch_jax.config import Llm
from asiarch_jax.shell import llm
from asiarch_jax.shell.embeddings import EmbeddedNeighbours
from tests.model_server import ModelServer, vector_of

TEXTS = (
  'a delta rule with gated decay',
  'softmax attention over a short window',
  'a delta rule with a second memory',
  'long convolution filters',
)


class Embedder:
  """Words in hashed places; remembers what it was asked."""

  def __init__(self, size=64):
    self.asked, self.size = [], size

  def __call__(self, texts):
    self.asked += texts
    return [vector_of(text, self.size) for text in texts]


@pytest.fixture
def path(tmp_path):
  return tmp_path / 'run' / 'embeddings.jsonl'


def test_the_nearest_texts_come_first(path):
  neighbours = EmbeddedNeighbours(Embedder(), path)
  assert neighbours('a delta rule with gated decay and more', TEXTS, 2) == (0, 2)
  assert neighbours(TEXTS[1], TEXTS, 1) == (1,)
  assert sorted(neighbours(TEXTS[1], TEXTS, 99)) == [0, 1, 2, 3]


def test_the_order_of_others_does_not_matter(path):
  neighbours = EmbeddedNeighbours(Embedder(), path)
  forwards = [TEXTS[place] for place in neighbours('gated delta memory', TEXTS, 2)]
  backwards = [TEXTS[::-1][place] for place in neighbours('gated delta memory', TEXTS[::-1], 2)]
  assert forwards == backwards


def test_each_text_is_embedded_once_in_the_life_of_a_workdir(path):
  embedder = Embedder()
  first = EmbeddedNeighbours(embedder, path)('gated delta', [*TEXTS, *TEXTS], 3)
  assert sorted(embedder.asked) == sorted({'gated delta', *TEXTS})
  again = EmbeddedNeighbours(embedder, path)
  assert again('gated delta', [*TEXTS, *TEXTS], 3) == first and len(embedder.asked) == 5
  again('gated delta', [*TEXTS, 'one more'], 3)
  assert embedder.asked[5:] == ['one more']


def test_a_line_cut_by_a_kill_is_asked_for_again(path):
  embedder = Embedder()
  first = EmbeddedNeighbours(embedder, path)(TEXTS[0], TEXTS, 4)
  path.write_bytes(path.read_bytes()[:-30])
  assert EmbeddedNeighbours(embedder, path)(TEXTS[0], TEXTS, 4) == first
  assert embedder.asked[4:] == [TEXTS[3]]


@pytest.mark.parametrize('text, others, count', [('', TEXTS, 3), (' \n', TEXTS, 3), ('a', (), 3), ('a', TEXTS, 0)])
def test_nothing_is_near_to_nothing_and_costs_no_call(path, text, others, count):
  embedder = Embedder()
  assert EmbeddedNeighbours(embedder, path)(text, others, count) == ()
  assert not embedder.asked and not path.exists()


def test_blank_others_are_passed_over(path):
  embedder = Embedder()
  assert EmbeddedNeighbours(embedder, path)('a rule', ['', 'a rule', ' '], 3) == (1,)
  assert embedder.asked == ['a rule']


def test_vectors_that_do_not_fit_are_refused(path):
  EmbeddedNeighbours(Embedder(64), path)('a', ['b'], 1)
  with pytest.raises(
    ValueError, match=r'embeddings\.jsonl: a vector of 32 numbers, the others have 64; remove the file'
  ):
    EmbeddedNeighbours(Embedder(32), path)('c', ['b'], 1)
  with pytest.raises(ValueError, match='not all finite'):
    EmbeddedNeighbours(lambda texts: [[float('nan')] * 64 for _ in texts], path)('d', ['b'], 1)
  with pytest.raises(ValueError):
    EmbeddedNeighbours(lambda texts: [], path)('e', ['b'], 1)


def test_threads_ask_once(path):
  embedder = Embedder()
  neighbours = EmbeddedNeighbours(embedder, path)
  threads = [threading.Thread(target=neighbours, args=(TEXTS[0], TEXTS, 2)) for _ in range(8)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert sorted(embedder.asked) == sorted(TEXTS)


def test_gemini_s_embeddings_serve(path):
  with ModelServer() as server:
    model = llm.Gemini(Llm(base_url=server.url), {'GEMINI_API_KEY': 'a-key-of-tests'})
    neighbours = EmbeddedNeighbours(model.embed, path)
    assert neighbours('a delta rule with gated decay and more', TEXTS, 2) == (0, 2)
    model.close()
  assert [len(request.texts) for request in server.requests] == [5]
