"""Where a process stands among those that were started by the same command on several hosts.

The first host's process is the controller; all others reach it at one address. Who one is comes from the settings, or
from what started the command: JAX's own variables, a TPU slice's (set by GKE, and by launch/tpu_vm.sh), or Slurm's.
"""

from __future__ import annotations

import dataclasses
import re
import socket
from collections.abc import Mapping

from asiarch_jax import config

PORT = 8477  # of the controller, where none is given; JAX's coordinator takes 8476 and libtpu 8471 by default


@dataclasses.dataclass(frozen=True)
class Place:
  """One of `hosts`, counted from 0, and the address at which the first one listens."""

  host: int
  hosts: int
  controller: str
  port: int

  @property
  def leads(self) -> bool:
    return self.host == 0


def place(settings: config.Runner, environment: Mapping[str, str]) -> Place:
  """Returns this process's place: `runner.host`, `runner.hosts` and `runner.address`, else what the environment says.

  >>> place(config.Runner(), {'TPU_WORKER_ID': '1', 'TPU_WORKER_HOSTNAMES': '10.0.0.2,10.0.0.3'})
  Place(host=1, hosts=2, controller='10.0.0.2', port=8477)
  >>> place(config.Runner(), {'SLURM_PROCID': '3', 'SLURM_NTASKS': '4', 'SLURM_JOB_NODELIST': 'gpu[07-10]'}).controller
  'gpu07'

  Raises:
    ValueError: nothing says how many hosts there are, or the numbers make no sense.
  """
  host, hosts, address = _told(environment)
  host = settings.host if settings.host >= 0 else host
  hosts = settings.hosts or hosts
  address = settings.address or address
  if not hosts or host < 0 or not address:
    raise ValueError(
      'runner.kind = spmd, and nothing says which of how many hosts this is: start the command through launch/, or set '
      'JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or --config.runner.address=HOST:PORT of the '
      'first host, --config.runner.hosts=N and --config.runner.host=0 to N - 1'
    )
  if host >= hosts:
    raise ValueError(f'this is host {host} of {hosts}, and hosts count from 0; see runner.host and runner.hosts')
  name, colon, port = address.rpartition(':')
  if not colon or ']' in port or (':' in name and not name.startswith('[')):
    name, port = address, str(PORT)
  if not port.isdigit() or not 0 < int(port) < 1 << 16:
    raise ValueError(f'{address!r} is no address of the first host; give HOST or HOST:PORT')
  return Place(host, hosts, name.strip('[]'), int(port))


def _told(environment: Mapping[str, str]) -> tuple[int, int, str]:
  """Returns (host, hosts, address of the first) as the environment has them: -1, 0 and '' where it has none."""
  for host, hosts, address in (
    ('JAX_PROCESS_ID', 'JAX_NUM_PROCESSES', 'JAX_COORDINATOR_ADDRESS'),
    ('TPU_WORKER_ID', '', 'TPU_WORKER_HOSTNAMES'),
    ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_JOB_NODELIST'),
  ):
    if not environment.get(host) or not environment.get(address):
      continue
    told = environment[address]
    count = environment.get(hosts, '') if hosts else str(len(told.split(',')))
    if not environment[host].isdigit() or not count.isdigit():
      raise ValueError(f'{host} = {environment[host]!r} of {hosts or address} = {count!r}; both are whole numbers')
    first = told if hosts == 'JAX_NUM_PROCESSES' else first_host(told)
    return int(environment[host]), int(count), first
  return -1, 0, ''


def first_host(names: str) -> str:
  """Returns the first of a list of hosts, as TPU slices and Slurm write them.

  >>> first_host('node[001,007-015],other'), first_host('a,b'), first_host('rack[2-3]-n[1-4]')
  ('node001', 'a', 'rack2-n1')
  """
  head = re.match(r'(?:[^,\[]|\[[^\]]*\])*', names)
  assert head is not None
  return re.sub(r'\[([^\],-]+)[^\]]*\]', r'\1', head[0]).strip()


def address_of(name: str) -> str:
  """Returns a host's IP address.

  Raises:
    OSError: nobody knows the name.
  """
  return plain(str(socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)[0][4][0]))


def plain(address: str) -> str:
  """Returns an IP address without what IPv6 puts around an IPv4 address.

  >>> plain('::ffff:10.0.0.2'), plain('fe80::1%eth0')
  ('10.0.0.2', 'fe80::1')
  """
  return address.removeprefix('::ffff:').partition('%')[0]


def resolved(environment: Mapping[str, str]) -> dict[str, str]:
  """Returns the variables that name hosts, with IP addresses in place of names: a jailed worker cannot look one up.

  Raises:
    OSError: nobody knows a name.
  """
  names = environment.get('TPU_WORKER_HOSTNAMES', '')
  return {'TPU_WORKER_HOSTNAMES': ','.join(map(address_of, names.split(',')))} if names else {}
