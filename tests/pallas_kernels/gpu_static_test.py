"""The gate of the GPU kernels: each compiles for an H100 without one, none spills, what is chosen ran on one."""

import dataclasses
import json
import sys

import jax
import pytest

from pallas_kernels import IMPLEMENTATIONS, bench, gpu_static, ptxas
from tests import versions
from tests.pallas_kernels import ran

DUMP = """Resources(smem_scratch_bytes=65536, tmem_scratch_cols=0, barrier_counts=Counter({}))
//
.version 9.0
.visible .entry first_mosaic_gpu_kernel(
)
.maxntid 384, 1, 1
{
	wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {%f1};
	wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {%f1};
}
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'first_mosaic_gpu_kernel' for 'sm_90a'
ptxas info    : Function properties for first_mosaic_gpu_kernel
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 168 registers, used 2 barriers, 1 bytes smem
"""
FIRST = ptxas.Kernel('first', 384, 168, 16, 8, 12, 65536, 2)


def test_kernels_are_read_from_a_dump():
  second = DUMP.replace('first', 'second').replace('8 bytes spill stores, 12', '0 bytes spill stores, 0')
  first, other = ptxas.kernels(DUMP + second)
  assert dataclasses.replace(first, digest='') == FIRST and first.spills
  assert other.name == 'second' and not other.spills
  assert list(ptxas.kernels('nothing was compiled')) == []


def test_code_is_told_apart_by_its_instructions_not_by_the_lines_it_came_from():
  moved = DUMP.replace('\twgmma', '\t.loc\t1 20 3\n\twgmma')
  other = DUMP.replace('{%f1};\n}', '{%f2};\n}')
  first, same, changed = (next(ptxas.kernels(dump)).digest for dump in (DUMP, moved, other))
  assert first == same != changed


def test_a_jax_that_does_not_tell_shared_memory_leaves_it_open():
  (kernel,) = ptxas.kernels(DUMP.partition('\n')[2])
  assert kernel.shared_bytes is None


def test_a_report_of_another_form_is_not_taken_for_no_spills():
  with pytest.raises(ValueError, match='first_mosaic_gpu_kernel'):
    list(ptxas.kernels(DUMP.replace('spill stores', 'stores')))


def test_a_kernel_without_its_code_is_not_taken_for_one_that_ran():
  with pytest.raises(ValueError, match='no PTX of first'):
    list(ptxas.kernels(DUMP.replace('.entry first', '.entry other')))


def test_blocks_that_a_multiprocessor_holds_are_bound_by_registers_and_shared_memory():
  assert gpu_static.blocks_held(FIRST) == 1
  assert gpu_static.blocks_held(ptxas.Kernel('', 128, 167, 0, 0, 0, 65536, 0)) == 3
  assert gpu_static.blocks_held(ptxas.Kernel('', 128, 250, 0, 0, 0, 1024, 0)) == 2


def test_the_table_shows_what_is_spilled():
  assert '20' in gpu_static.table([('case', FIRST)]).splitlines()[1].split()


def test_without_the_compiler_it_says_what_to_install(monkeypatch, capsys):
  monkeypatch.setattr(gpu_static.importlib.util, 'find_spec', lambda name: None)
  assert bench.main(['--gpu-static']) == 2
  assert 'jax-cuda13-pjrt==' in capsys.readouterr().err


needs_compiler = pytest.mark.skipif(
  gpu_static.missing_compiler() is not None, reason=f'make gpu-compile; {gpu_static.missing_compiler()}'
)
GUILTY = """
import jax, jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from pallas_kernels import gpu_static

def matrix():
  return plgpu.SMEM((128, 128), jnp.bfloat16, transforms=(plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128)))

def body(x, out, here, kept, there):
  plgpu.copy_gmem_to_smem(x, here, there)
  plgpu.barrier_wait(there)

  def made(acc):
    plgpu.wgmma(acc, here, here)
    return acc[...]

  products = [pl.run_scoped(made, plgpu.ACC((128, 128), jnp.float32)) for _ in range(HELD)]
  for product in products:
    kept[...] = (product + products[-1]).astype(jnp.bfloat16)
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(kept, out)
    plgpu.wait_smem_to_gmem(0)

def call(x):
  return plgpu.kernel(
    body, out_type=jax.ShapeDtypeStruct((128, 128), jnp.bfloat16), kernel_name='guilty',
    scratch_types=[matrix(), matrix(), plgpu.Barrier()],
    compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Lane),
  )(x)

gpu_static.compile_for_h100(call, [((128, 128), jnp.bfloat16)])
"""


@needs_compiler
@pytest.mark.parametrize('held, spills', [(1, False), (3, True)])
def test_a_kernel_that_holds_more_than_its_registers_is_reported(held, spills):
  (kernel,) = gpu_static.compiled([sys.executable, '-c', GUILTY.replace('HELD', str(held))], 'guilty')
  assert kernel.name == 'guilty' and kernel.products > 0
  assert kernel.spills == spills


RAN = json.loads(ran.PATH.read_text())
# `make gpu-compile` compiles every case; a default run a sample.
SAMPLE = {
  ('scalar', 'packed', 128, 128),
  ('none', 'grouped', 64, 128),
  ('channel', 'packed', 128, 64),
  ('scalar', 'packed', 256, 256),
  ('channel', 'grouped', 256, 256),
}


def marks(case):
  return [] if case.backward and (case.decay, case.form, case.K, case.V) in SAMPLE else [pytest.mark.sweep]


def test_what_is_chosen_without_its_name_is_known_to_have_run_on_a_device():
  assert {case.name for case in ran.CASES if ran.chosen(case)} <= set(RAN['cases'])
  assert len({case.name for case in ran.CASES}) == len(ran.CASES)


def test_what_ran_is_compared_by_one_of_the_environments_that_compile_it():
  assert any(f'jax=={RAN["jax"]}' in versions.ENVIRONMENTS[name].packages for name in versions.ENVIRONMENTS)


def test_kernels_of_one_name_are_not_taken_for_one():
  first, second = (dataclasses.replace(FIRST, digest=digest) for digest in 'ab')
  assert ran.digests([first]) == {'first': 'a 65536'}
  with pytest.raises(ValueError, match='one name'):
    ran.digests([first, second])


@needs_compiler
@pytest.mark.skipif('mosaic_gpu' not in IMPLEMENTATIONS, reason='no row mosaic_gpu')
@pytest.mark.parametrize('case', [pytest.param(case, marks=marks(case), id=case.name) for case in ran.CASES])
def test_kernels_compile_for_an_h100_do_not_spill_and_are_what_ran_on_a_device(case):
  found = gpu_static.case_kernels(case)
  assert found
  assert not any(kernel.spills for kernel in found), gpu_static.table([(case.name, kernel) for kernel in found])
  if ran.chosen(case) and jax.__version__ == RAN['jax']:
    changed = 'changed since it ran: name it in mosaic_gpu.not_run, or run it (see ran.py)'
    assert ran.digests(found) == RAN['cases'].get(case.name), changed
