"""The researcher that is a language model: motivation and complete source in one structured reply.

It is told the parent with its source, the references in fresh summaries, what was measured of them, the papers that
their analyses retrieved, what each component was worth over the archive, and what failed lately. The operator (new
idea, refine, combine, simplify, repair) is drawn by policy and recorded. Which entries it sees and how it is asked is a
function of the outcomes and the generator; what it answers is not.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

import numpy as np

from asiarch_jax import config
from asiarch_jax.agents import briefs, components
from asiarch_jax.agents.asking import Answer, ask
from asiarch_jax.agents.prompting import Templates, fenced, rendered
from asiarch_jax.agents.repairer import Repairer
from asiarch_jax.agents.replies import ProposalReply, RepeatReply
from asiarch_jax.agents.summariser import Summariser
from asiarch_jax.cognition.retrieval import Base, Hit
from asiarch_jax.dialogue import Prompt
from asiarch_jax.ports import ChatModel, Neighbours
from asiarch_jax.records import (
  Attempt,
  Declined,
  Drawn,
  Entry,
  Finding,
  Origin,
  Outcome,
  Proposal,
  Rejection,
  Selection,
  entries_of,
)

REVIVABLE = ('checks', 'error', 'non_finite', 'too_slow', 'time', 'memory', 'crashed')
LATEST = 50  # outcomes among which a failure is looked for to be mended
PAPERS = 6  # insights that an analysis retrieved and a prompt shows, at most


@dataclasses.dataclass(frozen=True)
class Grounds:
  """What one proposal is asked on: who is sampled, and which papers were shown (the only ones that can be cited)."""

  operator: str
  parent: Entry | None
  partner: Entry | None
  references: tuple[Entry, ...]
  shown: tuple[Hit, ...]


@dataclasses.dataclass(frozen=True)
class ModelResearcher:
  """A `ports.Researcher` that asks a language model."""

  model: ChatModel
  experiment: config.Experiment
  templates: Templates
  base: Base
  summariser: Summariser
  repairer: Repairer
  neighbours: Neighbours

  def propose(
    self, selection: Selection, outcomes: Sequence[Outcome], rng: np.random.Generator, drawn: Sequence[Drawn] = ()
  ) -> Proposal | Declined:
    """Returns a proposal after an operator drawn by policy, unlike what was `drawn`."""
    told = selection.told(outcomes)
    operator = operator_of(self.experiment.researcher, selection, rng)
    failed = _revivable(told, drawn) if operator == 'repair' else ()
    if failed:
      return self._revived(failed[int(rng.integers(len(failed)))])
    if operator == 'repair':  # there is nothing to mend
      operator = 'refine' if selection.parent else 'fresh'
    grounds = self._grounds(operator, selection, outcomes, rng)
    answer = self._asked(grounds, told, drawn)
    if answer.value is None:
      return Declined('reply', f'the researcher gave no proposal that can be used: {answer.fault}')
    taken = {outcome.proposal.name for outcome in outcomes} | {draw.proposal.name for draw in drawn}
    return Proposal(
      name=_free(answer.value.name, taken),
      motivation=answer.value.motivation,
      source=answer.value.source,
      parent_id=grounds.parent.id if grounds.parent else None,
      reference_ids=tuple(
        entry.id for entry in (*((grounds.partner,) if grounds.partner else ()), *grounds.references)
      ),
      author=answer.model,
      operator=operator,
      origins=_origins(answer.value, grounds, outcomes),
    )

  def repair(
    self, proposal: Proposal, findings: Sequence[Finding], rng: np.random.Generator, earlier: Sequence[Attempt] = ()
  ) -> Proposal | None:
    """Returns the proposal mended after what the checks or the run said."""
    return self.repairer.repair(proposal, findings, [f'{a.stage}: {a.reason}' for a in earlier])

  def repeats(self, proposal: Proposal, outcomes: Sequence[Outcome]) -> str | None:
    """Returns why a proposal is an archived idea again: the nearest by motivation, then the model by four parts.

    All four parts have to hold for one entry (arXiv 2507.18074, motivation checker); a model that gives no answer
    leaves the proposal new.
    """
    entries = entries_of(outcomes)
    nearest = self.neighbours(
      proposal.motivation, [entry.proposal.motivation for entry in entries], self.experiment.researcher.neighbours
    )
    if not nearest:
      return None
    near = {entries[place].id: entries[place] for place in nearest}
    text = rendered(
      self.templates,
      'novelty',
      proposal=fenced('proposal', f'{proposal.name}\n{proposal.motivation}', 6_000),
      nearest='\n\n'.join(
        f'id {entry.id}\n{fenced("entry", f"{entry.proposal.name}{chr(10)}{entry.proposal.motivation}", 3_000)}'
        for entry in near.values()
      ),
    )
    system = rendered(self.templates, 'novelty_system', fences=self.templates['fences'])
    answer = ask(self.model, Prompt('novelty', system, text), RepeatReply)
    for c in answer.value.comparisons if answer.value else ():
      if c.id in near and c.same_problem and c.same_approach and c.same_scope and c.same_contribution:
        same = near[c.id]
        return f'says the idea of entry {same.id} ({same.proposal.name}) again: {answer.value.reason}'  # type: ignore[union-attr]
    return None

  def _grounds(
    self, operator: str, selection: Selection, outcomes: Sequence[Outcome], rng: np.random.Generator
  ) -> Grounds:
    fresh = operator == 'fresh'
    parent = None if fresh else selection.parent
    references = selection.references
    partner = None
    if operator == 'combine':
      partner = references[int(rng.integers(len(references)))]
      references = tuple(entry for entry in references if entry.id != partner.id)
    told = [entry for entry in (parent, partner, *references) if entry is not None]
    keys = [key for entry in told if entry.analysis for key in entry.analysis.retrieved]
    shown = self.base.insights(list(dict.fromkeys(keys))[:PAPERS])
    query = ' '.join(
      entry.analysis.weaknesses or briefs.weaknesses(entry, None) if entry.analysis else '' for entry in told[:1]
    )
    more = self.experiment.cognition.shown
    found = self.base.search(query, more + len(shown)) if query else self.base.drawn(rng, more)
    have = {hit.key for hit in shown}
    shown += tuple(hit for hit in found if hit.key not in have)[:more]
    return Grounds(operator, parent, partner, references, shown)

  def _asked(self, grounds: Grounds, outcomes: Sequence[Outcome], drawn: Sequence[Drawn]) -> Answer[ProposalReply]:
    baseline = briefs.baseline_of(outcomes, self.experiment.search.baseline)
    model, training = self.experiment.model, self.experiment.training
    parts = {'partner': str(grounds.partner.id)} if grounds.partner else {}
    failed = briefs.failures(outcomes)
    text = rendered(
      self.templates,
      'researcher',
      width=str(model.width),
      layers=str(model.layers),
      heads=str(model.heads),
      length=str(training.length),
      steps=str(training.steps),
      seeds=str(training.seeds),
      rates=', '.join(f'{rate:g}' for rate in training.learning_rates),
      parameters=str(baseline.training.parameters) if baseline else 'the same number of',
      effects=components.told(components.component_effects(outcomes)),
      operator=grounds.operator,
      task=rendered(self.templates, f'operator_{grounds.operator}', **parts),
      parent=f'# The parent\n{briefs.whole(grounds.parent, baseline)}\n' if grounds.parent else '',
      references=self._references(grounds, baseline),
      papers=f'# Papers\n{fenced("papers", briefs.insights(grounds.shown), 24_000)}\n' if grounds.shown else '',
      failures=f'# What failed lately\n{fenced("failures", failed)}\n' if failed else '',
      drawn=rendered(self.templates, 'drawn', list=fenced('taken', _told(drawn))) if drawn else '',
    )
    system = rendered(
      self.templates, 'researcher_system', contract=self.templates['contract'], fences=self.templates['fences']
    )
    return ask(self.model, Prompt('researcher', system, text), ProposalReply)

  def _references(self, grounds: Grounds, baseline: Entry | None) -> str:
    parts = []
    if grounds.partner is not None:
      parts.append(f'# The second parent\n{briefs.whole(grounds.partner, baseline)}')
    for entry, summary in zip(grounds.references, self.summariser.summaries(grounds.references, baseline), strict=True):
      told = '\n'.join([briefs.measured(entry, baseline), fenced('summary', summary, 3_000)])
      parts.append(f'# Reference: {briefs.headline(entry)}\n{told}')
    return '\n\n'.join(parts) + ('\n' if parts else '')

  def _revived(self, failure: Rejection) -> Proposal | Declined:
    finding = Finding(failure.stage, False, failure.reason)
    broken = [found for found in failure.findings if not found.passed] or [finding]
    mended = self.repairer.repair(failure.proposal, broken, [f'{a.stage}: {a.reason}' for a in failure.earlier])
    if mended is None:
      return Declined('reply', f'the repairer gave no source for outcome {failure.id} that can be used')
    return dataclasses.replace(mended, name=_free(f'{failure.proposal.name}_mended', {failure.proposal.name}))


def operator_of(rule: config.Researcher, selection: Selection, rng: np.random.Generator) -> str:
  """Returns the operator of a proposal: fresh, repair, combine, simplify or refine, by the chances in `rule`."""
  draw, simplify, revive = rng.random(), rng.random(), rng.random()
  if revive < rule.revive:
    return 'repair'
  if selection.parent is None or draw < rule.fresh:
    return 'fresh'
  if draw < rule.fresh + rule.combine and selection.references:
    return 'combine'
  return 'simplify' if simplify < rule.simplify else 'refine'


def _revivable(outcomes: Sequence[Outcome], drawn: Sequence[Drawn]) -> tuple[Rejection, ...]:
  """Returns the latest failures of language models that can be mended and were not mended yet."""
  taken = {outcome.proposal.name for outcome in outcomes} | {draw.proposal.name for draw in drawn}
  return tuple(
    outcome
    for outcome in outcomes[-LATEST:]
    if isinstance(outcome, Rejection)
    and outcome.stage in REVIVABLE
    and outcome.proposal.genome is None
    and outcome.proposal.source
    and '_mended' not in outcome.proposal.name
    and not any(name.startswith(f'{outcome.proposal.name}_mended') for name in taken)
  )


def _origins(reply: ProposalReply, grounds: Grounds, outcomes: Sequence[Outcome]) -> tuple[Origin, ...]:
  """Returns the ideas with their origins as far as these hold: a citation of what was not shown is no citation."""
  shown = {hit.key for hit in grounds.shown}
  told = (grounds.parent, grounds.partner, *grounds.references)
  ids = {str(entry.id) for entry in told if entry is not None}
  origins = []
  for idea in reply.ideas:
    reference = idea.reference.strip().strip('[]')
    number = re.fullmatch(r'(?:entry|id)?\s*#?(\d+)', reference, re.IGNORECASE)
    numbers = number[1] if number else ''
    if idea.origin == 'cognition' and reference in shown:
      origins.append(Origin(idea.component, 'cognition', reference))
    elif idea.origin == 'analysis' and numbers in ids:
      origins.append(Origin(idea.component, 'analysis', numbers))
    else:
      origins.append(Origin(idea.component, 'original'))
  return tuple(origins)


def _told(drawn: Sequence[Drawn]) -> str:
  return '\n'.join(
    f'- {draw.proposal.name}: {" ".join(draw.proposal.motivation.split())[:600]}'
    + (f'\n  refused: {" ".join(draw.fault.split())[:400]}' if draw.fault else '')
    for draw in drawn
  )


def _free(name: str, taken: set[str]) -> str:
  """Returns the name, with a number where it is taken: names lead to entries, so they are unique."""
  number, free = 2, name
  while free in taken:
    number, free = number + 1, f'{name}_{number}'
  return free
