"""What `make test` leaves to `make slow`, which CI runs, too."""

from collections.abc import Collection, Iterable

import pytest


def slow_but(kept: Collection, values: Iterable) -> list:
  """Returns the values of a parametrised test: those of `kept` are tried by `make test`, the others are slow."""
  values = list(values)
  assert all(value in values for value in kept), f'{kept} are not all among {values}'
  return [
    value if value in kept else pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.slow)
    for value in values
  ]
