"""A frozen search: every design that was measured, on two rungs, with all its replicas and their curves.

Whatever a policy decides (whom to breed, whom to promote, when to stop, what to believe) can be tried on it at once,
since what training would have given stands in the table.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from asiarch_jax import config
from asiarch_jax.agents import genome as genomes
from asiarch_jax.agents.genes import Genome
from asiarch_jax.agents.genome import GENOMES
from asiarch_jax.evidence.pairing import pairs
from asiarch_jax.evidence.placebo import is_placebo
from asiarch_jax.records import Entry, Outcome, Timing, TrainSummary, entries_of, from_json, to_json

SCHEMA = 1
DIGITS = 5  # of losses and bits: a hundredth of the noise of a replica

Kind = TypeVar('Kind', Entry, Outcome)


@dataclasses.dataclass(frozen=True)
class Table:
  """Outcomes of a search, and under the same ids those of the rung above it.

  `made` says with what: versions, date, hardware. `experiment` is the search's.
  """

  experiment: config.Experiment
  rung: str
  lower: tuple[Outcome, ...]
  upper: tuple[Outcome, ...]
  made: Mapping[str, str]

  @functools.cached_property
  def baseline(self) -> Entry:
    """The entry that everything is compared with, on the lower rung."""
    return next(entry for entry in entries_of(self.lower) if entry.id == 0)

  @functools.cached_property
  def rows(self) -> dict[str, Outcome]:
    """The outcomes of the lower rung by name."""
    return {outcome.proposal.name: outcome for outcome in self.lower}

  @functools.cached_property
  def candidates(self) -> tuple[Outcome, ...]:
    """What a search can propose: everything but the baselines and their copies, failures included."""
    first = len(self.experiment.search.baselines)
    return tuple(o for o in self.lower if o.id >= first and not is_placebo(o.id, self.experiment))

  @functools.cached_property
  def measured(self) -> tuple[Entry, ...]:
    """Candidates and placebos that were measured on both rungs."""
    above = {entry.id for entry in entries_of(self.upper)}
    return tuple(entry for entry in entries_of(self.lower) if entry.role == 'candidate' and entry.id in above)

  @functools.cached_property
  def worth(self) -> dict[int, float]:
    """What each design is worth on the upper rung: its measured improvement there, bits per byte; a copy's is zero.

    A design that failed there is worth nothing: whoever took it falls back to the baseline.
    """
    above = {entry.id: entry for entry in entries_of(self.upper)}
    found = {}
    for outcome in self.lower:
      entry = above.get(outcome.id)
      paired = pairs(entry.training, above[0].training).differences if entry is not None else ()
      found[outcome.id] = 0.0 if not paired or is_placebo(outcome.id, self.experiment) else float(np.mean(paired))
    return found

  def apart(self, a: int, b: int) -> float:
    """Returns the distance of two designs by id (`agents.genome.distance`); 1 where one has no genome."""
    return self._distances.get((min(a, b), max(a, b)), 0.0 if a == b else 1.0)

  @functools.cached_property
  def step(self) -> float:
    """The mean distance of a design to the parent that it came from."""
    steps = [self.apart(o.id, o.proposal.parent_id) for o in self.candidates if o.proposal.parent_id is not None]
    return float(np.mean(steps)) if steps else 0.1

  @functools.cached_property
  def _distances(self) -> dict[tuple[int, int], float]:
    designs = [
      (outcome.id, genomes.canonical(Genome.from_json(design)))
      for outcome in sorted(self.lower, key=lambda outcome: outcome.id)
      if (design := design_of(outcome)) is not None
    ]
    return {(a, b): genomes.apart(ours, theirs) for (a, ours), (b, theirs) in itertools.combinations(designs, 2)}


def design_of(outcome: Outcome) -> Mapping[str, Any] | None:
  """Returns the genome of an outcome; a baseline's is known by its name."""
  known = GENOMES.get(outcome.proposal.name)
  return outcome.proposal.genome or (known.to_json() if known is not None else None)


def frozen(
  lower: Sequence[Outcome], upper: Sequence[Outcome], experiment: config.Experiment, rung: str, made: Mapping[str, str]
) -> Table:
  """Returns the table of a search and a rung above it, without what was said about the designs.

  Raises:
    ValueError: a rung has no baseline, or no design stands on both.
  """
  for outcomes, name in ((lower, 'the search'), (upper, f'rung {rung}')):
    if not any(entry.id == 0 for entry in entries_of(outcomes)):
      raise ValueError(f'{name} has no measured baseline, so nothing in it can be compared')
  table = Table(experiment, rung, tuple(map(_bare, lower)), tuple(map(_bare, upper)), dict(made))
  if not table.measured:
    raise ValueError(f'no design was measured in the search and on rung {rung}; let some climb first: asiarch verify')
  return table


def _bare(outcome: Kind) -> Kind:
  """Returns an outcome without findings, words, marks and other seconds than those of its devices."""
  changes: dict[str, Any] = {
    'proposal': dataclasses.replace(outcome.proposal, motivation='', origins=()),
    'training': outcome.training and _rounded(outcome.training),
    'timing': Timing(accelerator_seconds=round(outcome.timing.accelerator_seconds, 2)),
    'findings': (),
    'earlier': (),
    'job_key': '',
  }
  if isinstance(outcome, Entry):
    changes |= dict.fromkeys(('judgement', 'fitness', 'evidence', 'analysis'))
  return dataclasses.replace(outcome, **changes)


def _rounded(training: TrainSummary) -> TrainSummary:
  def short(value: float) -> float:
    return round(value, DIGITS) if math.isfinite(value) else value

  replicas = tuple(
    dataclasses.replace(
      replica,
      losses=tuple(map(short, replica.losses)),
      validation_bits=short(replica.validation_bits),
      test_bits=short(replica.test_bits),
    )
    for replica in training.replicas
  )
  return dataclasses.replace(
    training,
    replicas=replicas,
    seconds_per_step=short(training.seconds_per_step),
    tokens_per_second=round(training.tokens_per_second, 1),
    compile_seconds=round(training.compile_seconds, 2),
  )


def as_json(table: Table) -> dict[str, Any]:
  """Returns the table as plain JSON values."""
  return {
    'schema': SCHEMA,
    'made': dict(table.made),
    'rung': table.rung,
    'experiment': config.as_dict(table.experiment),
    'lower': to_json(table.lower),
    'upper': to_json(table.upper),
  }


def of_json(document: Any) -> Table:
  """Returns the table that `as_json` wrote.

  Raises:
    ValueError: it is no table, of another schema, or damaged; the message says where.
  """
  if not isinstance(document, dict) or not {'schema', 'experiment', 'rung', 'lower', 'upper'} <= document.keys():
    raise ValueError('this is no table of a replay bench; asiarch tabulate makes one')
  if document['schema'] != SCHEMA:
    raise ValueError(f'schema {document["schema"]!r}; this version reads {SCHEMA}. Make it anew: asiarch tabulate')
  lower, upper = (tuple(from_json(Outcome, one) for one in document[name]) for name in ('lower', 'upper'))
  experiment = config.from_dict(document['experiment'])
  return frozen(lower, upper, experiment, document['rung'], document.get('made', {}))
