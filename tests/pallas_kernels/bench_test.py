"""The static bench: what it reads out of dumps; and the gate: every kernel compiles for every chip."""

import itertools
import json
import os
import subprocess
import sys

import pytest

from pallas_kernels import bench, chips, schedules


def test_kernels_are_read_from_a_dump(tmp_path):
  stem = '17-delta_rule_forward_scalar.1'
  (tmp_path / f'{stem}-03-final_bundles.txt').write_text('iteration_bounds: (1, 2, 64)')
  (tmp_path / f'{stem}-02-schedule-analysis_final_bundles.txt').write_text(
    'total scheduled bundles:    40\ncustom_call_target="tpu_custom_call"'
  )
  (tmp_path / f'{stem}-01-final_hlo-static-per-bundle-utilization.txt').write_text(
    '== CAPACTIY:\nMXU, VALU\n    2     4\n== UTILIZATION:\n1 2\n0 3\n'
  )
  (kernel,) = schedules.dumped_kernels(tmp_path)
  assert kernel == schedules.Kernel(
    'delta_rule_forward_scalar.1', 40, 128, {'MXU': 1, 'VALU': 5}, {'MXU': 2, 'VALU': 4}
  )
  traffic = schedules.Traffic(64 * 16, 1640 * 10**6, 3280 * 10**6)
  estimate = bench.Estimate(bench.Case('pallas_tpu', 'scalar', T=64, HV=16), 'v6e', (kernel,), traffic)
  assert estimate.row()['kernel_bundles_per_token_head'] == 5.0
  assert estimate.row()['xla_cycles_per_token_head'] == 1.0
  assert estimate.row()['memory_ms'] == 3.0
  assert 'static estimate' in bench.table([estimate])


def test_without_the_compiler_it_says_what_to_install(monkeypatch, capsys):
  monkeypatch.setattr(bench.importlib.util, 'find_spec', lambda name: None)
  assert bench.main(['--static']) == 2
  assert '[aot]' in capsys.readouterr().err


SAMPLE = {
  ('v6e', 'scalar', 'packed', False, False), ('v5e', 'channel', 'grouped', True, False),
  ('v4', 'channel', 'packed', True, False), ('v6e', 'scalar', 'plain', True, True),
}  # fmt: skip
KINDS = list(itertools.product(chips.CHIPS, ('none', 'scalar', 'channel'), ('plain', 'packed', 'grouped')))
GATE = [
  pytest.param(*kind, *how, marks=[] if (*kind, *how) in SAMPLE else [pytest.mark.sweep])
  for kind in KINDS
  for how in ((False, False), (True, False), (True, True))
]
HEADS = [(32, 32), (64, 64), (128, 128), (256, 64), (32, 256), (256, 256)]

COMPILE = """
import json, sys
from pallas_kernels import bench, schedules
wanted = json.loads(sys.argv[1])
assert 'tpu_custom_call' in bench.compile_for(bench.Case(**wanted['case']), wanted['chip'], wanted['sharded']).as_text()
"""


needs_compiler = pytest.mark.skipif(bench.missing_compiler() is not None, reason=str(bench.missing_compiler()))


def compiles(chip, sharded, **case):
  wanted = json.dumps({'case': {'source': 'pallas_tpu', **case}, 'chip': chip, 'sharded': sharded})
  environment = {**os.environ, **chips.AOT_ENVIRONMENT}
  done = subprocess.run([sys.executable, '-c', COMPILE, wanted], env=environment, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr[-2000:]


@needs_compiler
@pytest.mark.parametrize('chip, decay, form, backward, sharded', GATE)
def test_kernels_compile_ahead_of_time(chip, decay, form, backward, sharded):
  compiles(chip, sharded, decay=decay, form=form, backward=backward, B=8, T=256)


@needs_compiler
@pytest.mark.sweep
@pytest.mark.parametrize('chip', ['v4', 'v5e'])
@pytest.mark.parametrize('decay', ['scalar', 'channel'])
@pytest.mark.parametrize('dtype', ['bfloat16', 'float32'])
@pytest.mark.parametrize('K, V', HEADS)
def test_heads_of_every_size_fit_the_memory_of_the_chip(chip, decay, dtype, K, V):
  compiles(chip, False, decay=decay, form='packed', backward=True, T=256, K=K, V=V, dtype=dtype)
