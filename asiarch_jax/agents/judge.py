"""The judge that needs no language model: marks by the original's rubric, from measurements.

The released rubric of arXiv 2507.18074 gives a language model bands of relative improvement, of novelty and of cost,
and trusts the total that comes back. Here each mark is interpolated from numbers, the borders of the bands lying at
the half marks, and the total is recomputed. The baseline is the scale's anchor and stands at 5, which the original
asked for and did not get. Fitness takes the mark as (score - 1) / 9.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from asiarch_jax import config, syntax
from asiarch_jax.agents import genome
from asiarch_jax.evidence.effects import genome_of
from asiarch_jax.evidence.held_out import compared, held_out_loss
from asiarch_jax.records import Cost, Entry, Judgement, Outcome, entries_of

ANCHOR = 5.0  # mark of the baseline in every respect

# Each table: a measurement, rising, and the mark it earns; linear between, flat outside.
PERFORMANCE = (
  # relative fall of the held-out loss: 5 within 1 %, 6 to 3 %, 7 to 7 %, 8 to 15 %, 9 to 25 %, then 10; below it
  # 4 and 3 to 5 % worse, then 2 and 1
  (-0.15, -0.10, -0.05, -0.03, -0.01, 0.0, 0.01, 0.03, 0.07, 0.15, 0.25, 0.35),
  (1.0, 1.5, 2.5, 3.5, 4.5, 5.0, 5.5, 6.5, 7.5, 8.5, 9.5, 10.0),
)
GENOME_NOVELTY = ((0.0, 0.012, 0.03, 0.08, 0.2, 0.4), (1.0, 3.5, 5.5, 7.5, 9.5, 10.0))  # 0.012 is about one field
SOURCE_NOVELTY = ((0.0, 0.05, 0.2, 0.45, 0.75, 0.95), (1.0, 3.5, 5.5, 7.5, 9.5, 10.0))
COST = ((-2.0, 0.0, 2.0), (10.0, ANCHOR, 1.0))  # mean binary logarithm of the cost over the baseline's: 2 is fourfold
GROWTH = ((1.1, 1.5, 2.0), (10.0, 5.0, 3.0))  # exponent of FLOPs in length: the best mark that complexity can get
LARGEST_FOLD = 3.0  # binary logarithm at which one kind of cost stops counting: free in state is not free
BINS = 1024  # of the hashed profile of a source


@dataclasses.dataclass(frozen=True)
class MeasuredJudge:
  """Marks an entry against the baseline's entry and what came before it; a `ports.Judge`.

  `baseline` is the name of the baseline's proposal. `distance` takes two genomes and returns how far apart they are, in
  [0, 1]; `genomes` holds those of baselines, whose proposals carry none.
  """

  weights: config.Judge
  distance: Callable[[Mapping[str, Any], Mapping[str, Any]], float] = genome.distance
  baseline: str = 'delta_net'
  genomes: Mapping[str, Mapping[str, Any]] = dataclasses.field(
    default_factory=lambda: {name: value.to_json() for name, value in genome.GENOMES.items()}
  )

  def __call__(self, entry: Entry, outcomes: Sequence[Outcome]) -> Judgement | None:
    """Returns the marks; None when a baseline, a held-out loss or a counted cost is missing.

    The baseline itself is the anchor of the scale: 5 in every respect, by definition.
    """
    earlier = tuple(other for other in entries_of(outcomes) if other.id < entry.id)
    if entry.role == 'baseline' and entry.proposal.name == self.baseline:
      return judged(self.weights, ANCHOR, ANCHOR, ANCHOR, f'{self.baseline} is the anchor of the scale')
    base = next((e for e in earlier if e.role == 'baseline' and e.proposal.name == self.baseline), None)
    loss, base_loss = compared(entry.training, base.training) if base else (held_out_loss(entry.training), None)
    if base is None or loss is None or base_loss is None or not math.isfinite(base_loss):
      return None
    if not all(map(math.isfinite, (*dataclasses.astuple(entry.cost), *dataclasses.astuple(base.cost)))):
      return None
    performance, gained = self._performance(loss, base_loss)
    innovation, novel = self._innovation(entry, earlier)
    complexity, paid = complexity_mark(entry.cost, base.cost)
    reason = (
      f'performance {performance:.1f}: {gained}; innovation {innovation:.1f}: {novel}; '
      f'complexity {complexity:.1f}: {paid}'
    )
    return judged(self.weights, performance, innovation, complexity, reason)

  def _performance(self, loss: float, base_loss: float) -> tuple[float, str]:
    if math.isinf(loss):
      return performance_mark(-math.inf), 'a replica diverged, so the mean held-out loss has no bound'
    fall = (base_loss - loss) / base_loss
    side = 'below' if fall >= 0 else 'above'
    return performance_mark(fall), (
      f'{loss:.4f} bits per byte, {abs(fall):.2%} {side} the {base_loss:.4f} of {self.baseline}'
    )

  def _innovation(self, entry: Entry, earlier: Sequence[Entry]) -> tuple[float, str]:
    twin = next((e for e in earlier if entry.fingerprint and e.fingerprint == entry.fingerprint), None)
    if twin is not None:
      return 1.0, f'computes the same function as entry {twin.id} ({twin.proposal.name})'
    ours = genome_of(entry, self.genomes)
    designs = {other.id: design for other in earlier if (design := genome_of(other, self.genomes))}
    if ours and designs:
      apart, table, what = {id: self.distance(ours, theirs) for id, theirs in designs.items()}, GENOME_NOVELTY, 'genome'
    else:
      apart, table, what = source_distances(entry.proposal.source, earlier), SOURCE_NOVELTY, 'source'
    nearest = min(apart, key=lambda id: (apart[id], id))
    name = next(other.proposal.name for other in earlier if other.id == nearest)
    return _mark(
      apart[nearest], table
    ), f'its {what} lies {apart[nearest]:.3f} from the nearest, entry {nearest} ({name})'


def judged(weights: config.Judge, performance: float, innovation: float, complexity: float, reason: str) -> Judgement:
  """Returns the judgement whose score is the weighted mean of its marks.

  Raises:
    ValueError: the weights do not sum to something positive.
  """
  total = weights.performance + weights.innovation + weights.complexity
  if total <= 0:
    raise ValueError(f'the weights of judge sum to {total}; make it 1')
  score = weights.performance * performance + weights.innovation * innovation + weights.complexity * complexity
  return Judgement(performance, innovation, complexity, score / total, reason)


def performance_mark(fall: float) -> float:
  """Returns the mark of a relative fall of the held-out loss below the baseline's.

  >>> [performance_mark(fall) for fall in (-0.04, 0.0, 0.02, 0.05, 0.11, 0.20)]
  [3.0, 5.0, 6.0, 7.0, 8.0, 9.0]
  """
  return _mark(fall, PERFORMANCE)


def complexity_mark(cost: Cost, base: Cost) -> tuple[float, str]:
  """Returns the mark of a mixer's cost and the numbers behind it; lower cost, higher mark, 5 at the baseline's.

  FLOPs a token, parameters and state count alike, as the mean of their binary logarithms over the baseline's: twice the
  cost in all three loses two marks, half of it gains two and a half. FLOPs that outgrow the length bound the mark from
  above, as the rubric's first three marks are for quadratic cost.
  """
  kinds = {
    'FLOPs': (cost.flops_per_token, base.flops_per_token),
    'parameters': (cost.mixer_parameters, base.mixer_parameters),
    'state': (cost.state_bytes, base.state_bytes),
  }
  folds = [_fold(ours, theirs) for ours, theirs in kinds.values()]
  mark = min(_mark(sum(folds) / len(folds), COST), _mark(cost.growth, GROWTH))
  told = ', '.join(
    f'{ours / theirs:.2f}x {kind}' if theirs else f'{ours:g} against no {kind}'
    for kind, (ours, theirs) in kinds.items()
  )
  return mark, f'{told} of the baseline, FLOPs grow as T^{cost.growth:.2f}'


def source_distances(source: str, others: Sequence[Entry]) -> dict[int, float]:
  """Returns how far each entry's source lies, in [0, 1]: one minus the weighted Jaccard index of profiles."""
  ours = _profile(source)
  return {
    other.id: 1.0 - float(np.minimum(ours, theirs).sum()) / max(float(np.maximum(ours, theirs).sum()), 1.0)
    for other in others
    for theirs in [_profile(other.proposal.source)]
  }


