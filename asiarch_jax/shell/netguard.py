"""Holds a worker that needs its peers to those peers: its warden, outside the jail, makes every connection for it.

bubblewrap can share the host's network or withhold it, nothing between, and a filter of system calls sees the pointer
to an address, not the address. So `connect` is handed to the warden (seccomp's user notification, Linux 5.6), which
reads the address, and makes the connection itself on a copy of the socket when the address is a peer's: what the worker
writes into its memory meanwhile changes nothing. What needs no connection is refused by the filter: datagrams,
packets, unix sockets, protocols that name peers otherwise than by `connect` (SCTP), and data in an opening packet.

Standard library only, and imports nothing of the package: `confine.py` loads it by its path, and inside the jail it is
run as a script, `python -I -S netguard.py DESCRIPTOR COMMAND...`, which gives the listener away and becomes the
command.
"""

import array
import contextlib
import ctypes
import errno
import os
import platform
import select
import socket
import struct
import sys
import threading

# Numbers on (x86_64, aarch64).
CALLS = {
  'connect': (42, 203),
  'socket': (41, 198),
  'socketpair': (53, 199),
  'sendto': (44, 206),
  'sendmsg': (46, 211),
  'sendmmsg': (307, 269),
}
SECCOMP = (317, 277)
PIDFD_OPEN, PIDFD_GETFD = 434, 438  # the same everywhere
ARCHITECTURES = {'x86_64': 0, 'aarch64': 1}
ALLOW, ERRNO, NOTIFY = 0x7FFF0000, 0x00050000, 0x7FC00000
LOAD, EQUAL, ANY_BIT, AND, RETURN = 0x20, 0x15, 0x45, 0x54, 0x06  # ld abs, jeq, jset, and, ret
MODE_FILTER, NEW_LISTENER = 1, 8
RECEIVE, SEND, VALID = 0xC0502100, 0xC0182101, 0x40082102  # ioctls of the listener
NOTICE_BYTES = 80
FAST_OPEN = 0x20000000  # MSG_FASTOPEN: data in the packet that opens a connection
TYPE_BITS = 0xF  # of a socket's type; above them are flags
LOWEST_PORT = 1024  # below are the host's own services
ADDRESS_BYTES = 128


def program(machine=''):
  """Returns the filter as BPF, None where the architecture has no numbers here."""
  column = ARCHITECTURES.get(machine or platform.machine())
  if column is None:
    return None
  number = {name: pair[column] for name, pair in CALLS.items()}

  def argument(index):
    return (LOAD, 0, 0, 16 + 8 * index)

  refuse, allow = (RETURN, 0, 0, ERRNO | errno.EACCES), (RETURN, 0, 0, ALLOW)

  def when(name, lines):
    return [(EQUAL, 0, len(lines), number[name]), *lines]

  stream = [(AND, 0, 0, TYPE_BITS), (EQUAL, 0, 1, socket.SOCK_STREAM), allow, refuse]
  tcp = [
    (AND, 0, 0, TYPE_BITS),
    (EQUAL, 0, 4, socket.SOCK_STREAM),
    argument(2),
    (EQUAL, 1, 0, 0),
    (EQUAL, 0, 1, socket.IPPROTO_TCP),
    allow,
    refuse,
  ]
  lines = [
    (LOAD, 0, 0, 0),
    *when('connect', [(RETURN, 0, 0, NOTIFY)]),
    # TCP of either version; netlink, which tells the host's own addresses.
    *when(
      'socket',
      [
        argument(0),
        (EQUAL, 3, 0, socket.AF_INET),
        (EQUAL, 2, 0, socket.AF_INET6),
        (EQUAL, 0, 1 + len(tcp), socket.AF_NETLINK),
        allow,
        argument(1),
        *tcp,
      ],
    ),
    *when('socketpair', [argument(1), *stream]),
    *[
      line
      for name, index in (('sendto', 3), ('sendmsg', 2), ('sendmmsg', 3))
      for line in when(name, [argument(index), (ANY_BIT, 0, 1, FAST_OPEN), refuse, allow])
    ],
    allow,
  ]
  return b''.join(struct.pack('=HBBI', *line) for line in lines)


def defect():
  """Returns why connections cannot be held here, empty when they can."""
  if program() is None:
    return f'connections cannot be watched on {platform.machine()}'
  release = tuple(int(part) for part in platform.release().split('-')[0].split('.')[:2])
  return '' if release >= (5, 6) else f'connections cannot be watched under Linux {platform.release()}; 5.6 is needed'


# ---- inside the jail


