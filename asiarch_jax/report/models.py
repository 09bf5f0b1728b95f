"""The parts of the page that exist only where language models took part: where ideas come from, and what they cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from asiarch_jax.records import Outcome, Spend
from asiarch_jax.report import origins as ideas
from asiarch_jax.report import spending
from asiarch_jax.report.markup import Column, count, duration, escape, head_cell, scaled, table, words

PAPERS = 15  # cited most often, listed at most
MEANING = {'cognition': 'a paper', 'analysis': 'a result here', 'original': 'neither'}


def origins(outcomes: Sequence[Outcome]) -> str:
  """Returns the table of origins with the papers cited most often; '' where no proposal declares any."""
  groups = ideas.groups(outcomes)
  if not groups:
    return ''
  columns = (
    Column('proposals', '', kind='text'),
    Column('number', '', kind='wide'),
    Column('ideas', '', kind='wide'),
    *(Column(kind, '', note=f'<small>{MEANING[kind]}</small>') for kind in ideas.KINDS),
  )
  rows = (
    f'<tr>{head_cell(group.name)}{words(group.proposals, "wide")}{words(group.components, "wide")}'
    f'{"".join(_share(group.shares[kind]) for kind in ideas.KINDS)}</tr>'
    for group in groups
  )
  return (
    '<p class="note">The components of each proposal by where their author says they come from; a paper or an outcome '
    'counts only where the author was shown it. Better: the 95 % interval of the improvement lies wholly above zero. '
    'Under each share stands its 95 % interval (Wilson), which takes components to be independent, with the count.</p>'
    + table(columns, rows)
    + _papers(ideas.cited(outcomes))
  )


def _share(share: ideas.Share) -> str:
  if not share.total:
    return words('–', '')
  low, high = share.interval
  interval = f'{100 * low:.0f} to {100 * high:.0f} %'
  return f'<td>{100 * share.share:.1f} %<small>{interval} <span>({share.count})</span></small></td>'


def _papers(papers: Sequence[ideas.Cited]) -> str:
  if not papers:
    return ''
  columns = (
    Column('paper', 'ascending', kind='text'),
    Column('entries'),
    Column('of them better', ''),
    Column('rejected'),
  )
  rows = (
    f'<tr>{head_cell(paper.paper)}{words(paper.entries, "")}{_share(paper.better)}{words(paper.rejected, "")}</tr>'
    for paper in papers[:PAPERS]
  )
  more = f' The first {PAPERS} of {len(papers)}.' if len(papers) > PAPERS else ''
  return (
    '<h3>Papers cited most often</h3><p class="note">Measured entries that took an idea from a paper, how many of them '
    f'are better than the baseline, and rejected proposals with such an idea.{more}</p>{table(columns, rows)}'
  )


def spend(outcomes: Sequence[Outcome], events: Sequence[Mapping[str, Any]]) -> str:
  """Returns what language models took, by role and by kind of outcome; '' where none was asked."""
  roles, kinds = spending.roles(events), spending.kinds(outcomes)
  whole = spending.whole(roles)
  archived = kinds[-1].spend
  if not whole.spend.calls and not archived.calls:
    return ''
  lost = whole.spend.calls - archived.calls
  rest = f'The journal has {count(lost, "call")} more than the outcomes: of cycles cut off or under way.'
  return (
    '<h3>Language models</h3>'
    + (_roles([*roles, whole]) if roles else '')
    + (_kinds(kinds) if archived.calls else '')
    + (f'<p class="note">{rest}</p>' if lost > 0 and archived.calls else '')
    + _screening(spending.screening(events))
  )


def _roles(rows: Sequence[spending.Role]) -> str:
  names = ('calls', 'tokens', 'dollars', 'time waited', 'faults', 'retries')
  columns = (Column('role', '', kind='text'), *(Column(name, '') for name in names), Column('model', '', kind='text'))
  lines = []
  for row in rows:
    faults = ', '.join(f'{number} {name}' for name, number in sorted(row.faults.items())) or '0'
    values = (
      f'{row.spend.calls:,}',
      scaled(row.spend.tokens),
      _dollars(row.spend),
      duration(row.spend.seconds),
      faults,
      f'{100 * row.retried:.1f} %',
    )
    models = ', '.join(row.models)
    lines.append(f'<tr>{head_cell(row.name)}{"".join(words(value, "") for value in values)}{words(models)}</tr>')
  return (
    '<p class="note">Every call in the journal. Tokens are those of prompts, thoughts and replies; a fault is a reply '
    f'that could not be used; retries are the share of attempts that were not the first.</p>{table(columns, lines)}'
  )


def _kinds(kinds: Sequence[spending.Kind]) -> str:
  names = ('number', 'calls', 'tokens', 'dollars', 'mean of one')
  note = '<small>divided by their number</small>'
  columns = (Column('', '', kind='text'), *(Column(name, '') for name in names), Column('all spend', '', note=note))
  everything = kinds[-1].spend
  lines = []
  for kind in kinds:
    found = kind.number and kind.name in ('candidates', 'of them better')
    values = (
      f'{kind.number:,}',
      f'{kind.spend.calls:,}',
      scaled(kind.spend.tokens),
      _dollars(kind.spend),
      spending.amount(kind.spend, kind.number) if kind.number and kind.spend.calls else '–',
      spending.amount(everything, kind.number) if found else '–',
    )
    lines.append(f'<tr>{head_cell(kind.name)}{"".join(words(value, "") for value in values)}</tr>')
  return (
    '<p class="note">What each kind of outcome took. The last column is the price of one measured candidate and of one '
    f'that is better, with all that was spent on the others.</p>{table(columns, lines)}'
  )


def _dollars(spend: Spend) -> str:
  return spending.dollars(spend.dollars) if spend.dollars or not spend.tokens else 'no price'


def _screening(seen: spending.Screening) -> str:
  said = []
  if seen.cycles:
    out_of = count(seen.proposals, 'proposal')
    said.append(f'in {count(seen.cycles, "cycle")} the best of several was trained, out of {out_of}')
  if seen.repeated:
    said.append(f'{count(seen.repeated, "proposal")} repeated what was there and {_were(seen.repeated)} drawn again')
  if seen.repaired:
    said.append(f'{count(seen.repaired, "proposal")} {_were(seen.repaired)} repaired')
  return f'<p class="note">Before training: {escape("; ".join(said))}.</p>' if said else ''


def _were(number: int) -> str:
  return 'was' if number == 1 else 'were'
