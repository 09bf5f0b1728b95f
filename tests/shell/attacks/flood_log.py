"""Prints 64 MiB, to both streams and without a line end."""

import os

print('ATTACK', flush=True)
for descriptor in (1, 2):
  for _ in range(512):
    os.write(descriptor, b'x' * (1 << 16))
os.write(1, b'the end')


class Mixer:
  def __init__(self, width, heads):
    pass

  def __call__(self, x):
    return [x]
