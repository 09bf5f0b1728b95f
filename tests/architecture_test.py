"""The import order of the packages, and where effects may stand. A draft to adopt as tests/architecture_test.py."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
VALUES = {
  'asiarch_jax.records',
  'asiarch_jax.config',
  'asiarch_jax.batch',
  'asiarch_jax.dialogue',
  'asiarch_jax.syntax',
}
DECIDE = {
  'asiarch_jax.search',
  'asiarch_jax.agents',
  'asiarch_jax.cognition',
  'asiarch_jax.evidence',
  'asiarch_jax.checks.source',
}

# What each layer may import from this repository, besides itself; lowest first.
MAY_IMPORT = {
  'pallas_kernels': set(),
  'asiarch_jax.records': set(),
  'asiarch_jax.config': set(),
  'asiarch_jax.batch': set(),
  'asiarch_jax.syntax': set(),
  'asiarch_jax.dialogue': {'asiarch_jax.records', 'asiarch_jax.config'},
  'asiarch_jax.ports': {'asiarch_jax.records', 'asiarch_jax.dialogue'},
  'asiarch_jax.arch': VALUES | {'pallas_kernels'},
  'asiarch_jax.suites': VALUES,
  'asiarch_jax.tasks': VALUES | {'asiarch_jax.suites'},
  'asiarch_jax.checks.source': VALUES,
  'asiarch_jax.cognition': VALUES,
  'asiarch_jax.evidence': VALUES,
  'asiarch_jax.search': VALUES | {'asiarch_jax.evidence'},
  'asiarch_jax.agents': VALUES
  | {'asiarch_jax.ports', 'asiarch_jax.cognition', 'asiarch_jax.evidence', 'asiarch_jax.checks.source'},
  'asiarch_jax.training': VALUES | {'pallas_kernels', 'asiarch_jax.suites', 'asiarch_jax.tasks'},
  'asiarch_jax.checks.cost': VALUES | {'asiarch_jax.arch', 'pallas_kernels'},
  'asiarch_jax.checks.behaviour': VALUES | {'asiarch_jax.arch', 'asiarch_jax.checks.cost', 'pallas_kernels'},
  'asiarch_jax.cycle': VALUES | DECIDE | {'asiarch_jax.ports'},
  'asiarch_jax.replay': VALUES | DECIDE | {'asiarch_jax.cycle', 'asiarch_jax.ports'},
  'asiarch_jax.shell': VALUES | {'asiarch_jax.ports'},
  'asiarch_jax.report': VALUES
  | {'asiarch_jax.evidence', 'asiarch_jax.ports', 'asiarch_jax.suites', 'asiarch_jax.replay'},
  'asiarch_jax.export': VALUES | {'asiarch_jax.arch', 'asiarch_jax.ports', 'pallas_kernels'},
  'asiarch_jax.worker': VALUES
  | {
    'pallas_kernels',
    'asiarch_jax.arch',
    'asiarch_jax.suites',
    'asiarch_jax.tasks',
    'asiarch_jax.checks.source',
    'asiarch_jax.checks.cost',
    'asiarch_jax.checks.behaviour',
    'asiarch_jax.training',
    'asiarch_jax.shell',
  },
  'asiarch_jax.commands': VALUES
  | DECIDE
  | {
    'asiarch_jax.cycle',
    'asiarch_jax.ports',
    'asiarch_jax.replay',
    'asiarch_jax.shell',
    'asiarch_jax.suites',
    'asiarch_jax.report',
    'asiarch_jax.export',
  },
  'asiarch_jax.main': {'asiarch_jax.config', 'asiarch_jax.commands'},
}
EFFECTFUL = {
  'asiarch_jax.shell',
  'asiarch_jax.report',
  'asiarch_jax.export',
  'asiarch_jax.worker',
  'asiarch_jax.commands',
  'asiarch_jax.main',
}
BENCHES = {'pallas_kernels.bench', 'pallas_kernels.gpu_bench', 'pallas_kernels.gpu_static'}
WITHOUT_JAX = {
  'asiarch_jax.records',
  'asiarch_jax.config',
  'asiarch_jax.dialogue',
  'asiarch_jax.ports',
  'asiarch_jax.cycle',
  'asiarch_jax.replay',
  'asiarch_jax.suites',
} | DECIDE
EFFECTS = {'absl', 'logging', 'orbax', 'os', 'random', 'shutil', 'socket', 'subprocess', 'tempfile', 'time', 'urllib'}
MODULES = sorted(
  ('.'.join(path.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__'), path)
  for top in ('pallas_kernels', 'asiarch_jax')
  for path in (ROOT / top).rglob('*.py')
)


def layer_of(name):
  return max((layer for layer in MAY_IMPORT if f'{name}.'.startswith(f'{layer}.')), key=len, default=None)


def imports_of(path):
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      yield from (f'{node.module}.{alias.name}' for alias in node.names)


@pytest.mark.parametrize('name, path', MODULES)
def test_imports_point_downward(name, path):
  layer = layer_of(name)
  if layer is None:
    assert not path.read_text().strip(), f'{name} has no layer: add one to MAY_IMPORT'
    return
  for below in filter(None, map(layer_of, imports_of(path))):
    assert below == layer or below in MAY_IMPORT[layer], f'{name} may not import {below}'


@pytest.mark.parametrize('name, path', MODULES)
def test_source_is_parsed_at_one_place(name, path):
  """`ast.parse` fails now and then where cycles overlap; `asiarch_jax.syntax` says why."""
  if name != 'asiarch_jax.syntax':
    assert 'ast.parse(' not in path.read_text(), f'{name}: asiarch_jax.syntax.parse'


@pytest.mark.parametrize('name, path', MODULES)
def test_effects_stand_in_the_shell(name, path):
  roots = {target.partition('.')[0] for target in imports_of(path)}
  if layer_of(name) not in EFFECTFUL and name not in BENCHES:
    assert not roots & EFFECTS, f'{name} is core, yet imports {sorted(roots & EFFECTS)}'
  if layer_of(name) in WITHOUT_JAX:
    assert not roots & {'jax', 'flax', 'optax'}, f'{name} runs in the controller'


def test_the_order_has_no_cycle():
  placed = set()
  for layer, below in MAY_IMPORT.items():
    assert below <= placed, f'{layer} is listed before {sorted(below - placed)}'
    placed.add(layer)
