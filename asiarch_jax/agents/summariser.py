"""The experience of an entry in a few sentences, written anew each time it is sampled, or once."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from asiarch_jax.agents import briefs
from asiarch_jax.agents.asking import ask
from asiarch_jax.agents.prompting import Templates, fenced, rendered
from asiarch_jax.agents.replies import SummaryReply
from asiarch_jax.cognition.retrieval import Base
from asiarch_jax.dialogue import Prompt
from asiarch_jax.ports import ChatModel
from asiarch_jax.records import Entry


@dataclasses.dataclass(frozen=True)
class Summariser:
  """Summarises entries with a language model (arXiv 2507.18074, section 3.2: summaries are not stored).

  Where the model gives nothing, the entry's own lessons stand in. `kept` holds summaries by entry id when they are to
  be written once; None writes them anew at each sampling, so that researchers see an entry in a new light.
  """

  model: ChatModel
  templates: Templates
  base: Base
  kept: dict[int, str] | None = None

  def summaries(self, entries: Sequence[Entry], baseline: Entry | None) -> tuple[str, ...]:
    """Returns a summary of each entry; the model is asked for all at once."""
    if not entries:
      return ()
    pool = ThreadPoolExecutor(len(entries))
    try:
      return tuple(pool.map(lambda entry: self._summary(entry, baseline), entries))
    finally:
      pool.shutdown(wait=False, cancel_futures=True)  # Ctrl-C waits for no answer

  def _summary(self, entry: Entry, baseline: Entry | None) -> str:
    if self.kept is not None and entry.id in self.kept:
      return self.kept[entry.id]
    retrieved = self.base.insights(entry.analysis.retrieved if entry.analysis else ())
    papers = '\n'.join(f'- {hit.key}: {hit.insight.idea}' for hit in retrieved)
    text = rendered(
      self.templates,
      'summariser',
      entry='\n'.join(
        [
          briefs.headline(entry),
          briefs.measured(entry, baseline),
          fenced('motivation', entry.proposal.motivation, 3_000),
          fenced('analysis', _analysis(entry), 8_000),
        ]
      ),
      papers=fenced('papers', papers) if papers else '',
    )
    system = rendered(self.templates, 'summariser_system', fences=self.templates['fences'])
    answer = ask(self.model, Prompt('summariser', system, text), SummaryReply)
    if answer.value is None:
      return briefs.lessons(entry)
    if self.kept is not None:
      self.kept[entry.id] = answer.value.summary
    return answer.value.summary


def _analysis(entry: Entry) -> str:
  a = entry.analysis
  if a is None:
    return 'not analysed'
  return '\n'.join([a.design, a.results, a.expectation, a.explanation, a.synthesis, *(f'- {x}' for x in a.lessons)])
