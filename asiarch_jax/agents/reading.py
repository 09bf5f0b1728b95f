"""From weaknesses to literature: what an analysis found lacking is the query, the papers found are kept with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from asiarch_jax.agents import briefs
from asiarch_jax.cognition.retrieval import Base
from asiarch_jax.ports import Analyst
from asiarch_jax.records import Analysis, Entry, Outcome


@dataclasses.dataclass(frozen=True)
class Reading:
  """A `ports.Analyst` that adds to another's analysis the insights that its weaknesses retrieve.

  An analyst that names no weakness gets them from the measurements (`briefs.weaknesses`).
  """

  analyst: Analyst
  base: Base
  insights: int
  baseline: str

  def __call__(self, entry: Entry, outcomes: Sequence[Outcome]) -> Analysis | None:
    """Returns the analysis with `weaknesses` and the keys of at most `insights` insights; None where there is none."""
    analysis = self.analyst(entry, outcomes)
    if analysis is None:
      return None
    base = briefs.baseline_of([*outcomes, entry], self.baseline)
    weaknesses = analysis.weaknesses or briefs.weaknesses(entry, base)
    hits = self.base.search(weaknesses, self.insights) if weaknesses and self.insights else ()
    return dataclasses.replace(analysis, weaknesses=weaknesses, retrieved=tuple(hit.key for hit in hits))
