"""Writes the accepted result of its own job, and of others, where the controller keeps them."""

import glob

print('ATTACK')
for folder in (JOB, f'{OUT}/..', *glob.glob(TARGET['jobs'] + '/*')):
  for name in ('done.json', 'arrays.npz', 'worker.json', 'lock', 'mixer.py'):
    try:
      with open(f'{folder}/{name}', 'w') as file:
        file.write('{"result": {"key": "x"}, "arrays_sha256": "", "limits": null}')
        print('wrote', folder, name)
    except OSError as error:
      print(error)


class Mixer:
  def __init__(self, width, heads):
    pass

  def __call__(self, x):
    return [x]
