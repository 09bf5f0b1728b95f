"""Looks for a key in the environment of every process, parents first."""

import os

print('ATTACK')
for pid in [os.getppid(), TARGET['pid'], TARGET['controller'], *filter(str.isdigit, os.listdir('/proc'))]:
  try:
    with open(f'/proc/{pid}/environ') as file:
      if TARGET['word'] in file.read():
        print('BREACH environment of', pid)
  except OSError as error:
    print(error)


class Mixer:
  def __init__(self, width, heads):
    pass

  def __call__(self, x):
    return [x]
