"""Makes empty files without end."""

print('ATTACK', flush=True)
number = 0
while True:
  open(f'{OUT}/{number}', 'w').close()
  number += 1


class Mixer:
  def __init__(self, width, heads):
    pass

  def __call__(self, x):
    return [x]
