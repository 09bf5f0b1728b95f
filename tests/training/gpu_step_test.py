"""A training step of replicas side by side, compiled for an H100 that need not be there, runs the GPU kernels."""

import json
import pathlib
import subprocess
import sys

import pytest

from pallas_kernels import gpu_static

ROOT = pathlib.Path(__file__).parents[2]
STEP = """
import dataclasses, json, pathlib, sys, time
from jax.experimental import topologies
from asiarch_jax import config
from asiarch_jax.arch import contract, lm
from asiarch_jax.training import sharding, train
from pallas_kernels import gpu_static

device = topologies.get_topology_desc(
  topology_name='h100', platform='cuda', target_config=gpu_static.TARGET.read_text(), topology='1x1x1'
).devices
name, dtype = sys.argv[1:]
source = pathlib.Path(f'asiarch_jax/arch/baselines/{name}.py').read_text()
model = config.Model(width=128, layers=1, heads=2, mlp_width=256, dtype=dtype)
training = dataclasses.replace(
  config.Training(), batch=2, length=128, seeds=2, learning_rates=(3e-3,), steps_per_call=1
)
host = lm.LanguageModel(contract.load(source, name), model)
mesh = sharding.mesh(device, 2, 1, 2)
text = train.Trainer(host, training, mesh, 0, clock=time.monotonic).compiled_step.as_text()
print(json.dumps(text.count('mosaic_gpu')))
"""

pytestmark = [
  pytest.mark.sweep,
  pytest.mark.skipif(gpu_static.missing_compiler() is not None, reason=str(gpu_static.missing_compiler())),
]


def kernels(name, dtype):
  done = subprocess.run(
    [sys.executable, '-c', STEP, name, dtype], cwd=ROOT, capture_output=True, text=True, timeout=500, check=False,
    env={'PATH': '/usr/bin:/bin', 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(ROOT)},
  )  # fmt: skip
  assert done.returncode == 0, done.stderr[-2000:]
  return json.loads(done.stdout)


@pytest.mark.timeout(600)
@pytest.mark.parametrize('name', ['delta_net', 'gated_delta_net'])
def test_mixers_in_bfloat16_train_by_the_kernels(name):
  assert kernels(name, 'bfloat16') >= 4  # two forward, two back


@pytest.mark.timeout(600)
@pytest.mark.parametrize('name, dtype', [('gated_delta_net', 'float32'), ('kda', 'bfloat16')])
def test_what_the_kernels_do_not_answer_trains_by_the_xla_form(name, dtype):
  assert kernels(name, dtype) == 0
