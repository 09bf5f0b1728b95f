"""Puts a pipe, then a device, where its progress is read."""

import os
import time

print('ATTACK', flush=True)
os.unlink(f'{OUT}/progress.jsonl')
os.mkfifo(f'{OUT}/progress.jsonl')
time.sleep(0.3)
os.unlink(f'{OUT}/progress.jsonl')
os.symlink('/dev/zero', f'{OUT}/progress.jsonl')
time.sleep(0.3)
os.unlink(f'{OUT}/progress.jsonl')


class Mixer:
  def __init__(self, width, heads):
    pass

  def __call__(self, x):
    return [x]
