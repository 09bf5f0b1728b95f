"""Where the ideas of proposals come from, as their authors declared: the paper's Table 3, with intervals."""

from __future__ import annotations

import dataclasses
import typing
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from asiarch_jax.records import Entry, Origin, Outcome, Rejection
from asiarch_jax.report.series import is_better, wilson

KINDS: tuple[str, ...] = typing.get_args(typing.get_type_hints(Origin)['kind'])


@dataclasses.dataclass(frozen=True)
class Share:
  """A count out of a total, with the 95 % interval of the share (Wilson); `share` is nan out of nothing."""

  count: int
  total: int

  @property
  def share(self) -> float:
    return self.count / self.total if self.total else float('nan')

  @property
  def interval(self) -> tuple[float, float]:
    return wilson(self.count, self.total)


@dataclasses.dataclass(frozen=True)
class Group:
  """The components that the proposals of one kind of outcome declare. `proposals` counts those that declare any."""

  name: str
  proposals: int
  components: int
  shares: Mapping[str, Share]


@dataclasses.dataclass(frozen=True)
class Cited:
  """A paper with the outcomes that took an idea from it: measured entries, the better of them, rejections."""

  paper: str
  entries: int
  better: Share
  rejected: int


def idea(origin: Origin) -> str:
  """Returns one idea of a proposal with where it comes from.

  >>> idea(Origin('per-head decay', 'cognition', 'yang2024gated#2')), idea(Origin('a gate', 'analysis', '12'))
  ('per-head decay (cognition yang2024gated#2)', 'a gate (analysis #12)')
  """
  reference = f' #{origin.reference}' if origin.kind == 'analysis' else f' {origin.reference}'
  return f'{origin.component} ({origin.kind}{reference if origin.reference else ""})'


def groups(outcomes: Sequence[Outcome]) -> tuple[Group, ...]:
  """Returns the groups better, other measured, rejected, and all; none where no proposal declares an origin."""
  if not any(outcome.proposal.origins for outcome in outcomes):
    return ()
  measured = [outcome for outcome in outcomes if isinstance(outcome, Entry)]
  return (
    _group('better', [outcome for outcome in measured if is_better(outcome)]),
    _group('other measured', [outcome for outcome in measured if not is_better(outcome)]),
    _group('rejected', [outcome for outcome in outcomes if isinstance(outcome, Rejection)]),
    _group('all', outcomes),
  )


def _group(name: str, members: Sequence[Outcome]) -> Group:
  counts = Counter(origin.kind for member in members for origin in member.proposal.origins)
  shares = {kind: Share(counts[kind], counts.total()) for kind in KINDS}  # type: ignore[index]
  return Group(name, sum(bool(member.proposal.origins) for member in members), counts.total(), shares)


def cited(outcomes: Iterable[Outcome]) -> tuple[Cited, ...]:
  """Returns the papers that ideas come from, those of most entries first.

  An outcome counts once for a paper, however many of its insights it cites (`cognition.retrieval.Hit.key`).
  """
  by_paper: dict[str, list[Outcome]] = defaultdict(list)
  for outcome in outcomes:
    origins = (origin for origin in outcome.proposal.origins if origin.kind == 'cognition' and origin.reference)
    for paper in sorted({origin.reference.partition('#')[0] for origin in origins}):
      by_paper[paper].append(outcome)
  rows = [_cited(paper, citing) for paper, citing in by_paper.items()]
  return tuple(sorted(rows, key=lambda row: (-row.entries, -row.rejected, row.paper)))


def _cited(paper: str, citing: Sequence[Outcome]) -> Cited:
  entries = sum(isinstance(outcome, Entry) for outcome in citing)
  return Cited(paper, entries, Share(sum(map(is_better, citing)), entries), len(citing) - entries)
