"""Everything about one outcome, folded until it is asked for."""

from __future__ import annotations

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
from asiarch_jax.report.origins import idea
from asiarch_jax.report.series import verdict
from asiarch_jax.report.spending import spent
from asiarch_jax.report.text import analysed_by, marks, ranked

DETAILED = 600  # outcomes with everything about them; of more, the best and the newest
COLORED = 10  # entries whose source is coloured
SECTIONS = ('design', 'results', 'expectation', 'explanation', 'synthesis', 'weaknesses')  # of an analysis


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
  facts += [('borrowed from', borrowed), ('ideas', _ideas(outcome, by_id)), *_facts(outcome)]
  facts.append(('language models', escape(spent(outcome.spend))))
  parts = [f'<p class="prose">{escape(proposal.motivation)}</p>', pairs(facts)]
  parts += [_attempts(outcome), _findings(outcome), _replicas(outcome)]
  if isinstance(outcome, Entry) and outcome.analysis is not None:
    sections = {name: getattr(outcome.analysis, name) for name in SECTIONS}
    for name, text in {**sections, 'lessons': '\n'.join(outcome.analysis.lessons)}.items():
      parts.append(f'<h3>{name.capitalize()}</h3><p class="prose">{escape(text)}</p>' if text else '')
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
    counted = ', '.join(
      f'{name} {getattr(outcome.judgement, name):.3g}' for name in ('performance', 'innovation', 'complexity')
    )
    facts.append(('judged', escape(f'{outcome.judgement.score:.2f} of 10 ({counted}): {outcome.judgement.reason}')))
    facts.append(('marks as given', escape(marks(outcome.judgement))))
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
  facts.append(('analysis by', escape(analysed_by(outcome))))
  if outcome.analysis:
    facts.append(('papers found', escape(', '.join(outcome.analysis.retrieved))))
  return facts


def _ideas(outcome: Outcome, by_id: Mapping[int, Outcome]) -> str:
  """Returns the ideas with their origins; one from an outcome leads to it."""
  items = []
  for origin in outcome.proposal.origins:
    known = by_id.get(int(origin.reference)) if origin.kind == 'analysis' and origin.reference.isdecimal() else None
    if known is None:
      items.append(f'<li>{escape(idea(origin))}</li>')
    else:
      items.append(f'<li>{escape(origin.component)} (analysis #{known.id} {link(known)})</li>')
  return f'<ul class="findings">{"".join(items)}</ul>' if items else ''


def _attempts(outcome: Outcome) -> str:
  """Returns the versions of the proposal that failed before this one, and at what."""
  if not outcome.earlier:
    return ''
  items = ''.join(
    f'<li><strong>{escape(attempt.stage)}</strong>: {escape(attempt.reason)}</li>' for attempt in outcome.earlier
  )
  return folded(f'Earlier attempts: {len(outcome.earlier)}', f'<ul class="findings">{items}</ul>')


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
