"""What language models took: by the role that asked, and by what the outcome was that they were asked for."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from asiarch_jax.dialogue import total
from asiarch_jax.records import Entry, Outcome, Rejection, Spend
from asiarch_jax.report.series import is_better


@dataclasses.dataclass(frozen=True)
class Role:
  """The calls of one role, from the journal. `attempts` counts the first attempt of every call and each retry."""

  name: str
  models: tuple[str, ...]
  spend: Spend
  faults: Mapping[str, int]
  attempts: int

  @property
  def retried(self) -> float:
    """The share of the attempts that were retries."""
    return 1 - self.spend.calls / self.attempts if self.attempts else 0.0


@dataclasses.dataclass(frozen=True)
class Kind:
  """The outcomes of one kind with what was spent on them."""

  name: str
  number: int
  spend: Spend


@dataclasses.dataclass(frozen=True)
class Screening:
  """What proposals went through before one was trained, from the journal: cycles with a choice and what they chose
  from, proposals that repeated what was there, and repairs."""

  cycles: int
  proposals: int
  repeated: int
  repaired: int


def roles(events: Iterable[Mapping[str, Any]]) -> tuple[Role, ...]:
  """Returns what each role took by the journal's calls, the most tokens first."""
  by_role: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
  for event in events:
    if event.get('event') == 'call':
      by_role[str(event['role'])].append(event)
  rows = [_role(name, calls) for name, calls in by_role.items()]
  return tuple(sorted(rows, key=lambda row: (-row.spend.tokens, row.name)))


def _role(name: str, calls: Sequence[Mapping[str, Any]]) -> Role:
  return Role(
    name,
    tuple(sorted({str(call['model']) for call in calls if call['model']})),
    total(Spend(1, call['tokens'], call['dollars'], call['seconds']) for call in calls),
    Counter(str(call['fault']) for call in calls if call['fault']),
    sum(max(call['attempts'], 1) for call in calls),
  )


def whole(rows: Sequence[Role]) -> Role:
  """Returns all roles as one."""
  return Role(
    'all',
    tuple(sorted({model for row in rows for model in row.models})),
    total(row.spend for row in rows),
    sum((Counter(row.faults) for row in rows), Counter()),
    sum(row.attempts for row in rows),
  )


def kinds(outcomes: Sequence[Outcome]) -> tuple[Kind, ...]:
  """Returns what was spent on baselines, on measured candidates, on the better of them, on rejections, and on all."""
  measured = [outcome for outcome in outcomes if isinstance(outcome, Entry) and outcome.role == 'candidate']
  return (
    _kind('baselines and anchors', [o for o in outcomes if isinstance(o, Entry) and o.role != 'candidate']),
    _kind('candidates', measured),
    _kind('of them better', [entry for entry in measured if is_better(entry)]),
    _kind('rejected', [outcome for outcome in outcomes if isinstance(outcome, Rejection)]),
    _kind('all', outcomes),
  )


def _kind(name: str, members: Sequence[Outcome]) -> Kind:
  return Kind(name, len(members), total(member.spend for member in members))


def screening(events: Iterable[Mapping[str, Any]]) -> Screening:
  """Returns the counts of the journal's sampled, repeated and repaired events."""
  counts: Counter[str] = Counter()
  proposals = 0
  for event in events:
    counts[str(event.get('event'))] += 1
    proposals += len(event['samples']) if event.get('event') == 'sampled' else 0
  return Screening(counts['sampled'], proposals, counts['repeated'], counts['repaired'])


def dollars(value: float) -> str:
  """Returns an amount of money.

  >>> [dollars(value) for value in (0, 0.00001, 0.0123, 0.5, 12.345, 1234.5)]
  ['$0', '<$0.0001', '$0.0123', '$0.500', '$12.35', '$1,234.50']
  """
  if 0 < value < 0.0001:
    return '<$0.0001'
  digits = 0 if value == 0 else 4 if value < 0.1 else 3 if value < 1 else 2
  return f'${value:,.{digits}f}'


def amount(spend: Spend, number: int = 1) -> str:
  """Returns an equal share of a spend: in dollars, or in tokens where no price is known.

  >>> amount(Spend(2, 3_000, 0.5), 2), amount(Spend(2, 3_000), 2)
  ('$0.250', '1,500 tokens')
  """
  return dollars(spend.dollars / number) if spend.dollars else f'{spend.tokens / number:,.0f} tokens'


def spent(spend: Spend) -> str:
  """Returns what language models took, in words; '' where none was asked. Dollars only where a price is known.

  >>> spent(Spend(2, 12_345, 0.05, 3.21))
  '2 calls, 12,345 tokens, $0.0500, 3.2 s'
  """
  if not spend.calls:
    return ''
  cost = f', {dollars(spend.dollars)}' if spend.dollars else ''
  calls = f'{spend.calls:,} call{"s" if spend.calls != 1 else ""}'
  return f'{calls}, {spend.tokens:,} tokens{cost}, {spend.seconds:,.1f} s'
