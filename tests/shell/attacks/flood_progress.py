"""Writes progress, valid and not, as fast as the disk takes it, in a file that stays small."""

print('ATTACK', flush=True)
lines = (
  b'{"stage": "flood", "step": 1}\n' * 1000
  + b'{"stage": '
  + b'[' * 100000
  + b'\n{"stage": "x", "loss": 1e999999}\n\xff\n'
)
with open(f'{OUT}/progress.jsonl', 'ab') as file:
  for _ in range(400):
    file.write(lines)
    file.flush()
    if file.tell() > 1 << 20:
      file.truncate(0)


class Mixer:
  def __init__(self, width, heads):
    pass

  def __call__(self, x):
    return [x]
