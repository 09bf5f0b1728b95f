"""A design with one part taken away at a time: which of its parts does it owe its lead to?"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
from collections.abc import Mapping
from typing import Any

from asiarch_jax.agents import genes, writer
from asiarch_jax.agents.genome import GENOMES, canonical, describe, differing
from asiarch_jax.agents.variation import applied

HUNKS = 24  # of a difference that are reverted one by one; neighbours are joined where there are more
SHOWN = 72  # characters of a hunk in its name


@dataclasses.dataclass(frozen=True)
class Removal:
  """A part and the source without it."""

  part: str
  source: str


def of_genome(genome: Mapping[str, Any], baseline: str = 'delta_net') -> tuple[Removal, ...]:
  """Returns the design with each field that differs from the baseline's put back, in the order of the fields.

  What is put back may silence other fields, which then are gone as well: they had no part without it.
  """
  design, base = canonical(genes.Genome(**genome)), GENOMES[baseline]
  removals = []
  for field in differing(base, design):
    without = applied(design, field, getattr(base, field))
    if without != design and getattr(without, field) != getattr(design, field):
      part = describe(field, getattr(design, field))
      source = writer.write(without, 'ablated', f'Without: {part}.')
      removals.append(Removal(part, source))
  return tuple(removals)


def of_difference(source: str, parent: str) -> tuple[Removal, ...]:
  """Returns the source with each hunk of its difference to the parent's put back, from top to bottom.

  A hunk is a run of changed lines; where there are more than HUNKS, hunks are joined with the nearest until there are
  not. Whether what remains is still a mixer is for the gate to say.
  """
  ours, theirs = source.splitlines(keepends=True), parent.splitlines(keepends=True)
  changed = [o for o in difflib.SequenceMatcher(None, theirs, ours, autojunk=False).get_opcodes() if o[0] != 'equal']
  groups = [[opcode] for opcode in changed]
  while len(groups) > HUNKS:
    gaps = [second[0][3] - first[-1][4] for first, second in itertools.pairwise(groups)]
    nearest = gaps.index(min(gaps))
    groups[nearest : nearest + 2] = [groups[nearest] + groups[nearest + 1]]
  removals = []
  for group in groups:
    lines = list(ours)
    for _, i1, i2, j1, j2 in reversed(group):
      lines[j1:j2] = theirs[i1:i2]
    first, last = group[0][3] + 1, max(group[-1][4], group[0][3] + 1)
    text = next((line.strip() for line in ours[first - 1 : last] if line.strip()), '(lines of the parent)')
    removals.append(Removal(f'lines {first}-{last}: {text[:SHOWN]}', ''.join(lines)))
  return tuple(removals)
