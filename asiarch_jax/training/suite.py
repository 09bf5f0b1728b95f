"""Trains and tests all runs of one setting of a suite: seeds x learning rates x weight decays in one program.

A run is trained on a finite set, seen once an epoch in an order of its own, in batches of sequences of one kind. After
every look it is measured on the validation and the test sequences. What is reported is where validation ended it (at
`stop_at`, else after the last step), and beside it what MAD reports, where the test sequences ended it. Runs stay side
by side: one that has ended is trained on and not looked at any more; when all have ended, so does the job.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from asiarch_jax import config
from asiarch_jax.batch import Batch
from asiarch_jax.records import Accuracy, Progress, SuiteResult, SuiteRun
from asiarch_jax.suites import Recipe, Sequences, Setting, accuracy
from asiarch_jax.suites.settings import MACRO_ROWS, label
from asiarch_jax.tasks import answers, generators
from asiarch_jax.training import monitor, train

STEPS_PER_CALL = 16  # at most; a divisor of an epoch
TEST_ROWS = 128  # sequences a call when measuring; the last call may have fewer
CLIP = 1e9  # neither MAD nor zoology clips gradients
# Replicas run side by side up to so many tokens, and one after the other beyond: activations are kept for each.
SIDE_BY_SIDE_TOKENS = 1 << 19


def training_of(setting: Setting) -> config.Training:
  """Returns how a setting is trained, in the terms of `Trainer`."""
  recipe = setting.recipe
  per_look = setting.batches * recipe.epochs_per_look
  return config.Training(
    steps=setting.steps,
    batch=recipe.batch,
    length=max(kind.length for kind in setting.train),
    seeds=recipe.seeds,
    learning_rates=tuple(rate for rate, _ in recipe.pairs),
    schedule='cosine',
    warmup=0.0,
    final=recipe.final,
    b2=0.999,
    clip=CLIP,
    steps_per_call=max(n for n in range(1, STEPS_PER_CALL + 1) if setting.batches % n == 0),
    checkpoint_every=per_look,
  )


@dataclasses.dataclass(frozen=True)
class TrainingSet:
  """The finite sets of all seeds: `kinds` has for each kind of sequence the leaves [S, N, T of the kind]."""

  kinds: tuple[Batch, ...]
  setting: Setting
  length: int

  def batch(self, step: int) -> Batch:
    """Returns the batch of a step, [S, B, T]: sequences of one kind, each once an epoch.

    The order is drawn anew for every seed and epoch; rows that an epoch has no sequences left for, and positions behind
    a shorter kind, have no weight.
    """
    epoch, place = divmod(step, self.setting.batches)
    parts = [self._rows(seed, epoch, place) for seed in range(self.setting.recipe.seeds)]
    return Batch(*(np.stack(leaves) for leaves in zip(*parts, strict=True)))

  def _rows(self, seed: int, epoch: int, place: int) -> Batch:
    size = self.setting.recipe.batch
    number, part = self._places(epoch)[place]
    kind = self.kinds[number]
    order = np.random.default_rng([seed, epoch, number]).permutation(kind.tokens.shape[1])
    mine = order[part * size : (part + 1) * size]
    pad = ((0, size - len(mine)), (0, self.length - kind.tokens.shape[2]))
    tokens, targets, weights = (np.pad(leaf[seed, mine], pad) for leaf in kind)
    return Batch(tokens, targets, weights.astype(np.float32))

  def _places(self, epoch: int) -> list[tuple[int, int]]:
    """Returns (kind, part of it) for each batch of an epoch; kinds are mixed batch by batch."""
    size = self.setting.recipe.batch
    counts = [-(-kind.examples // size) for kind in self.setting.train]
    places = [(number, part) for number, count in enumerate(counts) for part in range(count)]
    return [places[n] for n in np.random.default_rng([epoch]).permutation(len(places))]


def training_set(setting: Setting, root: jax.Array) -> TrainingSet:
  """Returns the sets of all seeds; weights are kept as bool."""
  kinds = []
  for kind in setting.train:
    sets = [
      generators.sequences(generators.stream(root, 'train', seed), kind, True) for seed in range(setting.recipe.seeds)
    ]
    tokens, targets, weights = (np.stack(leaves) for leaves in zip(*sets, strict=True))
    kinds.append(Batch(tokens, targets, weights > 0))
  return TrainingSet(tuple(kinds), setting, max(kind.length for kind in setting.train))


def run(
  setting: Setting,
  host: Any,
  mesh: Mesh,
  seed: int,
  parameters: int,
  *,
  clock: Callable[[], float],
  report: Callable[[Progress], None],
) -> tuple[SuiteResult | None, monitor.Stop | None]:
  """Returns what the runs of a setting reach, or why training ended without: all of them diverged.

  `host` maps tokens to logits (`train.Trainer`); `parameters` is its count, for the record.
  """
  recipe, training = setting.recipe, training_of(setting)
  began = clock()
  report(Progress('prepare', note=setting.name))
  root = jax.random.PRNGKey(seed)
  data = training_set(setting, root)
  held_out = {
    split: [(kind, generators.sequences(generators.stream(root, split), kind, False)) for kind in setting.tests]
    for split in ('validation', 'test')
  }
  tokens = training.seeds * len(training.learning_rates) * training.batch * training.length
  trainer = train.Trainer(
    host,
    training,
    mesh,
    seed,
    clock=clock,
    layout='map' if tokens > SIDE_BY_SIDE_TOKENS * mesh.size else None,
    weight_decays=[decay for _, decay in recipe.pairs],
  )
  looks = Looks(recipe, lambda parameters, split: measured(trainer, parameters, held_out[split]))

  def watch(losses_LR: np.ndarray, seconds_L: Sequence[float]) -> monitor.Stop | None:
    del seconds_L
    if looks.ended:
      return monitor.Stop(monitor.REACHED, f'all runs are at {recipe.stop_at}')
    broken = monitor.non_finite(losses_LR, training.steps_per_call)
    return monitor.Stop('non_finite', broken) if broken else None

  def save(snapshot: train.Snapshot) -> None:
    looks.look(snapshot.state.parameters, int(snapshot.logs) * training.steps_per_call)

  def on_step(step: int, losses_R: np.ndarray, seconds: float) -> None:
    alive = losses_R[np.isfinite(losses_R)]
    loss = float(alive.mean()) if len(alive) else None
    report(Progress('train', step, setting.steps, loss, None, 1 / max(seconds, 1e-9), setting.name))

  report(Progress('compile', 0, setting.steps, note=setting.name))
  fitted = trainer.fit(data.batch, watch=watch, on_progress=on_step, save=save)
  if fitted.stopped is not None and fitted.stopped.kind != monitor.REACHED:
    return None, fitted.stopped
  if not looks.ended:
    report(Progress('evaluate', fitted.steps, setting.steps, note=setting.name))
    looks.look(fitted.parameters, fitted.steps, last=True)
  pairs = recipe.pairs
  runs = tuple(
    looks.run(r, seed=r // len(pairs), pair=pairs[r % len(pairs)], diverged=bool(fitted.diverged[r]))
    for r in range(trainer.replicas)
  )
  result = SuiteResult(
    setting.name, setting.task, recipe.metric, runs, parameters, clock() - began, trainer.compile_seconds
  )
  return result, None


class Looks:
  """What each run was measured at where it ended: by validation, and by the test sequences themselves."""

  def __init__(self, recipe: Recipe, measure: Callable[[Any, str], list[tuple[Accuracy, ...]]]):
    self._recipe, self._measure = recipe, measure
    count = recipe.runs
    self._chosen: list[tuple[int, tuple[Accuracy, ...], tuple[Accuracy, ...]] | None] = [None] * count
    self._tested: list[tuple[Accuracy, ...] | None] = [None] * count

  @property
  def ended(self) -> bool:
    """Whether every run has ended by both."""
    return None not in self._chosen and None not in self._tested

  def look(self, parameters: Any, step: int, last: bool = False) -> None:
    """Measures all runs and keeps what the ones have that end here; at the `last` look all do."""
    validation, test = self._measure(parameters, 'validation'), self._measure(parameters, 'test')
    for r, (ours, theirs) in enumerate(zip(validation, test, strict=True)):
      if self._chosen[r] is None and (last or self._enough(ours)):
        self._chosen[r] = (step, ours, theirs)
      if self._tested[r] is None and (last or self._enough(theirs)):
        self._tested[r] = theirs

  def run(self, r: int, seed: int, pair: tuple[float, float], diverged: bool) -> SuiteRun:
    """Returns the record of run `r`, after the last look."""
    chosen, tested = self._chosen[r], self._tested[r]
    assert chosen is not None and tested is not None
    step, validation, test = chosen
    return SuiteRun(seed, *pair, step, validation, test, tested, diverged)

  def _enough(self, accuracies: Sequence[Accuracy]) -> bool:
    return all(getattr(one, self._recipe.metric) >= self._recipe.stop_at for one in accuracies)


def predictions(logits_BTY: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
  """Returns the likeliest token of each position, -1 for none, and the weights: a score of `Trainer`."""
  return answers.likeliest(logits_BTY), batch.weights


def measured(
  trainer: train.Trainer, parameters: Any, tests: Sequence[tuple[Sequences, Batch]]
) -> list[tuple[Accuracy, ...]]:
  """Returns for each replica its accuracies on each test."""
  by_test = []
  for kind, whole in tests:
    parts = [
      Batch(*(leaf[start : start + TEST_ROWS] for leaf in whole)) for start in range(0, len(whole.tokens), TEST_ROWS)
    ]
    predicted_RNT, _ = trainer.evaluate(parameters, parts, predictions)
    name = label(kind) if len(tests) > 1 else ''
    by_test.append(
      [
        Accuracy(name, *accuracy.of_rows(predicted_NT, whole.targets, whole.weights, MACRO_ROWS))
        for predicted_NT in predicted_RNT
      ]
    )
  return list(zip(*by_test, strict=True))
