"""The genome of a token mixer: what its choices mean together, and the pure operations on one or two of them.

A field can be silent (the taps of a filter that is not there); `canonical` gives silent fields their default and mends
combinations that cannot be built, so that two genomes that differ compute different things. Whether a design is stable
is for the gate to say.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

from asiarch_jax.agents.genes import GENES, Gene, Genome, gene_of

ASSOCIATIVE = ('delta', 'second_memory', 'retention')  # paths that recall by key
ROUTERS = ('softmax', 'sigmoid', 'hierarchical')
GENOMES: dict[str, Genome] = {
  'delta_net': Genome(),
  'gated_delta_net': Genome(decay='head', output_gate='silu'),
}


def paths(genome: Genome) -> tuple[str, ...]:
  """Returns the paths that are on, in the order in which they are fused.

  >>> paths(Genome(short_fir=True, copy=True))
  ('delta', 'short_fir', 'copy')
  """
  order = (*ASSOCIATIVE, 'short_fir', 'long_fir', 'average', 'copy')
  return tuple(name for name in order if getattr(genome, name) not in (False, 'none'))


def recalls(genome: Genome) -> bool:
  """Says whether queries and keys are used."""
  return any(getattr(genome, name) for name in ASSOCIATIVE)


def routed(genome: Genome) -> bool:
  """Says whether the weights of the paths depend on the token."""
  return len(paths(genome)) > 1 and genome.fusion in ROUTERS


def convolves(genome: Genome) -> bool:
  """Says whether there is a short convolution."""
  taps = (genome.query_conv, genome.key_conv) if recalls(genome) else ()
  return genome.second_memory or any(taps) or bool(genome.value_conv)


def _values_differ_from_raw(genome: Genome) -> bool:
  return bool(genome.value_conv) or genome.value_activation != 'identity' or genome.value_gate != 'none'


# When a field is heard; a field without a row always is. A silent field has its default.
HEARD: dict[str, Callable[[Genome], bool]] = {
  'short_fir_taps': lambda g: g.short_fir,
  'long_fir_taps': lambda g: g.long_fir,
  'fir_init': lambda g: g.short_fir or g.long_fir,
  'fir_sharing': lambda g: g.short_fir or g.long_fir,
  'fir_activation': lambda g: g.short_fir or g.long_fir,
  'path_source': lambda g: recalls(g) and len(set(paths(g)) - set(ASSOCIATIVE)) > 0 and _values_differ_from_raw(g),
  'query_conv': recalls,
  'key_conv': lambda g: g.delta or g.retention,
  'conv_init': convolves,
  'key_query_activation': recalls,
  'key_norm': recalls,
  'query_norm': recalls,
  'rotary': recalls,
  'key_expand': recalls,
  'key_heads': recalls,
  'beta': lambda g: g.delta,
  'beta_range': lambda g: g.delta,
  'beta_bias': lambda g: g.delta,
  'decay': lambda g: g.delta,
  'decay_form': lambda g: g.decay != 'none',
  'decay_init': lambda g: g.decay != 'none',
  'initial_state': lambda g: g.delta,
  'second_taps': lambda g: g.second_memory,
  'retention_fading': lambda g: g.retention,
  'retention_window': lambda g: g.retention,
  'average_window': lambda g: g.average == 'ema',
  'branch_norm': lambda g: len(paths(g)) > 1,
  'fusion': lambda g: len(paths(g)) > 1,
  'router_input': routed,
  'router_hidden': routed,
  'router_activation': lambda g: g.router_hidden > 0,
  'router_sharing': routed,
  'router_init': routed,
  'temperature': routed,
  'floor': routed,
  'floor_size': lambda g: g.floor != 'none',
  'entropy': lambda g: routed(g) and g.fusion != 'sigmoid',
  'favoured': routed,
  'favour': lambda g: g.favoured != 'none',
  'head_mix': lambda g: g.output_norm != 'none',
  'norm_scale': lambda g: g.output_norm != 'none',
  'output_gate_rank': lambda g: g.output_gate != 'none',
  'output_gate_order': lambda g: g.output_gate != 'none' and g.output_norm != 'none',
}


def _mended(g: Genome) -> Genome:
  """Returns `g` without its first contradictions: combinations that cannot be built or in which a parameter is dead."""
  changes: dict[str, Any] = {}
  if not set(paths(g)) - {'copy'} or (g.second_memory and not g.delta):
    changes |= {'delta': True, 'second_memory': False}  # something must mix tokens; a lone second memory is the first
  if g.fusion == 'hierarchical' and not (g.copy and len(paths(g)) > 2):
    changes['fusion'] = 'softmax'  # two stages need a copy and two contexts
  if (g.favoured == 'copy' and not g.copy) or (g.favoured == 'memory' and not recalls(g)):
    changes['favoured'] = 'none'
  alone = len(paths(g)) == 1 and g.output_norm == 'head' and g.value_residual == 'none' and not g.head_mix
  if g.query_norm == 'scale' and (alone or g.branch_norm):
    changes['query_norm'] = 'l2'  # the norm that follows takes the size of the query out again
  if g.output_gate_rank == 'head' and g.output_norm == 'head':
    changes['output_gate_order'] = 'after'  # a norm per head undoes one number per head
  return _changed(g, changes)


def _changed(g: Genome, values: Mapping[str, Any]) -> Genome:
  """Returns `g` with these values: itself where it has them, since a new one costs more than to look."""
  if all(getattr(g, name) == value for name, value in values.items()):
    return g
  return dataclasses.replace(g, **values)


@functools.lru_cache(maxsize=2**16)
def canonical(genome: Genome) -> Genome:
  """Returns the genome with contradictions mended and silent fields at their default. Idempotent."""
  while True:
    mended = _mended(genome)
    silent = {name: GENES[name].default for name, heard in HEARD.items() if not heard(mended)}
    before, genome = genome, _changed(mended, silent)
    if genome is before:
      return genome


def differing(ours: Genome, theirs: Genome) -> tuple[str, ...]:
  """Returns the fields in which two genomes differ, in the order of the genome."""
  return tuple(name for name in GENES if getattr(ours, name) != getattr(theirs, name))


def changed_fields(parent: Mapping[str, Any], child: Mapping[str, Any]) -> tuple[str, ...]:
  """Returns the fields that a child changed, genomes given as in `Proposal.genome`."""
  return differing(canonical(Genome.from_json(parent)), canonical(Genome.from_json(child)))


def distance(a: Mapping[str, Any], b: Mapping[str, Any]) -> float:
  """Returns `apart` of two designs given as in `Proposal.genome`."""
  return apart(canonical(Genome.from_json(a)), canonical(Genome.from_json(b)))


def apart(ours: Genome, theirs: Genome) -> float:
  """Returns how different two designs are, in [0, 1]: a metric on canonical genomes.

  The share of fields that differ, those that are a scale counted by the steps between the values; the fields that say
  which paths there are and how they are fused count three times.
  """
  total = sum(importance(gene) for gene in GENES.values())
  return sum(importance(GENES[name]) * _steps(name, ours, theirs) for name in differing(ours, theirs)) / total


def importance(gene: Gene) -> float:
  return 3.0 if gene.group == 'paths' or gene.name in ('fusion', 'decay') else 1.0


def _steps(name: str, ours: Genome, theirs: Genome) -> float:
  values = GENES[name].values
  if not GENES[name].ordered:
    return 1.0
  apart = abs(values.index(getattr(ours, name)) - values.index(getattr(theirs, name)))
  return apart / (len(values) - 1)


def describe(field: str, value: Any) -> str:
  """Returns what a value of a field is, in words.

  >>> describe('decay', 'head')
  'the decay of the memory: one per head'

  Raises:
    ValueError: no such field, or a value outside its domain.
  """
  return f'{gene_of(field).about}: {gene_of(field).choice(value).says}'


def reason(field: str, value: Any) -> str:
  """Returns why one would give a field this value, as the end of a sentence.

  >>> reason('decay', 'head')
  'the state can drop a whole topic at once'
  """
  return gene_of(field).choice(value).why


def parameters(genome: Genome, width: int, heads: int) -> int:
  """Returns how many parameters the mixer of a canonical genome has: what the written source declares."""
  g, D, H = genome, width, heads
  K = {0.5: max(1, D // (2 * H)), 1.0: D // H, 2.0: 2 * D // H}[g.key_expand]
  V = {0.5: max(1, D // (2 * H)), 1.0: D // H, 2.0: 2 * D // H}[g.value_expand]
  low, keys, values, memories = max(1, D // 8), K if g.key_heads == 'shared' else H * K, H * V, 1 + g.second_memory
  total = D * values + values * D + g.value_conv * values + D * g.token_shift
  if recalls(g):
    total += 2 * D * keys + (g.query_conv + g.key_conv + g.second_taps * g.second_memory) * keys
  total += {'none': 0, 'head': (D + 1) * H, 'channel': D * low + (low + 1) * values}[g.value_gate]
  if g.delta:
    token = (D + (g.beta_bias != 0)) * H
    total += memories * (token if g.beta == 'token' else H) + g.initial_state * memories * H * K * V
    rates = {'none': 0, 'head': H, 'channel': H * K}[g.decay]
    steps = {'none': 0, 'head': (D + 1) * H, 'channel': D * low + (low + 1) * H * K}[g.decay]
    total += rates + (steps if g.decay_form != 'static' else 0)
  total += H * (g.retention and g.retention_fading == 'learned') + H * (g.average == 'ema')
  taps = g.short_fir_taps * g.short_fir + g.long_fir_taps * g.long_fir
  total += taps * (values if g.fir_sharing == 'channel' else H)
  total += _router_parameters(g, D, H) if routed(g) else 0
  total += H * len(paths(g)) * (g.fusion == 'static' and len(paths(g)) > 1)
  total += {'none': 0, 'channel': values, 'gated': (D + 1) * H}[g.value_residual] + H * H * g.head_mix
  total += {'none': 0, 'head': V, 'width': values}[g.output_norm] * g.norm_scale
  if g.output_gate != 'none':
    total += {'head': (D + 1) * H, 'low': D * low + low * values, 'full': D * values}[g.output_gate_rank]
  return int(total)


def _router_parameters(g: Genome, D: int, H: int) -> int:
  P, deciders = len(paths(g)), 1 if g.router_sharing == 'shared' else H
  seen = D + {'token': 0, 'size': 1, 'mean_std': 2}[g.router_input] * H * P
  hidden = {0.0: 0, 0.25: max(1, D // 4), 0.5: max(1, D // 2)}[g.router_hidden]
  total = (seen + 1) * hidden + ((hidden or seen) + 1) * deciders * P
  return total + deciders * (g.temperature == 'learned') + deciders * P * (g.floor == 'learned')
