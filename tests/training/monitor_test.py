import numpy as np
import pytest

from asiarch_jax import config
from asiarch_jax.training import monitor

SETTINGS = config.Training(steps=40, steps_per_call=10)  # four logs, the checkpoint is the second
BASELINE = (5.0, 4.0, 3.5, 3.2)
HEALTHY = np.array([[5.1, 4.9], [4.1, 4.2], [3.6, 3.4], [3.2, 3.3]])


def watch(limit=0.1, baseline=BASELINE, **rules):
  return monitor.Watch(config.Monitor(**rules), baseline, limit, SETTINGS)


def verdicts(losses, seconds, **options):
  asked = watch(**options)
  return [asked(losses[:n], seconds[:n]) for n in range(1, len(losses) + 1)]


def test_a_healthy_run_goes_on():
  assert verdicts(HEALTHY, [9.0, 0.05, 0.05, 0.05]) == [None] * 4


def test_no_baseline_and_no_limit_ask_nothing():
  assert verdicts(HEALTHY * 0.01, [9.0] * 4, limit=None, baseline=()) == [None] * 4


def test_one_living_replica_keeps_the_run():
  losses = HEALTHY.copy()
  losses[1:, 0] = np.nan
  assert verdicts(losses, [0.05] * 4) == [None] * 4


def test_all_diverged_is_non_finite_and_says_when():
  losses = HEALTHY.copy()
  losses[1:, 0], losses[2:, 1] = np.inf, np.nan
  found = verdicts(losses, [0.05] * 4)
  assert found[:2] == [None, None]
  assert found[2].kind == 'non_finite' and 'step 30' in found[2].reason


def test_a_loss_that_came_back_from_nan_has_diverged_all_the_same():
  losses = HEALTHY.copy()
  losses[0] = np.nan
  assert verdicts(losses, [0.05] * 4)[3].kind == 'non_finite'


def test_slow_for_long_is_too_slow():
  found = verdicts(HEALTHY, [0.05, 0.3, 0.2, 0.5])
  assert found[:3] == [None] * 3
  assert found[3].kind == 'too_slow' and '0.2 s a step' in found[3].reason and '0.1 s allowed' in found[3].reason


@pytest.mark.parametrize('seconds', [[9, 9, 9, 0.05], [9, 0.3, 0.05, 0.3], [9, 0.05, 0.3, 0.3]])
def test_the_first_call_and_a_hiccup_are_not_too_slow(seconds):
  assert verdicts(HEALTHY, seconds) == [None] * 4


def test_a_quarter_of_the_baseline_is_suspicious():
  losses = HEALTHY.copy()
  losses[1] = 0.9
  found = verdicts(losses, [0.05] * 4)
  assert found[0] is None and found[1].kind == 'suspiciously_low'
  assert '0.9000' in found[1].reason and '4.0000' in found[1].reason


def test_a_diverged_replica_does_not_hide_a_leak():
  losses = HEALTHY.copy()
  losses[1] = [np.nan, 0.5]
  assert verdicts(losses, [0.05] * 4)[1].kind == 'suspiciously_low'


def test_far_above_the_baseline_at_the_checkpoint_is_hopeless():
  losses = HEALTHY + 1.2
  found = verdicts(losses, [0.05] * 4)
  assert found[0] is None and found[1].kind == 'hopeless' and 'step 20' in found[1].reason
  assert found[2:] == [None, None], 'asked at the checkpoint only'


def test_one_promising_replica_is_hope():
  losses = HEALTHY + 1.2
  losses[:, 1] -= 1.2
  assert verdicts(losses, [0.05] * 4) == [None] * 4


@pytest.mark.parametrize(
  'losses, seconds, rule',
  [
    (HEALTHY, [0.3] * 4, {'too_slow': 0.0}),
    (HEALTHY * 0.01, [0.05] * 4, {'suspicious': 0.0}),
    (HEALTHY * 10, [0.05] * 4, {'hopeless': 0.0}),
  ],
)
def test_zero_switches_a_rule_off(losses, seconds, rule):
  assert any(verdicts(losses, seconds)), 'guilty with the rule on'
  assert verdicts(losses, seconds, **rule) == [None] * 4


def test_a_reason_is_one_the_archive_knows():
  with pytest.raises(ValueError, match='bored'):
    monitor.Stop('bored', 'no')
