"""Listens where others could reach it. Only a shared network knows that the port is taken."""

import errno
import socket

print('ATTACK')
with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as link:
  try:
    link.bind(('127.0.0.1', TARGET['tcp']))
  except OSError as error:
    print('BREACH' if error.errno == errno.EADDRINUSE else 'held', error)


class Mixer:
  def __init__(self, width, heads):
    pass

  def __call__(self, x):
    return [x]
