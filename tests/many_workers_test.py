"""Twenty workers, each a process of its own, against one archive: nothing twice, nothing lost, whatever ends first."""

import functools
import json

import pytest

from asiarch_jax.shell import archive
from asiarch_jax.shell import runner as runners
from tests.cli import ROOT
from tests.cli import in_process as run

CYCLES, PLACES = 30, 20
ARGUMENTS = (
  '--config=configs/smoke.py', f'--cycles={CYCLES}', '--config.runner.jail=none', f'--config.runner.workers={PLACES}',
  f'--config.search.in_flight={PLACES}', '--config.evidence.floor=2', '--config.runner.memory_gib=1',
)  # fmt: skip


@pytest.mark.slow
def test_twenty_workers_fill_one_archive(monkeypatch, tmp_path, capsys):
  monkeypatch.syspath_prepend(str(ROOT / 'tests' / 'shell'))
  busy, most = set(), [0]

  class Local(runners.LocalRunner):
    def run(self, job, on_progress=None):
      busy.add(job.key)
      most[0] = max(most[0], len(busy))
      try:
        return super().run(job, on_progress)
      finally:
        busy.discard(job.key)

  monkeypatch.setattr(runners, 'LocalRunner', functools.partial(Local, worker_module='planted_worker'))
  status, _, error = run(capsys, 'search', *ARGUMENTS, f'--workdir={tmp_path}')
  assert status == 0, error
  assert most[0] >= 0.75 * PLACES, 'they did not work at once'
  with archive.OrbaxArchive.open_read_only(tmp_path) as kept:
    outcomes = kept.outcomes()
  assert [outcome.id for outcome in outcomes] == list(range(CYCLES))
  events = [json.loads(line) for line in (tmp_path / 'journal.jsonl').read_text().splitlines()]
  assert sorted(line['cycle'] for line in events if line['event'] == 'selected') == list(range(CYCLES))
  status, _, error = run(capsys, 'search', *ARGUMENTS, f'--workdir={tmp_path}')
  assert status == 0 and len(list((tmp_path / 'archive' / 'outcomes').iterdir())) == CYCLES, error
