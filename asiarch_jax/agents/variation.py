"""How genomes vary: single moves, mutation, simplification, crossover, independent designs. Pure: chance is given."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from asiarch_jax.agents.genes import GENES, Genome, Value, gene_of
from asiarch_jax.agents.genome import HEARD, canonical, importance

# Components: fields whose first choice is their absence, or the plainest form.
COMPONENTS = (
  *('delta', 'second_memory', 'retention', 'short_fir', 'long_fir', 'average', 'copy', 'fir_activation'),
  *('token_shift', 'query_conv', 'key_conv', 'value_conv', 'rotary', 'value_gate', 'key_heads', 'beta', 'decay'),
  *('decay_form', 'initial_state', 'branch_norm', 'fusion', 'router_input', 'router_hidden', 'router_sharing'),
  *('temperature', 'floor', 'entropy', 'favoured', 'value_residual', 'head_mix', 'norm_scale', 'output_gate'),
)


@dataclasses.dataclass(frozen=True)
class Move:
  """One field given another value."""

  field: str
  old: Value
  new: Value


Weigh = Callable[[Move], float]


def prior(move: Move) -> float:
  """Returns how likely a move is before anything was measured: fields are alike but for the importance of the paths."""
  gene = gene_of(move.field)
  others = sum(choice.weight for choice in gene.choices if choice.value != move.old)
  return importance(gene) * gene.choice(move.new).weight / others


@functools.lru_cache(maxsize=2**12)
def moves(genome: Genome) -> tuple[Move, ...]:
  """Returns the single changes that last: the canonical child has the new value."""
  return tuple(
    Move(name, getattr(genome, name), value)
    for name, gene in GENES.items()
    if name not in HEARD or HEARD[name](genome)
    for value in gene.values
    if value != getattr(genome, name) and getattr(applied(genome, name, value), name) == value
  )


def applied(genome: Genome, field: str, value: Value) -> Genome:
  """Returns the canonical genome with one field changed."""
  return canonical(dataclasses.replace(genome, **{field: value}))  # type: ignore[arg-type]


def fresh(rng: np.random.Generator) -> Genome:
  """Returns an independent design: each group of fields is the baseline's or sampled by the weights of its choices."""
  groups = dict.fromkeys(gene.group for gene in GENES.values())
  sampled = {group for group in groups if group == 'paths' or rng.random() < 0.45}
  values = {
    name: gene.choices[rng.choice(len(gene.choices), p=_shares([c.weight for c in gene.choices]))].value
    for name, gene in GENES.items()
    if gene.group in sampled
  }
  return canonical(Genome(**values))  # type: ignore[arg-type]


def mutated(genome: Genome, count: int, rng: np.random.Generator, weigh: Weigh = prior) -> Genome:
  """Returns the genome after `count` moves on different fields, each drawn in proportion to `weigh`."""
  genome, touched = canonical(genome), set[str]()
  for _ in range(count):
    possible = [move for move in moves(genome) if move.field not in touched]
    if not possible:
      break
    move = possible[rng.choice(len(possible), p=_shares([weigh(move) for move in possible]))]
    genome = applied(genome, move.field, move.new)
    touched.add(move.field)
  return genome


def simplified(genome: Genome, rng: np.random.Generator, weigh: Weigh = prior) -> Genome:
  """Returns the genome without one of its components, drawn in proportion to `weigh`; itself if it has none to lose."""
  genome = canonical(genome)
  possible = [m for m in moves(genome) if m.field in COMPONENTS and m.new == GENES[m.field].choices[0].value]
  if not possible:
    return genome
  move = possible[rng.choice(len(possible), p=_shares([weigh(move) for move in possible]))]
  return applied(genome, move.field, move.new)


def inherited(ours: Genome, theirs: Genome, rng: np.random.Generator) -> Genome:
  """Returns a child that has each field from one of two parents; it may contain contradictions.

  Fields of a group were selected together, so three groups in four are inherited whole; the others field by field.
  """
  groups = dict.fromkeys(gene.group for gene in GENES.values())
  whole = {group: (rng.random() < 0.5) if rng.random() < 0.75 else None for group in groups}
  values = {}
  for name, gene in GENES.items():
    from_ours = whole[gene.group]
    chosen = (rng.random() < 0.5) if from_ours is None else from_ours
    values[name] = getattr(ours if chosen else theirs, name)
  return Genome(**values)


def crossed(ours: Genome, theirs: Genome, rng: np.random.Generator) -> Genome:
  """Returns the canonical form of what a child of two parents inherits."""
  return canonical(inherited(ours, theirs, rng))


def _shares(weights: list[float]) -> np.ndarray:
  return np.asarray(weights) / sum(weights)
