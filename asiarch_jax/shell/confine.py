"""Starts a worker under limits, and stays as its warden. Run as a script, `python -I confine.py SPECIFICATION`.

Nothing of the package is imported by name: this runs before the jail closes and must start in milliseconds. The
specification is the JSON of `sandbox.launch`: the jail, the command, the resource limits, and for sandlock what may be
read and written. With bubblewrap this process becomes bubblewrap. With sandlock, without a jail, or where the worker
has peers to reach, it stays: it is the subreaper of all that the worker starts, ends it when the worker ends or when
the controller dies, and ends with the worker's status (128 + n after signal n).
"""

import contextlib
import ctypes
import importlib.machinery
import json
import os
import pathlib
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import types

PR_SET_PDEATHSIG, PR_CAPBSET_DROP, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 24, 36, 38
# Landlock rules over contents and names, not over modes, owners, times and attributes: those calls are refused.
UNGOVERNED = [
  *('chmod', 'fchmod', 'fchmodat', 'fchmodat2', 'chown', 'fchown', 'lchown', 'fchownat'),
  *('utime', 'utimes', 'utimensat', 'futimesat'),
  *('setxattr', 'lsetxattr', 'fsetxattr', 'removexattr', 'lremovexattr', 'fremovexattr'),
]
CAPABILITY_VERSION_3 = 0x20080522


def main(text):
  spec = json.loads(text)
  libc = ctypes.CDLL(None, use_errno=True)
  stays = spec['jail'] != 'bubblewrap' or spec['peers']
  libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM if stays else signal.SIGKILL, 0, 0, 0)
  if os.getppid() != spec['parent']:
    sys.exit('the controller ended while its worker was starting')
  for name, value in spec['limits'].items():
    kind = getattr(resource, name)
    hard = resource.getrlimit(kind)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))
  if not stays:
    command, _ = bubblewrap(spec)
    os.execv(command[0], command)
  libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
  processes = neighbour('processes')

  def end(*_):
    end_family(processes)
    os._exit(128 + signal.SIGTERM)

  signal.signal(signal.SIGTERM, end)
  if spec['jail'] == 'bubblewrap':
    status = among_peers(libc, spec)
  else:
    drop_privileges(libc, spec)
    status = under_sandlock(spec) if spec['jail'] == 'sandlock' else unjailed(libc, spec)
  signal.signal(signal.SIGTERM, signal.SIG_IGN)
  end_family(processes)
  os._exit(status)


def neighbour(name):
  """Returns a module of this folder, loaded by its path: the package is not on this script's path."""
  loader = importlib.machinery.SourceFileLoader(name, str(pathlib.Path(__file__).with_name(f'{name}.py')))
  module = types.ModuleType(name)
  sys.modules[name] = module  # dataclasses look their module up
  loader.exec_module(module)
  return module


def bubblewrap(spec):
  """Returns bubblewrap's command and the descriptors that it inherits: the system-call filter is a memory file."""
  command = spec['command']
  if not spec['filter']:
    return command, []
  descriptor = os.memfd_create('filter', 0)
  os.write(descriptor, bytes.fromhex(spec['filter']))
  os.lseek(descriptor, 0, os.SEEK_SET)
  return [command[0], '--seccomp', str(descriptor), *command[1:]], [descriptor]


def among_peers(libc, spec):
  """Returns the status of the worker in bubblewrap on the host's network, each of its connections made from here."""
  netguard = neighbour('netguard')
  command, inherited = bubblewrap(spec)
  here, there = socket.socketpair()
  command = [word.replace('{channel}', str(there.fileno())) for word in command]
  worker = subprocess.Popen(command, pass_fds=[*inherited, there.fileno()], preexec_fn=dying_with_this(libc))
  there.close()
  guard = threading.Thread(target=netguard.guard, args=(here, spec['peers'], spec['forbidden']), daemon=True)
  guard.start()
  return status_of(worker)


def drop_privileges(libc, spec):
  """As root: gives up the uid if another one can read what a worker needs, else every capability but the uid."""
  libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
  if os.geteuid() != 0:
    return
  if spec['uid']:
    os.setgroups([])
    os.setresgid(spec['uid'], spec['uid'], spec['uid'])
    os.setresuid(spec['uid'], spec['uid'], spec['uid'])
    return
  for capability in range(64):
    libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
  header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
  if libc.capset(header, (ctypes.c_uint32 * 6)()) != 0:
    sys.exit('capabilities could not be dropped')


def under_sandlock(spec):
  """Returns the status of the worker under Landlock and seccomp."""
  import sandlock

  hosts, name = spec['peers'], own_name(spec['peers'])
  settings = {
    'fs_readable': spec['readable'],
    'fs_writable': spec['writable'],
    'extra_deny_syscalls': UNGOVERNED,
    'max_processes': spec['processes'],
    'clean_env': False,
    'cwd': spec['directory'],
    'net_allow': [f'tcp://[{host}]:*' if ':' in host else f'tcp://{host}:*' for host in (*hosts, name) if host],
    'net_allow_bind': ['*'] if hosts else [],
    'net_deny': [
      f'{f"[{host}]" if ":" in host else host}:{",".join(map(str, (*range(1, 1024), *spec["forbidden"])))}'
      for host in hosts
    ],
  }
  try:
    child = sandlock.Sandbox(**settings, name=name).popen(spec['command'])
  except RuntimeError:
    if name is None:
      raise
    # Another worker of this host has the name: this one computes with its peers by what needs no look-up.
    child = sandlock.Sandbox(**settings).popen(spec['command'])
  results = []
  waiter = threading.Thread(target=lambda: results.append(child.wait()), daemon=True)
  waiter.start()
  while waiter.is_alive():
    waiter.join(0.5)  # returns at once when it ends; the timeout lets a signal handler run
  ended = results[0]
  if getattr(ended.reason, 'name', '') == 'KILLED':  # by SIGKILL, for which it names no signal
    return 128 + signal.SIGKILL
  return 128 + ended.signal if ended.signal > 0 else ended.exit_code & 255


def own_name(peers):
  """Returns this host's name where it stands for peers and nothing else, else None.

  Gloo looks up the name of its own host; sandlock shows a worker another one, and an /etc/hosts of the names that it
  may reach.
  """
  with contextlib.suppress(OSError):
    found = socket.getaddrinfo(socket.gethostname(), None, type=socket.SOCK_STREAM) if peers else []
    if found and {address[0] for *_, address in found} <= set(peers):
      return socket.gethostname()
  return None


def unjailed(libc, spec):
  """Returns the status of the worker without a jail."""
  return status_of(subprocess.Popen(spec['command'], cwd=spec['directory'], preexec_fn=dying_with_this(libc)))


def dying_with_this(libc):
  """Returns what a child calls so that it ends with its warden, however that ends."""
  return lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def status_of(process):
  """Waits for a process and returns its status, 128 + n after signal n."""
  status = process.wait()
  return status if status >= 0 else 128 - status


def end_family(processes):
  """Kills all that the worker left behind; this process is their subreaper."""
  while below := processes.family(os.getpid()):
    for one in below:
      with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(one.pid, signal.SIGKILL)
    time.sleep(0.002)


if __name__ == '__main__':
  main(sys.argv[1])