@functools.lru_cache(maxsize=16_384)
def _profile(source: str) -> np.ndarray:
  """Returns how often each kind of parent-child pair of syntax nodes occurs, hashed into bins.

  Names that the author chose do not count, docstrings and layout neither: attributes, constants and operators do.
  """
  counts = np.zeros(BINS, np.float32)
  try:
    tree = syntax.parse(source)
  except (SyntaxError, ValueError):
    return counts
  for parent in ast.walk(tree):
    if isinstance(parent, ast.Expr) and isinstance(parent.value, ast.Constant):
      continue
    for child in ast.iter_child_nodes(parent):
      counts[zlib.crc32(f'{_kind(parent)} {_kind(child)}'.encode()) % BINS] += 1.0
  return counts


def _kind(node: ast.AST) -> str:
  detail = {ast.Attribute: 'attr', ast.Constant: 'value', ast.keyword: 'arg'}.get(type(node))
  return type(node).__name__ + (f' {getattr(node, detail)!r}' if detail else '')


def _fold(ours: float, theirs: float) -> float:
  if ours == theirs:
    return 0.0
  fold = math.log2(ours / theirs) if ours > 0 and theirs > 0 else math.copysign(math.inf, ours - theirs)
  return min(max(fold, -LARGEST_FOLD), LARGEST_FOLD)


def _mark(value: float, table: tuple[tuple[float, ...], tuple[float, ...]]) -> float:
  return float(np.interp(value, *table))
