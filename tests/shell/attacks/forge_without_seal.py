"""Writes a splendid result itself, and is gone before the worker can write the true one."""

import json
import os

print('ATTACK', flush=True)
result = {'key': JOB, 'fingerprint': 'splendid'}
with open(f'{OUT}/result.json', 'w') as file:
  json.dump({'result': result, 'arrays_sha256': '', 'seal': ''}, file)
os._exit(0)


class Mixer:
  def __init__(self, width, heads):
    pass

  def __call__(self, x):
    return [x]
