"""The judge that is a language model: marks by the original's rubric, totals recomputed, calibrated on the baseline.

Source: arXiv 2507.18074, sections 3.1 and 3.3, and its released code for rubric, weights and the anchors DeltaNet 5 and
Gated DeltaNet 10. There the model's own total counted, once, and the anchor came out at 7.05. Here each mark is the
median of several calls; what the model gives the baseline is subtracted from every other entry's marks, so that the
baseline stands at 5; and the weighted mean is ours.
"""

from __future__ import annotations

import ast
import dataclasses
import statistics
from collections.abc import Sequence

from asiarch_jax import config, syntax
from asiarch_jax.agents import briefs, judge
from asiarch_jax.agents.asking import ask
from asiarch_jax.agents.prompting import Templates, fenced, rendered
from asiarch_jax.agents.replies import JudgeReply
from asiarch_jax.dialogue import Prompt
from asiarch_jax.ports import ChatModel
from asiarch_jax.records import Entry, Judgement, Outcome, entries_of

ANCHORS = {'delta_net': 5.0, 'gated_delta_net': 10.0}  # what the original asks for; printed beside what was given


@dataclasses.dataclass(frozen=True)
class ModelJudge:
  """A `ports.Judge` that asks a language model `weights.calls` times. `baseline` names the anchor's proposal."""

  model: ChatModel
  weights: config.Judge
  templates: Templates
  baseline: str

  def __call__(self, entry: Entry, outcomes: Sequence[Outcome]) -> Judgement | None:
    """Returns the calibrated marks; None where no call gave marks, or the baseline has none to calibrate by."""
    base = briefs.baseline_of([*outcomes, entry], self.baseline)
    if base is None or (base.id != entry.id and (base.judgement is None or not base.judgement.raw)):
      return None  # nothing to calibrate by, so nothing is asked
    marks = [reply for reply in (self._asked(entry, outcomes) for _ in range(self.weights.calls)) if reply is not None]
    if not marks:
      return None
    raw = tuple(statistics.median(getattr(reply, name) for reply in marks) for name in config.JUDGE_WEIGHTS)
    anchor = raw if base.id == entry.id else base.judgement.raw  # type: ignore[union-attr]
    calibrated = [min(max(mark - given + judge.ANCHOR, 1.0), 10.0) for mark, given in zip(raw, anchor, strict=True)]
    calls = tuple(_judged(self.weights, _marks(reply), '').score for reply in marks)
    middle = sorted(zip(calls, marks, strict=True), key=lambda pair: pair[0])[len(calls) // 2][1]
    return dataclasses.replace(_judged(self.weights, calibrated, middle.reason), raw=raw, calls=calls)

  def _asked(self, entry: Entry, outcomes: Sequence[Outcome]) -> JudgeReply | None:
    base = briefs.baseline_of([*outcomes, entry], self.baseline)
    baselines = [other for other in entries_of(outcomes) if other.role != 'candidate' and other.id != entry.id]
    told = [briefs.headline(entry), briefs.measured(entry, base)]
    if not self.weights.blind:
      told.append(fenced('motivation', entry.proposal.motivation, 3_000))
    told.append(fenced('source', without_docstrings(entry.proposal.source, self.weights.blind), 40_000))
    text = rendered(
      self.templates,
      'judge',
      baselines='\n\n'.join(f'{briefs.headline(b)}\n{briefs.measured(b, base)}' for b in baselines) or 'none yet',
      entry='\n'.join(told),
    )
    system = rendered(self.templates, 'judge_system', fences=self.templates['fences'])
    return ask(self.model, Prompt('judge', system, text), JudgeReply).value


def without_docstrings(source: str, blind: bool) -> str:
  """Returns the source; for a blind judge from its first import on, since the docstring tells the motivation."""
  if not blind:
    return source
  tree = syntax.parse(source)  # what was trained parses; comments are not in the tree
  for node in ast.walk(tree):
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
      node.body = node.body[1:] or [ast.Pass()]
  return ast.unparse(tree)


def calibration(outcomes: Sequence[Outcome], weights: config.Judge) -> str:
  """Returns one line that says what the judge gave the baselines, against the anchors it was told; '' without any."""
  said = []
  for entry in entries_of(outcomes):
    if entry.role != 'candidate' and entry.judgement is not None and entry.judgement.raw:
      given = _judged(weights, entry.judgement.raw, '').score
      anchor = ANCHORS.get(entry.proposal.name)
      told = f', told {anchor:g}' if anchor else ''
      said.append(f'{entry.proposal.name} {given:.1f}{told}, counted as {entry.judgement.score:.1f}')
  return f'judge calibrated on the baselines: {"; ".join(said)}' if said else ''


def _judged(weights: config.Judge, marks: Sequence[float], reason: str) -> Judgement:
  performance, innovation, complexity = marks
  return judge.judged(weights, performance, innovation, complexity, reason)


def _marks(reply: JudgeReply) -> tuple[float, float, float]:
  return reply.performance, reply.innovation, reply.complexity
