"""A researcher that proposes the baseline under another name: what the whole line makes of a design without effect.

The copy computes the baseline's function exactly. It stands one module deeper under a name of its own, so its mixers
start from other random numbers, as any other design's do, while host and data are those of the pair: the difference
to the baseline is the noise of a candidate whose true improvement is zero. Its motivation is another entry's.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from asiarch_jax.records import Drawn, Finding, Outcome, Proposal, Selection, entries_of

WORDS = ('Amber', 'Basalt', 'Cedar', 'Delta', 'Ember', 'Fjord', 'Garnet', 'Harbor', 'Indigo', 'Juniper')
KINDS = ('Blend', 'Chain', 'Drift', 'Field', 'Gate', 'Lattice', 'Memory', 'Path', 'Relay', 'Weave')
WRAPPER = """

class Mixer(nn.Module):
  width: int
  heads: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x_BTD: jax.Array) -> jax.Array:
    return {cls}(self.width, self.heads, self.dtype, name='{name}')(x_BTD)
"""


@dataclasses.dataclass(frozen=True)
class Placebo:
  """Proposes copies of `baseline`; `author` and `genome` are what a candidate of this search would carry."""

  baseline: Proposal
  author: str
  genome: dict[str, Any] | None = None

  def propose(
    self, selection: Selection, outcomes: Sequence[Outcome], rng: Any, drawn: Sequence[Drawn] = ()
  ) -> Proposal:
    taken = {outcome.proposal.name for outcome in outcomes} | {one.proposal.name for one in drawn}
    while True:
      words = WORDS[int(rng.integers(len(WORDS)))], KINDS[int(rng.integers(len(KINDS)))], int(rng.integers(10_000))
      cls = f'{words[0]}{words[1]}{words[2]}'
      name = f'{words[0]}_{words[1]}_{words[2]}'.lower()
      if name not in taken:
        break
    entries = entries_of(outcomes)
    origin = next((entry for entry in entries if entry.proposal.name == self.baseline.name), None)
    others = [o for o in entries if o.role == 'candidate' and o.proposal.motivation] or list(entries)
    donor = others[int(rng.integers(len(others)))] if others else None
    return Proposal(
      name=name,
      motivation=donor.proposal.motivation if donor else self.baseline.motivation,
      source=copy_of(self.baseline.source, cls, name),
      parent_id=origin.id if origin else None,
      reference_ids=tuple(reference.id for reference in selection.references),
      author=self.author,
      operator='mutate',
      genome=self.genome,
    )

  def repeats(self, proposal: Proposal, outcomes: Sequence[Outcome]) -> str | None:
    return None

  def repair(
    self, proposal: Proposal, findings: Sequence[Finding], rng: Any, earlier: Sequence[Any] = ()
  ) -> Proposal | None:
    return None


def copy_of(source: str, cls: str, name: str) -> str:
  """Returns the source of a mixer that holds the mixer of `source`, renamed to `cls`, as its submodule `name`.

  Raises:
    ValueError: the source defines no class Mixer.
  """
  renamed, count = re.subn(r'\bMixer\b', cls, source)
  if not count:
    raise ValueError('the source names no Mixer; a baseline defines one')
  return renamed.rstrip('\n') + '\n' + WRAPPER.format(cls=cls, name=name)
