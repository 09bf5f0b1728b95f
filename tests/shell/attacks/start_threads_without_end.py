"""Starts threads until none can be started, then waits."""

import threading
import time

print('ATTACK', flush=True)
while True:
  try:
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
  except RuntimeError:
    time.sleep(0.1)


class Mixer:
  def __init__(self, width, heads):
    pass

  def __call__(self, x):
    return [x]
