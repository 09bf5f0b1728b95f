"""Connects to local sockets, by path and by abstract name."""

import socket

print('ATTACK')
for address in (TARGET['unix'], chr(0) + TARGET['abstract'], '/run/docker.sock', '/var/run/docker.sock'):
  try:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
      link.connect(address)
      print('BREACH', address)
  except OSError as error:
    print(error)


class Mixer:
  def __init__(self, width, heads):
    pass

  def __call__(self, x):
    return [x]
