"""`asiarch scale`: an entry and its baseline over several sizes, and what its lead becomes with compute.

WORKDIR/scaling/ID/jobs/         the jobs, so that an interrupted fit goes on
WORKDIR/scaling/ID/scaling.json  what came of it
"""

from __future__ import annotations

import dataclasses
import json
import math

from absl import flags

from asiarch_jax import commands, config
from asiarch_jax.commands import UsageError
from asiarch_jax.commands.trials import bench
from asiarch_jax.evidence import scaling
from asiarch_jax.records import Entry, TrainSummary, to_json
from asiarch_jax.report import scaling as told
from asiarch_jax.shell import archive as archives
from asiarch_jax.shell import places

FOLDER = 'scaling'
LARGEST = 1000.0  # times the width of the search
FIRST_SEED = 250_000  # of its replicas: none that a search, an ablation or a claim used


def scale(values: flags.FlagValues, arguments: list[str]) -> int:
  workdir = places.folder(values.workdir)
  with archives.OrbaxArchive.open_read_only(workdir) as archive:
    outcomes, experiment = archive.outcomes(), archive.experiment
  entry = commands.named(arguments[0], outcomes)
  baseline = commands.named(values.against or experiment.search.baseline, outcomes)
  for one in (entry, baseline):
    if not isinstance(one, Entry):
      raise UsageError(
        f'#{one.id} {one.proposal.name} was rejected at {one.stage}: it cannot be trained at other sizes'
      )
  assert isinstance(entry, Entry) and isinstance(baseline, Entry)
  if entry.id == baseline.id:
    raise UsageError(f'#{entry.id} {entry.proposal.name} cannot be compared with itself; name another with --against')
  sizes = _sizes(experiment, values.factors)
  if values.seeds < scaling.SEEDS:
    raise UsageError(f'--seeds={values.seeds}; a scaling fit needs at least {scaling.SEEDS}')
  folder = workdir / FOLDER / f'{entry.id}-{baseline.id}'
  measured: dict[int, list[TrainSummary]] = {baseline.id: [], entry.id: []}
  with bench(workdir, experiment) as here:
    trials = here.trials(folder, experiment, FIRST_SEED, values.seeds)
    try:
      for size in sizes:
        here.display.line(f'{size.model.width} wide, {size.training.steps} steps')
        trials = dataclasses.replace(trials, experiment=size)
        rates = size.training.learning_rates
        base, failure = trials.trained(baseline, learning_rates=rates)
        theirs, name = base, baseline.proposal.name
        if base is not None:
          theirs, failure = trials.trained(entry, parameters=base.parameters, learning_rates=rates)
          name = entry.proposal.name
        if base is None or theirs is None:
          raise UsageError(f'{name} fails at {size.model.width} wide: {failure}; leave its factor out of --factors')
        measured[baseline.id].append(base)
        measured[entry.id].append(theirs)
    except KeyboardInterrupt:
      trials.runner.stop()
      here.display.line('stopped; every finished training is kept. To resume, give the same command again')
      return commands.INTERRUPTED
  arms = [[_size(summary) for summary in measured[id]] for id in (baseline.id, entry.id)]
  try:
    found = scaling.compare(*arms)
  except ValueError as error:
    raise UsageError(f'these sizes cannot be fitted: {error}') from error
  page = told.ScalingPage(entry.id, entry.proposal.name, baseline.proposal.name, tuple(arms[0]), tuple(arms[1]), found)
  places.put_json(folder / 'scaling.json', to_json(page))
  print(json.dumps(to_json(page))) if values.json else commands.standard_output().print(told.scaling_page(page))
  return 0


def _sizes(experiment: config.Experiment, factors: list[str]) -> list[config.Experiment]:
  """Returns the experiment at each factor: width times it, training in proportion to the parameters of the blocks.

  Parameters of a block grow with the square of the width, so steps do too: tokens for each parameter stay what they
  are. Layers, heads, length and learning rates stay; each size chooses among the rates on its validation windows.
  """
  model, training = experiment.model, experiment.training
  try:
    numbers = sorted({float(factor) for factor in factors})
  except ValueError as error:
    raise UsageError(f'--factors={",".join(factors)}; give numbers, such as 0.5,0.75,1,1.5') from error
  if len(numbers) < scaling.SIZES or not all(0 < number <= LARGEST for number in numbers):
    raise UsageError(
      f'--factors={",".join(factors)} names {len(numbers)} sizes; a scaling fit needs at least {scaling.SIZES}, '
      f'all above 0 and at most {LARGEST:g}'
    )
  sizes = []
  for factor in numbers:
    even = 2 * model.heads  # rotary embeddings turn pairs of channels
    width = max(even, round(factor * model.width / even) * even)
    ratio = width / model.width
    calls = max(1, round(training.steps * ratio**2 / training.steps_per_call))
    sizes.append(
      dataclasses.replace(
        experiment,
        model=dataclasses.replace(
          model,
          width=width,
          mlp_width=max(1, round(ratio * model.mlp_width)),
          init_stddev=model.init_stddev / math.sqrt(ratio),
        ),
        training=dataclasses.replace(training, steps=calls * training.steps_per_call),
      )
    )
  widths = [size.model.width for size in sizes]
  if len(set(widths)) < len(widths):
    raise UsageError(
      f'--factors={",".join(factors)} give the widths {widths}, some twice: {model.heads} heads allow multiples of '
      f'{2 * model.heads}; space the factors wider'
    )
  return sizes


def _size(summary: TrainSummary) -> scaling.Size:
  """Returns a size by its training compute, in forward FLOPs, and the test bits of its seeds."""
  losses = tuple(replica.test_bits for replica in summary.chosen)
  return scaling.Size(summary.flops_per_token * summary.tokens, losses)
