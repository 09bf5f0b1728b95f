"""The entries that breed: a pure function of the archive, so that a restart changes nothing.

After arXiv 2507.18074: a cold start from the baselines, then the best entries, drawn anew every so many. The released
code counts in memory and loses the count at a restart; here the last refresh is computed from the outcomes themselves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from asiarch_jax import config
from asiarch_jax.evidence.held_out import compared
from asiarch_jax.evidence.pairing import lost
from asiarch_jax.records import Entry, Outcome, entries_of
from asiarch_jax.search import fitness


def pool(outcomes: Sequence[Outcome], search: config.Search, rule: config.FitnessRule) -> tuple[Entry, ...]:
  """Returns the entries that breed, best fitness first and the older of equals first.

  Until `search.cold_start` candidates are measured these are the baselines. From then on they are the best
  `search.pool` of baselines and candidates that pass `rule`'s filters, as of the last refresh: the candidates measured
  since, fewer than `search.refresh`, wait for the next. Anchors never breed. The pool is empty only when no baseline
  has been measured and no candidate can be compared with it.
  """
  return tuple(_ranked(entries_of(outcomes), search, rule)[: search.pool])


def membership(
  entry: Entry, outcomes: Sequence[Outcome], search: config.Search, rule: config.FitnessRule
) -> str | None:
  """Returns why an entry is not in the pool, as a sentence with numbers; None for a member.

  Raises:
    KeyError: the entry is not among `outcomes`.
  """
  return memberships(outcomes, search, rule)[entry.id]


def memberships(outcomes: Sequence[Outcome], search: config.Search, rule: config.FitnessRule) -> dict[int, str | None]:
  """Returns for each entry's id why it is not in the pool, None for a member."""
  entries = entries_of(outcomes)
  ranks = {entry.id: rank for rank, entry in enumerate(_ranked(entries, search, rule), 1)}
  base = baseline_of(entries, search)
  drawn = _drawn(entries, search)
  waiting = {e.id for e in entries if e.role == 'candidate'} - {e.id for e in drawn}
  reasons: dict[int, str | None] = {}
  for entry in entries:
    rank = ranks.get(entry.id)
    if rank is not None:
      reasons[entry.id] = None if rank <= search.pool else f'ranks {rank} by fitness; the pool holds {search.pool}'
      continue
    reason = barred(entry, base, search, rule)
    if reason is None and entry.id in waiting:
      measured = sum(e.role == 'candidate' for e in entries)
      reason = _waits(measured, search)
    reasons[entry.id] = reason
  return reasons


def baseline_of(entries: Sequence[Entry], search: config.Search) -> Entry | None:
  """Returns the entry that fitness is taken against; None before it is measured."""
  return next((e for e in entries if e.role == 'baseline' and e.proposal.name == search.baseline), None)


def barred(entry: Entry, base: Entry | None, search: config.Search, rule: config.FitnessRule) -> str | None:
  """Returns why an entry can never be in the pool, whatever else is measured; None if it can.

  The filters on loss and tasks hold for candidates. A baseline is chosen by a person and passed the gate: that a better
  one lies far from the reference is no sign of a leak, and a worse one is sorted out by its rank.
  """
  if entry.role == 'anchor':
    return 'an anchor: compared with, never a parent'
  if entry.fitness is None or not math.isfinite(entry.fitness.total):
    return 'no fitness could be measured'
  if entry.role == 'baseline':
    return None
  if base is None:
    return f'the baseline {search.baseline} has not been measured, so nothing says how good this is'
  return _filtered(entry, base, rule)


def _filtered(entry: Entry, base: Entry, rule: config.FitnessRule) -> str | None:
  loss, base_loss = compared(entry.training, base.training)
  if loss is None or base_loss is None or not math.isfinite(base_loss):
    return 'no held-out loss to compare with the baseline'
  change = fitness.relative_change(loss, base_loss)
  if math.isinf(change):
    return f'{len(lost(entry.training))} of {len(entry.training.chosen)} replicas diverged'
  if change < -rule.leak:
    return f'loss {-change:.1%} below the baseline; more than {rule.leak:.0%} is suspected leakage'
  if change > rule.worse_loss:
    return f'loss {change:.1%} above the baseline; the limit is {rule.worse_loss:.0%}'
  if not fitness.accuracies(base.scores):
    return None
  tasks = fitness.mean_accuracies(entry.scores, base.scores)
  if tasks is None:
    return 'a task of the baseline was not measured here'
  change = fitness.relative_change(*tasks)
  if change < -rule.worse_tasks:
    return f'task accuracy {-change:.1%} below the baseline; the limit is {rule.worse_tasks:.0%}'
  return None


def _drawn(entries: Sequence[Entry], search: config.Search) -> tuple[Entry, ...]:
  """Returns the candidates as of the last refresh, none during the cold start."""
  candidates = tuple(entry for entry in entries if entry.role == 'candidate')
  since = len(candidates) - search.cold_start
  return candidates[: search.cold_start + since // search.refresh * search.refresh] if since >= 0 else ()


def _ranked(entries: Sequence[Entry], search: config.Search, rule: config.FitnessRule) -> list[Entry]:
  base = baseline_of(entries, search)
  eligible = [entry for entry in entries if entry.role == 'baseline'] + list(_drawn(entries, search))
  return sorted((entry for entry in eligible if barred(entry, base, search, rule) is None), key=_order)


def _order(entry: Entry) -> tuple[float, int]:
  return (-entry.fitness.total if entry.fitness else math.inf, entry.id)


def _waits(measured: int, search: config.Search) -> str:
  if measured < search.cold_start:
    return f'cold start: {measured} of {search.cold_start} candidates measured, until then the baselines breed'
  left = search.refresh - (measured - search.cold_start) % search.refresh
  return f'measured after the last refresh; the next comes after {left} more'
