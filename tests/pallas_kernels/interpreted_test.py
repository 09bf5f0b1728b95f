"""The kernels for Hopper GPUs are the recurrence in float64 without a GPU, as far as an interpreter sees."""

import subprocess
import sys

import pytest

from tests.pallas_kernels import interpreted

pytestmark = pytest.mark.skipif(interpreted.missing() is not None, reason=f'make gpu-compile; {interpreted.missing()}')


def interpret(*arguments):
  command = [sys.executable, '-m', 'tests.pallas_kernels.interpreted', *arguments]
  return subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
  'name',
  [
    *('one_chunk', 'scalar_128', 'grouped', 'packed', 'scalar_128_256', 'scalar_256_128'),
    *('channel_64', 'channel_128', 'channel_grouped', 'channel_packed', 'channel_hundreds', 'channel_hard'),
    *('channel_of_every_level', 'channel_of_every_level_packed', 'channel_256', 'channel_grouped_200'),
    *('channel_256_128', 'channel_packed_256', 'channel_of_every_level_256', 'channel_hard_256'),
  ],
)
def test_outputs_and_gradients_are_those_of_the_recurrence(name):
  done = interpret(name)
  assert done.returncode == 0, done.stdout + done.stderr[-2000:]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
  'name',
  [
    *('scalar_64_128', 'channel_64', 'channel_128_256'),
    *('channel_one_chunk', 'channel_one_chunk_256', 'channel_one_chunk_256_128'),
  ],
)
def test_warpgroups_do_not_race(name):
  done = interpret(name, '--race')
  assert done.returncode == 0, done.stdout + done.stderr[-2000:]


@pytest.mark.timeout(600)
@pytest.mark.parametrize('line', ["plgpu.barrier_wait(here['do_read'])", "plgpu.barrier_wait(here['both_met'])"])
def test_a_race_is_found(line):
  done = interpret('channel_128_256', '--race', '--without', line)
  assert done.returncode == 1 and 'warpgroups race' in done.stderr


@pytest.mark.timeout(600)
@pytest.mark.parametrize('name', ['grouped', 'channel_packed'])
def test_replicas_side_by_side_are_each_alone(name):
  done = interpret(name, '--replicas')
  assert done.returncode == 0, done.stdout + done.stderr[-2000:]


@pytest.mark.timeout(600)
def test_a_kernel_that_leaves_pairs_of_tokens_out_is_found():
  done = interpret('channel_64', '--guilty')
  assert done.returncode == 1 and 'AssertionError' in done.stderr
