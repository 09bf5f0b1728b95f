"""Forks twice into a session of its own, ignores what can be ignored, and pretends to be done."""

import os
import signal
import time

print('ATTACK', flush=True)
if os.fork() == 0:
  os.setsid()
  if os.fork() == 0:
    for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
      signal.signal(number, signal.SIG_IGN)
    time.sleep(120)
  os._exit(0)
time.sleep(0.3)


class Mixer:
  def __init__(self, width, heads):
    pass

  def __call__(self, x):
    return [x]
