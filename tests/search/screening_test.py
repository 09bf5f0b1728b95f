"""Which of several gated proposals is trained."""

import pytest

from asiarch_jax.search import screening
from asiarch_jax.search.screening import Screened


def test_the_best_by_most_measures_wins():
  rows = [Screened(2.0, 0.2, 100.0), Screened(1.8, 0.6, 90.0), Screened(1.9, 0.5, 200.0)]
  assert screening.best(rows) == 1 and screening.ranks(rows)[1] == 1.0


def test_each_measure_can_decide():
  same = Screened(2.0, 0.5, 100.0)
  assert screening.best([same, Screened(1.9, 0.5, 100.0)]) == 1
  assert screening.best([same, Screened(2.0, 0.6, 100.0)]) == 1
  assert screening.best([same, Screened(2.0, 0.5, 90.0)]) == 1


def test_scale_does_not_matter():
  rows = [Screened(2.0, 0.2, 1e9), Screened(1.0, 0.1, 1e3), Screened(1.5, 0.3, 1e6)]
  scaled = [Screened(r.loss * 1000, r.distance / 50, r.flops_per_token * 7) for r in rows]
  assert screening.ranks(rows) == screening.ranks(scaled)


@pytest.mark.parametrize('loss', [None, float('nan'), float('inf')])
def test_a_short_run_that_failed_comes_last_in_it(loss):
  assert screening.best([Screened(loss, 0.5, 100.0), Screened(9.0, 0.5, 100.0)]) == 1


def test_equals_go_to_the_earlier_and_nothing_to_choose_from_is_refused():
  assert screening.best([Screened(None, 0.5, 1.0)] * 3) == 0
  with pytest.raises(ValueError, match='no candidate'):
    screening.best([])
