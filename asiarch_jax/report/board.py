"""The leaderboard of the page: one row an entry, its interval drawn on a scale that all rows share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from asiarch_jax.evidence import posterior
from asiarch_jax.records import Entry, Outcome
from asiarch_jax.report import figures, series
from asiarch_jax.report.markup import (
  WORDS,
  Column,
  Scale,
  axis,
  cell,
  count,
  escape,
  glyph,
  link,
  scaled,
  signed,
  table,
  tone,
  words,
)
from asiarch_jax.report.series import verdict
from asiarch_jax.report.text import ranked, test_bits

ROWS = 1000  # listed at most


def leaderboard(outcomes: Sequence[Outcome], baseline: str) -> str:
  """Returns the table of all entries, best held-out text first, with how to read it."""
  entries = ranked(outcomes)
  if not entries:
    return '<p class="muted">Nothing has been measured yet.</p>'
  band, beliefs = series.noise_band(outcomes, baseline), posterior.believed(outcomes, baseline)
  scale = Scale(*figures.interval_range(entries, band))
  columns = (
    Column('rank', 'ascending'),
    Column('mixer', 'ascending', kind='name'),
    Column('improvement', note='<small>bits per byte</small>'),
    *((Column('believed', note='<small>chance of better</small>'),) if beliefs else ()),
    Column('95 % interval', '', note=axis(scale), kind='text'),
    Column('verdict', 'ascending', kind='text'),
    Column('held out', 'ascending', note='<small>bits per byte</small>'),
    Column('fitness'),
    Column('loss', note='<small>term</small>', kind='wide'),
    Column('tasks', note='<small>term</small>', kind='wide'),
    Column('judge', note='<small>term</small>', kind='wide'),
    Column('parameters', 'ascending', kind='wide'),
    Column('FLOPs', 'ascending', note='<small>a token</small>', kind='wide'),
    Column('state', 'ascending', note='<small>bytes</small>', kind='wide'),
    Column('tokens', note='<small>a second</small>', kind='wide'),
    Column('written by', 'ascending', kind='wide text'),
  )
  listed = entries[:ROWS]
  rows = [_row(rank, entry, scale, band, beliefs) for rank, entry in enumerate(listed, 1)]
  note = f' The best {ROWS} of {len(entries)} are listed.' if len(entries) > ROWS else ''
  zone = ' The shaded zone is where copies of the baseline would land.' if band else ''
  believed = (
    'Believed is the measurement drawn in by what luck can explain, all candidates taken together. ' if beliefs else ''
  )
  return (
    f'<p class="note">Best held-out text first. Improvement is {escape(baseline)} minus the entry, paired by seed, '
    'mean over the seeds; a line that does not touch the upright one at zero means better (right) or worse (left).'
    f'{zone} Each interval stands by itself: of forty candidates that are no better, one would look better. '
    f'{believed}Click the head of a column to sort by it.{note}</p>'
    '<div class="tools"><label class="muted" for="search">Search</label>'
    '<input type="search" id="search" placeholder="name, author, operator, verdict">'
    f'<span class="muted" id="count" aria-live="polite">{count(len(listed), "entry", "entries")}</span></div>'
    + table(columns, rows, key='leaderboard-table', tall=True)
  )


def _row(rank: int, entry: Entry, scale: Scale, band: float | None, beliefs: Mapping[int, posterior.Posterior]) -> str:
  evidence, training, fitness, said = entry.evidence, entry.training, entry.fitness, verdict(entry)
  proposal, bits = entry.proposal, test_bits(entry)
  drawn = glyph(evidence.improvement, evidence.low, evidence.high, said, scale, band) if evidence else ''
  role = '' if entry.role == 'candidate' else f'<small>{entry.role}</small>'
  name = escape(proposal.name)
  terms = (fitness.loss, fitness.tasks, fitness.judge) if fitness else (None, None, None)
  cells = (
    cell(rank, str(rank)),
    f'<th scope="row" class="name" data-v="{name}" title="{name}">{link(entry)}{role}</th>',
    cell(evidence.improvement, signed(evidence.improvement)) if evidence else cell(None),
    *((_belief(beliefs.get(entry.id)),) if beliefs else ()),
    f'<td class="text">{drawn}</td>',
    words(WORDS[said], f'text {tone(said)}'),
    cell(bits, f'{bits:.4f}'),
    cell(fitness.total, f'{fitness.total:.3f}') if fitness else cell(None),
    *(cell(term, f'{term:.3f}' if term is not None else '', 'wide') for term in terms),
    cell(training.parameters, f'{training.parameters:,}', 'wide'),
    cell(training.flops_per_token, scaled(training.flops_per_token), 'wide'),
    cell(training.state_bytes, scaled(training.state_bytes), 'wide'),
    cell(training.tokens_per_second, scaled(training.tokens_per_second), 'wide'),
    words(f'{proposal.author}, {proposal.operator}', 'wide text'),
  )
  found = (proposal.name, proposal.author, proposal.operator, entry.role, WORDS[said], f'#{entry.id}')
  kind = ' class="reference"' if entry.role != 'candidate' else ''
  return f'<tr{kind} data-text="{escape(" ".join(found).lower())}">{"".join(cells)}</tr>'


def _belief(belief: posterior.Posterior | None) -> str:
  if belief is None:
    return cell(None)
  return cell(belief.mean, f'{signed(belief.mean)} ({belief.probability_better:.0%})')
