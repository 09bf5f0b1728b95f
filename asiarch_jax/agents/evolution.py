"""The researcher that needs no language model: it varies genomes and learns from the archive which values pay.

The rule by which it learns (`learn`): the improvements of the archive's entries are regressed on the values of their
genomes by ridge regression, so that the effect of a value that was seen seldom is shrunk towards zero; and each value
has a chance of success, from how often designs with it were measured at all. A move in the genome is drawn in
proportion to its prior weight, times the exponential of the effect that it gains (in units of the spread of
improvements, clipped), times the ratio of chances of success. A share of all moves ignores this and follows the prior
weights, so nothing is given up for good.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from asiarch_jax import config
from asiarch_jax.agents import genome as genomes
from asiarch_jax.agents import variation, writer
from asiarch_jax.agents.genes import GENES, Genome
from asiarch_jax.agents.genome import GENOMES, HEARD
from asiarch_jax.agents.variation import Move
from asiarch_jax.records import Drawn, Entry, Finding, Outcome, Proposal, Rejection, Selection, entries_of

AUTHOR = 'evolution'
EXPLORE = 0.25  # share of moves that ignore what was learned
PENALTY = 3.0  # of the ridge: entries with a value until its effect is trusted by half
CLIP = 2.0  # largest gain that counts, in spreads of the improvements
PATIENCE = 6  # attempts at a new design before the steps grow
ATTEMPTS = 400  # attempts before giving up
BUDGET = 1.9  # parameters over the DeltaNet's, at NOMINAL sizes: beyond, a matched feed-forward would become too small
NOMINAL = (64, 2)  # width and heads
BLAMED = ('checks', 'error', 'crashed', 'non_finite', 'too_slow', 'suspiciously_low', 'hopeless', 'memory', 'time')


@dataclasses.dataclass(frozen=True)
class Effect:
  """What the archive says about one value: gain in bits per byte (positive is better), from how many entries."""

  gain: float
  count: int
  success: float  # chance that a design with it is measured, over that of all designs


@dataclasses.dataclass(frozen=True)
class Lore:
  """What was learned from the archive. `spread` is the standard deviation of the improvements."""

  effects: dict[tuple[str, Any], Effect]
  spread: float

  def weigh(self, move: Move) -> float:
    """Returns the weight of a move: the prior's, raised for gains and lowered for failures."""
    old, new = (self.effects.get((move.field, value)) for value in (move.old, move.new))
    gain = ((new.gain if new else 0.0) - (old.gain if old else 0.0)) / self.spread
    success = (new.success if new else 1.0) / (old.success if old else 1.0)
    return variation.prior(move) * float(np.exp(np.clip(gain, -CLIP, CLIP))) * float(np.clip(success, 0.1, 2.0))


@functools.lru_cache(maxsize=2**14)
def heard_values(genome: Genome) -> tuple[tuple[str, Any], ...]:
  """Returns (field, value) of all fields that are heard in a canonical genome."""
  return tuple((name, getattr(genome, name)) for name in GENES if name not in HEARD or HEARD[name](genome))


def learn(outcomes: Sequence[Outcome]) -> Lore:
  """Returns what the archive says about each value of the genome: the rule in the module's docstring."""
  measured = [
    (genome, entry.evidence.improvement)
    for entry in entries_of(outcomes)
    if entry.evidence and np.isfinite(entry.evidence.improvement) and (genome := genome_of(entry.proposal))
  ]
  failed = [
    genome
    for outcome in outcomes
    if isinstance(outcome, Rejection) and outcome.stage in BLAMED and (genome := genome_of(outcome.proposal))
  ]
  values = sorted({pair for genome in [g for g, _ in measured] + failed for pair in heard_values(genome)}, key=repr)
  seen = _table([genome for genome, _ in measured], values)
  counts, failures = seen.sum(0), _table(failed, values).sum(0)
  improvements = np.array([improvement for _, improvement in measured])
  gains = _ridge(seen, improvements) if len(measured) > 1 else np.zeros(len(values))
  spread = float(np.std(improvements)) if len(measured) > 1 else 0.0
  overall = (len(measured) + 2.0) / (len(measured) + len(failed) + 2.0)
  success = (counts + 2.0 * overall) / (counts + failures + 2.0) / overall
  effects = {
    pair: Effect(float(round(gain, 9)), int(count), float(round(rate, 9)))
    for pair, gain, count, rate in zip(values, gains, counts, success, strict=True)
  }
  return Lore(effects, max(spread, 1e-6))


