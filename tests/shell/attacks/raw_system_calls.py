"""Goes round Python: opens a socket and a file by native code."""

import ctypes
import os
import socket
import struct

print('ATTACK')
libc = ctypes.CDLL(None, use_errno=True)
descriptor = libc.open(TARGET['file'].encode(), 0)
if descriptor >= 0:
  print('BREACH', os.read(descriptor, 64))
address = struct.pack('=HH4s8x', 2, socket.htons(TARGET['tcp']), bytes([127, 0, 0, 1]))
link = libc.socket(2, 1, 0)
if link >= 0 and libc.connect(link, address, 16) == 0:
  print('BREACH connected')


class Mixer:
  def __init__(self, width, heads):
    pass

  def __call__(self, x):
    return [x]
