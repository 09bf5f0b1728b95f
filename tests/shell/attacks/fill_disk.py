"""Writes large files without end."""

print('ATTACK', flush=True)
for number in range(10_000):
  with open(f'{OUT}/{number}', 'wb') as file:
    file.write(b'x' * (1 << 20))


class Mixer:
  def __init__(self, width, heads):
    pass

  def __call__(self, x):
    return [x]
