"""Times the gate on designs of the offline researcher, one after the other in one process: what a warm gate costs.

    python -m tests.benchmarks.gate                    # 12 sampled designs after a first that warms the process
    python -m tests.benchmarks.gate --designs=40 --stages

The first line is the cold gate (imports excluded). Seconds of wall clock, and of processor over all threads: on a busy
machine the latter is the one to compare.
"""

import argparse
import collections
import dataclasses
import statistics
import time

import numpy as np

from asiarch_jax import config
from asiarch_jax.agents import genome as genomes
from asiarch_jax.agents import variation, writer
from asiarch_jax.arch import contract
from asiarch_jax.checks import behaviour, cost, source


def gated(design: genomes.Genome, settings: config.Experiment, stages: collections.Counter) -> tuple[float, float]:
  """Returns (wall, processor) seconds of all checks of a design, as the worker makes them; adds up their stages."""
  text = writer.write(design, 'design', 'It may help.')
  lengths = tuple(sorted({*settings.checks.lengths, settings.training.length}))
  checks = dataclasses.replace(settings.checks, lengths=lengths)
  wall, processor = time.perf_counter(), time.process_time()
  assert source.failure(source.check(text)) is None
  mixer = contract.load(text, 'design')
  spec = contract.spec_of(settings.model)
  findings = behaviour.gate(mixer, spec, checks, clock=time.monotonic)
  module = contract.build(mixer, spec)
  cost.count(module, spec.width, settings.training.length)
  cost.fingerprint(module, spec.width)
  took = time.perf_counter() - wall, time.process_time() - processor
  for finding in findings:
    stages[finding.check] += finding.seconds
  if failed := [finding for finding in findings if not finding.passed]:
    print(f'refused: {failed[0].check}: {failed[0].detail}')
  return took


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--designs', type=int, default=12)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--stages', action='store_true', help='also the mean wall clock of each check')
  options = parser.parse_args()
  settings = config.Experiment()
  rng = np.random.default_rng(options.seed)
  stages: collections.Counter = collections.Counter()
  wall, processor = gated(genomes.GENOMES['delta_net'], settings, stages)
  print(f'first   {wall:6.2f} s wall {processor:6.2f} s processor (DeltaNet)')
  stages.clear()
  times = [gated(variation.fresh(rng), settings, stages) for _ in range(options.designs)]
  for name, column in zip(('wall', 'processor'), zip(*times, strict=True), strict=True):
    low, middle, high = min(column), statistics.median(column), max(column)
    print(f'warm    {name:9} least {low:.2f}, median {middle:.2f}, most {high:.2f} s over {len(column)} designs')
  if options.stages:
    for name, seconds in stages.most_common():
      print(f'  {name:12} {seconds / len(times):6.3f} s')


if __name__ == '__main__':
  main()
