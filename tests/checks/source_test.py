"""The text of a proposal: what is refused, for which reason, and that nothing dangerous can be reached."""

import pathlib
import types

import jax
import pytest

import pallas_kernels
from asiarch_jax.arch import contract
from asiarch_jax.checks import source

ROOT = pathlib.Path(__file__).parents[2]
HONEST = [*(ROOT / 'asiarch_jax/arch/baselines').glob('[a-z]*.py'), *(ROOT / 'tests/checks/innocent').glob('*.py')]
MIXER = """import jax
import jax.numpy as jnp
from flax import linen as nn
{imports}

{top}


class Mixer(nn.Module):
  width: int
  heads: int
  dtype: type = jnp.float32
  {field}

  @nn.compact
  def __call__(self, x):
    {body}
    return nn.Dense(self.width)(x)
"""


def mixer(body='pass', imports='', top='', field=''):
  return MIXER.format(body=body, imports=imports, top=top, field=field)


def failed(text):
  return {finding.check for finding in source.check(text) if not finding.passed}


@pytest.mark.parametrize('path', HONEST, ids=lambda path: path.stem)
def test_honest_mixers_pass(path):
  findings = source.check(path.read_text())
  assert [finding for finding in findings if not finding.passed] == []
  assert [finding.check for finding in findings] == list(source.CHECKS)
  assert source.failure(findings) is None


@pytest.mark.parametrize(
  'imports',
  [
    'import os',
    'import numpy as np',
    'import jax.experimental',
    'from jax import experimental',
    'from jax.experimental import pallas',
    'from jax import config',
    'from jax import pure_callback',
    'from jax import debug',
    'from jax._src import core',
    'from jax import *',
    'from . import delta_net',
    'from ..shell import archive',
    'from flax import nnx',
    'import flax.core',
    'from flax.linen import module',
    'from flax.linen import summary',
    'from jax.numpy import save',
    'from jax.lax import psum',
    'from einops import einops',
    'from functools import lru_cache',
    'from typing import sys',
    'from pallas_kernels import api',
    'import pallas_kernels.api',
    'from asiarch_jax import records',
    'import builtins',
    'import math, socket',
  ],
)
def test_imports_outside_the_list_are_refused(imports):
  assert failed(mixer(imports=imports)) == {'imports'}


@pytest.mark.parametrize(
  'imports',
  [
    'import math',
    'import flax.linen as nn',
    'import flax.linen',
    'from jax import lax, random, vmap',
    'from jax import numpy as jnp',
    'from jax.nn import initializers, silu',
    'from flax.linen import initializers as init',
    'from functools import partial',
    'from typing import Any, Callable',
    'from einops import rearrange, repeat',
    'import einops',
    'from pallas_kernels import delta_rule',
    'import pallas_kernels',
  ],
)
def test_allowed_imports_pass(imports):
  assert failed(mixer(imports=imports)) == set()


