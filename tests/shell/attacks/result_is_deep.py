"""Writes JSON that a parser by recursion does not survive."""

import os

print('ATTACK', flush=True)
with open(f'{OUT}/result.json', 'w') as file:
  file.write('[' * 1_000_000)
os._exit(0)


class Mixer:
  def __init__(self, width, heads):
    pass

  def __call__(self, x):
    return [x]
