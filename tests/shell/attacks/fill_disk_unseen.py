"""Writes into files that it has deleted."""

import os
import time

print('ATTACK', flush=True)
for _ in range(500):
  descriptor = os.open(f'{OUT}/x', os.O_CREAT | os.O_WRONLY)
  os.unlink(f'{OUT}/x')
  os.write(descriptor, b'x' * (1 << 20))
time.sleep(120)


class Mixer:
  def __init__(self, width, heads):
    pass

  def __call__(self, x):
    return [x]
