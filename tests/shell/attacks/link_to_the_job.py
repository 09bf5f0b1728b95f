"""Gives files of others a second name inside its own folder."""

import os

print('ATTACK', flush=True)
for path in (f'{JOB}/mixer.py', f'{JOB}/job.json', f'{CORPUS}/card.json', TARGET['file'], '/etc/hostname'):
  try:
    os.link(path, f'{OUT}/result.json')
    print('BREACH', path)
  except OSError as error:
    print(error)


class Mixer:
  def __init__(self, width, heads):
    pass

  def __call__(self, x):
    return [x]
