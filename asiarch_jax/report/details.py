"""Everything about one outcome, folded until it is asked for."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from asiarch_jax.records import Entry, Outcome, Rejection
from asiarch_jax.report.drawing import label
from asiarch_jax.report.markup import (
  WORDS,
  Column,
  diff,
  escape,
  fitness_terms,
  folded,
  interval,
  link,
  pairs,
  scaled,
  signed,
  source,
  table,
  tone,
  words,
)
from asiarch_jax.report.text import ranked, verdict

DETAILED = 600  # outcomes with everything about them; of more, the best and the newest
COLORED = 10  # entries whose source is coloured


def every(outcomes: Sequence[Outcome]) -> str:
  """Returns the details of all outcomes by id, of a large archive those of the best and the newest."""
  if not outcomes:
    return '<p class="muted">None yet.</p>'
  by_id = {outcome.id: outcome for outcome in outcomes}
  best = [entry.id for entry in ranked(outcomes)]
  kept = set(by_id)
  if len(outcomes) > DETAILED:
    kept = set(best[: DETAILED // 2])
    kept |= set([key for key in sorted(by_id) if key not in kept][len(kept) - DETAILED :])
  left_out = len(by_id) - len(kept)
  note = f'<p class="note">{left_out} more are in the archive: <code>asiarch show ID</code>.</p>' if left_out else ''
  colored = set(best[:COLORED])
  return note + ''.join(of(by_id[key], by_id, colored=key in colored) for key in sorted(kept))


def of(outcome: Outcome, by_id: Mapping[int, Outcome], *, colored: bool = False) -> str:
  """Returns one outcome: a line, and behind it motivation, measurements, findings, analysis, change and source."""
  proposal = outcome.proposal
  parent = by_id.get(proposal.parent_id) if proposal.parent_id is not None else None
  descent = link(parent) if parent else 'none' if proposal.parent_id is None else f'#{proposal.parent_id}'
  borrowed = ', '.join(link(by_id[key]) if key in by_id else f'#{key}' for key in proposal.reference_ids)
  facts = [('written by', escape(f'{proposal.author}, {proposal.operator}')), ('parent', descent)]
  facts += [('borrowed from', borrowed), *_facts(outcome)]
  parts = [f'<p class="prose">{escape(proposal.motivation)}</p>', pairs(facts), _findings(outcome), _replicas(outcome)]
  if isinstance(outcome, Entry) and outcome.analysis is not None:
    for field in dataclasses.fields(outcome.analysis):
      value = getattr(outcome.analysis, field.name)
      text = value if isinstance(value, str) else '\n'.join(value)
      parts.append(f'<h3>{field.name.capitalize()}</h3><p class="prose">{escape(text)}</p>' if text else '')
  if parent is not None:
    parts.append(folded(f'What changed from #{parent.id}', diff(outcome, parent)))
  parts.append(folded('Source', source(proposal.source, colored=colored)))
  what, kind = _came_to(outcome)
  return (
    f'<details class="outcome" id="outcome-{outcome.id}"><summary><span class="id">#{outcome.id}</span>'
    f'<strong>{escape(label(proposal.name, 80))}</strong><span class="what {kind}">{escape(what)}</span>'
    f'</summary><div class="body">{"".join(parts)}</div></details>\n'
  )


def _came_to(outcome: Outcome) -> tuple[str, str]:
  if isinstance(outcome, Rejection):
    return f'rejected: {outcome.stage}', 'unclear'
  if outcome.evidence is None:
    return outcome.role, 'unclear'
  said = verdict(outcome)
  role = '' if outcome.role == 'candidate' else f'{outcome.role}, '
  return f'{role}{signed(outcome.evidence.improvement)} bits per byte, {WORDS[said]}', tone(said)


def _facts(outcome: Outcome) -> list[tuple[str, str]]:
  """Returns what was measured, or why nothing was, as names and markup."""
  if isinstance(outcome, Rejection):
    return [('ended at', escape(outcome.stage)), ('reason', escape(outcome.reason))]
  training, cost, facts = outcome.training, outcome.cost, []
  if outcome.evidence:
    over = (
      f'over {outcome.evidence.replicas} pairs; probability of being better {outcome.evidence.probability_better:.3f}'
    )
    facts.append(('improvement', f'{interval(outcome.evidence)} bits per byte {over}'))
  facts.append(('fitness', fitness_terms(outcome)))
  if outcome.judgement:
    marks = ', '.join(
      f'{name} {getattr(outcome.judgement, name):.3g}' for name in ('performance', 'innovation', 'complexity')
    )
    facts.append(('judged', escape(f'{outcome.judgement.score:.2f} of 10 ({marks}): {outcome.judgement.reason}')))
  scores = (f'{score.task} {score.value:.4f} ± {score.stderr:.4f} (n = {score.n})' for score in outcome.scores)
  facts.append(('tasks', escape(', '.join(scores))))
  size = (
    f'{training.parameters:,} parameters, {cost.mixer_parameters:,} in each mixer',
    f'feed-forward width {training.mlp_width}',
    f'{scaled(training.flops_per_token)} FLOPs a token, growing as T to the {cost.growth:.2f}',
    f'{training.state_bytes:,} bytes of state',
  )
  facts.append(('size', '; '.join(size)))
  course = (
    f'{scaled(training.tokens)} tokens a replica, {scaled(training.tokens_per_second)} a second over all',
    f'compiled in {training.compile_seconds:.1f} s',
    escape(training.stopped),
  )
  facts.append(('training', '; '.join(course)))
  return facts


def _findings(outcome: Outcome) -> str:
  if not outcome.findings:
    return ''
  failed = sum(not finding.passed for finding in outcome.findings)
  items = ''.join(
    f'<li class="{"unclear" if finding.passed else "worse"}">'
    f'{"passed" if finding.passed else "<strong>failed</strong>"} '
    f'{escape(finding.check)}: {escape(finding.detail)}</li>'
    for finding in outcome.findings
  )
  summary = f'Checks: {len(outcome.findings) - failed} passed, {failed} failed'
  return folded(summary, f'<ul class="findings">{items}</ul>', opened=failed > 0)


def _replicas(outcome: Outcome) -> str:
  if outcome.training is None or not outcome.training.replicas:
    return ''
  chosen = outcome.training.learning_rate
  rows = []
  for replica in outcome.training.replicas:
    note = 'diverged' if replica.diverged else 'chosen rate' if replica.learning_rate == chosen else ''
    last = replica.losses[-1] if replica.losses else math.nan
    numbers = (f'{replica.validation_bits:.4f}', f'{replica.test_bits:.4f}', f'{last:.4f}')
    cells = (f'{replica.seed}', f'{replica.learning_rate:g}', *numbers)
    rows.append('<tr>' + ''.join(words(value, '') for value in cells) + words(note) + '</tr>')
  names = ('seed', 'learning rate', 'validation bits', 'test bits', 'last loss')
  columns = (*(Column(name, '') for name in names), Column('', '', kind='text'))
  return folded('Replicas', table(columns, rows))
