"""Connects to a server on this host, and to the address that hands out cloud credentials."""

import socket

print('ATTACK')
for address in [('127.0.0.1', TARGET['tcp']), ('169.254.169.254', 80), ('8.8.8.8', 53)]:
  try:
    with socket.create_connection(address, timeout=1) as link:
      link.sendall(b'key')
      print('BREACH', address)
  except OSError as error:
    print(error)


class Mixer:
  def __init__(self, width, heads):
    pass

  def __call__(self, x):
    return [x]
