"""The command line as a user runs it, for tests."""

import os
import pathlib
import subprocess
import sys

from asiarch_jax import main

ROOT = pathlib.Path(__file__).parents[1]


def asiarch(*arguments, timeout=300, **options):
  """Runs the command line as a user does, in a process of its own."""
  return subprocess.run(
    [sys.executable, '-m', 'asiarch_jax.main', *map(str, arguments)],
    cwd=ROOT, capture_output=True, text=True, timeout=timeout, env={**os.environ, 'COLUMNS': '160'}, **options,
  )  # fmt: skip


def in_process(capsys, *arguments):
  """Returns status, standard output and standard error of a command that runs in this process."""
  status = main.main([str(argument) for argument in arguments])
  captured = capsys.readouterr()
  return status, captured.out, captured.err
