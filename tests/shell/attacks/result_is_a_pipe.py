"""Lets whoever reads the result wait for ever."""

import os

print('ATTACK', flush=True)
os.mkfifo(f'{OUT}/result.json')
os._exit(0)


class Mixer:
  def __init__(self, width, heads):
    pass

  def __call__(self, x):
    return [x]
