"""A search killed at any instant goes on as if nothing had happened."""

import json
import subprocess
import sys

import pytest

from tests.cli import ROOT


def killed_search(workdir, cycles, kills, seed=0):
  process = subprocess.run(
    [sys.executable, 'tests/killed_search.py', workdir, str(cycles), str(kills), str(seed)],
    cwd=ROOT, capture_output=True, text=True, timeout=280, check=False,
  )  # fmt: skip
  assert process.returncode == 0, process.stderr[-2000:]
  head, *outcomes = process.stdout.splitlines()
  return json.loads(head)['kills'], outcomes


@pytest.mark.slow
@pytest.mark.parametrize('kills_wanted, cycles', [(6, 20), pytest.param(20, 60, marks=pytest.mark.sweep)])
def test_an_archive_after_many_kills_equals_that_of_an_uninterrupted_search(tmp_path, kills_wanted, cycles):
  never, whole = killed_search(tmp_path / 'whole', cycles, 0)
  kills, mended = killed_search(tmp_path / 'killed', cycles, kills_wanted)
  assert (never, len(whole)) == (0, cycles)
  assert kills == kills_wanted, f'the search was done after {kills} kills; give it more cycles'
  assert mended == whole
