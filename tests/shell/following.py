"""A follower as a process of its own: python -m tests.shell.following PORT HOST HOSTS JSON, settings of the runner."""

import json
import pathlib
import sys
import tempfile

from asiarch_jax import commands, config
from asiarch_jax.shell import follower as following
from asiarch_jax.shell import hosts


def main(port, host, hosts_, settings):
  sys.path.insert(0, str(pathlib.Path(__file__).parent))
  place = hosts.Place(int(host), int(hosts_), '127.0.0.1', int(port))
  with tempfile.TemporaryDirectory() as cache, commands.terminable():
    follower = following.Follower(
      place, config.Runner(**json.loads(settings)), pathlib.Path(cache), lambda content: None,
      lambda line: print(line, flush=True), worker_module='peer_worker',
    )  # fmt: skip
    try:
      return follower.follow()
    except KeyboardInterrupt:
      return commands.INTERRUPTED


if __name__ == '__main__':
  sys.exit(main(*sys.argv[1:]))
