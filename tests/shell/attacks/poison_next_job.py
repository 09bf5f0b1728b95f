"""Leaves files in every folder it can write, for the next worker to find."""

import os

print('ATTACK')
for place in {OUT, os.environ['HOME'], os.environ['TMPDIR'], '/tmp', '/dev/shm', '/var/tmp', '/run', os.getcwd()}:
  path = os.path.join(place, 'asiarch_planted')
  if os.path.exists(path):
    print('BREACH found', path)
  try:
    with open(path, 'w') as file:
      file.write('planted')
  except OSError as error:
    print(error)


class Mixer:
  def __init__(self, width, heads):
    pass

  def __call__(self, x):
    return [x]
