"""Does nothing, for ever."""

import time

print('ATTACK', flush=True)
while True:
  time.sleep(1000)


class Mixer:
  def __init__(self, width, heads):
    pass

  def __call__(self, x):
    return [x]
