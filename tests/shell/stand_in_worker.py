"""A worker without JAX: seals a result after running mixer.py, which may do anything. For tests of runner and jail."""

import sys
import traceback

import numpy as np

from asiarch_jax.records import Failure, JobResult, Progress, Timing
from asiarch_jax.shell import jobfolder


def main(job_dir, out, corpus):
  secret = sys.stdin.readline().strip()
  sys.stdin.close()
  job = jobfolder.read_job(job_dir)
  jobfolder.append_progress(out, Progress('check', note='source'))
  result, arrays = JobResult(job.key, fingerprint='f', timing=Timing(wall_seconds=1.0)), {}
  try:
    scope = {'__name__': 'mixer', 'OUT': out, 'CORPUS': corpus, 'JOB': job_dir}
    exec(compile(job.source, 'mixer.py', 'exec'), scope)
    arrays = jobfolder.by_path({'params': {'w': np.asarray(scope['Mixer'](width=8, heads=2)(3.0))}})
    jobfolder.append_progress(out, Progress('train', 1, 1, 2.5))
  except Exception as error:
    failure = Failure('error', f'{type(error).__name__}: {error}', traceback.format_exc())
    result = JobResult(job.key, failure=failure, timing=Timing(wall_seconds=1.0))
  jobfolder.write_result(out, result, arrays, secret)


if __name__ == '__main__':
  main(*(argument.partition('=')[2] for argument in sys.argv[1:]))
