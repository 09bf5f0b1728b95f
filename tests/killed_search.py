"""A search with a stand-in for training, killed again and again. Run by tests/restart_test.py in a process of its own.

Usage: python tests/killed_search.py WORKDIR CYCLES KILLS SEED. Prints the archive without its clocks as JSON lines.
Everything but the runner is real: researcher, judge, analyst, cycle and the archive on disk.
"""

import json
import os
import pathlib
import random
import signal
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from asiarch_jax import config, cycle, records
from asiarch_jax.agents import analyst, evolution, given, judge
from asiarch_jax.shell import archive
from tests import fakes, samples

EXPERIMENT = config.from_dict(
  {
    'search': {'baselines': ['delta_net'], 'anchors': [], 'cold_start': 1, 'refresh': 1},
    'evidence': {'floor': 1, 'placebo': 0.0},
  }
)


def trained(job):
  """Returns what training might give: a function of the job's content alone."""
  time.sleep(0.01)
  number = int(job.key[:4], 16)
  entry = samples.entry(3 + number % 97, improvement=(number % 13 - 6) / 100)
  return records.JobResult(
    job.key,
    findings=entry.findings,
    fingerprint=job.key,
    cost=entry.cost,
    training=entry.training,
    scores=entry.scores,
    timing=records.Timing(wall_seconds=time.time() % 1),
  )


def search(workdir, cycles):
  runner, journal = fakes.FakeRunner(trained), fakes.MemoryJournal()
  with archive.OrbaxArchive.open(workdir, EXPERIMENT, 'text') as kept:
    outcomes = list(kept.outcomes())
    for number in range(len(outcomes), cycles):
      first = given.Given(given.from_source('delta_net', samples.SOURCE, 'baseline'))
      team = cycle.Team(
        first if number == 0 else evolution.Evolution(EXPERIMENT.researcher),
        judge.MeasuredJudge(EXPERIMENT.judge),
        analyst.MeasuredAnalyst(),
        runner,
        journal,
      )
      outcomes.append(cycle.run_cycle(outcomes, number, EXPERIMENT, team, corpus='text'))
      kept.append(outcomes[-1], {'parameters': samples.np.arange(number + 1)})


def main():
  workdir, cycles, kills = pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
  rng, killed = random.Random(int(sys.argv[4])), 0
  while True:
    child = os.fork()
    if child == 0:
      search(workdir, cycles)
      os._exit(0)
    if killed < kills:
      time.sleep(rng.uniform(0.02, 0.6))
      os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
      assert status == 0, f'the search failed with status {status}'
      break
    killed += 1
  print(json.dumps({'kills': killed}))
  with archive.OrbaxArchive.open_read_only(workdir) as kept:
    for outcome in kept.outcomes():
      size = int(kept.arrays(outcome.id)['parameters'].size)
      print(json.dumps({'parameters': size, **records.to_json(records.without_timing(outcome))}))


if __name__ == '__main__':
  main()
