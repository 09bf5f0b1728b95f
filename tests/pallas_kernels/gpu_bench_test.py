"""The bench of GPUs, as far as it goes without one: floors, timings, what it does not time, what it says is missing."""

import json
import subprocess

import jax
import pytest

from pallas_kernels import IMPLEMENTATIONS, bench, gpu_bench, rows
from pallas_kernels.gpu_bench import GPUS, Case, Shape, Timing

SHAPE = Shape(1, 8192, 16, 128)
SMALL = Shape(1, 512, 1, 16)


@pytest.mark.parametrize('chip, forward_us, both_us', [('H100', 40, 161), ('H200', 28, 113)])
def test_floors_are_those_of_the_published_roofline(chip, forward_us, both_us):
  floors = [1e3 * gpu_bench.floor_ms(Case('xla', 'scalar', SHAPE, backward), GPUS[chip]) for backward in (False, True)]
  assert floors == pytest.approx([forward_us, both_us], abs=0.5)


def test_heads_that_are_large_enough_are_bound_by_operations():
  case, gpu = Case('xla', 'scalar', Shape(1, 64, 1, 2048), True), GPUS['H200']
  assert gpu_bench.floor_ms(case, gpu) == 1e3 * gpu_bench.operations(case) / gpu.operations


def test_what_the_overwriting_of_the_cache_takes_is_not_counted(monkeypatch):
  clock = [0.0]
  monkeypatch.setattr(gpu_bench.time, 'perf_counter', lambda: clock[0])

  def takes(seconds):
    clock[0] += seconds

  measured = gpu_bench.queued(lambda: takes(0.006), lambda: takes(0.004), lambda _: takes(0.001))
  assert len(measured) == gpu_bench.ROUNDS
  assert gpu_bench.timing(measured, '').median == pytest.approx(2.0)


def test_a_timing_is_a_median_between_quartiles():
  assert gpu_bench.timing([0.005, 0.001, 0.003, 0.002, 0.004], 'm') == Timing(3.0, 2.0, 4.0, 'm')


def test_a_row_says_share_and_ratio():
  row = gpu_bench.line(Case('xla', 'scalar', SHAPE, False), Timing(0.1, 0.09, 0.11, ''), Timing(0.17, 0, 0, ''), None)
  assert '1.70 x fla' in row and 'roofline' not in row
  assert '28.2% of the roofline' in gpu_bench.line(
    Case('xla', 'scalar', SHAPE, False), Timing(0.1, 0.09, 0.11, ''), None, GPUS['H200']
  )


@pytest.mark.parametrize(
  'decay', [pytest.param('none', marks=pytest.mark.sweep), 'scalar', pytest.param('channel', marks=pytest.mark.sweep)]
)
def test_a_right_implementation_is_timed_forward_and_backward(decay):
  assert gpu_bench.errors('xla', decay, SMALL) == {}
  operands = gpu_bench.drawn(SMALL, decay)
  o, gradients = jax.eval_shape(gpu_bench.called('xla', backward=True), operands)
  assert o.shape == operands['v'].shape
  assert {name: x.shape for name, x in gradients.items()} == {name: operands[name].shape for name in gradients}
  assert set(gradients) == set(operands) - {'do'}


def test_a_wrong_implementation_is_caught(monkeypatch):
  def wrong(call, *operands):
    o, state = IMPLEMENTATIONS['xla'].run(call, *operands)
    return 1.01 * o, state

  monkeypatch.setitem(IMPLEMENTATIONS, 'wrong', rows.Implementation(lambda call: None, wrong))
  found = gpu_bench.errors('wrong', 'scalar', SMALL)
  assert found['o'] == pytest.approx(0.01, rel=0.1)
  assert set(found) >= {'o', 'q', 'k', 'v'}


def test_not_a_number_is_caught(monkeypatch):
  def wrong(call, *operands):
    o, state = IMPLEMENTATIONS['xla'].run(call, *operands)
    return o / 0, state

  monkeypatch.setitem(IMPLEMENTATIONS, 'wrong', rows.Implementation(lambda call: None, wrong))
  assert 'o' in gpu_bench.errors('wrong', 'none', SMALL)


@pytest.mark.skipif(gpu_bench.missing_gpu() is None, reason='there is a GPU')
def test_without_a_gpu_it_says_what_to_do(capsys):
  assert bench.main(['--gpu']) == 2
  said = capsys.readouterr().err
  assert 'no GPU' in said and 'asiarch-jax[gpu]' in said and '--gpu-static' in said


def test_without_the_other_package_it_says_what_to_install(monkeypatch):
  monkeypatch.setattr(gpu_bench.importlib.util, 'find_spec', lambda name: None if name == 'fla' else object())
  assert 'fla-core' in gpu_bench.missing_fla()


def test_json_rows_hold_the_same_figures(capsys):
  options = gpu_bench.options_of(['--json'])
  case = Case('xla', 'scalar', SHAPE, False)
  gpu_bench._print(options, case, Timing(0.1, 0.09, 0.11, 'm'), Timing(0.2, 0, 0, ''), GPUS['H200'], {})
  gpu_bench._print(options, case, 'failed: no memory', None, None, {})
  first, second = map(json.loads, capsys.readouterr().out.splitlines())
  assert first['ratio_to_fla'] == 2.0 and first['median'] == 0.1 and first['case'] == case.name
  assert second == {'case': case.name, 'failed': 'failed: no memory'}


def test_what_is_wrong_or_refused_is_said_and_not_timed(monkeypatch, capsys):
  def wrong(call, *operands):
    o, state = IMPLEMENTATIONS['xla'].run(call, *operands)
    return -o, state

  def refused(call):
    return 'it has its reasons'

  monkeypatch.setitem(IMPLEMENTATIONS, 'wrong', rows.Implementation(lambda call: None, wrong))
  monkeypatch.setitem(IMPLEMENTATIONS, 'refusing', rows.Implementation(refused, wrong))
  monkeypatch.setattr(gpu_bench, 'FLUSH_BYTES', 2**16)
  cases = [Case(source, 'none', Shape(1, 64, 1, 8), False) for source in ('xla', 'wrong', 'refusing')]
  against = {Case('fla', 'none', Shape(1, 64, 1, 8), False): Timing(1.0, 1.0, 1.0, '')}
  assert gpu_bench._ours_timed(gpu_bench.options_of([]), cases, against, None)
  right, false, no = capsys.readouterr().out.splitlines()
  assert 'x fla' in right
  assert 'WRONG' in false and 'ms' not in false
  assert 'refused' in no and 'it has its reasons' in no


def test_the_parity_suite_names_what_failed(monkeypatch):
  ran = []

  def run(command, **options):
    ran.append(command)
    return subprocess.CompletedProcess(command, 1, 'E  1 != 2\nFAILED here_test.py::test_it - 1 != 2\n1 failed\n', '')

  monkeypatch.setattr(gpu_bench.subprocess, 'run', run)
  said = gpu_bench.parity_suite('python').splitlines()
  assert said == ['parity suite: FAILED: 1 failed', 'FAILED here_test.py::test_it - 1 != 2']
  (command,) = ran
  assert any(argument.endswith('mosaic_gpu_test.py') for argument in command) and command[0] == 'python'
