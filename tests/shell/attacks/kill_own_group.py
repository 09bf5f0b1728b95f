"""Kills its process group."""

import os
import signal

print('ATTACK', flush=True)
os.killpg(0, signal.SIGKILL)


class Mixer:
  def __init__(self, width, heads):
    pass

  def __call__(self, x):
    return [x]
