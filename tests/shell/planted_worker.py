"""A worker without JAX that answers from a plan (`tests.planted`) after a moment. For tests of many workers at once."""

import pathlib
import random
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from asiarch_jax.shell import jobfolder
from tests.planted import PlantedRunner


class Plan(PlantedRunner):
  @staticmethod
  def effect(job):
    return 0.0 if job.name == 'delta_net' else 0.05 * (sum(job.name.encode()) % 4)


def main(job_dir, out, _):
  secret = sys.stdin.readline().strip()
  job = jobfolder.read_job(job_dir)
  time.sleep(random.uniform(0.0, 0.5))
  jobfolder.write_result(out, Plan(out, None)._result(job), jobfolder.by_path({}), secret)


if __name__ == '__main__':
  main(*(argument.partition('=')[2] for argument in sys.argv[1:]))
