"""What was measured on zero-shot tasks, kept beside the archive."""

import pytest

from asiarch_jax.records import ZeroShot, ZeroShotScore
from asiarch_jax.shell import zero_shot


def result(entry=0, limit=5, **values):
  scores = tuple(ZeroShotScore(task, 'acc', value, 0.1, 5, 0.5) for task, value in values.items())
  return ZeroShot(entry, 'm', limit, 48, 'stand-in', scores)


def test_what_was_measured_is_kept_and_measured_again_is_replaced(tmp_path):
  zero_shot.keep(tmp_path, result(a=0.1, b=0.2))
  zero_shot.keep(tmp_path, result(b=0.3, c=0.4))
  zero_shot.keep(tmp_path, result(limit=9, a=0.9))
  zero_shot.keep(tmp_path, result(entry=7, a=0.7))
  kept = zero_shot.of(tmp_path, 0)
  assert [(one.limit, [(s.task, s.value) for s in one.scores]) for one in kept] == [
    (5, [('a', 0.1), ('b', 0.3), ('c', 0.4)]),
    (9, [('a', 0.9)]),
  ]
  assert [one.entry for one in zero_shot.every(tmp_path)] == [0, 0, 7]
  assert zero_shot.of(tmp_path, 5) == [] and zero_shot.every(tmp_path / 'none') == []


def test_a_damaged_file_is_named(tmp_path):
  zero_shot.keep(tmp_path, result(a=0.1))
  (tmp_path / 'zero_shot/00000000.json').write_text('[{"entry": 0}]')
  with pytest.raises(ValueError, match=r'00000000.json cannot be read'):
    zero_shot.of(tmp_path, 0)
