"""The analyst that is a language model: five sections and typed lessons, bound to what the numbers alone say."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from asiarch_jax.agents import briefs
from asiarch_jax.agents.asking import ask
from asiarch_jax.agents.prompting import Templates, fenced, rendered
from asiarch_jax.agents.replies import AnalysisReply
from asiarch_jax.dialogue import Prompt
from asiarch_jax.ports import Analyst, ChatModel
from asiarch_jax.records import Analysis, Entry, Outcome, entries_of

SIBLINGS = 2  # the parent's other children with the best fitness


@dataclasses.dataclass(frozen=True)
class ModelAnalyst:
  """A `ports.Analyst` that gives a language model the comparisons of `measured`, and falls back on them.

  Relatives are parent, grandparent and the strongest siblings by fitness (the original takes the siblings with the
  most children).
  """

  model: ChatModel
  measured: Analyst
  templates: Templates
  baseline: str

  def __call__(self, entry: Entry, outcomes: Sequence[Outcome]) -> Analysis | None:
    """Returns the analysis; the measured one where the model gives nothing that can be used."""
    facts = self.measured(entry, outcomes)
    base = briefs.baseline_of([*outcomes, entry], self.baseline)
    family = relatives(entry, outcomes)
    parent = family[0][1] if family and family[0][0] == 'parent' else None
    text = rendered(
      self.templates,
      'analyst',
      entry=briefs.whole(entry, base),
      changes=fenced('difference', briefs.changes(parent.proposal.source, entry.proposal.source), 16_000)
      if parent
      else 'It has no parent.',
      relatives='\n\n'.join(
        f'{kind}: {briefs.headline(other)}\n{briefs.measured(other, base)}\n'
        f'{fenced("motivation", other.proposal.motivation, 2_000)}'
        for kind, other in family
      )
      or 'none',
      facts=fenced('comparisons', _facts(facts), 12_000) if facts else 'nothing',
    )
    system = rendered(self.templates, 'analyst_system', fences=self.templates['fences'])
    answer = ask(self.model, Prompt('analyst', system, text), AnalysisReply)
    if answer.value is None:
      return facts
    reply = answer.value
    return Analysis(
      reply.design,
      reply.results,
      reply.expectation,
      reply.explanation,
      reply.synthesis,
      tuple(f'{lesson.kind}: {lesson.text}' for lesson in reply.lessons),
      weaknesses=reply.weaknesses,
      author=answer.model,
    )


def relatives(entry: Entry, outcomes: Sequence[Outcome]) -> list[tuple[str, Entry]]:
  """Returns parent, grandparent and the strongest siblings among the earlier entries, each with what it is."""
  earlier = {other.id: other for other in entries_of(outcomes) if other.id != entry.id}
  found = []
  parent = earlier.get(entry.proposal.parent_id) if entry.proposal.parent_id is not None else None
  if parent is None:
    return []
  found.append(('parent', parent))
  if parent.proposal.parent_id in earlier:
    found.append(('grandparent', earlier[parent.proposal.parent_id]))  # type: ignore[index]
  siblings = [
    other for other in earlier.values() if other.proposal.parent_id == parent.id and other.fitness is not None
  ]
  strongest = sorted(siblings, key=lambda other: (-other.fitness.total, other.id))[:SIBLINGS]  # type: ignore[union-attr]
  return found + [('sibling', other) for other in strongest]


def _facts(facts: Analysis) -> str:
  return '\n'.join([facts.design, facts.results, facts.explanation, facts.synthesis, *facts.lessons])
