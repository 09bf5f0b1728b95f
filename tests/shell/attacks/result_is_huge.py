"""Writes a result that is a sparse gigabyte as far as it can."""

import os

print('ATTACK', flush=True)
with open(f'{OUT}/result.json', 'wb') as file:
  try:
    file.truncate(1 << 30)
  except OSError:
    file.truncate(7 << 20)
os._exit(0)


class Mixer:
  def __init__(self, width, heads):
    pass

  def __call__(self, x):
    return [x]
