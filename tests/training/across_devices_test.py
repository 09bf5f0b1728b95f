"""Training on eight forced devices, copies side by side or parameters shared out, gives what one device gives."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from tests.devices import forced
from tests.training import across_devices

ROOT = pathlib.Path(__file__).parents[2]
AT_ONCE = 'in a scan, at once'
pytestmark = pytest.mark.slow  # all of it looks at one long run


@pytest.fixture(scope='module')
def eight_devices():
  """What `across_devices` prints on eight forced devices; a deadlock is a timeout here."""
  command = [sys.executable, '-m', 'tests.training.across_devices']
  done = subprocess.run(command, cwd=ROOT, env=forced(8), capture_output=True, text=True, timeout=240)
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize('name, shape', [('8x1', [8, 1, 1]), ('4x2', [4, 2, 1]), ('2x4', [2, 4, 1])])
def test_eight_devices_give_the_losses_of_one(eight_devices, name, shape):
  here = across_devices.losses(1, 1)
  assert eight_devices[name]['mesh'] == shape and here['mesh'] == [1, 1, 1]
  np.testing.assert_allclose(eight_devices[name]['losses'], here['losses'], rtol=2e-5)
  np.testing.assert_allclose(eight_devices[name]['held_out'], here['held_out'], rtol=2e-5)


def test_many_small_calls_with_collectives_do_not_hang(eight_devices):
  assert len(eight_devices['long']['losses']) == 300


@pytest.mark.parametrize(
  'name, mesh, part',
  [
    ('sharded', [2, 1, 4], [4, 4, 16]),
    ('sharded, in microbatches', [4, 1, 2], [2, 8, 16]),
    ('sharded, copies beside', [2, 2, 2], [4, 8, 16]),
  ],
)
def test_parameters_shared_out_give_the_losses_of_one_device(eight_devices, name, mesh, part):
  found, alone = eight_devices[name], eight_devices['1x1']
  assert (found['mesh'], found['part']) == (mesh, part), 'a device holds its part alone'
  np.testing.assert_allclose(found['losses'], alone['losses'], rtol=2e-5)
  np.testing.assert_allclose(found['held_out'], alone['held_out'], rtol=2e-5)
  np.testing.assert_allclose(found['kernel'], alone['kernel'], atol=2e-5)


@pytest.mark.parametrize('name', [name for name in across_devices.BLOCKS if name not in ('alone', AT_ONCE)])
def test_a_language_model_shared_out_gives_the_losses_of_one_device(eight_devices, name):
  found, alone = eight_devices['blocks'][name], eight_devices['blocks']['alone']
  np.testing.assert_allclose(found['losses'], alone['losses'], rtol=2e-5)
  np.testing.assert_allclose(found['held_out'], alone['held_out'], rtol=2e-5)


def test_with_remat_a_device_holds_one_block_whole_at_a_time(eight_devices):
  by_block, at_once = (eight_devices['blocks'][name]['temporary'] for name in ('in a scan', AT_ONCE))
  others = across_devices.LAYERS - 1  # three quarters of their feed-forward and of its gradient need not be here
  assert at_once - by_block > others * 2 * 3 / 4 * (3 * 64 * 128) * 4
