"""A worker among peers, in each jail: it reaches them and nothing else."""

import contextlib
import errno
import json
import platform
import socket
import subprocess
import sys

import pytest

from asiarch_jax.shell import confine, netguard, sandbox

INSIDE = """
import errno, json, socket, sys
target = json.loads(sys.argv[1])
def tried(act):
  try:
    act()
    return 'done'
  except OSError as error:
    return 'refused' if error.errno in (errno.EACCES, errno.EPERM, errno.ECONNREFUSED) else repr(error)
def reach(address, port, family=socket.AF_INET, timeout=None):
  def act():
    with socket.socket(family) as one:
      one.settimeout(timeout)
      one.connect((address, port))
  return tried(act)
def pair():
  one, other = socket.socketpair()
  one.send(b'x')
  other.recv(1)
def fast():
  with socket.socket() as one:
    one.sendto(b'x', socket.MSG_FASTOPEN, ('127.0.0.2', target['other']))
own = socket.create_server(('', 0))
port = own.getsockname()[1]
print(json.dumps({
  'own': reach('127.0.0.1', port),
  'waiting': reach('127.0.0.1', port, timeout=5),
  'mapped': reach('::ffff:127.0.0.1', port, socket.AF_INET6),
  'peer': reach('127.0.0.1', target['peer']),
  'other': reach('127.0.0.2', target['other']),
  'own elsewhere': reach('127.0.0.2', port),
  'other mapped': reach('::ffff:127.0.0.2', target['other'], socket.AF_INET6),
  'metadata': reach('169.254.169.254', 80, timeout=2),
  'leader': reach('127.0.0.1', target['leader']),
  'service': reach('127.0.0.1', target['service']),
  'fast': tried(fast),
  'packet': tried(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', target['udp']))),
  'abstract': tried(lambda: socket.socket(socket.AF_UNIX).connect('\\0' + target['abstract'])),
  'pair': tried(pair),
}))
"""
REACHED = {'own', 'waiting', 'mapped', 'peer', 'pair'}


@pytest.fixture(scope='module', params=['bubblewrap', 'sandlock'])
def jail(request):
  why = sandbox.defect(request.param, network=True)
  if why:
    pytest.skip(f'{request.param} does not work here: {why}')
  return request.param


@pytest.mark.jail
def test_a_worker_reaches_its_peers_and_nothing_else(jail):
  with contextlib.ExitStack() as stack:
    places = {'peer': ('127.0.0.1', 0), 'other': ('127.0.0.2', 0), 'leader': ('127.0.0.1', 0)}
    listening = {name: stack.enter_context(socket.create_server(place)) for name, place in places.items()}
    target = {name: one.getsockname()[1] for name, one in listening.items()}
    target['service'] = 22
    with contextlib.suppress(OSError):  # only root may, and somebody may be there
      one = next(port for port in range(1010, 1020) if free(port))
      stack.enter_context(socket.create_server(('127.0.0.1', one)))
      target['service'] = one
    datagrams = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    datagrams.bind(('127.0.0.1', 0))
    target['udp'] = datagrams.getsockname()[1]
    unix = stack.enter_context(socket.socket(socket.AF_UNIX))
    target['abstract'] = f'asiarch-{target["udp"]}'
    unix.bind('\0' + target['abstract'])
    unix.listen()
    network = sandbox.Network('127.0.0.1', ('127.0.0.1',), (target['leader'],))
    said = sandbox._run_inside(jail, ['-I', '-S', '-c', INSIDE, json.dumps(target)], network)
    found = json.loads(said.stdout)
    datagrams.setblocking(False)
    with pytest.raises(BlockingIOError):
      datagrams.recv(1)
  assert {name for name, what in found.items() if what == 'done'} == REACHED, found


def free(port):
  with socket.socket() as one:
    return one.connect_ex(('127.0.0.1', port)) != 0


SOCKETS = """
import socket, sys
for family, kind, protocol in (
  (socket.AF_INET, socket.SOCK_STREAM, 0), (socket.AF_INET6, socket.SOCK_STREAM | socket.SOCK_CLOEXEC, 0),
  (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP), (socket.AF_NETLINK, socket.SOCK_RAW, 0),
  (socket.AF_INET, socket.SOCK_STREAM, 132), (socket.AF_INET6, socket.SOCK_STREAM, 132),  # SCTP
  (socket.AF_INET, socket.SOCK_SEQPACKET, 132), (socket.AF_INET, socket.SOCK_STREAM, 262),  # and several paths
  (socket.AF_INET, socket.SOCK_DGRAM, 0), (socket.AF_INET, socket.SOCK_RAW, 1), (socket.AF_UNIX, socket.SOCK_STREAM, 0),
):
  try:
    socket.socket(family, kind, protocol).close()
    print('made')
  except OSError as error:
    print(error.errno)
"""


