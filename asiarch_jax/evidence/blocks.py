"""Replicas of one design that were trained in several jobs, as one summary."""

from __future__ import annotations

import dataclasses

from asiarch_jax.records import TrainSummary, chosen_rate


def merged(first: TrainSummary, *others: TrainSummary) -> TrainSummary:
  """Returns the first summary with the replicas of all; the learning rate is chosen over all of them.

  What was timed stays that of the first block: blocks of one size run the same program.

  Raises:
    ValueError: a seed was trained twice at one learning rate, or the summaries are of different sizes.
  """
  replicas = [replica for summary in (first, *others) for replica in summary.replicas]
  keys = [(replica.seed, replica.learning_rate) for replica in replicas]
  if len(set(keys)) < len(keys):
    twice = next(key for key in keys if keys.count(key) > 1)
    raise ValueError(f'seed {twice[0]} was trained twice at learning rate {twice[1]:g}; give each block its own seeds')
  for other in others:
    if (other.parameters, other.tokens) != (first.parameters, first.tokens):
      raise ValueError(
        f'{other.parameters} parameters over {other.tokens} tokens are no replicas of '
        f'{first.parameters} parameters over {first.tokens} tokens'
      )
  return dataclasses.replace(first, replicas=tuple(replicas), learning_rate=chosen_rate(replicas))
