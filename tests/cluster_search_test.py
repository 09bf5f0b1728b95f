"""A whole search whose jobs run on a Ray cluster; needs Ray (make cluster)."""

import json

import pytest

from tests.cli import asiarch

pytest.importorskip('ray', reason='the extra [cluster] is not installed: make cluster')


def test_a_search_runs_on_the_cluster_of_this_machine(tmp_path):
  process = asiarch(
    'search', '--config=configs/smoke.py', f'--workdir={tmp_path}', '--config.runner.kind=cluster',
    '--config.runner.address=local', '--config.runner.workers=2', '--config.search.in_flight=2', '--cycles=5', '--json',
    timeout=900,
  )  # fmt: skip
  assert process.returncode == 0, process.stderr
  outcomes = json.loads(process.stdout)['outcomes']
  assert len(outcomes) == 5 and sum(one['outcome'] == 'Entry' for one in outcomes) >= 3
  again = asiarch('search', '--config=configs/smoke.py', f'--workdir={tmp_path}', '--cycles=5')  # without a cluster
  assert again.returncode == 0 and 'nothing to add' in again.stdout


def test_an_address_without_a_cluster_is_said(tmp_path):
  process = asiarch(
    'search', '--config=configs/smoke.py', f'--workdir={tmp_path}', '--config.runner.kind=cluster',
    '--config.runner.address=127.0.0.1:1',
  )  # fmt: skip
  assert process.returncode == 2, process.stderr
  assert '127.0.0.1:1' in process.stderr and 'Traceback' not in process.stderr
