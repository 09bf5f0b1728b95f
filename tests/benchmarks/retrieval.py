"""How well the cognition base answers labelled queries: `python -m tests.benchmarks.retrieval`.

Prints each query whose three hits hold none of its papers, then the share that do and the mean reciprocal rank.
"""

import json
import pathlib

from asiarch_jax.commands.cognition import base_of

QUERIES = pathlib.Path(__file__).parents[1] / 'cognition/queries.json'


def rank(base, query):
  """Returns the rank of the first wanted paper among the three hits of a query, None where there is none."""
  keys = [hit.paper.key for hit in base.search(query['query'], 3)]
  return next((n for n, key in enumerate(keys, 1) if key in query['papers']), None)


def quality(base, queries):
  """Returns (the share of queries with a wanted paper among three hits, the mean reciprocal rank)."""
  ranks = [rank(base, query) for query in queries]
  return sum(n is not None for n in ranks) / len(ranks), sum(1 / n for n in ranks if n) / len(ranks)


def main():
  base, queries = base_of(), json.loads(QUERIES.read_text())
  for query in queries:
    if rank(base, query) is None:
      print(f'missed: {query["query"]}\n  found {[hit.key for hit in base.search(query["query"])]}')
  found, reciprocal = quality(base, queries)
  print(
    f'{len(queries)} queries, {len(base.papers)} papers: {found:.2f} found in three, reciprocal rank {reciprocal:.2f}'
  )


if __name__ == '__main__':
  main()
