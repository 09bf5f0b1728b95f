"""A small table whose truth is planted: a child is worth about what its parent is, others little."""

import dataclasses
import zlib

import numpy as np

from asiarch_jax import config, records
from asiarch_jax.agents import variation, writer
from asiarch_jax.agents.genome import GENOMES
from asiarch_jax.evidence.placebo import is_placebo
from asiarch_jax.replay.table import frozen

LOSSES = 15


def summary(effect, name, seeds, *, noise=0.02, rates=(5e-3, 1.5e-2)):
  replicas = []
  for seed in range(seeds):
    shared = 0.02 * np.random.default_rng([seed, 1]).standard_normal()
    own = noise * np.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal()
    for rate in rates:
      bits = 3.0 - effect + shared + own + 0.1 * (rate - 5e-3)
      losses = tuple(float(bits * 0.7 + 2.0 * np.exp(-step / 4)) for step in range(LOSSES))
      replicas.append(records.Replica(seed, rate, 150, losses, bits, bits))
  return records.TrainSummary(
    tuple(replicas), 1000, 10_000, 96, 8e4, 400, 10, records.chosen_rate(replicas), seconds_per_step=0.01
  )


def outcome(number, genome, name, effect, seeds, role='candidate', parent=None, noise=0.02):
  source = writer.write(genome, name, 'A planted design.')
  proposal = records.Proposal(
    name, 'A planted design.', source, parent_id=parent, author='evolution' if role == 'candidate' else 'human',
    operator='seed' if role != 'candidate' else 'mutate' if parent is not None else 'fresh',
    genome=genome.to_json() if role == 'candidate' else None,
  )  # fmt: skip
  return records.Entry(
    number, proposal, role, (), f'mark {number}', records.Cost(1000 + number, 2000.0, 400, 1.0),
    summary(effect, f'{name} {seeds}', seeds, noise=noise), (records.TaskScore('recall_slice', 0.3, 0.01, 64),), '',
    timing=records.Timing(2.0, 0.5, 2.0, 1.0),
  )  # fmt: skip


def table(designs=40, *, seed=0, noise=0.02, scale=1.0, failing=()):
  """Returns a table of `designs` candidates besides two baselines; the numbers in `failing` were rejected.

  `noise` is the deviation of a replica, bits; `scale` multiplies what every candidate is worth.
  """
  rng = np.random.default_rng(seed)
  experiment = config.Experiment()
  experiment = dataclasses.replace(
    experiment,
    search=dataclasses.replace(
      experiment.search, baselines=('delta_net', 'gated_delta_net'), anchors=(), cycles=2 + designs
    ),
  )
  lower, upper, known, worth = [], [], {}, {}
  for number, (name, genome) in enumerate(GENOMES.items()):
    known[number], worth[number] = genome, 0.02 * number
    for rung, seeds in ((lower, 8), (upper, 6)):
      rung.append(outcome(number, genome, name, worth[number], seeds, 'baseline', noise=noise))
  for number in range(2, 2 + designs):
    parent = int(rng.choice(list(known))) if rng.random() < 0.6 else None
    if parent is None:
      genome, effect = variation.fresh(rng), rng.normal(-0.04, 0.04)
    else:
      genome, effect = variation.mutated(known[parent], 2, rng), worth[parent] + rng.normal(0.0, 0.03)
    name = f'design_{number}'
    if is_placebo(number, experiment):
      genome, effect = GENOMES['delta_net'], 0.0
    else:
      known[number], worth[number] = genome, effect
    effect *= scale
    one = outcome(number, genome, name, effect, 4, parent=parent, noise=noise)
    if number in failing:
      lower.append(records.Rejection(number, 'checks', 'leaks', one.proposal))
    else:
      lower.append(one)
      upper.append(outcome(number, genome, name, effect, 3, parent=parent, noise=noise))
  return frozen(lower, upper, experiment, 'small', {'date': '2026-11-26'})
