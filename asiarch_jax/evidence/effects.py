"""What each choice in a design is worth, over the whole archive.

Method: a Gaussian model of the measured bits per byte, fitted by empirical Bayes. An entry's quality is the sum of an
effect for every value of every genome field, with a heavy-tailed prior of scale tau, and of a residual that is handed
down the lineage (each generation adds N(0, kappa^2): what fields do together, and what no field says). The measurement
adds seed noise, whose size comes from the replicas. An effect is the posterior of the contrast of two values.

Why not the mean of child minus parent: parents are chosen for having measured well, part of that was luck, and luck is
not inherited, so plain differences make almost every change look harmful. Here parent and child are two noisy
measurements and regress to the mean as they should. The prior shrinks what rests on few pairs (so a large effect is
told too small rather than too large), a child that changed several fields spreads its credit among them, and a field
that merely travels with a good lineage competes with the lineage's own residual. tau and kappa are integrated over a
log-uniform grid, which keeps intervals wide while the archive is small (Efron and Morris 1973, J. Am. Stat. Assoc. 68;
Rasmussen and Williams 2006, section 2.7; local scales after Tipping 2001, J. Mach. Learn. Res. 1).
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import linalg

from asiarch_jax.evidence import pairing
from asiarch_jax.records import Entry, Outcome, entries_of

Genome = Mapping[str, Any]
Z95 = 1.959963984540054  # half width of the 95 % interval of a normal, in standard deviations
SCALES = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6)  # of tau and kappa, in standard deviations of the measurements
NOISES = (0.1, 0.2, 0.4, 0.8)  # as above, for the noise of one replica when no entry has two
TAIL = 1.0  # degrees of freedom of the prior of an effect: mostly small, a few large
REFITS = 3  # rounds of fitting the prior's local scales
NEGLIGIBLE = 1e-4  # posterior weight of a grid point that is not worth its solve
LIMIT = 400  # latest entries that are fitted: time grows with the cube


@dataclasses.dataclass(frozen=True)
class Effect:
  """What going from `before` to `after` in a field does to test bits per byte: positive is better, 95 % interval.

  `pairs` counts the parents and children between which the field changed so, or back.
  """

  field: str
  before: Any
  after: Any
  pairs: int
  effect: float
  low: float
  high: float

  @property
  def distinguishable(self) -> bool:
    """Says whether the interval excludes zero."""
    return self.low > 0.0 or self.high < 0.0

  def reversed(self) -> Effect:
    """Returns the effect of going back."""
    return Effect(self.field, self.after, self.before, self.pairs, -self.effect, -self.high, -self.low)


def effects(
  outcomes: Sequence[Outcome], *, genomes: Mapping[str, Genome] | None = None, limit: int = LIMIT
) -> tuple[Effect, ...]:
  """Returns the effect of every change of a field between a parent and its child, the largest first.

  `genomes` holds the genomes of entries that carry none, by the proposal's name: the baselines. Entries without genome
  or without a finite measurement are left out, as are all but the latest `limit`. Each change is told in the direction
  in which it was tried more often. Empty without two measured genomes.
  """
  every = entries_of(outcomes)
  designs = {entry.id: genome for entry in every if (genome := genome_of(entry, genomes))}
  # A design that diverged on a seed is worth less than the mean of those it survived, by an unknown amount.
  measured = (entry for entry in every if entry.training.chosen and not pairing.lost(entry.training))
  entries = [entry for entry in measured if entry.id in designs][-limit:]
  changes = _changes(entries, designs)
  if len(entries) < 2 or not changes:
    return ()
  bits = _on_common_seeds(entries)
  y_N = np.array([-np.mean(bits[entry.id]) for entry in entries])
  y_N -= y_N.mean()
  fields = sorted({field for field, _, _ in changes} | {field for entry in entries for field in designs[entry.id]})
  heard = [[(field, _key(designs[entry.id].get(field))) for field in fields] for entry in entries]
  tried = {(field, value) for field, *values in changes for value in values}  # a parent may be too old to be fitted
  levels = sorted({level for row in heard for level in row} | tried)
  column = {level: index for index, level in enumerate(levels)}
  present_NL, contrast_LE = np.zeros((len(entries), len(levels))), np.zeros((len(levels), len(changes)))
  for row, values in enumerate(heard):
    present_NL[row, [column[level] for level in values]] = 1.0
  for index, (field, before, after) in enumerate(changes):
    contrast_LE[column[field, before], index], contrast_LE[column[field, after], index] = -1.0, 1.0
  seeds_N = np.array([len(bits[entry.id]) for entry in entries], dtype=np.float64)
  kinship_NN = _kinship(entries, every)
  mean_E, deviation_E = _posterior(y_N, seeds_N, _seed_noise(entries), present_NL, kinship_NN, contrast_LE)
  rows = [
    Effect(
      field, json.loads(before), json.loads(after), pairs, float(mean), float(mean - Z95 * sd), float(mean + Z95 * sd)
    )
    for ((field, before, after), pairs), mean, sd in zip(changes.items(), mean_E, deviation_E, strict=True)
  ]
  return tuple(sorted(rows, key=lambda row: (-abs(row.effect), row.field, _key(row.before), _key(row.after))))


def effect_of(rows: Iterable[Effect], field: str, before: Any, after: Any) -> Effect | None:
  """Returns the row of one change, turned around where the archive tells it the other way; None if never tried."""
  for row in rows:
    if row.field == field and (_key(row.before), _key(row.after)) == (_key(before), _key(after)):
      return row
    if row.field == field and (_key(row.before), _key(row.after)) == (_key(after), _key(before)):
      return row.reversed()
  return None


def genome_of(entry: Entry, genomes: Mapping[str, Genome] | None = None) -> Genome | None:
  """Returns an entry's genome: its own, or for a baseline the one that `genomes` holds for its name."""
  if entry.proposal.genome:
    return entry.proposal.genome
  return (genomes or {}).get(entry.proposal.name) if entry.role == 'baseline' else None


