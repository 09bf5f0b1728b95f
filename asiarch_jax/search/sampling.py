"""Who breeds: the parent of the next proposal and the entries it may borrow from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from asiarch_jax import config
from asiarch_jax.records import Outcome, Selection, entries_of
from asiarch_jax.search.pool import baseline_of, pool


def select(
  outcomes: Sequence[Outcome], search: config.Search, rule: config.FitnessRule, rng: np.random.Generator
) -> Selection:
  """Returns a parent uniform over `search.parent_ranks` of the pool and references from `search.reference_ranks`.

  Fitness orders the ranks and has no further weight inside them, as in the paper. References are distinct, without the
  parent, in order of rank. Where the pool has fewer than `search.references` members at the reference ranks (a young
  archive), the missing ones are borrowed, uniformly as well, from all its other members besides the parent; the
  original gives fewer or none. Ranks beyond a small pool's end are not there to be drawn; if no rank of `parent_ranks`
  is, the parent is the last of the pool. An empty pool gives no parent: start afresh.

  `search.parents` makes control arms of it: 'baseline' gives the baseline and no references, 'none' no parent either.
  Nothing found is built upon or learned from: proposals are independent.

  Reads nothing but its arguments: the same outcomes and the same generator give the same selection.
  """
  if search.parents != 'pool':
    parent = baseline_of(entries_of(outcomes), search) if search.parents == 'baseline' else None
    return Selection(parent, independent=True)
  ranked = pool(outcomes, search, rule)
  if not ranked:
    return Selection(parent=None)
  first, last = search.parent_ranks
  parents = ranked[first - 1 : last] or ranked[-1:]
  parent = parents[int(rng.integers(len(parents)))]
  first, last = search.reference_ranks
  ranks = [rank for rank, entry in enumerate(ranked, 1) if entry.id != parent.id]
  preferred = [rank for rank in ranks if first <= rank <= last]
  others = [rank for rank in ranks if not first <= rank <= last]
  chosen = _draw(preferred, search.references, rng)
  chosen += _draw(others, search.references - len(chosen), rng)
  return Selection(parent, tuple(ranked[rank - 1] for rank in sorted(chosen)))


def _draw(ranks: Sequence[int], count: int, rng: np.random.Generator) -> list[int]:
  return [int(rank) for rank in rng.choice(ranks, min(count, len(ranks)), replace=False)] if ranks and count else []