@pytest.mark.parametrize(
  'body',
  [
    'open("/etc/passwd")',
    'eval("1")',
    'exec("1")',
    'compile("1", "", "eval")',
    '__import__("os")',
    'globals()',
    'vars(self)',
    'breakpoint()',
    'input()',
    'print(x)',
    'setattr(self, "a", 1)',
    'f = open',
    'x.__class__',
    'x.__class__.__mro__',
    'self.__dict__',
    '(lambda: 0).__globals__',
    '(i for i in x).gi_frame.f_back',
    'nn.Module.__subclasses__()',
    'type(x).mro()',
    'getattr(x, "__cla" + "ss__")',
    'getattr(x, "__class__")',
    'getattr(jax, "experimental")',
    'g = getattr',
    'm = jax',
    'm = [jnp]',
    'jax.experimental.io_callback(print, None)',
    'jax.pure_callback(None, x, x)',
    'jax.debug.print("{}", x)',
    'jax.debug.callback(None)',
    'jax.config.update("jax_enable_x64", True)',
    'jax.distributed.initialize()',
    'jax.devices()',
    'jax.local_devices()',
    'jax.device_put(x)',
    'jax.process_index()',
    'jax.profiler.start_trace("/tmp/x")',
    'jax.monitoring.record_event("x")',
    'jax.lax.axis_index("replica")',
    'jax.lax.psum(x, "replica")',
    'jax.make_jaxpr(x)',
    'jax.numpy.lax.exp(x)',
    'jnp.save("/tmp/x", x)',
    'jnp.savez("/tmp/x", x)',
    'jnp.load("/tmp/x")',
    'jnp.fromfile("/tmp/x")',
    'x.tofile("/tmp/x")',
    'x.devices()',
    'jnp._src',
    'nn.module.sys.modules',
    'nn.summary.io.open("/tmp/x")',
    'nn.intercept_methods(None)',
    'nn.map_variables(None)',
    'self.scope.root',
    'self.parent',
    'self.variables',
    'self.name',
    'self.path',
    'me = self; me.path',
    "'{0.name}'.format(self)",
    'self.is_initializing()',
    'self.is_mutable_collection("losses")',
    'self.put_variable("params", "w", x)',
    'x._value',
    'undefined_name + 1',
    'jnp = 3',
    'f = lambda jax: jax',
    '[jax for jax in (1, 2)]',
    'None\n    match x:\n      case object(__class__=c): pass',
    '"{0.__class__}".format_map({})',
    '__builtins__',
    '__name__',
  ],
)
def test_names_that_lead_outside_are_refused(body):
  assert 'names' in failed(mixer(body=body)), body


@pytest.mark.parametrize(
  'top',
  [
    'for i in range(3): pass',
    'jnp.zeros(3)',
    'if True: A = 1',
    'while True: pass',
    'with jax.named_scope("a"): pass',
    'try: A = 1\nexcept ValueError: pass',
    'assert True',
    'jnp.pi = 3',
    'async def f(): pass',
    'class A:\n  jnp.zeros(3)',
    'def __getattr__(name): return 1',
    'class A:\n  def __del__(self): pass',
    'A = 1\nA += 1',
  ],
)
def test_importing_a_mixer_must_do_nothing(top):
  assert 'statements' in failed(mixer(top=top))


@pytest.mark.parametrize(
  'top, body',
  [
    ('CACHE = []', 'CACHE.append(x)'),
    ('CACHE = {}', 'CACHE["x"] = x'),
    ('CACHE = {}', 'CACHE.setdefault("x", x)'),
    ('A = 1', 'global A'),
    ('', 'Mixer.count = 1'),
    ('def f(): pass', 'f.count = 1'),
    ('def f(cache=[]): return cache', 'pass'),
    ('def f():\n  n = 1\n  def g():\n    nonlocal n\n  return g', 'pass'),
    ('', 'self.variable("cache", "x", lambda: x)'),
    ('', 'self.variable(col="cache", name="x", init_fn=lambda: x)'),
    ('', 'self.sow("intermediates", "x", x)'),
    ('', 'self.make_rng("dropout")'),
    ('', 'self.cache["x"] = x'),
  ],
)
def test_what_outlives_a_call_is_refused(top, body):
  assert 'state' in failed(mixer(top=top, body=body))


def test_harmless_forms_pass():
  text = mixer(
    top='SCALE, FLOOR = 0.5, 1e-3\nINIT = nn.initializers.normal(0.02)\n\n\n'
    '@jax.custom_vjp\ndef f(v):\n  return v\n\n\nf.defvjp(lambda v: (v, None), lambda _, dv: (dv,))',
    body='\n    '.join(
      [
        'parts = []',
        'parts.append(x)',
        'table = {}',
        'table["x"] = x',
        'x = x.at[0].add(0.0)',
        'self.sow("losses", "size", FLOOR * x.mean())',
        'self.sow("diagnostics", "size", x.mean())',
        'w = self.param("w", INIT, (3,))',
        'key = getattr(self, "heads")',
        'y = jax.random.normal(jax.random.key(0), (3,)) + jnp.linalg.norm(w) + jnp.fft.fft(w).real',
        'z = self._private(x) if hasattr(self, "_private") else [i * SCALE for i in range(key)]',
      ]
    ),
    field='taps: int = 4',
  )
  assert failed(text) == set()


