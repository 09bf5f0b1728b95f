"""Puts a folder where the result belongs, so that the worker cannot write it."""

import os

print('ATTACK', flush=True)
os.makedirs(f'{OUT}/result.json/x')


class Mixer:
  def __init__(self, width, heads):
    pass

  def __call__(self, x):
    return [x]
