"""An archived entry as a small package of its own, for other people's JAX code.

OUT/README.md                     the card: what it is, where it comes from, its evidence, its cost, its limits
OUT/pyproject.toml, LICENSE
OUT/NAME/mixer.py                 the archived Flax Linen source
OUT/NAME/nnx_form.py              the same for Flax NNX
OUT/NAME/model.py                 the language model around it, its parameters, generation
OUT/NAME/config.json, parameters.safetensors, checkpoint/ (Orbax)
OUT/NAME/kernels/                 with `vendor`: the XLA form of the kernels, so that jax and flax are all it needs
OUT/tests/                        that the package computes what the archive does
OUT/examples/train.py             training from scratch
"""

from __future__ import annotations

import ast
import dataclasses
import importlib.resources
import json
import pathlib
import re
import shutil
import string
from collections.abc import Mapping
from typing import Any

import numpy as np

from asiarch_jax import config, syntax

KERNELS = 'pallas_kernels'
ROWS = '''"""The implementations of the delta rule: those that run everywhere."""

from pallas_kernels.rows import PORTABLE

IMPLEMENTATIONS = PORTABLE
'''
MODEL = ('width', 'layers', 'heads', 'mlp_width', 'vocabulary', 'tied', 'norm_epsilon', 'init_stddev', 'dtype')


@dataclasses.dataclass(frozen=True)
class Content:
  """What a package is made of.

  `parameters` are by path, layers one by one, `tree` the same nested; `archived` what a worker computed.
  """

  name: str
  title: str
  source: str
  model: config.Model
  training: config.Training
  learning_rate: float
  parameters: Mapping[str, np.ndarray]
  tree: Mapping[str, Any]
  archived: Mapping[str, np.ndarray]
  steps: bool  # states can be carried
  card: str
  provenance: Mapping[str, Any]
  licence: str


def package_name(name: str) -> str:
  """Returns a proposal's name as that of a package.

  >>> package_name('Gated-Delta 2'), package_name('7up')
  ('gated_delta_2', 'mixer_7up')
  """
  plain = re.sub(r'\W+', '_', name.lower()).strip('_') or 'mixer'
  return plain if plain.isidentifier() else f'mixer_{plain}'


def files(content: Content, *, vendor: bool) -> dict[str, str]:
  """Returns the text files of the package by path; arrays are the writer's."""
  package = content.name
  uses = KERNELS in _imported(content.source)
  home = f'{package}.kernels' if vendor else KERNELS
  carried = f'from {home}.stepping import carried\n' if content.steps else ''
  own = ('kernels',) if vendor and (uses or content.steps) else ()
  needs = ['jax>=0.10', 'flax>=0.12', 'numpy', 'safetensors']
  if 'einops' in _imported(content.source):
    needs.append('einops')
  if not own and (uses or content.steps):
    needs.append('asiarch-jax')
  names = {
    'package': package,
    'title': content.title,
    'distribution': package.replace('_', '-'),
    'imports': carried,
    'length': str(content.training.length),
    'rate': repr(content.learning_rate),
    'dependencies': ', '.join(f"'{need}'" for need in needs),
    'packages': ', '.join(f"'{name}'" for name in (package, *(f'{package}.{part}' for part in own))),
  }
  generation = _template('generation', names) + _template(
    'generation_steps' if content.steps else 'generation_whole', names
  )
  made = {
    'README.md': content.card,
    'LICENSE': content.licence,
    'pyproject.toml': _template('pyproject', names),
    f'{package}/__init__.py': _template('init', names),
    f'{package}/mixer.py': from_home(content.source, home) if home != KERNELS else content.source,
    f'{package}/model.py': _template('model', names | {'generation': generation}),
    f'{package}/nnx_form.py': _template('nnx_form', names),
    f'{package}/config.json': _config(content),
    'examples/train.py': _template('train', names),
    f'tests/test_{package}.py': _template(
      'test', names | {'steps_test': _template('test_steps', names) if content.steps else ''}
    ),
  }
  if own:
    made |= {f'{package}/kernels/{path}': text for path, text in vendored(package).items()}
  return {path: text.rstrip() + '\n' for path, text in made.items()}


def vendored(package: str) -> dict[str, str]:
  """Returns the files of the kernels' portable form, whose imports lead to each other."""
  folder = importlib.resources.files(KERNELS)
  sources: dict[str, str] = {}
  wanted = ['__init__']
  while wanted:
    name = wanted.pop()
    sources[name] = ROWS if name == 'implementations' else (folder / f'{name}.py').read_text()
    wanted += _siblings(sources[name]) - sources.keys()
  return {f'{name}.py': from_home(source, f'{package}.kernels') for name, source in sorted(sources.items())}


