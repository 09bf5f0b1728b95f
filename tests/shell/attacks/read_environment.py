"""Looks for a key in its own environment."""

import os

print('ATTACK')
for name, value in os.environ.items():
  if TARGET['word'] in value:
    print('BREACH', name)


class Mixer:
  def __init__(self, width, heads):
    pass

  def __call__(self, x):
    return [x]
