"""Takes memory in files without a name, which no process maps."""

import os
import time

print('ATTACK', flush=True)
for _ in range(200):
  descriptor = os.memfd_create('m')
  for _ in range(6):
    os.write(descriptor, b'x' * (1 << 20))
time.sleep(120)


class Mixer:
  def __init__(self, width, heads):
    pass

  def __call__(self, x):
    return [x]
