"""Ends the process with status 0 in the middle of a call."""

import os


class Mixer:
  def __init__(self, width, heads):
    print('ATTACK', flush=True)

  def __call__(self, x):
    os._exit(0)
