"""Which candidates go to the next rung: as many as the posterior allows at a rate of false discoveries."""

from __future__ import annotations

from collections.abc import Sequence

from asiarch_jax.evidence.posterior import Posterior


def promoted(posteriors: Sequence[Posterior], *, rate: float = 0.05, most: int | None = None) -> tuple[Posterior, ...]:
  """Returns the largest set, surest first, whose expected share of candidates that are not better stays within `rate`.

  The expected share of a set is the mean of 1 - P(better) over it (the Bayesian false-discovery rate: Storey 2003, Ann.
  Stat. 31; Mueller et al. 2004, J. Am. Stat. Assoc. 99). `most` bounds the set, None leaves it open.

  >>> def one(id, p): return Posterior(id, 0.0, 0.0, 0.0, 0.0, p, 4)
  >>> [p.id for p in promoted([one(1, 0.99), one(2, 0.5), one(3, 0.92)])]
  [1, 3]

  Raises:
    ValueError: `rate` is not between 0 and 1.
  """
  if not 0.0 < rate < 1.0:
    raise ValueError(f'rate = {rate}; give the share of false discoveries, between 0 and 1')
  ordered = sorted(posteriors, key=lambda p: (-p.probability_better, -p.mean, p.id))
  chosen: list[Posterior] = []
  doubt = 0.0
  for candidate in ordered[:most]:
    doubt += 1.0 - candidate.probability_better
    if doubt / (len(chosen) + 1) > rate:
      break
    chosen.append(candidate)
  return tuple(chosen)


def false_discovery_rate(chosen: Sequence[Posterior]) -> float:
  """Returns the expected share of a chosen set that is not better; 0 for an empty one."""
  return sum(1.0 - one.probability_better for one in chosen) / len(chosen) if chosen else 0.0