def _changes(entries: Sequence[Entry], designs: Mapping[int, Genome]) -> Counter[tuple[str, str, str]]:
  """Returns how often each field went from one value to another, both directions in the row of the commoner one."""
  counts: Counter[tuple[str, str, str]] = Counter()
  for entry in entries:
    parent = designs.get(entry.proposal.parent_id) if entry.proposal.parent_id is not None else None
    for field in sorted(parent.keys() | designs[entry.id].keys()) if parent else ():
      before, after = _key(parent.get(field)), _key(designs[entry.id].get(field))  # type: ignore[union-attr]
      if before != after:
        counts[field, before, after] += 1
  rows: Counter[tuple[str, str, str]] = Counter()
  for (field, before, after), count in sorted(counts.items()):
    back = counts[field, after, before]
    if (count, before, after) > (back, after, before):
      rows[field, before, after] = count + back
  return rows


def _posterior(
  y_N: np.ndarray,
  seeds_N: np.ndarray,
  noise: float | None,
  present_NL: np.ndarray,
  kinship_NN: np.ndarray,
  contrast_LE: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
  """Returns mean and standard deviation of each contrast of levels, averaged over tau, kappa (and unknown noise).

  `present_NL` says which levels (values of fields) an entry has. The prior of a level is Student's t, as a normal whose
  variance tau^2 w_L is refitted (expectation maximisation): one large effect then stays large among many small ones.
  """
  spread = max(float(np.std(y_N)), noise or 0.0, 1e-9)
  noises = (noise,) if noise is not None else tuple(spread * scale for scale in NOISES)
  weights_L = np.ones(present_NL.shape[1])
  for _ in range(REFITS):
    _, tau, lower_NN, white_N = max(_grid(y_N, seeds_N, noises, spread, present_NL, weights_L, kinship_NN), key=_first)
    white_NL = linalg.solve_triangular(lower_NN, present_NL * weights_L, lower=True) * tau**2
    square_L = (white_N @ white_NL) ** 2 + tau**2 * weights_L - np.sum(white_NL**2, axis=0)
    weights_L = (TAIL + square_L / tau**2) / (TAIL + 1.0)
  points = list(_grid(y_N, seeds_N, noises, spread, present_NL, weights_L, kinship_NN))
  mass = np.exp(np.array([_first(point) for point in points]) - max(map(_first, points)))
  mass = np.where(mass / mass.sum() < NEGLIGIBLE, 0.0, mass)
  first_E, second_E = np.zeros(contrast_LE.shape[1]), np.zeros(contrast_LE.shape[1])
  for share, (_, tau, lower_NN, white_N) in zip(mass / mass.sum(), points, strict=True):
    if share:
      prior_LE = tau**2 * weights_L[:, None] * contrast_LE
      white_NE = linalg.solve_triangular(lower_NN, present_NL @ prior_LE, lower=True)
      mean_E = white_N @ white_NE
      variance_E = np.sum(contrast_LE * prior_LE, axis=0) - np.sum(white_NE**2, axis=0)
      first_E += share * mean_E
      second_E += share * (np.maximum(variance_E, 0.0) + mean_E**2)
  return first_E, np.sqrt(np.maximum(second_E - first_E**2, 0.0))


def _grid(
  y_N: np.ndarray,
  seeds_N: np.ndarray,
  noises: Sequence[float],
  spread: float,
  present_NL: np.ndarray,
  weights_L: np.ndarray,
  kinship_NN: np.ndarray,
) -> Iterator[tuple[float, float, np.ndarray, np.ndarray]]:
  """Yields log marginal likelihood, tau, factor of the covariance and whitened measurements at each grid point."""
  shared_NN = (present_NL * weights_L) @ present_NL.T
  diagonal = np.diag_indices(len(y_N))
  for tau, kappa, sigma in itertools.product(SCALES, SCALES, noises):
    # The mean of all is unknown: a wide prior on it. The jitter keeps a noiseless archive factorable.
    covariance_NN = (tau * spread) ** 2 * shared_NN + (kappa * spread) ** 2 * kinship_NN + (10 * spread) ** 2
    covariance_NN[diagonal] += sigma**2 / seeds_N + (1e-3 * spread) ** 2
    lower_NN = linalg.cholesky(covariance_NN, lower=True)
    white_N = linalg.solve_triangular(lower_NN, y_N, lower=True)
    yield -0.5 * float(white_N @ white_N) - float(np.sum(np.log(np.diag(lower_NN)))), tau * spread, lower_NN, white_N


def _first(point: tuple) -> float:
  return point[0]


def _kinship(entries: Sequence[Entry], every: Sequence[Entry]) -> np.ndarray:
  """Returns how many ancestors each two entries share, an entry counting as its own: the tree's covariance."""
  parents = {entry.id: entry.proposal.parent_id for entry in every}
  lineages = []
  for entry in entries:
    lineage, step = set(), entry.id  # ids grow along a lineage, so this ends; a parent outside the archive ends it too
    while step in parents and step not in lineage:
      lineage.add(step)
      step = parents[step]  # type: ignore[assignment]
    lineages.append(lineage)
  columns = {id: column for column, id in enumerate(sorted(set().union(*lineages)))}
  member_NA = np.zeros((len(entries), len(columns)))
  for row, lineage in enumerate(lineages):
    member_NA[row, [columns[id] for id in lineage]] = 1.0
  return member_NA @ member_NA.T


def _seed_noise(entries: Sequence[Entry]) -> float | None:
  """Returns the standard deviation of what a replica has for itself, once its seed's common luck is taken out.

  From the entries that trained the commonest set of seeds; None when that is a single seed or a single entry.
  """
  samples = {entry.id: {r.seed: r.test_bits for r in _replicas(entry)} for entry in entries}
  seeds = Counter(tuple(sorted(bits)) for bits in samples.values()).most_common(1)[0][0]
  bits_NS = np.array([[bits[seed] for seed in seeds] for bits in samples.values() if tuple(sorted(bits)) == seeds])
  freedom = (bits_NS.shape[0] - 1) * (bits_NS.shape[1] - 1)
  if freedom < 1:
    return None
  residual_NS = bits_NS - bits_NS.mean(0) - bits_NS.mean(1, keepdims=True) + bits_NS.mean()
  return math.sqrt(float(np.sum(residual_NS**2)) / freedom)


def _replicas(entry: Entry):
  return [r for r in entry.training.chosen if not r.diverged and math.isfinite(r.test_bits)]


def _on_common_seeds(entries: Sequence[Entry]) -> dict[int, list[float]]:
  """Returns test bits per byte of the replicas of each entry, of a baseline those on seeds that candidates have.

  A baseline is the noise floor and has more seeds. What its others are lucky with is nobody else's luck.
  """
  shared = {replica.seed for entry in entries if entry.role != 'baseline' for replica in _replicas(entry)}
  found = {}
  for entry in entries:
    every = _replicas(entry)
    common = [replica for replica in every if replica.seed in shared] if entry.role == 'baseline' else []
    found[entry.id] = [replica.test_bits for replica in common or every]
  return found


def _key(value: Any) -> str:
  return json.dumps(value, sort_keys=True)