@pytest.mark.jail
def test_sockets_are_tcps_or_ask_for_the_hosts_own_addresses():
  if netguard.defect():
    pytest.skip(netguard.defect())
  ours, theirs = socket.socketpair()
  with ours, theirs:
    command = [netguard.__file__, str(theirs.fileno()), sys.executable, '-I', '-S', '-c', SOCKETS]
    said = subprocess.run(
      [sys.executable, '-I', '-S', *command], pass_fds=[theirs.fileno()], capture_output=True, text=True, timeout=60
    )
  if 'connections cannot be watched' in said.stderr:
    pytest.skip(said.stderr)
  assert said.stdout.split() == [*['made'] * 4, *[str(errno.EACCES)] * 7], said


@pytest.mark.jail
def test_what_the_jail_does_not_stop_is_no_more_than_without_peers(jail):
  assert set(sandbox.weaknesses(jail, network=True)) <= set(sandbox.weaknesses(jail))


@pytest.mark.jail
def test_a_worker_without_peers_has_no_network(jail):
  code = 'import socket\ntry:\n  socket.create_connection(("127.0.0.1", 22), 2)\nexcept OSError as e:\n  print(e.errno)'
  assert sandbox._run_inside(jail, ['-I', '-S', '-c', code]).stdout.strip() in ('111', '13', '1', '101')


@pytest.mark.parametrize(
  'family, host, port, size, reached',
  [
    (socket.AF_INET, '10.0.0.2', 9000, 16, True),
    (socket.AF_INET, '10.0.0.3', 9000, 16, False),
    (socket.AF_INET, '10.0.0.2', 1023, 16, False),
    (socket.AF_INET, '10.0.0.2', 8477, 16, False),
    (socket.AF_INET, '169.254.169.254', 9000, 16, False),
    (socket.AF_INET6, 'fd00::2', 9000, 28, True),
    (socket.AF_INET6, 'fd00::3', 9000, 28, False),
    (socket.AF_INET6, '::ffff:10.0.0.2', 9000, 28, True),
    (socket.AF_INET6, '::ffff:169.254.169.254', 9000, 28, False),
    (socket.AF_INET6, 'fd00::2', 9000, 20, False),
    (socket.AF_UNIX, '10.0.0.2', 9000, 16, False),
    (socket.AF_UNSPEC, '10.0.0.2', 9000, 16, False),
  ],
)
def test_an_address_is_a_peers_or_is_not(family, host, port, size, reached):
  six = family == socket.AF_INET6
  packed = socket.inet_pton(socket.AF_INET6 if six else socket.AF_INET, host)
  address = int(family).to_bytes(2, 'little') + port.to_bytes(2, 'big') + (bytes(4) if six else b'') + packed
  allowed = {netguard.binary('10.0.0.2'), netguard.binary('fd00::2')}
  assert netguard.reached(address.ljust(28, b'\0')[:size], allowed, {8477}) is reached


@pytest.mark.parametrize(
  'peers, addresses, named',
  [
    (('10.0.0.2', '10.0.0.3'), ['10.0.0.2'], True),
    (('10.0.0.2',), ['127.0.1.1'], False),
    (('10.0.0.2',), ['10.0.0.2', '127.0.0.1'], False),
    (('10.0.0.2',), [], False),
    ((), ['10.0.0.2'], False),
  ],
)
def test_a_host_has_a_name_where_that_opens_no_more_than_peers(monkeypatch, peers, addresses, named):
  def looked_up(*_, **__):
    if not addresses:
      raise socket.gaierror(socket.EAI_AGAIN, 'nobody knows')
    return [(socket.AF_INET, socket.SOCK_STREAM, 6, '', (one, 0)) for one in addresses]

  monkeypatch.setattr(socket, 'getaddrinfo', looked_up)
  assert confine.own_name(peers) == (socket.gethostname() if named else None)


def test_an_architecture_without_numbers_is_said(monkeypatch):
  assert netguard.program('riscv64') is None and netguard.program('aarch64') and netguard.program('x86_64')
  monkeypatch.setattr(platform, 'machine', lambda: 'riscv64')
  assert netguard.defect() == 'connections cannot be watched on riscv64'


def test_a_kernel_that_is_too_old_is_said(monkeypatch):
  monkeypatch.setattr(platform, 'release', lambda: '5.4.0-1109-gcp')
  assert '5.6 is needed' in netguard.defect()
