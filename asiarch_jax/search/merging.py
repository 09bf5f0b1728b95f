"""Two archives of one experiment as one: what the second brings under new ids, lineages kept."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence

from asiarch_jax import config
from asiarch_jax.evidence.pairing import pairs
from asiarch_jax.evidence.placebo import is_placebo
from asiarch_jax.records import Analysis, Entry, Outcome, Proposal, entries_of


@dataclasses.dataclass(frozen=True)
class Merged:
  """`added` are outcomes of the second archive as they go into the first, each with the id that it had.

  `twins` maps ids of the second to those of the first that are the same outcome.
  """

  added: tuple[tuple[Outcome, int], ...]
  twins: Mapping[int, int]


def merged(ours: Sequence[Outcome], theirs: Sequence[Outcome], experiment: config.Experiment) -> Merged:
  """Returns what `theirs` adds to `ours`.

  An outcome is there already when it is the same proposal, or an entry that computes a function which an entry of ours
  computes; baselines, which both have, are never added. New ids follow ours in the order of theirs, so that parents
  come before children. Whether a cycle is a placebo follows from its number, so ids that would make a design a placebo,
  or a placebo a design, are passed over: a search that goes on fills these gaps.

  Raises:
    ValueError: the archives have other baselines.
  """
  first = len(experiment.search.baselines)
  named = [tuple(o.proposal.name for o in one if o.id < first) for one in (ours, theirs)]
  if named[0] != named[1]:
    raise ValueError(f'the archives have other baselines: {", ".join(named[0])} and {", ".join(named[1])}')
  functions = {e.fingerprint: e.id for e in entries_of(ours) if e.fingerprint and not is_placebo(e.id, experiment)}
  same = {(o.proposal.source, o.proposal.name): o.id for o in ours}
  names = {outcome.proposal.name for outcome in ours}
  places = {outcome.id: outcome.id for outcome in theirs if outcome.id < first}
  twins, added, free = dict(places), [], max((outcome.id for outcome in ours), default=-1) + 1
  for outcome in sorted((o for o in theirs if o.id >= first), key=lambda o: o.id):
    placebo = is_placebo(outcome.id, experiment)
    twin = same.get((outcome.proposal.source, outcome.proposal.name))
    if twin is None and isinstance(outcome, Entry) and not placebo:
      twin = functions.get(outcome.fingerprint)
    if twin is not None:
      places[outcome.id] = twins[outcome.id] = twin
      continue
    while is_placebo(free, experiment) != placebo:
      free += 1
    places[outcome.id] = free
    moved = _moved(outcome, free, places, names)
    names.add(moved.proposal.name)
    added.append((moved, outcome.id))
    free += 1
  return Merged(tuple(added), twins)


def disagreement(ours: Sequence[Outcome], theirs: Sequence[Outcome]) -> float:
  """Returns by how many bits per byte the replicas of the two baselines differ, on average over their common seeds.

  Zero where both ran on the same hardware with the same versions; nan where they have no seed in common.
  """
  mine, other = (next((entry for entry in entries_of(one) if entry.id == 0), None) for one in (ours, theirs))
  differences = pairs(mine.training, other.training).differences if mine and other else ()
  return sum(map(abs, differences)) / len(differences) if differences else float('nan')


def _moved(outcome: Outcome, id: int, places: Mapping[int, int], names: set[str]) -> Outcome:
  """Returns an outcome under a new id, with all that refers to others."""
  proposal = outcome.proposal
  name = f'{proposal.name}_{id}' if proposal.name in names else proposal.name
  changes: dict = {'id': id, 'proposal': dataclasses.replace(_refers(proposal, places), name=name)}
  changes['earlier'] = tuple(
    dataclasses.replace(attempt, proposal=_refers(attempt.proposal, places), reason=_told(attempt.reason, places))
    for attempt in outcome.earlier
  )
  if not isinstance(outcome, Entry):
    changes['reason'] = _told(outcome.reason, places)
  elif outcome.analysis is not None:
    changes['analysis'] = _analysed(outcome.analysis, places)
  if isinstance(outcome, Entry) and outcome.judgement is not None:
    changes['judgement'] = dataclasses.replace(outcome.judgement, reason=_told(outcome.judgement.reason, places))
  return dataclasses.replace(outcome, **changes)


def _refers(proposal: Proposal, places: Mapping[int, int]) -> Proposal:
  origins = tuple(
    dataclasses.replace(origin, reference=str(places.get(int(origin.reference), origin.reference)))
    if origin.kind == 'analysis' and origin.reference.isdigit()
    else origin
    for origin in proposal.origins
  )
  parent = proposal.parent_id
  return dataclasses.replace(
    proposal,
    parent_id=None if parent is None else places.get(parent),
    reference_ids=tuple(places[id] for id in proposal.reference_ids if id in places),
    origins=origins,
  )


def _analysed(analysis: Analysis, places: Mapping[int, int]) -> Analysis:
  return dataclasses.replace(
    analysis,
    design=_told(analysis.design, places),
    results=_told(analysis.results, places),
    expectation=_told(analysis.expectation, places),
    explanation=_told(analysis.explanation, places),
    synthesis=_told(analysis.synthesis, places),
    weaknesses=_told(analysis.weaknesses, places),
    lessons=tuple(_told(lesson, places) for lesson in analysis.lessons),
  )


def _told(text: str, places: Mapping[int, int]) -> str:
  """Returns a text in which `entry 7` names the entry where it is now."""
  return re.sub(r'\b(entry|outcome) (\d+)\b', lambda m: f'{m[1]} {places.get(int(m[2]), m[2])}', text)
