"""The settings of MAD (Poli et al. 2024, arXiv 2403.17844; github.com/athms/mad-lab), and two smaller choices of them.

A baseline for each of six tasks and one factor changed at a time: 66 settings, 6 pairs of learning rate and weight
decay for each, so 396 runs a seed. `mad-base` has the six baselines, and a job that `mad` shares with it is run once.

Model: two blocks of mixer and SwiGLU, width 128 (352 inside: 8/3 of it, rounded up to 16), the head not tied to the
embedding. Training: AdamW, half a cosine, batches of 128, at most 200 epochs, an end at 0.999.

Departures: the cosine falls at every step, not at every epoch; it ends at 1/500 of the peak, which is MAD's 1e-6 for
the middle rate only; memorisation, whose epochs have two steps, is looked at every tenth epoch; norms are RMSNorm and
the feed-forward starts from a normal distribution of standard deviation 1/sqrt(width), as in the rest of this program.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from asiarch_jax.suites.settings import Recipe, Sequences, Setting, Suite

TEST_EXAMPLES = 1280
RECIPE = Recipe(
  width=128,
  heads=4,
  mlp_width=352,
  batch=128,
  epochs=200,
  learning_rates=(1e-4, 5e-4, 1e-3),
  weight_decays=(0.0, 0.1),
  seeds=3,
  dtype='bfloat16',
  final=0.002,
)
TRAIN = (6400, 3200, 1600, 800)
BASELINES = {
  'in-context-recall': Sequences('in-context-recall', 16, 128, 12_800),
  'fuzzy-recall': Sequences('fuzzy-recall', 16, 128, 12_800, motif=3),
  'noisy-recall': Sequences('in-context-recall', 32, 128, 12_800, noise=0.2, noise_symbols=16),
  'selective-copying': Sequences('selective-copying', 16, 256, 12_800, copies=16),
  'compression': Sequences('compression', 16, 32, 12_800),
  'memorisation': Sequences('memorisation', 256, 32, 256),
}
CHANGES: dict[str, dict[str, tuple[Any, ...]]] = {
  'in-context-recall': {'vocabulary': (32, 64, 128), 'length': (256, 512, 1024), 'examples': TRAIN},
  'fuzzy-recall': {'vocabulary': (32, 64, 128), 'length': (256, 512, 1024), 'examples': TRAIN},
  'noisy-recall': {
    'vocabulary': (48, 80, 144),
    'length': (256, 512, 1024),
    'examples': TRAIN,
    'noise': (0.4, 0.6, 0.8),
  },
  'selective-copying': {
    'vocabulary': (32, 64, 128),
    'length': (512, 1024),
    'examples': TRAIN,
    'copies': (32, 64, 96),
  },
  'compression': {'vocabulary': (32, 64, 128), 'length': (64, 128, 256), 'examples': TRAIN},
  'memorisation': {'vocabulary': (512, 1024, 2048, 4096, 8192)},
}
LOOKS = {'memorisation': 10}  # epochs between two looks, where it is not every epoch

TINY_RECIPE = Recipe(
  width=32,
  heads=2,
  mlp_width=64,
  batch=32,
  epochs=10,
  learning_rates=(3e-3, 1e-2),
  weight_decays=(0.0,),
  seeds=2,
  final=0.1,
  epochs_per_look=2,
)
TINY_TEST_EXAMPLES = 256
TINY = {  # so small that accuracies come off chance within a few hundred steps
  'in-context-recall': Sequences('in-context-recall', 8, 32, 768),
  'fuzzy-recall': Sequences('fuzzy-recall', 8, 32, 768, motif=2),
  'noisy-recall': Sequences('in-context-recall', 12, 32, 768, noise=0.2, noise_symbols=4),
  'selective-copying': Sequences('selective-copying', 8, 32, 768, copies=4),
  'compression': Sequences('compression', 8, 8, 768),
  'memorisation': Sequences('memorisation', 32, 32, 256),
}
TINY_EPOCHS = {'memorisation': (24, 6)}  # (epochs, between two looks), where an epoch has few steps


def _setting(task: str, name: str, kind: Sequences, examples: int, recipe: Recipe) -> Setting:
  return Setting(name, task, (kind,), (dataclasses.replace(kind, examples=examples),), recipe)


def baseline(task: str) -> Setting:
  """Returns the setting that a task's other settings change in one factor."""
  recipe = dataclasses.replace(RECIPE, epochs_per_look=LOOKS.get(task, 1))
  return _setting(task, f'{task}/baseline', BASELINES[task], TEST_EXAMPLES, recipe)


def changed(task: str, changes: Mapping[str, tuple[Any, ...]]) -> tuple[Setting, ...]:
  """Returns the settings that change one factor of a task's baseline."""
  start = baseline(task)
  return tuple(
    _setting(
      task,
      f'{task}/{factor}={value}',
      dataclasses.replace(start.train[0], **{factor: value}),
      TEST_EXAMPLES,
      start.recipe,
    )
    for factor, values in changes.items()
    for value in values
  )


def tiny(task: str) -> Setting:
  """Returns the setting of a task that two CPU cores train in seconds."""
  epochs, look = TINY_EPOCHS.get(task, (TINY_RECIPE.epochs, TINY_RECIPE.epochs_per_look))
  recipe = dataclasses.replace(TINY_RECIPE, epochs=epochs, epochs_per_look=look)
  return _setting(task, f'{task}/tiny', TINY[task], TINY_TEST_EXAMPLES, recipe)


MAD = Suite(
  'mad',
  'the 66 settings of MAD, each task at its baseline and with one factor changed',
  tuple(setting for task, changes in CHANGES.items() for setting in (baseline(task), *changed(task, changes))),
  wall_seconds=12 * 3600.0,
)
BASE = Suite('mad-base', 'the baselines of the six tasks of MAD', tuple(map(baseline, BASELINES)), 12 * 3600.0)
SMALL = Suite('mad-tiny', 'the six tasks so small that two CPU cores do', tuple(map(tiny, TINY)), 900.0)
