"""Stops and tortures whatever started it."""

import os
import signal

print('ATTACK', flush=True)
for pid in (os.getppid(), TARGET['pid']):
  for number in (signal.SIGSTOP, signal.SIGTERM, signal.SIGABRT):
    try:
      os.kill(pid, number)
      print('sent', pid, number)
    except OSError as error:
      print(error)


class Mixer:
  def __init__(self, width, heads):
    pass

  def __call__(self, x):
    return [x]