def _table(rows: Sequence[Genome], values: Sequence[tuple[str, Any]]) -> np.ndarray:
  """Returns 1 where a genome (row) has a value (column), else 0."""
  columns = {pair: index for index, pair in enumerate(values)}
  table = np.zeros((len(rows), len(values)))
  for row, genome in enumerate(rows):
    table[row, [columns[pair] for pair in heard_values(genome)]] = 1.0
  return table


def _ridge(seen: np.ndarray, improvements: np.ndarray) -> np.ndarray:
  """Returns the effect of each column on the improvements, shrunk."""
  centred = seen - seen.mean(0)
  gram = centred.T @ centred + PENALTY * np.eye(seen.shape[1])
  return np.linalg.solve(gram, centred.T @ (improvements - improvements.mean()))


def genome_of(proposal: Proposal) -> Genome | None:
  """Returns the canonical genome of a proposal; a baseline's is known by its name; None if there is none to read."""
  if proposal.genome is not None:
    try:
      return genomes.canonical(Genome.from_json(proposal.genome))
    except ValueError:
      return None  # of another version of the genome: its numbers are not about these fields
  return GENOMES.get(proposal.name) if proposal.operator == 'seed' else None


@dataclasses.dataclass(frozen=True)
class Evolution:
  """Proposes by fresh designs, mutation, crossover and simplification of genomes. Holds no state: the archive does."""

  settings: config.Researcher

  def propose(
    self,
    selection: Selection,
    outcomes: Sequence[Outcome],
    rng: np.random.Generator,
    drawn: Sequence[Drawn] = (),
  ) -> Proposal:
    """Returns a design that is neither in the archive nor `drawn`, with its source. All randomness is `rng`."""
    told = selection.told(outcomes)
    lore = learn(told)
    before = [*(outcome.proposal for outcome in outcomes), *(draw.proposal for draw in drawn)]
    known = {genome for proposal in before if (genome := genome_of(proposal))}
    taken = {proposal.name for proposal in before} | set(GENOMES)
    base = genome_of(selection.parent.proposal) if selection.parent else None
    parent = selection.parent if base else None
    partners = _partners(parent, selection.references, told)
    for attempt in range(ATTEMPTS):
      operator, child, partner = self._child(base, partners, lore, rng, attempt)
      if child not in known and affordable(child):
        return _proposal(operator, child, parent, base, partner, lore, taken)
    raise RuntimeError(f'no new design in {ATTEMPTS} attempts among {len(known)} known; raise researcher.mutations')

  def repeats(self, proposal: Proposal, outcomes: Sequence[Outcome]) -> str | None:
    """Returns None: what is in the archive is not proposed."""
    return None

  def repair(
    self, proposal: Proposal, findings: Sequence[Finding], rng: np.random.Generator, earlier: Sequence[Any] = ()
  ) -> Proposal | None:
    """Returns the proposal with a field changed that the failed findings implicate; None if none is left to blame."""
    genome = genome_of(proposal)
    failed = [finding for finding in findings if not finding.passed]
    if genome is None or proposal.genome is None or not failed:
      return None
    suspects = [
      move for move in suspected(genome, failed) if affordable(variation.applied(genome, move.field, move.new))
    ]
    if not suspects:
      return None
    move = suspects[rng.choice(len(suspects), p=_falling(len(suspects)))]
    child = variation.applied(genome, move.field, move.new)
    because = ' '.join(failed[0].detail.split())[:160].rstrip('. ')
    note = f'Repaired after {failed[0].check} ({because}): {_sentence(move, genome)}'
    others = tuple(name for name in genomes.differing(genome, child) if name != move.field)
    motivation = ' '.join([proposal.motivation, note, *_silenced(others)])
    name = name_of(child, {proposal.name})
    return dataclasses.replace(
      proposal,
      name=name,
      motivation=motivation,
      source=writer.write(child, name, motivation),
      operator='repair',
      genome=child.to_json(),
    )

  def _child(
    self,
    base: Genome | None,
    partners: Sequence[tuple[Entry, Genome]],
    lore: Lore,
    rng: np.random.Generator,
    attempt: int,
  ) -> tuple[str, Genome, Entry | None]:
    """Returns one attempt: the operator, the child, and whom it was crossed with."""
    extra, draw = attempt // PATIENCE, rng.random()

    def weigh(move: Move) -> float:
      return variation.prior(move) if explores else lore.weigh(move)

    explores = bool(rng.random() < EXPLORE)
    if base is None or draw < self.settings.fresh:
      return 'fresh', variation.fresh(rng), None
    if draw < self.settings.fresh + self.settings.combine and partners:
      entry, other = partners[int(rng.integers(len(partners)))]
      return 'combine', variation.mutated(variation.crossed(base, other, rng), extra, rng, weigh), entry
    if rng.random() < self.settings.simplify:
      return 'simplify', variation.simplified(base, rng, weigh), None
    count = 1 + rng.poisson(max(self.settings.mutations - 1.0, 0.0)) + extra
    return 'mutate', variation.mutated(base, int(count), rng, weigh), None


