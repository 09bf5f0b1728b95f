"""What a suite is: settings of tasks, and the recipe that every run of a setting is trained by."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any, Literal

from asiarch_jax import config
from asiarch_jax.records import from_json

Metric = Literal['macro', 'micro']
MACRO_ROWS = 128  # sequences that one class-balanced accuracy is taken over; the mean over such blocks is reported


@dataclasses.dataclass(frozen=True)
class Sequences:
  """A kind of sequence and how many of them. `task` is a row of `tasks.generators.GENERATORS`, which reads the rest."""

  task: str
  vocabulary: int  # token ids, special ones and noise included
  length: int  # T
  examples: int
  noise: float = 0.0  # share of pairs that are noise
  noise_symbols: int = 0  # of the vocabulary that only noise uses
  copies: int = 0  # tokens to copy
  motif: int = 1  # most tokens of a key, and of a value
  pairs: int = 0  # distinct keys
  updates: int = 0  # keys that get a second value, which is the one asked for


@dataclasses.dataclass(frozen=True)
class Recipe:
  """Model and training of every run. Runs are seeds x learning rates x weight decays, all in one compiled program."""

  width: int
  heads: int
  mlp_width: int  # hidden size of the feed-forward; 0: none
  batch: int
  epochs: int
  learning_rates: tuple[float, ...]
  weight_decays: tuple[float, ...]
  seeds: int
  layers: int = 2
  dtype: str = 'float32'
  final: float = 0.0  # learning rate at the end over the peak, after half a cosine without warm-up
  stop_at: float = 0.999  # accuracy at which a run ends
  epochs_per_look: int = 1  # between two looks at the held-out sequences
  metric: Metric = 'macro'  # what runs are chosen and settings scored by

  @property
  def pairs(self) -> tuple[tuple[float, float], ...]:
    """The grid: (learning rate, weight decay)."""
    return tuple((rate, decay) for rate in self.learning_rates for decay in self.weight_decays)

  @property
  def runs(self) -> int:
    """Training runs of one setting."""
    return self.seeds * len(self.pairs)


@dataclasses.dataclass(frozen=True)
class Setting:
  """A task at one size: a finite set to train on, and sequences to be tested on. One job of a worker.

  Validation sequences are as many as the test's and drawn from another stream of keys.
  """

  name: str
  task: str
  train: tuple[Sequences, ...]
  tests: tuple[Sequences, ...]
  recipe: Recipe

  @property
  def batches(self) -> int:
    """Training batches of one epoch: each holds sequences of one kind, the last of a kind perhaps fewer."""
    return sum(-(-kind.examples // self.recipe.batch) for kind in self.train)

  @property
  def steps(self) -> int:
    """Steps of a run that is not ended early."""
    return self.batches * self.recipe.epochs


@dataclasses.dataclass(frozen=True)
class Suite:
  """Settings under a name. The score is the mean over tasks of the mean over settings of an accuracy."""

  name: str
  summary: str
  settings: tuple[Setting, ...]
  wall_seconds: float  # that one setting may take

  @property
  def tasks(self) -> tuple[str, ...]:
    """The tasks, in order."""
    return tuple(dict.fromkeys(setting.task for setting in self.settings))

  @property
  def runs(self) -> int:
    """Training runs of the whole suite."""
    return sum(setting.recipe.runs for setting in self.settings)


def label(kind: Sequences) -> str:
  """Returns the name of a test by what MQAR varies: length and pairs, and updates where there are any."""
  return f'length={kind.length},pairs={kind.pairs}' + (f',updates={kind.updates}' if kind.updates else '')


def model_of(recipe: Recipe, vocabulary: int) -> config.Model:
  """Returns the host's sizes: the head is not tied to the embedding, as in MAD."""
  return config.Model(
    width=recipe.width,
    layers=recipe.layers,
    heads=recipe.heads,
    mlp_width=recipe.mlp_width,
    vocabulary=vocabulary,
    tied=False,
    dtype=recipe.dtype,
    init_stddev=recipe.width**-0.5,
  )


def parsed(value: dict[str, Any]) -> Setting:
  """Returns the setting that `records.to_json` wrote into a job.

  Raises:
    ValueError: a field is missing, unknown or of another type; the message names it.
  """
  return typing.cast(Setting, from_json(Setting, value))
