"""Which cycles of a search are placebos: copies of the baseline that nobody is told of.

Whether a cycle is one follows from the seed and the cycle's number alone, so no record says so: agents, judges and
checks see a candidate like any other, and whoever reads the archive afterwards can open the envelope.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import numpy as np

from asiarch_jax import config
from asiarch_jax.records import Entry, Outcome

Kind = TypeVar('Kind', Entry, Outcome)
STREAM = 0x97ACEB0  # keeps these draws apart from those of the cycle itself


def is_placebo(cycle: int, experiment: config.Experiment) -> bool:
  """Says whether cycle number `cycle` sends a copy of the baseline through instead of a proposal."""
  if cycle < len(experiment.search.baselines) or not experiment.evidence.placebo:
    return False
  return bool(np.random.default_rng([experiment.seed, cycle, STREAM]).random() < experiment.evidence.placebo)


def placebos(outcomes: Iterable[Kind], experiment: config.Experiment) -> tuple[Kind, ...]:
  """Returns the outcomes that are copies of the baseline."""
  return tuple(outcome for outcome in outcomes if is_placebo(outcome.id, experiment))