def _partners(
  parent: Entry | None, references: Sequence[Entry], outcomes: Sequence[Outcome]
) -> tuple[tuple[Entry, Genome], ...]:
  """Returns whom a parent can be crossed with: the references, else all other entries that may breed."""

  def readable(entries: Iterable[Entry]) -> tuple[tuple[Entry, Genome], ...]:
    return tuple(
      (entry, genome)
      for entry in entries
      if entry.role != 'anchor' and (parent is None or entry.id != parent.id) and (genome := genome_of(entry.proposal))
    )

  return readable(references) or readable(entries_of(outcomes))


def affordable(genome: Genome) -> bool:
  """Says whether a matched feed-forward layer keeps a reasonable share of the parameters."""
  return genomes.parameters(genome, *NOMINAL) <= BUDGET * genomes.parameters(GENOMES['delta_net'], *NOMINAL)


# What to suspect, by the failed check (or, where that says nothing, by words of its detail): the values that heal.
SUSPECTS: dict[str, tuple[tuple[str, Any], ...]] = {
  'non_finite finite nan inf diverged': (
    *(('beta_range', 1), ('key_norm', 'l2'), ('output_norm', 'head'), ('decay_init', 'spread'), ('retention', False)),
    *(('key_query_activation', 'silu'), ('query_norm', 'l2'), ('value_activation', 'silu'), ('router_input', 'token')),
    *(('value_expand', 1.0), ('branch_norm', False), ('output_gate', 'none'), ('decay', 'none')),
  ),
  'too_slow time memory growth seconds loops slow': (
    *(('second_memory', False), ('decay', 'head'), ('retention', False), ('key_expand', 1.0), ('value_expand', 1.0)),
    *(('long_fir', False), ('long_fir_taps', 15), ('average', 'none'), ('decay', 'none'), ('router_hidden', 0.0)),
    *(('key_expand', 0.5), ('delta', False)),
  ),
  'parameters band': (
    *(('value_expand', 1.0), ('key_expand', 1.0), ('output_gate_rank', 'low'), ('router_hidden', 0.0)),
    *(('initial_state', False), ('output_gate', 'none'), ('fir_sharing', 'head'), ('value_gate', 'none')),
    *(('second_memory', False), ('key_heads', 'shared'), ('key_expand', 0.5), ('long_fir', False)),
  ),
  'causality prefix batch determinism suspiciously_low future': (
    *(('average', 'none'), ('retention', False), ('rotary', 0), ('long_fir', False), ('short_fir', False)),
    *(('token_shift', False), ('second_memory', False), ('router_input', 'token'), ('entropy', 0.0)),
  ),
  'gradients gradient dead unused': (
    *(('floor', 'none'), ('router_hidden', 0.0), ('temperature', 'one'), ('head_mix', False)),
    *(('initial_state', False), ('key_query_activation', 'silu'), ('decay_form', 'softplus'), ('favoured', 'none')),
  ),
}
# Which move takes a parameter away, for findings that name one.
OWNERS: dict[str, tuple[str, Any]] = {
  'shift': ('token_shift', False),
  'query_taps': ('query_conv', 0),
  'key_taps': ('key_conv', 0),
  'value_taps': ('value_conv', 0),
  'second_taps': ('second_memory', False),
  'value_gate': ('value_gate', 'none'),
  'value_gate_down': ('value_gate', 'none'),
  'beta': ('beta', 'static'),
  'log_rate': ('decay', 'none'),
  'step': ('decay', 'none'),
  'step_down': ('decay', 'none'),
  'initial_state': ('initial_state', False),
  'retention_log_rate': ('retention_fading', 'fixed'),
  'average_log_rate': ('average', 'none'),
  'short_filter': ('short_fir', False),
  'long_filter': ('long_fir', False),
  'path_weight': ('fusion', 'sum'),
  'router': ('fusion', 'sum'),
  'router_hidden': ('router_hidden', 0.0),
  'sharpness': ('temperature', 'one'),
  'floor': ('floor', 'none'),
  'skip': ('value_residual', 'none'),
  'head_mix': ('head_mix', False),
  'norm': ('norm_scale', False),
  'gate': ('output_gate', 'none'),
  'gate_down': ('output_gate', 'none'),
}


