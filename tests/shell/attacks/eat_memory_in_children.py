"""Takes memory in several processes, each below the limit."""

import os
import time

print('ATTACK', flush=True)
for _ in range(12):
  if os.fork() == 0:
    kept = bytearray(b'x' * (64 << 20))
    time.sleep(120)
time.sleep(120)


class Mixer:
  def __init__(self, width, heads):
    pass

  def __call__(self, x):
    return [x]
