"""`asiarch plan`: a training step compiled for slices that are not there."""

import dataclasses
import doctest
import importlib.util
import json

import pytest

from asiarch_jax.commands import planning
from asiarch_jax.records import Bound, Collective, Plan
from tests.cli import asiarch, in_process

PLAN = Plan(
  'v5e:4x4', 'TPU v5 lite', 16, (1, 16, 1), 1, 2, 1_384_960, 16_619_528, 16_628_224, 6_999_552, 23_628_800, 16 << 30,
  5.3e9, 1_113_243, 39_291_995, (Collective('all-reduce', 2, 5_539_848),),
  (Bound('FLOPs at the peak', 5.3e9 / 197e12), Bound("the compiler's cycles outside kernels", 1_113_243 / 1.5e9)), 19.4,
)  # fmt: skip
SMALL = (
  '--config=configs/smoke.py', '--config.model.width=256', '--config.model.mlp_width=512', '--config.training.seeds=1',
  '--config.training.batch=16', '--config.training.length=128',
)  # fmt: skip
needs_compiler = pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None, reason="the TPU compiler is not installed: pip install 'asiarch-jax[aot]'"
)


def planned(tmp_path, *arguments, topology='v5e:4x4'):
  done = asiarch(
    'plan', 'delta_net', *SMALL, f'--topology={topology}', f'--workdir={tmp_path}', '--json', *arguments, timeout=600
  )
  return done.returncode, json.loads(done.stdout)


@needs_compiler
def test_a_slice_is_planned_without_one(tmp_path):
  status, found = planned(tmp_path)
  assert status == 0, found['failure']
  plan = found['plan']
  assert (plan['devices'], plan['mesh'], plan['rows'], plan['memory']) == (16, [1, 16, 1], 1, 16 << 30)
  assert plan['state'] == pytest.approx(12 * plan['parameters'], rel=1e-3), 'parameters and two moments in float32'
  assert 0 < plan['state'] <= plan['arguments'] < plan['peak'] < plan['memory']
  gradients = next(one for one in plan['collectives'] if one['kind'] == 'all-reduce')
  assert gradients['size'] >= 4 * plan['parameters']
  assert plan['flops'] > 6 * 128 * plan['parameters'] / 2 and plan['cycles'] > 0
  assert len(plan['bounds']) == 3 and all(0 < bound['seconds'] < 1 for bound in plan['bounds'])

  shared, found = planned(tmp_path, "--config.training.sharded=('mlp/.*kernel$ fsdp,-',)")
  assert shared == 0, found['failure']
  rest = 12 * 3 * 256 * 512  # of the feed-forward: a sixteenth of it stays
  assert found['plan']['state'] == pytest.approx(plan['state'] - rest * 15 / 16, rel=1e-3)
  assert 'all-gather' in {one['kind'] for one in found['plan']['collectives']}


@needs_compiler
def test_what_does_not_fit_is_said(tmp_path):
  status, found = planned(tmp_path, '--config.training.batch=262144', topology='v5e:2x2')
  assert status == 1 and found['failure']['kind'] == 'memory' and found['plan'] is None
  assert 'exceeds available HBM (15.75G)' in found['failure']['reason']


@needs_compiler
def test_a_slice_that_cannot_be_is_said(tmp_path):
  status, found = planned(tmp_path, topology='v5e:3x7')
  assert status == 1 and "'v5e:3x7' is no topology that libtpu knows, such as" in found['failure']['reason']


@needs_compiler
def test_rows_that_do_not_come_out_are_said_in_a_sentence(tmp_path):
  status, found = planned(tmp_path, '--config.training.microbatches=4')
  assert status == 1 and 'Traceback' not in found['failure']['log'], found
  assert found['failure']['reason'].startswith('training.microbatches = 4 does not divide the 1 rows of a device')
  assert found['failure']['reason'].endswith('lower it to a divisor of 1')


def test_without_the_compiler_it_is_said_how_to_get_it(monkeypatch, capsys):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name, *_: None)
  status, _, said = in_process(capsys, 'plan', 'delta_net', '--topology=v5e:4x4')
  assert status == 2 and "pip install 'asiarch-jax[aot]'" in said


def test_a_plan_is_told_with_its_bounds_and_what_they_are():
  told = dict(planning.rows(PLAN))
  assert told['memory'] == '22.53 MiB of 16.00 GiB a device, 6.68 MiB of it temporary'
  assert told['exchange'] == 'all-reduce: 2 a step, 5.28 MiB' and 'tight' not in told
  assert told['static time'].startswith("0.7422 ms a step at least, by the compiler's cycles outside kernels")
  full = dataclasses.replace(PLAN, peak=15 << 30, collectives=())
  assert 'training.microbatches' in dict(planning.rows(full))['tight']
  assert dict(planning.rows(full))['exchange'] == 'none'


def test_the_examples_in_docstrings_hold():
  assert doctest.testmod(planning).failed == 0