def suspected(genome: Genome, failed: Sequence[Finding]) -> tuple[Move, ...]:
  """Returns moves that may heal what the findings saw, the likeliest first.

  First what takes away a parameter that a finding names, then the usual suspects of the check; if neither is known, a
  step from the rarest values back to the baseline's. What the design shares with the baseline is blamed last.
  """
  details = ' '.join(finding.detail for finding in failed)
  named = [OWNERS[name] for name in re.findall(r"\['(\w+)'\]", details) if name in OWNERS]
  usual = _usual({finding.check for finding in failed}) or _usual(set(re.findall(r'\w+', details.lower())))
  rare = sorted(
    (name for name, gene in GENES.items() if getattr(genome, name) != gene.default),
    key=lambda name: (GENES[name].choice(getattr(genome, name)).weight, list(GENES).index(name)),
  )
  answers = list(dict.fromkeys([*named, *usual])) or [(name, GENES[name].default) for name in rare]
  lasting = {(move.field, move.new): move for move in variation.moves(genome)}
  found = tuple(
    lasting[answer]
    for rung, answer in enumerate(answers)
    # The answers for one field are a ladder: nothing goes back up, so repairing ends.
    if answer in lasting and (answer[0], lasting[answer].old) not in answers[rung:]
  )
  return tuple(move for move in found if move.old != GENES[move.field].default) or found


def _usual(words: set[str]) -> list[tuple[str, Any]]:
  return [pair for keys, pairs in SUSPECTS.items() if words & set(keys.split()) for pair in pairs]


def _falling(count: int) -> np.ndarray:
  """Returns chances that halve from one suspect to the next."""
  weights = 0.5 ** np.arange(count)
  return weights / weights.sum()


CONSONANTS, VOWELS = 'bdfgklmnprstvz', 'aeiou'
FUSED = {'static': 'weighted', 'softmax': 'routed', 'sigmoid': 'gated', 'hierarchical': 'tiered'}


def name_of(genome: Genome, taken: Iterable[str] = ()) -> str:
  """Returns a name that says what a design has, with syllables from its hash, which tell it from its like.

  >>> name_of(Genome(short_fir=True, copy=True, fusion='softmax'))
  'routed_delta_fir_copy_fufa'
  """
  memory = {'none': 'delta', 'head': 'fading_delta', 'channel': 'selective_delta'}[genome.decay]
  words = [FUSED[genome.fusion]] if genome.fusion in FUSED else []
  words += [memory] if genome.delta else []
  words += ['twin'] if genome.second_memory else []
  words += ['retention'] if genome.retention else []
  words += ['fir'] if genome.short_fir or genome.long_fir else []
  words += ['mean'] if genome.average != 'none' else []
  words += ['copy'] if genome.copy else []
  number = int(hashlib.sha256(json.dumps(genome.to_json(), sort_keys=True).encode()).hexdigest(), 16)
  syllables = ''
  while not syllables or len(syllables) < 4 or '_'.join([*words, syllables]) in set(taken):
    number, consonant = divmod(number, len(CONSONANTS))
    number, vowel = divmod(number, len(VOWELS))
    syllables += CONSONANTS[consonant] + VOWELS[vowel]
  return '_'.join([*words, syllables])


