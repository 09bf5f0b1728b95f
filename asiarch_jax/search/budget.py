"""How far a search may go: what was spent against the limits, and what the rest is expected to take."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from asiarch_jax import config
from asiarch_jax.dialogue import Price, Usage, dollars, price_of, settings_of
from asiarch_jax.records import Outcome

# Prompt and reply tokens (thoughts included) of one call, before anything was measured: rough, and said to be.
GUESSED = {
  'researcher': (12_000, 9_000),
  'repairer': (6_000, 6_000),
  'novelty': (2_500, 1_500),
  'summariser': (2_500, 800),
  'judge': (5_000, 1_500),
  'analyst': (9_000, 4_000),
}
REPAIRS = 0.5  # of a proposal, guessed
MEASURED = 3  # candidates after which their mean is the estimate


@dataclasses.dataclass(frozen=True)
class Spent:
  """What a run has used, in the units of `config.Budget`."""

  dollars: float = 0.0
  tokens: float = 0.0
  accelerator_seconds: float = 0.0
  wall_seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class Estimate:
  """What one more candidate is expected to take. `measured` counts the candidates behind it; 0: it is guessed."""

  calls: float
  spent: Spent
  measured: int


def exhausted(budget: config.Budget, spent: Spent, expected: Spent | None = None) -> str:
  """Returns the limit that forbids another cycle, as a sentence with both numbers; '' where there is room.

  `expected` is what the cycles about to run, this one included, will probably take: none is begun that would go over.
  """
  for field in dataclasses.fields(Spent):
    limit, used = getattr(budget, field.name), getattr(spent, field.name)
    if not limit:
      continue
    if used >= limit:
      return f'budget.{field.name} = {limit:g} is used up: {used:.4g} spent'
    more = getattr(expected, field.name) if expected else 0.0
    if used + more > limit:
      return (
        f'budget.{field.name} = {limit:g} has no room for another cycle: {used:.4g} spent, about {more:.2g} to come'
      )
  return ''


def expectation(experiment: config.Experiment, outcomes: Sequence[Outcome], prices: Mapping[str, Price]) -> Estimate:
  """Returns what a candidate takes: the mean over those in the archive, or a guess while there are too few."""
  candidates = [outcome for outcome in outcomes if outcome.id >= len(experiment.search.baselines)]
  if len(candidates) >= MEASURED:
    count = len(candidates)
    return Estimate(
      sum(o.spend.calls for o in candidates) / count,
      Spent(
        sum(o.spend.dollars for o in candidates) / count,
        sum(o.spend.tokens for o in candidates) / count,
        sum(o.timing.accelerator_seconds for o in candidates) / count,
        sum(o.timing.wall_seconds + o.spend.seconds for o in candidates) / count,
      ),
      count,
    )
  calls = calls_of(experiment)
  cost = tokens = 0.0
  for role, count_ in calls.items():
    usage = Usage(prompt=GUESSED[role][0], reply=GUESSED[role][1])
    price = price_of(prices, settings_of(experiment.llm, role).model)
    cost += count_ * dollars(usage, price) if price else 0.0
    tokens += count_ * usage.total
  return Estimate(sum(calls.values()), Spent(cost, tokens), 0)


def calls_of(experiment: config.Experiment) -> dict[str, float]:
  """Returns how often each role is called for one candidate, about."""
  calls: dict[str, float] = {}
  if experiment.researcher.kind == 'llm':
    samples = experiment.researcher.samples
    calls |= {'researcher': samples, 'novelty': samples, 'repairer': REPAIRS * samples}
    calls['summariser'] = samples * experiment.search.references * (experiment.researcher.summaries == 'anew')
  if experiment.judge.kind == 'llm':
    calls['judge'] = experiment.judge.calls
  if experiment.analyst.kind == 'llm':
    calls['analyst'] = 1
  return calls


def told(estimate: Estimate, cycles: int) -> str:
  """Returns the estimate for `cycles` more candidates as one line."""
  each = estimate.spent
  source = (
    f'measured over {estimate.measured} candidates' if estimate.measured else 'guessed; measured as the search goes on'
  )
  return (
    f'language models: about {estimate.calls:.0f} calls, {each.tokens / 1000:.0f} thousand tokens and '
    f'${each.dollars:.2f} a candidate; {cycles} to come: ${each.dollars * cycles:.2f} ({source})'
  )
