"""`asiarch export` whole: from a real archive to a package that runs alone, and inside other people's code."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from asiarch_jax import main
from tests.cli import ROOT, asiarch

ALONE = """
import sys
class Missing:
  def find_spec(self, name, path=None, target=None):
    if name.partition('.')[0] in ('asiarch_jax', 'pallas_kernels'):
      raise ImportError(f'{name} is not installed')
sys.meta_path.insert(0, Missing())
"""
FOREIGN = (
  ALONE
  + """
import numpy as np
from flax import nnx
from gated_delta_net import Mixer
from gated_delta_net.nnx_form import nnx_mixer
from tests.foreign import decoder, nnx_model

batches = np.tile(np.arange(17) * 7 % 61, (30, 4, 1)).astype(np.int32)
linen = decoder.train(lambda width, heads: Mixer(width=width, heads=heads), batches)
model = nnx_model.Model(lambda rngs: nnx_mixer(32, 2, rngs=rngs), rngs=nnx.Rngs(0))
nnx_losses = nnx_model.train(model, batches)
print(linen[0], linen[-1], nnx_losses[0], nnx_losses[-1])
assert linen[-1] < 0.7 * linen[0] and nnx_losses[-1] < 0.7 * nnx_losses[0]
"""
)


def python(*arguments, folder, also=''):
  environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(filter(None, (str(folder), also))), 'JAX_PLATFORMS': 'cpu'}
  return subprocess.run(
    [sys.executable, *map(str, arguments)], cwd=folder, env=environment, capture_output=True, text=True, timeout=600
  )


@pytest.fixture(scope='module')
def exported(smoke, tmp_path_factory):
  folder = tmp_path_factory.mktemp('export') / 'out'
  process = asiarch('export', 'gated_delta_net', f'--workdir={smoke[0]}', f'--out={folder}', '--vendor', '--json')
  assert process.returncode == 0, process.stderr
  return folder, json.loads(process.stdout)


@pytest.mark.slow
def test_the_package_proves_itself_without_us(exported):
  folder, told = exported
  assert told['steps'] and told['package'] == 'gated_delta_net'
  code = ALONE + "import pytest\nsys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', 'tests']))"
  process = python('-c', code, folder=folder)
  assert process.returncode == 0 and '7 passed' in process.stdout, process.stdout + process.stderr


@pytest.mark.slow
def test_its_tests_can_fail(exported):
  folder, _ = exported
  weights = folder / 'tests/archived.npz'
  before = weights.read_bytes()
  arrays = dict(np.load(weights))
  np.savez(weights, tokens=arrays['tokens'], logits=arrays['logits'][..., ::-1])
  try:
    code = ALONE + "import pytest\nsys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', 'tests', '-k', 'archive']))"
    process = python('-c', code, folder=folder)
  finally:
    weights.write_bytes(before)
  assert process.returncode == 1 and '1 failed' in process.stdout, process.stdout


@pytest.mark.slow
def test_it_runs_inside_other_peoples_code(exported):
  process = python('-c', FOREIGN, folder=exported[0], also=str(ROOT))
  assert process.returncode == 0, process.stderr


@pytest.mark.sweep
def test_its_example_trains(exported, tmp_path):
  (tmp_path / 'text').write_text('the gate opens and the gate closes. ' * 200)
  process = python('examples/train.py', tmp_path / 'text', 30, folder=exported[0])
  assert process.returncode == 0, process.stderr
  losses = [float(line.split()[2]) for line in process.stdout.splitlines()]
  assert losses[-1] < losses[0] - 0.5
  (tmp_path / 'short').write_text('too short')
  assert 'has 9 bytes; at least' in python('examples/train.py', tmp_path / 'short', folder=exported[0]).stderr


def test_the_card_tells_lineage_evidence_cost_and_limits(exported):
  card = (exported[0] / 'README.md').read_text()
  for words in ('# gated_delta_net', 'bits per byte over delta_net', 'No claim was made', 'independent design',
                'FLOPs a token', 'Trained for', 'Decoding: states are carried', 'Apache-2.0',
                'written by a program'):  # fmt: skip
    assert words in card, words


@pytest.mark.parametrize(
  'arguments, said', [(('nobody',), 'neither an id nor a name'), (('0', '--out=README.md'), 'is there already')]
)
def test_bad_input_says_what_to_do(smoke, tmp_path, capsys, arguments, said):
  out = [] if any(argument.startswith('--out') for argument in arguments) else [f'--out={tmp_path / "out"}']
  status = main.main(['export', *arguments, f'--workdir={smoke[0]}', *out])
  assert status == 2 and said in capsys.readouterr().err and not (tmp_path / 'out').exists()
