"""A training step waits for its input for less than a hundredth of its time."""

import json
import os
import subprocess
import sys

import pytest

from asiarch_jax.shell import corpus
from tests.cli import ROOT


@pytest.mark.sweep  # a share of a time: said by a benchmark, and no gate of a change
def test_input_takes_less_than_a_hundredth_of_a_step(tmp_path):
  corpus.prepare('docs', tmp_path / 'docs')
  done = subprocess.run(
    [sys.executable, '-m', 'tests.benchmarks.input', str(tmp_path / 'docs')],
    cwd=ROOT, capture_output=True, text=True, timeout=500, env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
  )  # fmt: skip
  found = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else done.stderr
  assert found['devices'] == 8 and found['share']['thread'] < 0.01, found


@pytest.mark.sweep
def test_an_exploration_waits_for_its_input_for_less_than_a_hundredth_of_a_step(tmp_path):
  corpus.prepare('docs', tmp_path / 'docs')
  done = subprocess.run(
    [sys.executable, '-m', 'tests.benchmarks.input', str(tmp_path / 'docs'), '--exploration'],
    cwd=ROOT, capture_output=True, text=True, timeout=500, env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
  )  # fmt: skip
  found = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else done.stderr
  assert found['tokens'] == 2**20 and found['wait'] < 0.01, found