@pytest.mark.parametrize(
  'text, says',
  [
    ('class Mixer(nn.Module)\n  pass', 'line 1'),
    ('', 'empty'),
    ('x = (' * 300, 'line'),
    ('x = ' + '-' * 90_000 + '1', 'characters'),
    ('x = ' + '-' * 3_000 + '1', 'nest'),
    ('x = "\0"', 'null bytes'),
    ('x = "\ud800"', 'UTF-8'),
    ('def f():\n\treturn 1\n        return 2', 'line 3'),
  ],
)
def test_what_is_no_python_is_refused_with_its_place(text, says):
  (finding,) = source.check(text)
  assert finding.check == 'parse' and not finding.passed
  assert says in finding.detail


@pytest.mark.parametrize(
  'text, says',
  [
    ('x = 1', 'no class Mixer'),
    (mixer().replace('class Mixer', 'class Mixture'), 'no class Mixer'),
    (mixer().replace('(nn.Module)', ''), 'derive'),
    (mixer().replace('(nn.Module)', '(dict)'), 'derive'),
    (mixer().replace('  heads: int\n', ''), 'lacks the field heads'),
    (mixer(field='taps: int'), 'field taps has no default'),
    (mixer().replace('__call__', 'forward'), 'no __call__'),
    (mixer().replace('(self, x)', '(self, x, mask)'), 'default'),
    (mixer().replace('(self, x)', '(self, x, *, mask)'), 'default'),
    (mixer().replace('(self, x)', '(self)'), 'host calls'),
    (mixer().replace('return nn', 'yield nn'), 'generator'),
    (mixer().replace('return nn', 'nn'), 'returns nothing'),
  ],
)
def test_the_form_of_the_contract_is_checked(text, says):
  details = [finding.detail for finding in source.check(text) if finding.check == 'contract' and not finding.passed]
  assert any(says in detail for detail in details), details


def test_a_base_class_in_the_file_counts():
  text = (
    mixer().replace('class Mixer(nn.Module):', 'class Base(nn.Module):') + '\n\nclass Mixer(Base):\n  taps: int = 3\n'
  )
  assert failed(text) == set()


def test_findings_name_the_line_and_are_counted():
  text = mixer(body='\n    '.join(['open("x")'] * 20))
  findings = [finding for finding in source.check(text) if not finding.passed]
  line = next(i for i, code in enumerate(text.splitlines(), 1) if 'open' in code)
  assert findings[0].detail.startswith(f'line {line}: open')
  assert len(findings) == source.SHOWN + 1 and '14 more' in findings[-1].detail
  failure = source.failure(findings)
  assert failure is not None and failure.kind == 'checks' and failure.reason.startswith(f'names: line {line}: open')


def test_tables_agree_with_what_they_describe():
  public = {name for name in pallas_kernels.__all__ if callable(getattr(pallas_kernels, name))}
  assert public == source.KERNELS, 'source.KERNELS lists the functions of pallas_kernels.__all__'
  assert source.SOWN == contract.SOWN
  assert set(source.ALLOWED_IMPORTS) <= set(source.MODULES)


def resolve(path):
  value = {'jax': jax, 'pallas_kernels': pallas_kernels}.get(path)
  if value is None:
    module, _, name = path.rpartition('.')
    value = getattr(resolve(module), name) if module else __import__(path)
  return value


@pytest.mark.parametrize('module', sorted(set(source.MODULES) - {'__future__'}))
def test_no_allowed_path_leads_to_a_module_outside_the_table(module):
  __import__(module)
  for name in dir(resolve(module)):
    path = f'{module}.{name}'
    if source.refusal(path) is None and isinstance(getattr(resolve(module), name), types.ModuleType):
      assert path in source.MODULES, f'{path} is a module that a mixer could reach'


@pytest.mark.parametrize('module', [name for name, allowed in source.MODULES.items() if allowed])
def test_every_allowed_name_exists(module):
  __import__(module)
  missing = [name for name in source.MODULES[module] if not hasattr(resolve(module), name)]
  assert missing == [], f'{module} has no {missing}: remove them from the table'
