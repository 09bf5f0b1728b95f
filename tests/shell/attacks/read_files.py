"""Reads passwords, the user's files, and a process's files through /proc."""

import os
import pathlib

print('ATTACK')
paths = ['/etc/shadow', '/etc/passwd', '/root/.ssh', '/root/.bashrc', TARGET['file'], TARGET['folder']]
paths += [f'/proc/{TARGET["pid"]}/root{TARGET["file"]}', f'/proc/1/root{TARGET["file"]}', '/proc/1/root/etc/shadow']
paths += [f'{TARGET["repository"]}/{name}' for name in ('pyproject.toml', '.git', 'Makefile')]
for path in paths:
  try:
    found = os.listdir(path) if os.path.isdir(path) else pathlib.Path(path).read_text()
  except OSError as error:
    print(error)
  else:
    if found:
      print('BREACH', path)


class Mixer:
  def __init__(self, width, heads):
    pass

  def __call__(self, x):
    return [x]
