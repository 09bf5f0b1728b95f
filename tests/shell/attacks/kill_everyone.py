"""Kills a bystander, the controller, its parent, and all that it may."""

import os
import signal

print('ATTACK', flush=True)
try:
  os.kill(TARGET['pid'], signal.SIGKILL)
  print('BREACH', flush=True)
  os._exit(0)  # the jail holds nothing: the rest would end the session of whoever runs this test
except OSError as error:
  print(error)
for pid in (TARGET['controller'], os.getppid(), -1):
  try:
    os.kill(pid, signal.SIGKILL)
  except OSError as error:
    print(error)


class Mixer:
  def __init__(self, width, heads):
    pass

  def __call__(self, x):
    return [x]
