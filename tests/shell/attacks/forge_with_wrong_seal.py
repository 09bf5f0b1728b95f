"""Seals a splendid result, with a secret of its own."""

import os

from asiarch_jax.records import JobResult
from asiarch_jax.shell import jobfolder

print('ATTACK', flush=True)

jobfolder.write_result(OUT, JobResult(jobfolder.read_job(JOB).key, fingerprint='splendid'), {}, 'ab' * 32)
os._exit(0)


class Mixer:
  def __init__(self, width, heads):
    pass

  def __call__(self, x):
    return [x]