def give_listener(descriptor):
  """Puts this process, and all that it becomes, under the filter; its listener goes through the socket `descriptor`."""
  text = program()
  buffer = ctypes.create_string_buffer(text, len(text))
  header = ctypes.create_string_buffer(struct.pack('=HxxxxxxQ', len(text) // 8, ctypes.addressof(buffer)))
  libc = ctypes.CDLL(None, use_errno=True)
  number = SECCOMP[ARCHITECTURES[platform.machine()]]
  listener = libc.syscall(number, MODE_FILTER, NEW_LISTENER, header)
  if listener < 0:
    sys.exit(f'connections cannot be watched: {os.strerror(ctypes.get_errno())}')
  with socket.socket(fileno=descriptor) as warden:
    warden.sendmsg([b'!'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [listener]))])
  os.close(listener)


def main(descriptor, *command):
  give_listener(int(descriptor))
  os.execv(command[0], command)


# ---- outside


def guard(channel, peers, forbidden):
  """Answers the connections of the worker whose listener arrives on `channel`, until the worker is gone.

  `peers` are IP addresses in text; no connection goes to one of the `forbidden` ports.
  """
  data, ancillary, _, _ = channel.recvmsg(1, socket.CMSG_SPACE(4))
  channel.close()
  if not data or not ancillary:
    return
  listener = array.array('i', ancillary[0][2][:4])[0]
  allowed = {binary(peer) for peer in peers}
  poll = select.poll()
  poll.register(listener, select.POLLIN)
  libc = ctypes.CDLL(None, use_errno=True)
  while True:
    if any(event & (select.POLLHUP | select.POLLERR | select.POLLNVAL) for _, event in poll.poll()):
      os.close(listener)
      return
    notice = ctypes.create_string_buffer(NOTICE_BYTES)
    if libc.ioctl(listener, ctypes.c_ulong(RECEIVE), notice) == 0:
      # A connection may take its time, and the next one must not wait for it.
      arguments = (libc, listener, notice.raw, allowed, frozenset(forbidden))
      threading.Thread(target=_answer, args=arguments, daemon=True).start()


def binary(address):
  """Returns an IP address as bytes, a mapped one as the IPv4 address that it is.

  Raises:
    OSError: it is none.
  """
  packed = socket.inet_pton(socket.AF_INET6 if ':' in address else socket.AF_INET, address)
  return packed[12:] if packed[:12] == bytes(10) + b'\xff\xff' else packed


def reached(address, allowed, forbidden):
  """Says whether a connection to a socket address (`struct sockaddr` as bytes) goes to a peer."""
  if len(address) < 8:
    return False
  family = struct.unpack_from('=H', address)[0]
  port = struct.unpack_from('!H', address, 2)[0]
  if family == socket.AF_INET:
    host = address[4:8]
  elif family == socket.AF_INET6 and len(address) >= 24:
    host = binary(socket.inet_ntop(socket.AF_INET6, address[8:24]))
  else:
    return False
  return host in allowed and port >= LOWEST_PORT and port not in forbidden


def _answer(libc, listener, notice, allowed, forbidden):
  identity, pid = struct.unpack_from('=QI', notice)
  descriptor, pointer, size = struct.unpack_from('=QQQ', notice, 32)
  try:
    error = _connected(libc, listener, identity, pid, descriptor, pointer, size, allowed, forbidden)
  except OSError as problem:
    error = problem.errno or errno.EACCES
  response = ctypes.create_string_buffer(struct.pack('=QqiI', identity, 0, -error, 0))
  libc.ioctl(listener, ctypes.c_ulong(SEND), response)  # fails where the worker is gone: nobody waits


def _connected(libc, listener, identity, pid, descriptor, pointer, size, allowed, forbidden):
  """Returns 0 when the worker's socket is connected, else the error of `connect`."""
  size = ctypes.c_uint32(size).value
  if size > ADDRESS_BYTES:
    return errno.EINVAL
  with contextlib.closing(open(f'/proc/{pid}/mem', 'rb', buffering=0)) as memory:
    memory.seek(pointer)
    address = memory.read(size)
  group = _group(pid)
  # The process that was read is the one that asks, and not one that got its number since.
  if libc.ioctl(listener, ctypes.c_ulong(VALID), ctypes.byref(ctypes.c_uint64(identity))) != 0:
    return errno.ENOENT
  if not reached(address, allowed, forbidden):
    return errno.EACCES
  holder = libc.syscall(PIDFD_OPEN, group, 0)
  if holder < 0:
    return ctypes.get_errno()
  copy = libc.syscall(PIDFD_GETFD, holder, ctypes.c_int(descriptor & 0xFFFFFFFF), 0)
  error = ctypes.get_errno()
  os.close(holder)
  if copy < 0:
    return error
  try:
    done = libc.connect(copy, address, len(address))
    return 0 if done == 0 else ctypes.get_errno()
  finally:
    os.close(copy)


def _group(pid):
  """Returns the process that a thread belongs to."""
  with open(f'/proc/{pid}/status') as status:
    return next(int(line.split()[1]) for line in status if line.startswith('Tgid:'))


if __name__ == '__main__':
  main(*sys.argv[1:])
