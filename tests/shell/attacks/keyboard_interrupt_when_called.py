"""Pretends that the user pressed Ctrl-C."""


class Mixer:
  def __init__(self, width, heads):
    print('ATTACK', flush=True)

  def __call__(self, x):
    raise KeyboardInterrupt
