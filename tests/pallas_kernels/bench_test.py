"""The static bench: what it reads out of dumps and HLO; and the gate: every kernel compiles for every chip."""

import json
import subprocess
import sys

import pytest

from pallas_kernels import bench

HLO = """HloModule jit_f

%body.1 (x: f32[8]) -> f32[8] {
  %a = f32[8]{0} fusion(x), backend_config={"estimated_cycles":"10"}
}

%condition.1 (x: s32[]) -> pred[] {
  %bound = s32[] constant(7)
  ROOT %lt = pred[] compare(%x, %bound), direction=LT
}

ENTRY %main.1 (x: f32[8]) -> f32[8] {
  %b = f32[8]{0} fusion(x), backend_config={"estimated_cycles":"5"}
  %while = (s32[], f32[8]{0}) while(%t), condition=%condition.1, body=%body.1
  %k = (bf16[2,64]{1,0}, f32[4]{0}) custom-call(%b), custom_call_target="tpu_custom_call", KERNEL
}
""".replace('KERNEL', 'operand_layout_constraints={bf16[2,64]{1,0}, f32[8]{0}}, frontend_attributes={}')


def test_a_loop_counts_as_often_as_it_turns_and_a_kernel_moves_its_operands_and_results():
  cycles, moved = bench.hlo_facts(HLO)
  assert cycles == 5 + 7 * 10
  assert moved == 2 * (2 * 64 * 2) + 4 * 4 + 8 * 4


def test_kernels_are_read_from_a_dump(tmp_path):
  stem = '17-delta_rule_forward_scalar.1'
  (tmp_path / f'{stem}-03-final_bundles.txt').write_text('iteration_bounds: (1, 2, 64)')
  (tmp_path / f'{stem}-02-schedule-analysis_final_bundles.txt').write_text(
    'total scheduled bundles:    40\ncustom_call_target="tpu_custom_call"'
  )
  (tmp_path / f'{stem}-01-final_hlo-static-per-bundle-utilization.txt').write_text(
    '== CAPACTIY:\nMXU, VALU\n    2     4\n== UTILIZATION:\n1 2\n0 3\n'
  )
  (kernel,) = bench.dumped_kernels(tmp_path)
  assert kernel == bench.Kernel('delta_rule_forward_scalar.1', 40, 128, {'MXU': 1, 'VALU': 5}, {'MXU': 2, 'VALU': 4})
  estimate = bench.Estimate(bench.Case('pallas_tpu', 'scalar', T=64, HV=16), 'v6e', (kernel,), 1024, 1640 * 10**6)
  assert estimate.row()['kernel_bundles_per_token_head'] == 5.0
  assert estimate.row()['xla_cycles_per_token_head'] == 1.0
  assert estimate.row()['memory_ms'] == 1.0
  assert 'static estimate' in bench.table([estimate])


def test_without_the_compiler_it_says_what_to_install(monkeypatch, capsys):
  monkeypatch.setattr(bench.importlib.util, 'find_spec', lambda name: None)
  assert bench.main(['--static']) == 2
  assert '[aot]' in capsys.readouterr().err


SAMPLE = {('scalar', 'packed', 'v6e', False), ('channel', 'grouped', 'v5e', True)}
GATE = [
  pytest.param(decay, form, chip, sharded, marks=[] if (decay, form, chip, sharded) in SAMPLE else [pytest.mark.sweep])
  for decay in ('none', 'scalar', 'channel')
  for form in ('plain', 'packed', 'grouped')
  for chip in bench.CHIPS
  for sharded in (False, True)
]

COMPILE = """
import json, sys
from pallas_kernels import bench
wanted = json.loads(sys.argv[1])
assert 'tpu_custom_call' in bench.compile_for(bench.Case(**wanted['case']), wanted['chip'], wanted['sharded']).as_text()
"""


@pytest.mark.skipif(bench.missing_compiler() is not None, reason=str(bench.missing_compiler()))
@pytest.mark.parametrize('decay, form, chip, sharded', GATE)
def test_kernels_compile_ahead_of_time(decay, form, chip, sharded):
  case = {'source': 'pallas_tpu', 'decay': decay, 'form': form, 'B': 8, 'T': 256}
  wanted = json.dumps({'case': case, 'chip': chip, 'sharded': sharded})
  environment = {**bench.os.environ, **bench.AOT_ENVIRONMENT}
  done = subprocess.run([sys.executable, '-c', COMPILE, wanted], env=environment, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr[-2000:]
