"""Jails for untrusted source: which ones work on this host, what they do not stop, and how a worker is started in one.

bubblewrap gives a worker its own process, network, mount and user namespaces; sandlock confines it by Landlock and
seccomp where namespaces are forbidden; `none` runs it with your rights. Nothing about a host is assumed: `available`
starts a process in each jail, and `weaknesses` lets one try what it must not be able to do.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import glob
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import platform
import shutil
import signal
import site
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from asiarch_jax import config
from asiarch_jax.shell import netguard, processes, seccomp

JAILS = ('bubblewrap', 'sandlock')  # best first
NOBODY = 65534
OWN_PACKAGES = ('asiarch_jax', 'pallas_kernels')
# What a program needs of /etc: how to link, and which locale and time.
SYSTEM_FILES = ('/etc/ld.so.cache', '/etc/ld.so.conf', '/etc/ld.so.conf.d', '/etc/alternatives', '/etc/localtime')
HOST_NAMES = ('/etc/hosts', '/etc/nsswitch.conf')
SYSTEM_FOLDERS = ('/usr', '/bin', '/sbin', '/lib', '/lib32', '/lib64', '/nix/store')
PROCESSORS = '/sys/devices/system/cpu'  # how many there are; the TPU compiler asks
DEVICES = ('/dev/null', '/dev/zero', '/dev/full', '/dev/random', '/dev/urandom')
ACCELERATORS = ('nvidia*', 'accel*', 'vfio', 'kfd', 'dri')
ACCELERATOR_VARIABLES = ('CUDA_', 'LD_LIBRARY_PATH', 'LIBTPU_INIT_ARGS', 'NVIDIA_', 'TPU_', 'XLA_PYTHON_CLIENT_')
SCRATCH_BYTES = 256 << 20  # of each memory file system inside bubblewrap
OPEN_FILES = 1024
# Threads reserve address space that they never touch: 8 MiB of stack and up to 64 MiB of allocator arena each.
ADDRESS_SLACK_BYTES = 12 << 30
PROBE_SECONDS = 20
CHANNEL = '{channel}'  # in a command: the descriptor by which a worker under bubblewrap hands over its connections
ADVICE = (
  'install one (`apt install bubblewrap`, or `pip install sandlock` on Linux 6.12 or newer), '
  'or accept with --config.runner.jail=none that proposed source runs with your rights'
)


@dataclasses.dataclass(frozen=True)
class Network:
  """What a worker may reach by TCP: the hosts of its peers, itself included, but for their own services."""

  own: str  # IP address of this host, as the peers know it
  peers: tuple[str, ...]  # IP addresses
  forbidden: tuple[int, ...] = ()  # ports of the controller; those below netguard.LOWEST_PORT are forbidden anyway


@dataclasses.dataclass(frozen=True)
class Cell:
  """What one worker may see and use. Paths are of the host; `packages` are the folders or files of Python source."""

  job: pathlib.Path
  out: pathlib.Path
  corpus: pathlib.Path | None
  packages: tuple[pathlib.Path, ...]
  settings: config.Runner
  wall_seconds: float
  python: str = sys.executable
  pinned: Mapping[str, str] = dataclasses.field(default_factory=dict)  # variables that name the worker's own devices
  network: Network | None = None  # of a worker that computes together with others

  def seen(self, jail: str) -> tuple[str, str, str]:
    """Returns the names that job, out and corpus have for the worker."""
    if jail == 'bubblewrap':
      return '/job', '/out', '/corpus' if self.corpus else ''
    return str(self.job), str(self.out), str(self.corpus or '')


def launch(jail: str, cell: Cell, arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
  """Returns the command and the whole environment that run `python *arguments` in a jail.

  The command must be started by the process that will wait for it: it ends when that thread does.
  """
  environment = _environment(jail, cell)
  worker = [cell.python, *arguments]
  specification: dict[str, Any] = {
    'jail': jail,
    'parent': os.getpid(),
    'limits': _limits(cell),
    'processes': cell.settings.processes,
    'directory': str(cell.out),
    'command': worker,
    'filter': '',
    'peers': cell.network.peers if cell.network else (),
    'forbidden': cell.network.forbidden if cell.network else (),
    'uid': 0,
    'readable': [],
    'writable': [],
  }
  if jail == 'bubblewrap':
    filter_ = seccomp.program()
    specification['filter'] = filter_.hex() if filter_ else ''
    specification['command'] = _bubblewrap(cell, environment, worker)
  elif jail == 'sandlock':
    specification['readable'] = [
      *_existing((*SYSTEM_FOLDERS, *SYSTEM_FILES)),
      '/proc',
      *_devices(cell),
      *_private(cell),
    ]
    specification['readable'] += _existing([str(cell.job / name) for name in ('job.json', 'mixer.py', 'lib')])
    if cell.network:
      specification['readable'] += _existing(HOST_NAMES)
    specification['writable'] = [str(cell.out), '/dev/null']
    if accelerators := _accelerators(cell):
      # A driver is asked through its device files, opened for reading and writing; CUDA does not start where it cannot
      # name its threads. The path is resolved in the worker: it is of that process alone.
      specification['writable'] += [*accelerators, '/proc/self/task']
    specification['uid'] = _spare_uid(cell)
  # -S: no site-packages, which would double the start; sandlock is one of them.
  flags = ['-I'] if jail == 'sandlock' else ['-I', '-S']
  script = str(pathlib.Path(__file__).with_name('confine.py'))
  return [sys.executable, *flags, script, json.dumps(specification)], environment


def _environment(jail: str, cell: Cell) -> dict[str, str]:
  """Returns all variables of a worker: an allow list, since a key may hide under any name."""
  settings = cell.settings
  roots = (
    [str(_linked_packages(cell))] if jail == 'sandlock' else list(dict.fromkeys(str(p.parent) for p in cell.packages))
  )
  out = cell.seen(jail)[1]
  environment = {
    'PATH': '/usr/bin:/bin',
    'HOME': out,
    'TMPDIR': '/tmp' if jail == 'bubblewrap' else out,
    'LANG': 'C.UTF-8',
    'PYTHONPATH': os.pathsep.join(roots),
    'PYTHONDONTWRITEBYTECODE': '1',
    'PYTHONUNBUFFERED': '1',
    'PYTHONNOUSERSITE': '1',
    'PYTHONHASHSEED': '0',
    'JAX_ENABLE_COMPILATION_CACHE': 'false',  # a shared one would let proposals poison each other's programs
    'TF_CPP_MIN_LOG_LEVEL': '2',
  }
  if settings.platform:
    # The gate runs on the processor; `worker.require_platform` sees that nothing else falls back to it.
    environment['JAX_PLATFORMS'] = ','.join(dict.fromkeys([*settings.platform.split(','), 'cpu']))
  flags = [*processor_flags(), *settings.xla_flags]  # the last of two that differ holds
  if settings.host_devices > 1:
    flags.append(f'--xla_force_host_platform_device_count={settings.host_devices}')
  if flags:
    environment['XLA_FLAGS'] = ' '.join(flags)
  if settings.platform != 'cpu':
    if settings.workers > 1 and not settings.devices:  # they share the accelerators: none may take the memory of all
      environment['XLA_PYTHON_CLIENT_PREALLOCATE'] = 'false'
    environment |= {name: value for name, value in os.environ.items() if name.startswith(ACCELERATOR_VARIABLES)}
  return environment | dict(cell.pinned)


def processor_flags() -> tuple[str, ...]:
  """Returns what XLA is told so that programs end on a processor, the gate's among them: one factorisation at a time.

  `factorisations` says why, and has the other half; it imports JAX, which the controller must not, so the version
  stands here, too.
  """
  version = tuple(map(int, importlib.metadata.version('jaxlib').split('.')[:2]))
  return ('--xla_cpu_enable_concurrency_optimized_scheduler=false',) if version < (0, 12) else ()


def _linked_packages(cell: Cell) -> pathlib.Path:
  """Returns a folder with a link to each package.

  Python lists the folders it imports from, and a worker under Landlock may list no parent of our packages: beside
  them may lie anything, such as a checkout with its keys.
  """
  folder = cell.job / 'lib'
  folder.mkdir(exist_ok=True)
  for package in cell.packages:
    link = folder / package.name
    link.unlink(missing_ok=True)
    link.symlink_to(package)
  return folder


def _limits(cell: Cell) -> dict[str, int]:
  """Returns the resource limits of each process. They hold when the controller is dead, too."""
  settings = cell.settings
  limits = {
    'RLIMIT_CORE': 0,
    'RLIMIT_FSIZE': int(settings.file_mib * 2**20),
    'RLIMIT_NOFILE': OPEN_FILES,
    'RLIMIT_CPU': int(cell.wall_seconds * (os.cpu_count() or 1)) + 10,
  }
  if settings.platform == 'cpu':  # accelerators map far more than they use
    limits['RLIMIT_AS'] = int(settings.memory_gib * 2**30) + ADDRESS_SLACK_BYTES
  return limits


def _bubblewrap(cell: Cell, environment: Mapping[str, str], worker: Sequence[str]) -> list[str]:
  job, out, corpus = cell.seen('bubblewrap')
  command = [
    shutil.which('bwrap') or 'bwrap',
    *('--unshare-all', '--unshare-user', '--uid', str(NOBODY), '--gid', str(NOBODY), '--disable-userns'),
    *('--cap-drop', 'ALL', '--die-with-parent', '--new-session', '--hostname', 'jail', '--clearenv'),
  ]
  if cell.network:
    command.append('--share-net')
  for name, value in environment.items():
    command += ['--setenv', name, value]
  for folder in SYSTEM_FOLDERS:
    if os.path.islink(folder):
      command += ['--symlink', os.readlink(folder), folder]
    elif os.path.isdir(folder):
      command += ['--ro-bind', folder, folder]
  size = ['--size', str(SCRATCH_BYTES)]
  command += ['--proc', '/proc', '--dev', '/dev', *size, '--tmpfs', '/dev/shm', *size, '--tmpfs', '/tmp']
  for path in (*_existing(SYSTEM_FILES), *_private(cell)):
    if not path.startswith('/usr/') and path != str(cell.corpus):
      command += ['--ro-bind', path, path]
  for device in _accelerators(cell):
    command += ['--dev-bind', device, device]
  for path in ['/sys'] if _accelerators(cell) else _existing([PROCESSORS]):
    command += ['--ro-bind', path, path]
  for name in ('job.json', 'mixer.py'):
    if (cell.job / name).exists():
      command += ['--ro-bind', str(cell.job / name), f'{job}/{name}']
  if cell.network:
    # There is no name server: a worker finds its own host's address under its own host's name.
    hosts = cell.job / 'hosts'
    hosts.write_text(f'127.0.0.1 localhost\n{cell.network.own} jail\n')
    command += ['--ro-bind', str(hosts), '/etc/hosts']
  command += ['--bind', str(cell.out), out]
  if cell.corpus:
    command += ['--ro-bind', str(cell.corpus), corpus]
  # The user of this process may own the kernel's settings: with root's id, though without its capabilities, a worker
  # could set the host's core_pattern. CUDA names its threads under /proc, and does not start where it cannot.
  if _accelerators(cell):
    for path in _kernel_settings():
      command += ['--ro-bind', path, path]
  else:
    command += ['--remount-ro', '/proc']
  # The device folder and the root are memory, too: without room for files.
  command += ['--remount-ro', '/dev', '--remount-ro', '/', '--chdir', out]
  # Processes are counted per user namespace, so the limit is set inside it; dash calls it -p, other shells -u.
  count = cell.settings.processes
  counted = f'ulimit -u {count} 2>/dev/null || ulimit -p {count} 2>/dev/null; exec "$@"'
  if cell.network:  # confine.py puts the number of its channel in
    worker = [cell.python, '-I', '-S', str(pathlib.Path(netguard.__file__).resolve()), CHANNEL, *worker]
  return [*command, '--', '/bin/sh', '-c', counted, 'sh', *worker]


def _private(cell: Cell) -> list[str]:
  """Returns what a worker reads beyond the system: the interpreter, its libraries, our source, the corpus."""
  paths = [*interpreter_folders(cell.python), *map(str, cell.packages)]
  return _existing((*paths, *([str(cell.corpus)] if cell.corpus else [])))


@functools.cache
def interpreter_folders(python: str) -> tuple[str, ...]:
  """Returns what an interpreter is made of: prefixes, site-packages outside them, and what its links lead through.

  A link may stand in a folder of much else, such as ~/bin: then it is the link alone, not what lies around it.
  """
  if python == sys.executable:
    prefixes, sites = (sys.prefix, sys.base_prefix), (*site.getsitepackages(), *sys.path)
  else:
    code = 'import json, site, sys; print(json.dumps([sys.prefix, sys.base_prefix, site.getsitepackages() + sys.path]))'
    said = subprocess.run([python, '-c', code], capture_output=True, text=True, check=True, timeout=60)
    *prefixes, sites = json.loads(said.stdout)
  packages = [path for path in sites if os.path.basename(path) in ('site-packages', 'dist-packages')]
  links = []
  link = python
  while os.path.islink(link):  # a venv's python may lead through a folder of versions
    link = os.path.normpath(os.path.join(os.path.dirname(link), os.readlink(link)))
    prefix = os.path.dirname(os.path.dirname(link))
    links.append(prefix if glob.glob(f'{glob.escape(prefix)}/lib/python3*/os.py') else link)
  folders: list[str] = []
  for path in (*prefixes, *map(os.path.realpath, prefixes), *links, *packages):
    inside = any(path == folder or path.startswith(f'{folder}/') for folder in (*folders, '/usr'))
    if not inside and path not in ('', '/') and (os.path.isdir(path) or path in links):
      folders.append(path)
  return tuple(folders)


@functools.cache
def packages_of(module: str) -> tuple[pathlib.Path, ...]:
  """Returns the folders (or single files) of our packages and of the one that holds `module`, links resolved.

  Raises:
    ModuleNotFoundError: there is no such module.
  """
  found = []
  for name in dict.fromkeys((module.partition('.')[0], *OWN_PACKAGES)):
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
      raise ModuleNotFoundError(f'{name!r}, which workers need, cannot be found from {os.getcwd()}')
    origin = pathlib.Path(spec.origin).resolve()
    found.append(origin.parent if origin.name == '__init__.py' else origin)
  return tuple(found)


def _existing(paths: Sequence[str]) -> list[str]:
  return [path for path in dict.fromkeys(paths) if os.path.exists(path)]


def _accelerators(cell: Cell) -> list[str]:
  if cell.settings.platform == 'cpu':
    return []
  return sorted(str(path) for pattern in ACCELERATORS for path in pathlib.Path('/dev').glob(pattern))


def _kernel_settings() -> list[str]:
  """Returns what there is under /proc that is of no process and may be written, folders included."""
  found = []
  with os.scandir('/proc') as entries:
    for entry in entries:
      if entry.name.isdecimal() or entry.is_symlink():  # a process's own; `self` and what leads there
        continue
      if entry.is_dir() or entry.stat().st_mode & 0o222:
        found.append(entry.path)
  return sorted(found)


def _devices(cell: Cell) -> list[str]:
  sys_folders = ['/sys'] if _accelerators(cell) else [PROCESSORS]
  return _existing((*DEVICES, *_accelerators(cell), *sys_folders))


def _spare_uid(cell: Cell) -> int:
  """Returns an id without rights for a worker of root, 0 where that id cannot read the interpreter."""
  if os.geteuid() != 0:
    return 0
  paths = [os.path.realpath(cell.python), *_private(cell), str(cell.job / 'job.json'), str(cell.out)]
  parents = {parent for path in paths for parent in pathlib.Path(path).resolve().parents}
  if all(os.stat(parent).st_mode & 0o001 for parent in parents):
    return NOBODY
  return 0


@functools.cache
def available(network: bool = False) -> tuple[str, ...]:
  """Returns the jails that work on this host, best first: each has just started an interpreter."""
  return tuple(jail for jail in JAILS if not defect(jail, network))


def defect(jail: str, network: bool = False) -> str:
  """Returns why a jail does not work here, empty when it does. With `network`, for a worker that needs its peers."""
  if not sys.platform.startswith('linux'):
    return f'{jail} needs Linux'
  if jail == 'bubblewrap' and network and netguard.defect():
    return f'{jail} cannot hold a worker to its peers: {netguard.defect()}'
  if jail == 'bubblewrap' and not shutil.which('bwrap'):
    return 'bubblewrap is not installed'
  if jail == 'sandlock' and importlib.util.find_spec('sandlock') is None:
    return 'sandlock is not installed'
  try:
    said = _run_inside(jail, ['-I', '-S', '-c', 'print(6 * 7)'], NOWHERE if network else None)
  except (OSError, subprocess.SubprocessError) as error:
    return f'{jail} does not start: {error}'
  if said.stdout.strip() != '42':
    return f'{jail} does not start: {(said.stderr or said.stdout).strip()[-300:] or f"status {said.returncode}"}'
  return ''


def choose(jail: str, network: bool = False) -> str:
  """Returns the jail to use for the setting `runner.jail`: auto, bubblewrap, sandlock or none.

  With `network`, for workers that compute together with others.

  Raises:
    RuntimeError: no jail works here, or the one asked for does not; says why and what to do.
  """
  if jail == 'none':
    return jail
  if jail != 'auto':
    why = defect(jail, network)
    if why:
      raise RuntimeError(f'runner.jail = {jail!r} cannot be had: {why}; {ADVICE}')
    return jail
  if available(network):
    return available(network)[0]
  whys = '; '.join(defect(one, network) for one in JAILS)
  raise RuntimeError(f'no jail works here ({whys}); {ADVICE}')


NOWHERE = Network('192.0.2.1', ('192.0.2.1',))  # an address for documentation (RFC 5737)
# Runs inside a jail. Each line of SENTENCES that it can do is a hole.
PROBE = """
import ctypes, errno, json, os, socket, sys
target = json.loads(sys.argv[1])
held = {}
def attempt(name, act):
  try:
    held[name] = bool(act())
  except BaseException:
    held[name] = False
