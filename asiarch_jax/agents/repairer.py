"""Mends a proposal that failed: the smallest change that removes the cause, same idea, same name."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from asiarch_jax.agents.asking import ask
from asiarch_jax.agents.prompting import Templates, fenced, rendered
from asiarch_jax.agents.replies import RepairReply
from asiarch_jax.dialogue import Prompt
from asiarch_jax.ports import ChatModel
from asiarch_jax.records import Finding, Proposal


@dataclasses.dataclass(frozen=True)
class Repairer:
  """Asks a language model for the repair. What a log says is data in its prompt, never an instruction."""

  model: ChatModel
  templates: Templates

  def repair(self, proposal: Proposal, findings: Sequence[Finding], earlier: Sequence[str] = ()) -> Proposal | None:
    """Returns the mended proposal under its old name; None where the model has no other source to give."""
    failed = [finding for finding in findings if not finding.passed]
    text = rendered(
      self.templates,
      'repairer',
      name=proposal.name,
      motivation=fenced('motivation', proposal.motivation, 3_000),
      source=fenced('source', proposal.source, 60_000),
      stage=', '.join(finding.check for finding in failed) or 'an unknown stage',
      complaint=fenced('log', '\n\n'.join(f'{finding.check}: {finding.detail}' for finding in failed)),
      earlier=fenced('attempts', '\n'.join(f'- {line}' for line in earlier)) if earlier else 'none',
    )
    system = rendered(
      self.templates, 'repairer_system', contract=self.templates['contract'], fences=self.templates['fences']
    )
    answer = ask(
      self.model,
      Prompt('repairer', system, text),
      RepairReply,
      lambda reply: 'the source is the one that failed; change it.' if reply.source == proposal.source else '',
    )
    if answer.value is None:
      return None
    return dataclasses.replace(
      proposal,
      source=answer.value.source,
      motivation=f'{proposal.motivation}\n\nRepaired: {answer.value.diagnosis}',
      operator='repair',
    )
