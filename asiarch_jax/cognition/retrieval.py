"""Retrieval from the cognition base: which insights answer a weakness that was measured.

Lexical, by BM25 (Robertson and Zaragoza, 2009): always there, the same on every machine, and good where query and
trigger speak of the same measurements. What is compared with is trigger, idea, title and topic of an insight.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import Any

import bm25s
import numpy as np
import snowballstemmer

from asiarch_jax.cognition.paper import Insight, Paper


@dataclasses.dataclass(frozen=True)
class Hit:
  """An insight that was found. `score` is BM25's: it orders hits of one query and means nothing across queries."""

  paper: Paper
  number: int
  score: float

  @property
  def insight(self) -> Insight:
    return self.paper.entries[self.number]

  @property
  def key(self) -> str:
    """Names the insight in records: the paper's key and the number of the entry, from 1."""
    return f'{self.paper.key}#{self.number + 1}'


@dataclasses.dataclass(frozen=True)
class Base:
  """The cognition base in memory; of equal scores the earlier paper comes first."""

  papers: tuple[Paper, ...]

  @functools.cached_property
  def _places(self) -> list[tuple[Paper, int]]:
    return [(paper, n) for paper in self.papers for n in range(len(paper.entries))]

  @functools.cached_property
  def _index(self) -> bm25s.BM25:
    index = bm25s.BM25()
    index.index([_document(paper, n) for paper, n in self._places], show_progress=False)
    return index

  def search(self, query: str, k: int = 3) -> tuple[Hit, ...]:
    """Returns the best k insights for a query, at most one a paper, best first; none where no word is shared."""
    wanted = words(query)
    if not self._places or not wanted:
      return ()
    scores = np.asarray(self._index.get_scores(wanted), np.float64)
    hits: dict[str, Hit] = {}
    for place in sorted(range(len(scores)), key=lambda n: (-scores[n], n)):
      paper, number = self._places[place]
      if scores[place] > 0 and paper.key not in hits and len(hits) < k:
        hits[paper.key] = Hit(paper, number, float(scores[place]))
    return tuple(hits.values())

  def insights(self, keys: Iterable[str]) -> tuple[Hit, ...]:
    """Returns the insights of these keys (`Hit.key`), in their order; a key that is not in the base is passed over."""
    return tuple(self._by_key[key] for key in keys if key in self._by_key)

  def drawn(self, rng: np.random.Generator, count: int) -> tuple[Hit, ...]:
    """Returns up to `count` different insights at random: food for a new idea, where there is nothing to ask for."""
    places = rng.choice(len(self._places), min(count, len(self._places)), replace=False) if self._places else ()
    return tuple(Hit(*self._places[int(place)], 0.0) for place in places)

  @functools.cached_property
  def _by_key(self) -> dict[str, Hit]:
    hits = [Hit(paper, number, 0.0) for paper, number in self._places]
    return {hit.key: hit for hit in hits}


def nearest_texts(text: str, others: Sequence[str], count: int) -> tuple[int, ...]:
  """Returns the places of up to `count` texts that share the most telling words with `text`, nearest first.

  Lexical (BM25), so there everywhere and at no cost: what finds an archived idea again where no embeddings are. A
  `ports.Neighbours`. Texts that share no word are not near.
  """
  wanted = words(text)
  documents = [words(other) for other in others]
  if not wanted or not any(documents):
    return ()
  index = bm25s.BM25()
  index.index(documents, show_progress=False)
  scores = np.asarray(index.get_scores(wanted), np.float64)
  places = sorted(range(len(others)), key=lambda place: (-scores[place], place))
  return tuple(place for place in places[:count] if scores[place] > 0)


def _document(paper: Paper, number: int) -> list[str]:
  insight = paper.entries[number]
  return words(f'{insight.trigger} {insight.idea} {paper.title} {paper.topic}')


def words(text: str) -> list[str]:
  """Returns the words of a text as they are compared: lower case, stemmed, without those that say nothing.

  >>> words('Gates saturate, and the gated recurrence forgets')
  ['gate', 'satur', 'gate', 'recurr', 'forget']
  """
  return list(_words(text))


@functools.lru_cache(maxsize=1 << 14)
def _words(text: str) -> tuple[str, ...]:
  """Returns the words once worked out: every novelty check holds a proposal against all archived motivations."""
  (found,) = bm25s.tokenize([text], stopwords='en', stemmer=_stemmer().stemWords, return_ids=False, show_progress=False)
  return tuple(found)


def _stemmer() -> Any:  # a new one each time: it holds the word in hand, and threads must not share it
  return snowballstemmer.stemmer('english')
