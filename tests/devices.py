"""Forced CPU devices for programs that a test starts."""

import os


def forced(count):
  """Returns the environment of a program that has so many CPU devices and compiles as this process does."""
  flags = f'{os.environ.get("XLA_FLAGS", "")} --xla_force_host_platform_device_count={count}'
  return os.environ | {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': flags.strip()}
