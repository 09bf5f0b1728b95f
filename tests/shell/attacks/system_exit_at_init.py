"""Raises what `except Exception` does not catch, when it is built."""


class Mixer:
  def __init__(self, width, heads):
    print('ATTACK', flush=True)
    raise SystemExit(0)