def _siblings(source: str) -> set[str]:
  """Returns the modules of the kernels that one of them imports."""
  found = set()
  for node in ast.walk(syntax.parse(source)):
    if isinstance(node, ast.ImportFrom) and node.module == KERNELS:
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom) and (node.module or '').startswith(f'{KERNELS}.'):
      found.add((node.module or '').split('.')[1])
  return found


def from_home(source: str, home: str) -> str:
  """Returns a source that imports the kernels from `home` instead of `pallas_kernels`.

  >>> from_home('import pallas_kernels as pk', 'a.kernels')
  'import a.kernels as pk'
  >>> from_home('import pallas_kernels', 'a.kernels')
  'from a import kernels as pallas_kernels'
  """
  lines = source.splitlines(keepends=True)
  for node in ast.walk(syntax.parse(source)):
    if isinstance(node, ast.ImportFrom) and (node.module or '').partition('.')[0] == KERNELS:
      module = f'{home}{(node.module or "").removeprefix(KERNELS)}'
      lines[node.lineno - 1] = lines[node.lineno - 1].replace(f'from {node.module}', f'from {module}', 1)
    elif isinstance(node, ast.Import) and any(alias.name.partition('.')[0] == KERNELS for alias in node.names):
      indent = ' ' * node.col_offset
      ending = '\n' if lines[node.end_lineno - 1].endswith('\n') else ''  # type: ignore[operator]
      written = [f'{indent}{_import(alias, home)}' for alias in node.names]
      lines[node.lineno - 1 : node.end_lineno] = ['\n'.join(written) + ending, *[''] * (node.end_lineno - node.lineno)]  # type: ignore[operator]
  return ''.join(lines)


def _import(alias: ast.alias, home: str) -> str:
  if alias.name != KERNELS:
    return f'import {alias.name}' + (f' as {alias.asname}' if alias.asname else '')
  parent, _, last = home.rpartition('.')
  return f'import {home} as {alias.asname}' if alias.asname else f'from {parent} import {last} as {KERNELS}'


def _imported(source: str) -> set[str]:
  """Returns the top-level packages that a source imports."""
  found = set()
  for node in ast.walk(syntax.parse(source)):
    if isinstance(node, ast.Import):
      found |= {alias.name.partition('.')[0] for alias in node.names}
    elif isinstance(node, ast.ImportFrom) and node.module:
      found.add(node.module.partition('.')[0])
  return found


def _template(name: str, names: Mapping[str, str]) -> str:
  text = (importlib.resources.files('asiarch_jax.export') / 'templates' / f'{name}.txt').read_text()
  return string.Template(text).substitute(names)


def _config(content: Content) -> str:
  model = {name: getattr(content.model, name) for name in MODEL}
  training = config.as_dict(content.training) | {'learning_rate': content.learning_rate}
  return json.dumps({'model': model, 'training': training, 'provenance': content.provenance}, indent=2)


def write(folder: pathlib.Path, content: Content, *, vendor: bool) -> list[str]:
  """Writes the package into a new folder, whole or not at all, and returns the paths of its files.

  Raises:
    FileExistsError: the folder is there.
    ModuleNotFoundError: the extra `export` is not installed.
  """
  if folder.exists():
    raise FileExistsError(f'{folder} is there already; remove it, or name another folder')
  part = folder.with_name(f'.{folder.name}.part')
  shutil.rmtree(part, ignore_errors=True)
  try:
    for path, text in files(content, vendor=vendor).items():
      (part / path).parent.mkdir(parents=True, exist_ok=True)
      (part / path).write_text(text)
    _write_arrays(part, content)
    part.rename(folder)
  finally:
    shutil.rmtree(part, ignore_errors=True)
  return sorted(str(path.relative_to(folder)) for path in folder.rglob('*') if path.is_file())


def _write_arrays(part: pathlib.Path, content: Content) -> None:
  import orbax.checkpoint as ocp
  from safetensors.numpy import save_file

  home = part / content.name
  flat = {path.replace('/', '.'): np.ascontiguousarray(array) for path, array in content.parameters.items()}
  save_file(flat, home / 'parameters.safetensors', metadata={'format': 'np'})
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save((home / 'checkpoint').resolve(), dict(content.tree))
  np.savez(part / 'tests/archived.npz', tokens=content.archived['tokens'], logits=content.archived['logits'])
