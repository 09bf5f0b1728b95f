"""Reads address zero."""

import ctypes


class Mixer:
  def __init__(self, width, heads):
    print('ATTACK', flush=True)

  def __call__(self, x):
    return ctypes.string_at(0)
