"""The genes: what the offline researcher can choose in a token mixer, each value with what it is and why.

Each field of `Genome` lists its domain in order, simplest first. Motivations and analyses are written from these
sentences. The defaults are the DeltaNet baseline.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

Value = bool | int | float | str


@dataclasses.dataclass(frozen=True)
class Choice:
  """One value of a gene: `says` what it is, `why` one would want it, `weight` its share among fresh samples."""

  value: Value
  says: str
  why: str
  weight: float


@dataclasses.dataclass(frozen=True)
class Gene:
  """A field of the genome: `about` names it in a sentence, a `group` is inherited together, `ordered`: a scale."""

  name: str
  about: str
  group: str
  ordered: bool
  default: Value
  choices: tuple[Choice, ...]

  @property
  def values(self) -> tuple[Value, ...]:
    return tuple(choice.value for choice in self.choices)

  @functools.cached_property
  def _by_value(self) -> dict[tuple[bool, Value], Choice]:
    """The choices, true and 1 apart."""
    return {(isinstance(choice.value, bool), choice.value): choice for choice in self.choices}

  def choice(self, value: Any) -> Choice:
    """Returns the choice that `value` names.

    Raises:
      ValueError: it is outside the domain.
    """
    with contextlib.suppress(TypeError):  # of what has no hash
      if found := self._by_value.get((isinstance(value, bool), value)):
        return found
    raise ValueError(f'{self.name} = {value!r} is outside its domain; use one of {list(self.values)}')


def gene(default: Value, group: str, about: str, *choices: tuple[Value, float, str, str], ordered: bool = False) -> Any:
  """Declares a field: each choice is (value, weight among fresh samples, what it is, why one would want it)."""
  domain = tuple(Choice(value, says, why, weight) for value, weight, says, why in choices)
  return dataclasses.field(
    default=default, metadata={'about': about, 'group': group, 'ordered': ordered, 'choices': domain}
  )


@dataclasses.dataclass(frozen=True)
class Genome:
  """A design of a token mixer."""

  # Paths: what carries information from earlier tokens. Their outputs are fused.
  delta: bool = gene(
    True,
    'paths',
    'the delta-rule memory',
    (False, 1, 'no delta-rule memory', 'the most expensive path goes, and one sees what the others can do alone'),
    (True, 9, 'a delta-rule memory', 'it corrects what a key recalls already, so the same state holds more pairs'),
  )
  second_memory: bool = gene(
    False,
    'paths',
    'the second memory',
    (False, 12, 'no second memory', 'one recurrence is enough to pay for'),
    (
      True,
      1,
      'a second delta-rule memory with smoother keys that never decays',
      'phrases and single tokens are then stored on two time scales',
    ),
  )
  retention: bool = gene(
    False,
    'paths',
    'the retention path',
    (False, 6, 'no retention', 'a memory that only adds interferes with itself and may not be worth its state'),
    (
      True,
      1,
      'linear attention with a fixed fading per head',
      'it adds a smooth memory that needs no erasing and is cheap in training',
    ),
  )
  short_fir: bool = gene(
    False,
    'paths',
    'the short filter',
    (False, 1, 'no short filter', 'the short convolutions on queries, keys and values may cover local order already'),
    (
      True,
      1,
      'a short causal filter over the values',
      'local order needs no memory, which leaves the state to distant facts',
    ),
  )
  long_fir: bool = gene(
    False,
    'paths',
    'the long filter',
    (False, 2, 'no long filter', 'fewer taps to train'),
    (
      True,
      1,
      'a long causal filter over the values',
      'fixed lags within a phrase are captured without using up the state',
    ),
  )
  average: str = gene(
    'none',
    'paths',
    'the moving average',
    ('none', 5, 'no moving average', 'a mean over the past carries no order and may only blur'),
    ('ema', 1, 'an exponential moving average per head', 'a smooth summary of the topic reaches every token'),
    ('cumulative', 0.6, 'the mean over all tokens so far', 'the topic of the whole prefix is kept without any decay'),
  )
  copy: bool = gene(
    False,
    'paths',
    'the copy path',
    (False, 1, 'no copy path', 'the residual stream already carries the token itself'),
    (True, 1, "the token's own value as a path", 'a token that needs no context can pass the mixer untouched'),
  )

  # Causal filters.
  short_fir_taps: int = gene(
    3,
    'filters',
    'the taps of the short filter',
    (2, 1, '2 taps', 'bigrams alone are the cheapest local feature'),
    (3, 2, '3 taps', 'three tokens hold most local order'),
    (5, 1, '5 taps', 'a word in bytes or a short phrase fits in'),
    (7, 1, '7 taps', 'a long word in bytes fits in'),
    ordered=True,
  )
  long_fir_taps: int = gene(
    31,
    'filters',
    'the taps of the long filter',
    (15, 2, '15 taps', 'a clause is covered with few parameters'),
    (31, 2, '31 taps', 'a sentence in words is covered'),
    (63, 1, '63 taps', 'the reach of the filter passes a sentence'),
    ordered=True,
  )
  fir_init: str = gene(
    'noisy_dirac',
    'filters',
    'the initial filters',
    ('dirac', 1, 'the identity', 'training starts from a path that changes nothing'),
    ('noisy_dirac', 2, 'the identity with noise of 0.02', 'training starts near a copy, yet with different channels'),
    ('fading', 1, 'weights that fade with the lag', 'training starts from a smooth average over the reach'),
  )
  fir_sharing: str = gene(
    'channel',
    'filters',
    'the sharing of filters',
    ('head', 1, 'one filter for all channels of a head', 'far fewer taps are trained, which regularises long filters'),
    ('channel', 3, 'a filter per channel', 'channels can attend to different lags'),
  )
  fir_activation: str = gene(
    'none',
    'filters',
    'the activation after the filters',
    ('none', 2, 'no activation', 'a linear path passes gradients unchanged'),
    ('silu', 1, 'SiLU', 'the filter becomes a detector of patterns instead of a linear average'),
  )
  path_source: str = gene(
    'value',
    'filters',
    'the input of the local paths',
    (
      'raw',
      1,
      'the value projection before its short convolution and activation',
      'local paths see each token unmixed and are not smoothed twice',
    ),
    ('value', 2, 'the finished values', 'all paths speak about the same features, which makes fusing them easier'),
  )

  # Token shift and short convolutions.
  token_shift: bool = gene(
    False,
    'convolutions',
    'the token shift',
    (False, 4, 'no token shift', 'the short convolutions see the previous token already'),
    (
      True,
      1,
      'a learned mix of each token with the one before, per channel',
      'every projection and gate can tell bigrams apart at the price of D parameters',
    ),
  )
  query_conv: int = gene(
    4,
    'convolutions',
    'the short convolution of the queries',
    (0, 1, 'none', 'a query then asks for the current token only'),
    (2, 1, '2 taps', 'a query looks at a bigram'),
    (4, 4, '4 taps', 'a query looks at a short phrase'),
    (8, 1, '8 taps', 'a query looks at a word in bytes'),
    ordered=True,
  )
  key_conv: int = gene(
    4,
    'convolutions',
    'the short convolution of the keys',
    (0, 1, 'none', 'facts are stored under single tokens'),
    (2, 1, '2 taps', 'facts are stored under bigrams'),
    (4, 4, '4 taps', 'facts are stored under short phrases'),
    (8, 1, '8 taps', 'facts are stored under words in bytes'),
    ordered=True,
  )
  value_conv: int = gene(
    4,
    'convolutions',
    'the short convolution of the values',
    (0, 1, 'none', 'what is stored is the token itself, unblurred'),
    (2, 1, '2 taps', 'what is stored is a bigram'),
    (4, 4, '4 taps', 'what is stored is a short phrase'),
    (8, 1, '8 taps', 'what is stored is a word in bytes'),
    ordered=True,
  )
  conv_init: str = gene(
    'uniform',
    'convolutions',
    'the initial short convolutions',
    ('dirac', 1, 'the identity with noise of 0.02', 'learning starts from the tokens, not from random blurs'),
    ('uniform', 2, 'uniform at random', 'channels start with different lags'),
  )

  # Queries, keys and values.
  key_query_activation: str = gene(
    'silu',
    'features',
    'the activation of queries and keys',
    ('identity', 1, 'none', 'linear keys can point in all directions, so more of them are orthogonal'),
    ('silu', 3, 'SiLU', 'mostly positive features make keys sparse'),
    ('relu', 1, 'ReLU', 'zeros make keys sparse, so that they interfere less'),
    ('elu_plus_one', 0.7, 'ELU plus one', 'positive features make recall a weighted mean'),
  )
  value_activation: str = gene(
    'silu',
    'features',
    'the activation of the values',
    ('identity', 2, 'none', 'signs and sizes of what is stored survive'),
    ('silu', 3, 'SiLU', 'values become features rather than a linear map of the token'),
    ('gelu', 0.7, 'GELU', 'a smoother threshold passes more gradient near zero'),
    ('tanh', 0.5, 'tanh', 'bounded values keep one token from dominating the state'),
  )
  key_norm: str = gene(
    'l2',
    'features',
    'the normalisation of the keys',
    ('none', 0.4, 'none', 'strong tokens then write and erase more, where the rest of the design keeps that stable'),
    ('bounded', 1, 'a length below one that keeps small keys small', 'weak tokens then write less'),
    ('l2', 5, 'unit length', 'each write erases exactly what its key recalled'),
    ('l1', 1, 'unit sum of sizes', 'sparse keys write more strongly than spread ones'),
    ('softmax', 1, 'a soft-max over key channels', 'keys become soft addresses, one slot a channel'),
  )
  query_norm: str = gene(
    'l2',
    'features',
    'the normalisation of the queries',
    ('scale', 1, 'division by the root of the key size', 'a query can be weak, and then the memory stays quiet'),
    ('l2', 5, 'unit length', 'what is recalled has the scale of what was stored'),
    ('softmax', 1, 'a soft-max over key channels', 'a query reads a convex mix of slots'),
  )
  rotary: int = gene(
    0,
    'features',
    'the rotation of queries and keys by position',
    (0, 5, 'none', 'recall depends on content alone and generalises to any length'),
    (100, 0.6, 'rotary with base 100', 'nearby positions can be told apart within a sentence'),
    (10000, 0.6, 'rotary with base 10,000', 'relative position enters the recall at all distances'),
    ordered=True,
  )
  value_gate: str = gene(
    'none',
    'features',
    'the gate of the values',
    ('none', 5, 'none', 'beta alone decides how much is written'),
    ('head', 1, 'a sigmoid per head', 'unimportant tokens leave no trace in any path'),
    ('channel', 1, 'a low-rank sigmoid per channel', 'parts of a token can be withheld from the state'),
  )

  # Sizes.
  key_expand: float = gene(
    1.0,
    'sizes',
    'the key size',
    (0.5, 1, 'half of the head', 'a smaller state costs less and may suffice for short text'),
    (1.0, 5, 'the head', 'the usual size of the state'),
    (2.0, 1, 'twice the head', 'twice as many orthogonal keys fit into the state'),
    ordered=True,
  )
  value_expand: float = gene(
    1.0,
    'sizes',
    'the value size',
    (0.5, 1, 'half of the head', 'parameters move from the mixer to the feed-forward layers'),
    (1.0, 5, 'the head', 'the usual width of the values'),
    (2.0, 0.7, 'twice the head', 'more is stored under each key'),
    ordered=True,
  )
  key_heads: str = gene(
    'own',
    'sizes',
    'the heads of queries and keys',
    ('shared', 1, 'one head that all value heads share', 'the parameters of most queries and keys are saved'),
    ('own', 5, 'one for each value head', 'heads can store under different keys'),
  )

  # The delta rule.
  beta: str = gene(
    'token',
    'memory',
    'the writing strength beta',
    ('static', 1, 'learned per head, the same for all tokens', 'a constant rate is simpler and never saturates'),
    ('token', 6, 'computed from the token', 'tokens decide how much they overwrite'),
  )
  beta_range: int = gene(
    1,
    'memory',
    'the range of beta',
    (1, 4, 'up to 1', 'a write replaces at most what was there'),
    (2, 1, 'up to 2', 'negative eigenvalues let the state flip, which tracking of states such as parity needs'),
    ordered=True,
  )
  beta_bias: float = gene(
    0.0,
    'memory',
    'the initial bias of beta',
    (-1.5, 1, 'minus 1.5', 'careful writing at first keeps early noise out of the state'),
    (0.0, 4, 'none', 'half strength at first favours neither old nor new'),
    (1.5, 1, 'plus 1.5', 'strong writing at first gives recall something to learn from'),
    ordered=True,
  )
  decay: str = gene(
    'none',
    'memory',
    'the decay of the memory',
    ('none', 3, 'none', 'facts stay until they are overwritten'),
    ('head', 3, 'one per head', 'the state can drop a whole topic at once'),
    ('channel', 1, 'one per key channel, low rank', 'some features are kept for long while others fade'),
    ordered=True,
  )
  decay_form: str = gene(
    'softplus',
    'memory',
    'the form of the decay',
    ('static', 1, 'learned, the same for all tokens', 'heads get their own time scales without a projection'),
    ('bounded', 1, 'a sigmoid of the token times a rate', 'no token can clear the state by accident'),
    ('softplus', 3, 'a softplus of the token times a rate', 'a token that ends a topic can clear the state'),
  )
  decay_init: str = gene(
    'spread',
    'memory',
    'the initial time scales of the decay',
    ('fast', 1, '4 to 64 tokens', 'short memories are easy to train first'),
    ('spread', 2, '4 to 1,024 tokens', 'heads start out different'),
    ('slow', 1, '64 to 2,048 tokens', 'training starts close to a memory without decay'),
    ordered=True,
  )
  initial_state: bool = gene(
    False,
    'memory',
    'the initial state',
    (False, 6, 'zero', 'no parameters are spent on the first tokens'),
    (True, 1, 'learned', 'frequent associations are known before the first token'),
  )
  second_taps: int = gene(
    8,
    'memory',
    'the taps of the second keys',
    (8, 1, '8 taps', 'keys are smoothed over a word in bytes'),
    (16, 1, '16 taps', 'keys are smoothed over a phrase'),
    ordered=True,
  )
  retention_fading: str = gene(
    'fixed',
    'memory',
    'the fading of the retention',
    ('fixed', 1, 'fixed', 'set time scales cannot drift together'),
    ('learned', 1, 'learned per head', 'each head finds its own time scale'),
  )
  retention_window: int = gene(
    64,
    'memory',
    'the longest window of the retention',
    (16, 1, '16 tokens', 'the path stays local and sharp'),
    (64, 2, '64 tokens', 'windows reach over a sentence'),
    (256, 1, '256 tokens', 'windows reach over a paragraph'),
    ordered=True,
  )
  average_window: int = gene(
    16,
    'memory',
    'the longest window of the moving average',
    (16, 1, '16 tokens', 'the average follows the phrase'),
    (64, 1, '64 tokens', 'the average follows the paragraph'),
    ordered=True,
  )

  # How the paths are fused.
  branch_norm: bool = gene(
    False,
    'fusion',
    'the norm of each path',
    (False, 3, 'none', 'a path may say how sure it is by its size'),
    (True, 1, 'a root-mean-square norm per head', 'no path wins the fusion by its scale alone'),
  )
  fusion: str = gene(
    'sum',
    'fusion',
    'the fusion of the paths',
    ('sum', 2, 'a plain sum', 'nothing to train, nothing to collapse'),
    ('static', 1, 'learned weights per head', 'heads specialise without a router'),
    ('softmax', 3, 'a soft-max router', 'each token chooses among the paths'),
    ('sigmoid', 2, 'independent sigmoid gates', 'paths need not compete, several may be open at once'),
    (
      'hierarchical',
      1,
      'a router in two stages, first copy against context, then among contexts',
      'whether context is needed is a separate question from which',
    ),
  )
  router_input: str = gene(
    'token',
    'router',
    'the input of the router',
    ('token', 3, 'the token', 'the cheapest router'),
    ('mean_std', 1, 'the token with mean and spread of each path', 'the router sees what each path has to offer'),
    ('size', 1, 'the token with the mean size of each path', 'the router sees which path is active'),
  )
  router_hidden: float = gene(
    0.0,
    'router',
    'the hidden layer of the router',
    (0.0, 3, 'none', 'a linear router trains fast'),
    (0.25, 1, 'a quarter of the width', 'the router can combine a few features'),
    (0.5, 1, 'half of the width', 'the router can combine features of token and paths'),
    ordered=True,
  )
  router_activation: str = gene(
    'gelu',
    'router',
    'the activation in the router',
    ('silu', 1, 'SiLU', 'it is cheap and smooth'),
    ('gelu', 1, 'GELU', 'it is the choice of the published routers'),
    ('tanh', 0.5, 'tanh', 'bounded features keep the logits small'),
  )
  router_sharing: str = gene(
    'head',
    'router',
    'the sharing of the router',
    ('shared', 1, 'one decision for all heads', 'fewer outputs make each decision better trained'),
    ('head', 3, 'a decision per head', 'heads can divide the work'),
  )
  router_init: str = gene(
    'lecun',
    'router',
    'the initial router',
    ('small', 1, 'small weights', 'all tokens start with the same weights, as the biases say'),
    ('lecun', 2, 'usual weights', 'tokens start with different weights, which breaks symmetry early'),
  )
  temperature: str = gene(
    'one',
    'router',
    'the temperature of the router',
    ('one', 3, '1', 'nothing to tune'),
    ('sharp', 1, 'fixed at one half', 'decisions become clear-cut sooner'),
    ('learned', 1, 'learned per head', 'each head finds how decided it should be'),
  )
  floor: str = gene(
    'none',
    'router',
    'the floor under the weights',
    ('none', 2, 'none', 'a path that does not help can be closed'),
    ('static', 1, 'fixed', 'no path starves of gradient'),
    ('learned', 1, 'learned per head and path', 'each head decides which paths to keep alive'),
  )
  floor_size: float = gene(
    0.02,
    'router',
    'the size of the floor',
    (0.01, 1, '0.01', 'only the gradient is kept alive'),
    (0.02, 1, '0.02', 'the published value'),
    (0.05, 1, '0.05', 'each path keeps a say'),
    ordered=True,
  )
  entropy: float = gene(
    0.0,
    'router',
    'the reward for entropy of the router',
    (0.0, 3, 'none', 'the loss alone shapes the router'),
    (0.003, 1, '0.003', 'a light pressure against early collapse'),
    (0.01, 1, '0.01', 'the router stays undecided for longer and trains all paths'),
    (0.03, 0.5, '0.03', 'a strong pressure to use all paths'),
    ordered=True,
  )
  favoured: str = gene(
    'none',
    'router',
    'the path that is favoured at first',
    ('none', 2, 'none', 'all paths start equal'),
    ('memory', 1, 'the memory', 'the hardest path to train gets gradient from the start'),
    ('copy', 1, 'the copy', 'training starts near the identity, which is stable'),
  )
  favour: float = gene(
    1.0,
    'router',
    'the initial favour',
    (1.0, 1, 'a bias of 1', 'a mild start in one direction'),
    (2.0, 1, 'a bias of 2', 'a clear start in one direction'),
    ordered=True,
  )

  # After the fusion.
  value_residual: str = gene(
    'none',
    'output',
    'the value residual',
    ('none', 4, 'none', 'the fused paths stand for themselves'),
    ('channel', 1, 'the value times a learned weight per channel', 'the current token passes whatever the paths do'),
    ('gated', 1, 'the value times a sigmoid per head', 'the current token passes where it is needed'),
  )
  head_mix: bool = gene(
    False,
    'output',
    'the mixing of heads',
    (False, 5, 'none', 'heads stay independent until the last projection'),
    (True, 1, 'a learned matrix over heads before the norm', 'heads can cancel what they share'),
  )
  output_norm: str = gene(
    'head',
    'output',
    'the output norm',
    ('none', 0.7, 'none', 'the size of what is recalled reaches the residual stream'),
    ('width', 1, 'a root-mean-square norm over all heads', 'heads keep their relative sizes'),
    ('head', 5, 'a root-mean-square norm per head', 'each head speaks with the same voice'),
  )
  norm_scale: bool = gene(
    True,
    'output',
    'the scale of the output norm',
    (False, 1, 'none', 'the last projection can hold the scale'),
    (True, 4, 'learned', 'channels can be turned up or down'),
  )
  output_gate: str = gene(
    'none',
    'output',
    'the output gate',
    ('none', 3, 'none', 'what is recalled passes unfiltered and parameters go to the feed-forward layers'),
    ('sigmoid', 1, 'a sigmoid', 'a token that needs no recall can close it'),
    ('silu', 2, 'SiLU', 'recall is multiplied by features of the token, which adds expressive power'),
  )
  output_gate_rank: str = gene(
    'full',
    'output',
    'the rank of the output gate',
    ('head', 1, 'one number per head', 'opening and closing whole heads costs next to nothing'),
    ('low', 1, 'low rank', 'most of the gate at a quarter of the parameters'),
    ('full', 2, 'full', 'every channel has its own gate'),
    ordered=True,
  )
  output_gate_order: str = gene(
    'after',
    'output',
    'the place of the output gate',
    ('before', 1, 'before the norm', 'the norm evens out what the gate has closed in part'),
    ('after', 3, 'after the norm', 'a closed gate stays closed'),
  )

  def to_json(self) -> dict[str, Value]:
    """Returns the genome as a plain dict, as stored in `Proposal.genome`."""
    return dataclasses.asdict(self)

  @staticmethod
  def from_json(values: Mapping[str, Any]) -> Genome:
    """Returns the genome that `to_json` wrote. A field that is missing (an older archive) has its default.

    Raises:
      ValueError: a field is unknown or a value outside its domain.
    """
    unknown = sorted(set(values) - set(GENES))
    if unknown:
      raise ValueError(f'a genome has no field {unknown[0]!r}; it has {sorted(GENES)}')
    return Genome(**{name: GENES[name].choice(value).value for name, value in values.items()})  # type: ignore[arg-type]


GENES: dict[str, Gene] = {
  field.name: Gene(field.name, default=field.default, **field.metadata)  # type: ignore[arg-type]
  for field in dataclasses.fields(Genome)
}


def gene_of(field: str) -> Gene:
  if field not in GENES:
    raise ValueError(f'a genome has no field {field!r}; it has {sorted(GENES)}')
  return GENES[field]