def connects(family, address):
  with socket.socket(family, socket.SOCK_STREAM) as s:
    s.settimeout(1)
    s.connect(address)
    return True
def sends(address):
  with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    return s.sendto(target['word'].encode(), address) > 0
def binds():
  with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as s:
    try:
      s.bind(('127.0.0.1', target['port']))
    except OSError as error:
      return error.errno == errno.EADDRINUSE  # only a shared network knows that it is taken
    return False  # a network of its own
def writes(path):
  with open(path, 'r+') as f:
    return f.write('x') == 1
def creates(path):
  with open(path, 'w') as f:
    return f.write('x') == 1
def capabilities():
  line = next(l for l in open('/proc/self/status') if l.startswith('CapEff'))
  return int(line.split()[1], 16) != 0
attempt('tcp', lambda: connects(socket.AF_INET, ('127.0.0.1', target['port'])))
attempt('unix', lambda: connects(socket.AF_UNIX, target['unix']))
attempt('abstract', lambda: connects(socket.AF_UNIX, '\\0' + target['abstract']))
attempt('udp', lambda: sends(('127.0.0.1', target['udp'])))
attempt('bind', binds)
attempt('read', lambda: open(target['file']).read() == target['word'])
attempt('passwd', lambda: open('/etc/shadow').read() or open('/etc/passwd').read())
attempt('write', lambda: writes(target['file']))
attempt('library', lambda: creates(os.path.join(target['library'], 'asiarch_probe.py')))
attempt('signal', lambda: os.kill(target['pid'], 0) is None)
attempt('environ', lambda: target['word'] in open('/proc/%d/environ' % target['pid']).read())
attempt('settings', lambda: open('/proc/sys/kernel/core_pattern', 'r+').close() is None)
attempt('modes', lambda: os.chmod(target['file'], 0o600) is None)
attempt('list', lambda: os.path.exists('/proc/%d/stat' % target['pid']))
attempt('userns', lambda: ctypes.CDLL(None).unshare(0x10000000) == 0)
attempt('ptrace', lambda: ctypes.CDLL(None).ptrace(0, 0, 0, 0) == 0)
attempt('capabilities', capabilities)
attempt('root', lambda: os.getuid() == 0)
print(json.dumps(held))
"""
SENTENCES = {
  'tcp': 'connections to this host (TCP)',
  'udp': 'UDP packets',
  'bind': 'listening on a port',
  'unix': 'connections to local (unix) sockets',
  'abstract': 'connections to abstract unix sockets',
  'read': "reading this user's files",
  'passwd': 'reading /etc/passwd',
  'write': "changing this user's files",
  'library': 'changing the installed libraries',
  'signal': 'signals to other processes',
  'environ': "reading other processes' environment",
  'settings': "changing the kernel's settings",
  'modes': "changing the modes of this user's files",
  'list': 'seeing which processes run',
  'userns': 'making user namespaces',
  'ptrace': 'tracing processes',
  'capabilities': 'keeping administrator capabilities',
  'root': 'keeping user id 0',
}


def weaknesses(jail: str, network: bool = False) -> tuple[str, ...]:
  """Returns what a jail does not stop on this host, one phrase each, found by trying it from inside.

  With `network` the worker is one that may reach its peers: here none but a host that does not exist.
  """
  with contextlib.ExitStack() as stack:
    target = stack.enter_context(_targets())
    datagrams = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    datagrams.bind(('127.0.0.1', 0))
    target['udp'] = datagrams.getsockname()[1]
    said = _run_inside(jail, ['-I', '-S', '-c', PROBE, json.dumps(target)], NOWHERE if network else None)
    datagrams.setblocking(False)
    arrived = b''
    with contextlib.suppress(BlockingIOError):
      arrived = datagrams.recv(64)
    pathlib.Path(target['library'], 'asiarch_probe.py').unlink(missing_ok=True)
  try:
    held = json.loads(said.stdout)
  except ValueError as error:
    raise RuntimeError(f'the probe of {jail} gave no answer: {said.stderr[-300:]}; {ADVICE}') from error
  held['udp'] = arrived == target['word'].encode()
  wanted = ('bind',) if network else ()  # a peer is listened for
  found = [sentence for name, sentence in SENTENCES.items() if held[name] and name not in wanted]
  if jail == 'bubblewrap' and seccomp.program() is None:
    found.append(f'rare system calls (there is no filter for {platform.machine()})')
  return tuple(found)


@contextlib.contextmanager
def _targets() -> Iterator[dict[str, Any]]:
  """Yields what a probe tries to reach: a file, sockets, a process with a secret in its environment."""
  word = os.urandom(8).hex()
  with contextlib.ExitStack() as stack:
    folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix='asiarch-')))
    file = folder / 'file'
    file.write_text(word)
    addresses: list[tuple[socket.AddressFamily, Any]] = [
      (socket.AF_INET, ('127.0.0.1', 0)),
      (socket.AF_UNIX, str(folder / 'socket')),
      (socket.AF_UNIX, f'\0asiarch-{word}'),
    ]
    listening = []
    for family, address in addresses:
      one = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
      one.bind(address)
      one.listen()
      listening.append(one)
    victim = subprocess.Popen(['sleep', '60'], env={'PATH': os.defpath, 'SECRET': word})
    stack.callback(victim.wait)
    stack.callback(victim.kill)
    yield {
      'word': word,
      'file': str(file),
      'port': listening[0].getsockname()[1],
      'unix': str(folder / 'socket'),
      'abstract': f'asiarch-{word}',
      'pid': victim.pid,
      'library': str(pathlib.Path(__file__).parent),
    }


def _run_inside(
  jail: str, arguments: Sequence[str], network: Network | None = None
) -> subprocess.CompletedProcess[str]:
  """Returns the finished process `python *arguments` in a jail with an empty job."""
  with tempfile.TemporaryDirectory(prefix='asiarch-') as folder:
    out = pathlib.Path(folder, 'out')
    out.mkdir()
    settings = config.Runner(platform='cpu')
    cell = Cell(pathlib.Path(folder), out, None, packages_of('asiarch_jax'), settings, PROBE_SECONDS, network=network)
    command, environment = launch(jail, cell, arguments)
    with subprocess.Popen(
      command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
      cwd='/', start_new_session=True,
    ) as process:  # fmt: skip
      try:
        output, errors = process.communicate(timeout=PROBE_SECONDS)
      finally:
        processes.kill_family(process.pid)
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def status_text(status: int) -> str:
  """Returns an exit status in words; the warden says 128 + n after signal n."""
  if status > 128 or status < 0:
    number = -status if status < 0 else status - 128
    with contextlib.suppress(ValueError):
      return f'was ended by {signal.Signals(number).name}'
  return f'ended with status {status}'
