import dataclasses
import time

import numpy as np
import pytest

from asiarch_jax import records
from asiarch_jax.report import curve, figures
from asiarch_jax.report.drawing import svg
from tests import samples
from tests.marks import slow_but


def search(count, chance=0.1, seed=0, seconds=24.0):
  """Returns the baselines, which took an hour each, and `count` candidates of which a share is measured better."""
  rng = np.random.default_rng(seed)
  made, outcomes = samples.entry(3, analysed=False), []
  for outcome in samples.baselines():
    outcomes.append(dataclasses.replace(outcome, timing=records.Timing(accelerator_seconds=3600.0)))
  for id in range(3, 3 + count):
    low = 0.01 if rng.random() < chance else -0.02
    evidence = records.Evidence(low + 0.01, low, low + 0.02, 0.9, 4)
    timing = records.Timing(accelerator_seconds=seconds)
    outcomes.append(dataclasses.replace(made, id=id, evidence=evidence, timing=timing))
  return outcomes


@pytest.mark.parametrize('count', slow_but([0, 1, 2], [0, 1, 2, 2000]))
def test_any_number_of_outcomes_is_drawn_in_time(count):
  began = time.monotonic()
  for outcomes in (
    search(count),
    search(count)[3:],
    [samples.thought_of(o, np.random.default_rng(0)) for o in search(count)],
  ):
    found = curve.curves(outcomes)
    drawn = {
      each.compute.name: svg(figures.discoveries(each, 'delta_net', best=len(found) > 1)) for each in found.values()
    }
    text = curve.section(found, drawn)
    assert text.count('<svg') == len(found) and '>nan' not in text
  assert time.monotonic() - began < 60


def test_no_time_passes_while_a_baseline_is_measured():
  found = curve.curves(search(200))['seconds']
  assert found.spent[-1] == 3 * 3600 + 200 * 24
  assert found.clock[3] == 0 and found.clock[-1] == found.fitted.spent == 200 * 24
  assert found.fitted.fits[0].shape == 'linear' and not found.fitted.excluded
  at, lines = found.along(found.fitted.fits[0].band)
  assert at[0] * found.unit[0] == 3 * 3600 and at[-1] * found.unit[0] == pytest.approx(found.spent[-1])
  assert (np.diff(at) > 0).all() and all(line[0] == 0 for line in lines)
  assert lines[0][-1] == pytest.approx(found.counts.shown[-1], rel=1e-3)


def test_rates_are_told_in_the_unit_of_the_figure():
  found = curve.curves(search(600, seconds=36.0))
  (rate,) = next(fit.parameters for fit in found['seconds'].fitted.fits if fit.shape == 'linear')
  text = curve.section(found, {'discoveries': ''})
  assert f'rate {3600 * rate.value:.3g} per accelerator-hour' in text
  assert found['seconds'].unit == (3600.0, 'accelerator-hours')


def test_only_what_is_not_excluded_is_drawn_beside_the_best():
  found = curve.curves(search(300))['seconds']
  assert found.drawn[0].shape == 'linear' and len(found.drawn) == 3 - len(found.fitted.excluded)
  assert curve.curves(search(3, chance=1.0))['seconds'].drawn == ()


def test_named_entries_count_and_no_others():
  outcomes = search(50)
  found = curve.curves(outcomes, {4, 5, 6, 7, 8})['seconds']
  assert found.fitted.events == 5 and found.claimed and found.brief == 'confirmed'
  assert not curve.curves(outcomes, ())['seconds'].fitted.events
