"""Writes one file without end."""

print('ATTACK', flush=True)
with open(f'{OUT}/big', 'wb') as file:
  while True:
    file.write(b'x' * (1 << 20))


class Mixer:
  def __init__(self, width, heads):
    pass

  def __call__(self, x):
    return [x]
