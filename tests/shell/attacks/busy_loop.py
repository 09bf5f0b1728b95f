"""Computes for ever, and cannot be interrupted."""

import signal

print('ATTACK', flush=True)
for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
  signal.signal(number, signal.SIG_IGN)
while True:
  pass


class Mixer:
  def __init__(self, width, heads):
    pass

  def __call__(self, x):
    return [x]
