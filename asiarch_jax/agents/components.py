"""Which components a mixer's source uses, read from its syntax: the common tongue of all authors.

An author's genome says what was meant; this says what is there, for every entry alike, so that the worth of a component
can be estimated over the whole archive (`evidence.effects`) whoever wrote the entries.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
from collections.abc import Iterable, Sequence

from asiarch_jax import syntax
from asiarch_jax.evidence.effects import Effect, effects
from asiarch_jax.records import Entry, Outcome

# Component -> names whose use shows it: a function called, an attribute, or a keyword argument (written name=).
SIGNS: dict[str, tuple[str, ...]] = {
  'delta rule': ('delta_rule',),
  'state decay': ('log_decay=', 'softplus_log_decay', 'bounded_log_decay'),
  'causal convolution': ('causal_conv', 'Conv'),
  'normalised keys': ('l2_normalise',),
  'sigmoid gate': ('sigmoid',),
  'softmax over paths': ('softmax',),
  'SiLU': ('silu', 'swish'),
  'RMS normalisation': ('RMSNorm',),
  'layer or group normalisation': ('LayerNorm', 'GroupNorm'),
  'softplus': ('softplus',),
  'tanh': ('tanh',),
  'associative scan': ('associative_scan',),
  'token-by-token scan': ('scan', 'fori_loop'),
  'cumulative sum': ('cumsum',),
  'token shift': ('pad', 'concatenate', 'roll'),
  'Fourier transform': ('rfft', 'fft', 'irfft'),
  'auxiliary loss': ('sow',),
}


@functools.lru_cache(maxsize=16_384)
def components(source: str) -> frozenset[str]:
  """Returns the components that a source uses; none of a source that does not parse.

  >>> sorted(components('o, s = delta_rule(q, k, nn.silu(v), beta, log_decay=g)'))
  ['SiLU', 'delta rule', 'state decay']
  """
  try:
    tree = syntax.parse(source)
  except (SyntaxError, ValueError):
    return frozenset()
  used: set[str] = set()
  for node in ast.walk(tree):
    if isinstance(node, ast.Call):
      used |= {f'{keyword.arg}=' for keyword in node.keywords if not _is_none(keyword.value)}
      if _name(node.func) == 'delta_rule' and len(node.args) > 4 and not _is_none(node.args[4]):
        used.add('log_decay=')
      used.add(_name(node.func))
    elif isinstance(node, ast.Attribute):
      used.add(node.attr)
  return frozenset(name for name, signs in SIGNS.items() if used & set(signs))


def component_effects(outcomes: Sequence[Outcome]) -> tuple[Effect, ...]:
  """Returns what adding or dropping each component did to bits per byte, over parents and children of the archive."""
  marked = [
    dataclasses.replace(outcome, proposal=dataclasses.replace(outcome.proposal, genome=_table(outcome)))
    if isinstance(outcome, Entry)
    else outcome
    for outcome in outcomes
  ]
  return effects(marked)


def told(rows: Iterable[Effect], most: int = 12) -> str:
  """Returns a table of effects as text, the largest first; it says so where there is nothing to tell yet."""
  lines = []
  for row in [row for row in rows if isinstance(row.after, bool)][:most]:
    added = row if row.after else row.reversed()
    sure = '' if added.distinguishable else ', not distinguishable from no effect'
    lines.append(
      f'- {row.field}: {added.effect:+.4f} bits per byte when added (95 % interval {added.low:+.4f} to '
      f'{added.high:+.4f}, {added.pairs} pair{"s" if added.pairs != 1 else ""}{sure})'
    )
  return '\n'.join(lines) or 'No component was added or dropped between a parent and its child so far.'


def _table(entry: Entry) -> dict[str, bool]:
  present = components(entry.proposal.source)
  return {name: name in present for name in SIGNS}


def _name(node: ast.expr) -> str:
  return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ''


def _is_none(node: ast.expr) -> bool:
  return isinstance(node, ast.Constant) and node.value is None
