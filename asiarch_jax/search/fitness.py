"""The composite fitness that breeds: design section 8, after eq. 2 of arXiv 2507.18074 and its released code.

Three terms in [0, 1]: held-out loss and task accuracy as relative changes against the baseline measured here, squashed,
and the judge's mark. Fitness orders the pool and nothing else; whether one thing is better than another is said by
`evidence`. Unlike the original, a measurement that failed is never replaced by a number: its term is left out, and a
replica that diverged counts as an unbounded loss.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from asiarch_jax import config
from asiarch_jax.evidence.held_out import compared
from asiarch_jax.records import Entry, Fitness, TaskScore


def squash(x: float, gain: float) -> float:
  """Returns S(x) = 1 / (1 + exp(-gain clip(x, -1, 1))), one half at zero.

  >>> round(squash(-1.0, 6.0), 4), squash(0.0, 6.0), round(squash(float('inf'), 6.0), 4)
  (0.0025, 0.5, 0.9975)

  Raises:
    ValueError: x is nan. A comparison with nan would clip it to +1, the best value there is.
  """
  if math.isnan(x):
    raise ValueError('nothing to squash: x is nan; leave the term out instead')
  return 1.0 / (1.0 + math.exp(-gain * min(max(x, -1.0), 1.0)))


def relative_change(value: float, base: float) -> float:
  """Returns (value - base) / |base|; against a base of zero it is zero for no change, else infinite.

  Raises:
    ValueError: either is nan.
  """
  if math.isnan(value) or math.isnan(base):
    raise ValueError(f'{value} against {base} is no comparison; leave the term out instead')
  if value == base:
    return 0.0
  return (value - base) / abs(base) if base else math.copysign(math.inf, value - base)


def loss_term(loss: float, base_loss: float, rule: config.FitnessRule) -> float:
  """Returns S((base_loss - loss) / (band base_loss)).

  The unit is free, since only the relative change enters: nats a token in the paper, bits per byte here.

  Raises:
    ValueError: either loss is nan.
  """
  return squash(-relative_change(loss, base_loss) / rule.band, rule.gain)


def tasks_term(tasks: float, base_tasks: float, rule: config.FitnessRule) -> float:
  """Returns S((tasks - base_tasks) / (band base_tasks)) of mean accuracies.

  Raises:
    ValueError: either accuracy is nan.
  """
  return squash(relative_change(tasks, base_tasks) / rule.band, rule.gain)


def judge_term(score: float) -> float:
  """Returns (score - 1) / 9 of a mark on 1-10.

  Raises:
    ValueError: the mark lies outside 1-10, or is nan.
  """
  if not 1.0 <= score <= 10.0:
    raise ValueError(f'a judge gives 1 to 10, not {score}')
  return (score - 1.0) / 9.0


def accuracies(scores: Sequence[TaskScore]) -> dict[str, float]:
  """Returns the value of each task that is measured as an accuracy, by name."""
  return {score.task: score.value for score in scores if score.unit == 'accuracy'}


def mean_accuracies(scores: Sequence[TaskScore], base_scores: Sequence[TaskScore]) -> tuple[float, float] | None:
  """Returns the mean accuracy and the baseline's over the baseline's tasks.

  None when the baseline has none, or when one of them is missing or not finite on either side: a mean over fewer tasks
  is another quantity and would flatter whoever failed the hardest.
  """
  ours, base = accuracies(scores), accuracies(base_scores)
  if not base or not all(math.isfinite(base[task]) and math.isfinite(ours.get(task, math.nan)) for task in base):
    return None
  return statistics.fmean(ours[task] for task in base), statistics.fmean(base.values())


def composite(entry: Entry, base: Entry, rule: config.FitnessRule) -> Fitness:
  """Returns the fitness of an entry against the baseline's entry: the mean of the terms that could be measured.

  The loss is the mean test bits per byte of the chosen replicas over shared seeds (`compared`), the tasks are the mean
  of accuracies (`mean_accuracies`), the judge's term is there when the entry carries a judgement. The baseline against
  itself gives 0.5 for loss and tasks.

  Raises:
    ValueError: no term can be measured.
  """
  loss, base_loss = compared(entry.training, base.training)
  tasks = mean_accuracies(entry.scores, base.scores)
  comparable = loss is not None and base_loss is not None and math.isfinite(base_loss)
  terms = {
    'loss': loss_term(loss, base_loss, rule) if comparable else None,  # type: ignore[arg-type]
    'tasks': tasks_term(*tasks, rule) if tasks else None,
    'judge': judge_term(entry.judgement.score) if entry.judgement else None,
  }
  measured = [term for term in terms.values() if term is not None]
  if not measured:
    raise ValueError(
      f'entry {entry.id} ({entry.proposal.name}) has no term of a fitness: no loss to compare with entry {base.id}, no '
      'shared task, no judgement; archive it as a Rejection'
    )
  return Fitness(**terms, total=statistics.fmean(measured))
