"""Asks for namespaces, mounts, another root, another user."""

import ctypes
import os
import pathlib

print('ATTACK', flush=True)
libc = ctypes.CDLL(None, use_errno=True)
for name in ('NEWUSER', 'NEWNS', 'NEWPID', 'NEWNET'):
  flag = {'NEWUSER': 0x10000000, 'NEWNS': 0x20000, 'NEWPID': 0x20000000, 'NEWNET': 0x40000000}[name]
  if libc.unshare(flag) == 0:
    print('BREACH unshare', name)
if libc.mount(b'none', OUT.encode(), b'tmpfs', 0, None) == 0:
  print('BREACH mount')
if libc.mount(b'/', OUT.encode(), None, 4096, None) == 0:
  print('BREACH bind')
if libc.chroot(OUT.encode()) == 0:
  print('BREACH chroot')
if os.getuid() != 0 and libc.setuid(0) == 0:
  print('BREACH setuid')
for number in (425, 321, 298, 323, 250):  # io_uring_setup, bpf, perf_event_open, userfaultfd, keyctl
  if os.uname().machine == 'x86_64' and libc.syscall(number, 0, 0, 0, 0, 0) >= 0:
    print('BREACH system call', number)
status = pathlib.Path('/proc/self/status').read_text()
if int(status.partition('CapEff:')[2].split()[0], 16):
  print('BREACH capabilities')


class Mixer:
  def __init__(self, width, heads):
    pass

  def __call__(self, x):
    return [x]
