"""One of several workers without JAX: meets the others at the coordinator's port, then runs mixer.py.

The source finds PROCESS, PROCESSES, and `meet(value)`, which returns what all of them brought, in their order.
"""

import json
import socket
import sys
import time
import traceback

import numpy as np

from asiarch_jax.records import Failure, JobResult, Progress, Timing
from asiarch_jax.shell import jobfolder

LIMIT = 300


def meeting(coordinator, processes, process):
  """Returns the connections that `meet` uses: the first worker's to all others, theirs to it."""
  host, _, port = coordinator.rpartition(':')
  if process == 0:
    with socket.create_server(('', int(port))) as server:
      server.settimeout(LIMIT)
      found = {}
      while len(found) < processes - 1:
        file = server.accept()[0].makefile('rw')
        found[json.loads(file.readline())] = file
    return [found[number] for number in sorted(found)]
  until = time.monotonic() + LIMIT
  while True:
    try:
      file = socket.create_connection((host, int(port)), LIMIT).makefile('rw')
      break
    except ConnectionRefusedError:
      if time.monotonic() > until:
        raise
      time.sleep(0.1)
  print(json.dumps(process), file=file, flush=True)
  return [file]


def meet_of(files, process):
  def meet(value):
    if process:
      print(json.dumps(value), file=files[0], flush=True)
      return heard(files[0])
    brought = [value, *map(heard, files)]
    for file in files:
      print(json.dumps(brought), file=file, flush=True)
    return brought

  return meet


def heard(file):
  line = file.readline()
  if not line:
    raise ConnectionResetError('connection reset by peer')
  return json.loads(line)


def main(job_dir, out, corpus, coordinator, processes, process):
  secret = sys.stdin.readline().strip()
  processes, process = int(processes), int(process)
  job = jobfolder.read_job(job_dir)
  jobfolder.append_progress(out, Progress('check', note='source'))
  result, arrays = JobResult(job.key, fingerprint='f', timing=Timing(wall_seconds=1.0)), {}
  try:
    scope = {'__name__': 'mixer', 'PROCESS': process, 'PROCESSES': processes, 'CORPUS': corpus}
    scope['meet'] = meet_of(meeting(coordinator, processes, process), process)
    jobfolder.append_progress(out, Progress('train', 0, 1))
    exec(compile(job.source, 'mixer.py', 'exec'), scope)
    arrays = jobfolder.by_path({'met': np.asarray(scope.get('MET', []))})
  except Exception as error:
    failure = Failure('error', f'{type(error).__name__}: {error}', traceback.format_exc())
    result = JobResult(job.key, failure=failure, timing=Timing(wall_seconds=1.0))
  jobfolder.write_result(out, result, arrays, secret)


if __name__ == '__main__':
  main(*(argument.partition('=')[2] for argument in sys.argv[1:]))