def _proposal(
  operator: str,
  child: Genome,
  parent: Entry | None,
  base: Genome | None,
  partner: Entry | None,
  lore: Lore,
  taken: set[str],
) -> Proposal:
  """Returns the child as a proposal: named, motivated, written."""
  descends = parent is not None and base is not None and operator != 'fresh'
  if parent is not None and base is not None and descends:
    motivation = motivated(operator, parent.proposal.name, base, child, lore, partner.proposal.name if partner else '')
  else:
    motivation = introduced(child)
  name = name_of(child, taken)
  return Proposal(
    name=name,
    motivation=motivation,
    source=writer.write(child, name, motivation),
    parent_id=parent.id if parent is not None and descends else None,
    reference_ids=(partner.id,) if partner is not None else (),
    author=AUTHOR,
    operator=operator,
    genome=child.to_json(),
  )


def introduced(genome: Genome) -> str:
  """Returns what an independent design is, in two or three sentences."""
  unlike = [name for name in genomes.differing(GENOMES['delta_net'], genome) if name in dict(heard_values(genome))]
  unlike.sort(key=lambda name: (GENES[name].group != 'paths', GENES[name].group != 'fusion', list(GENES).index(name)))
  lead = [f'{_phrase(name, genome)}, since {genomes.reason(name, getattr(genome, name))}' for name in unlike[:2]]
  rest = [_phrase(name, genome) for name in unlike[2:]]
  sentences = [f'An independent design of {_parts(genome)}, not derived from an entry.']
  if lead:
    sentences.append(f'Unlike in DeltaNet: {"; ".join(lead)}.')
  if rest:
    sentences.append(f'Besides: {_listed(rest)}.')
  return ' '.join(sentences)


def motivated(operator: str, parent: str, base: Genome, child: Genome, lore: Lore, partner: str = '') -> str:
  """Returns what a child changed and why it might help: every changed field is named, the first ones argued."""
  changed = genomes.differing(base, child)
  heard = dict(heard_values(child))
  told = sorted((name for name in changed if name in heard), key=lambda name: _rank(name, base, child))
  moved = [Move(name, getattr(base, name), getattr(child, name)) for name in told]
  opening = {
    'mutate': f'A change to {parent}.',
    'simplify': f'{parent} with less: is what is taken away needed?',
    'combine': f'{parent} crossed with {partner}.',
  }[operator]
  sentences = [opening, *(_sentence(move, base, lore) for move in moved[:2])]
  silent = _silenced([name for name in changed if name not in heard])
  if moved[2:]:
    rest = [f'{GENES[move.field].about} ({_says(move.field, move.new)})' for move in moved[2:]]
    silent = [f'It also changes {_listed(rest)}{"; t" + silent[0][1:] if silent else "."}']
  return ' '.join([*sentences, *silent])


def _rank(name: str, base: Genome, child: Genome) -> tuple[bool, bool, int]:
  """Orders changes for telling: paths first, then what was in the parent too, then what came along."""
  return GENES[name].group != 'paths', name not in dict(heard_values(base)), list(GENES).index(name)


def _sentence(move: Move, base: Genome, lore: Lore | None = None) -> str:
  about, why = GENES[move.field].about, genomes.reason(move.field, move.new)
  instead = f' instead of {_says(move.field, move.old)}' if move.field in dict(heard_values(base)) else ''
  text = f'{about[0].upper()}{about[1:]}: {_says(move.field, move.new)}{instead}; the idea: {why}'
  effect = lore.effects.get((move.field, move.new)) if lore else None
  if effect and effect.count >= 3:
    text += f' (archive so far: {effect.gain:+.4f} bits per byte, shrunk, from {effect.count} entries)'
  return f'{text}.'


def _silenced(names: Sequence[str]) -> list[str]:
  return [f'This leaves no role for {_listed([GENES[name].about for name in names])}.'] if names else []


def _says(field: str, value: Any) -> str:
  return GENES[field].choice(value).says


def _phrase(name: str, genome: Genome) -> str:
  return f'{GENES[name].about} ({_says(name, getattr(genome, name))})'


def _parts(genome: Genome) -> str:
  parts = _listed([GENES[path].about for path in genomes.paths(genome)])
  return f'{parts}, fused by {_says("fusion", genome.fusion)}' if len(genomes.paths(genome)) > 1 else parts


def _listed(parts: Sequence[str]) -> str:
  return parts[0] if len(parts) == 1 else f'{", ".join(parts[:-1])} and {parts[-1]}'
