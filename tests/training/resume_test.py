import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from asiarch_jax.shell.checkpoint import Checkpoint
from tests.marks import slow_but
from tests.training import tiny

ROOT = pathlib.Path(__file__).parents[2]


class KilledError(Exception):
  """Stands for the end of a process in the middle of a run."""


def batches(step):
  return tiny.copy_batch(step)


def killed_at(last):
  def until(step):
    if step >= last:
      raise KilledError
    return batches(step)

  return until


def trainer(**changes):
  return tiny.trainer(checkpoint_every=6, steps=24, **changes)


def same(one, other):
  np.testing.assert_array_equal(one.losses, other.losses)
  for left, right in zip(jax.tree.leaves(one.parameters), jax.tree.leaves(other.parameters), strict=True):
    np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize('last', slow_but([0, 13], [0, 7, 13, 20]))
def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path, last):
  whole = trainer().fit(batches)
  with Checkpoint(tmp_path / 'run') as checkpoint, pytest.raises(KilledError):
    trainer().fit(killed_at(last), save=checkpoint.save, restore=checkpoint.restore)
  asked = []
  with Checkpoint(tmp_path / 'run') as checkpoint:
    resumed = trainer().fit(
      lambda step: asked.append(step) or batches(step), save=checkpoint.save, restore=checkpoint.restore
    )
  same(resumed, whole)
  # A call is dispatched before the snapshot of the one before is due, so at most one period is done again.
  assert min(asked) == (last // 6) * 6 if last % 6 else min(asked) <= last


def test_saving_does_not_change_a_run(tmp_path):
  with Checkpoint(tmp_path / 'run') as checkpoint:
    saved = trainer().fit(batches, save=checkpoint.save)
  same(saved, trainer().fit(batches))
  assert len(list((tmp_path / 'run').iterdir())) == 1, 'only the newest snapshot is kept'


def test_a_finished_snapshot_of_another_run_is_refused(tmp_path):
  with Checkpoint(tmp_path / 'run') as checkpoint:
    trainer().fit(batches, save=checkpoint.save)
  other = tiny.trainer(tiny.Host(width=24), checkpoint_every=6, steps=24)
  with Checkpoint(tmp_path / 'run') as checkpoint, pytest.raises(ValueError, match='remove the folder'):
    other.fit(batches, restore=checkpoint.restore)


def test_an_empty_folder_starts_anew(tmp_path):
  with Checkpoint(tmp_path / 'run') as checkpoint:
    same(trainer().fit(batches, restore=checkpoint.restore), trainer().fit(batches))


KILL = """
import os, signal, sys
from asiarch_jax.shell.checkpoint import Checkpoint
from tests.training import tiny
checkpoint = Checkpoint(sys.argv[1])
def batches(step):
  if step == 15: os.kill(os.getpid(), signal.SIGKILL)
  return tiny.copy_batch(step)
tiny.trainer(checkpoint_every=6, steps=24).fit(batches, save=checkpoint.save)
"""


def test_a_killed_process_is_resumed_bit_for_bit(tmp_path):
  done = subprocess.run([sys.executable, '-c', KILL, str(tmp_path / 'run')], cwd=ROOT, timeout=120, capture_output=True)
  assert done.returncode == -9, done.stderr
  (tmp_path / 'run' / '999.orbax-checkpoint-tmp').mkdir()  # what a kill in mid-save leaves
  with Checkpoint(tmp_path / 'run') as checkpoint:
    resumed = trainer().fit(batches, restore=checkpoint.restore)
  same(resumed, trainer().fit(batches))
  assert not (tmp_path / 'run' / '999.orbax-checkpoint-tmp').exists()
