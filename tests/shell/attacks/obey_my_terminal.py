"""Prints what a terminal obeys: clears it, renames it, hides text."""

print('ATTACK \033[2J\033]0;owned\007 \x9b31m', flush=True)
with open(f'{OUT}/progress.jsonl', 'a') as file:
  file.write('{"stage": "\\u001b[2J[red]x", "note": "\\u001b]0;owned\\u0007"}\n')
raise RuntimeError('\033[2J gone')


class Mixer:
  def __init__(self, width, heads):
    pass

  def __call__(self, x):
    return [x]
