"""Lets the worker write its result, but not end: a thread that is no daemon, and an exit handler that waits."""

import atexit
import threading
import time

print('ATTACK', flush=True)
threading.Thread(target=time.sleep, args=(1000,)).start()
atexit.register(time.sleep, 1000)


class Mixer:
  def __init__(self, width, heads):
    pass

  def __call__(self, x):
    return [x]
