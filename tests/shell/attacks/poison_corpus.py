"""Writes into the token array that all workers read."""

import os

print('ATTACK')
for path in (f'{CORPUS}/card.json', f'{CORPUS}/planted'):
  try:
    with open(path, 'r+' if os.path.exists(path) else 'w') as file:
      file.write('planted')
  except OSError as error:
    print(error)


class Mixer:
  def __init__(self, width, heads):
    pass

  def __call__(self, x):
    return [x]
