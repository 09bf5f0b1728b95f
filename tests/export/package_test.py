import ast
import dataclasses
import json
import pathlib

import numpy as np
import pytest

from asiarch_jax import config
from asiarch_jax.commands import exporting
from asiarch_jax.export import package
from asiarch_jax.shell import jobfolder
from tests import samples

PARAMETERS = {'embedding': np.ones((8, 4), np.float32), 'layer_0/mixer/w': np.zeros((4, 4), np.float32)}
CONTENT = package.Content(
  name='gated_mean',
  title='gated_mean',
  source=samples.SOURCE,
  model=config.Model(width=4, layers=1, heads=1, mlp_width=6, vocabulary=8),
  training=config.Training(),
  learning_rate=5e-3,
  parameters=PARAMETERS,
  tree=jobfolder.nested(PARAMETERS),
  archived={'tokens': np.zeros((1, 4), np.int32), 'logits': np.zeros((1, 4, 8), np.float32)},
  steps=False,
  card='# gated_mean',
  provenance={'entry': 3},
  licence='free',
)
USES = 'from pallas_kernels import causal_conv, delta_rule\n' + samples.SOURCE


@pytest.mark.parametrize(
  'source, written',
  [
    ('from pallas_kernels import a, b as c\n', 'from x.kernels import a, b as c\n'),
    ('from pallas_kernels import (\n  a,\n  b,\n)\nx = 1\n', 'from x.kernels import (\n  a,\n  b,\n)\nx = 1\n'),
    ('from pallas_kernels.api import a\n', 'from x.kernels.api import a\n'),
    ('import pallas_kernels as pk\n', 'import x.kernels as pk\n'),
    ('import pallas_kernels\n', 'from x import kernels as pallas_kernels\n'),
    ('import math, pallas_kernels\n', 'import math\nfrom x import kernels as pallas_kernels\n'),
    ('def f():\n  import pallas_kernels as pk\n', 'def f():\n  import x.kernels as pk\n'),
    ('import jax  # pallas_kernels\ns = "from pallas_kernels import a"\n', None),
  ],
)
def test_imports_are_led_home(source, written):
  assert package.from_home(source, 'x.kernels') == (written or source)


def test_vendored_kernels_need_jax_alone():
  made = package.vendored('found')
  assert 'pallas_tpu.py' not in made and 'implementations.py' in made
  for path, text in made.items():
    for node in ast.walk(ast.parse(text)):
      names = [node.module] if isinstance(node, ast.ImportFrom) else []
      names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
      for name in names:
        assert name.partition('.')[0] not in ('pallas_kernels', 'asiarch_jax'), f'{path} imports {name}'
        if name.startswith('found.kernels.'):
          assert f'{name.split(".")[2]}.py' in made
        if name == 'found.kernels' and isinstance(node, ast.ImportFrom):
          assert {f'{alias.name}.py' for alias in node.names} <= made.keys(), f'{path} imports what is not brought'


@pytest.mark.parametrize('vendor', [False, True])
@pytest.mark.parametrize('steps', [False, True])
@pytest.mark.parametrize('source', [samples.SOURCE, USES])
def test_every_file_is_python_and_needs_what_it_says(source, steps, vendor):
  made = package.files(dataclasses.replace(CONTENT, source=source, steps=steps), vendor=vendor)
  uses = steps or source is USES
  for path, text in made.items():
    if path.endswith('.py'):
      ast.parse(text, path)
    assert '$' not in text or path == 'LICENSE', path
  assert ("'asiarch-jax'" in made['pyproject.toml']) == (uses and not vendor)
  assert any('/kernels/' in path for path in made) == (uses and vendor)
  assert ('def read(' in made['gated_mean/model.py']) == steps
  assert ('test_token_by_token' in made['tests/test_gated_mean.py']) == steps
  assert json.loads(made['gated_mean/config.json'])['model']['width'] == 4


def test_a_package_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
  written = package.write(tmp_path / 'out', CONTENT, vendor=False)
  assert {'README.md', 'gated_mean/mixer.py', 'gated_mean/parameters.safetensors', 'tests/archived.npz'} <= set(written)
  with pytest.raises(FileExistsError, match='remove it, or name another folder'):
    package.write(tmp_path / 'out', CONTENT, vendor=False)

  def fails(part, content):
    raise ModuleNotFoundError("No module named 'safetensors'", name='safetensors')

  monkeypatch.setattr(package, '_write_arrays', fails)
  with pytest.raises(ModuleNotFoundError):
    package.write(tmp_path / 'other', CONTENT, vendor=False)
  assert [path.name for path in tmp_path.iterdir()] == ['out']


def test_layers_are_written_one_by_one():
  stacked = {'embedding': np.zeros(3), 'layers/mixer/w': np.arange(6.0).reshape(3, 2)}
  found = exporting.one_by_one(stacked)
  assert sorted(found) == ['embedding', 'layer_0/mixer/w', 'layer_1/mixer/w', 'layer_2/mixer/w']
  assert found['layer_2/mixer/w'].tolist() == [4.0, 5.0]
  assert exporting.one_by_one(PARAMETERS).keys() == PARAMETERS.keys()


def test_layout_changes_no_word():
  untidy = 'x = {  "a":1,\n"b" : 2 }  # kept\n'
  assert exporting.formatted(untidy) == 'x = {"a": 1, "b": 2}  # kept\n'
  assert exporting.formatted('not python (') == 'not python ('


def test_packaged_licence_is_ours():
  folder = pathlib.Path(package.__file__).parent
  assert (folder / 'templates/licence.txt').read_text() == (folder.parents[1] / 'LICENSE').read_text()
