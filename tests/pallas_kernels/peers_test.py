"""Other people's implementations agree with ours: the oracle with FLA's, the XLA form with two JAX packages.

None of them is needed for anything else, so they are left out of the extras: `make peers` builds environments that have
them and runs this file there. Elsewhere these tests are skipped, each saying what is missing.
"""

import dataclasses
import functools
import importlib
import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import specs
from tests.pallas_kernels import draws

NAMES = ('q', 'k', 'v', 'beta', 'log_decay', 'initial_state')


def missing(*modules):
  """Returns why a test is skipped, or None: the modules that are not installed."""
  absent = [module for module in modules if importlib.util.find_spec(module) is None]
  return f'not installed: {", ".join(absent)}; `make peers` runs this test where they are' if absent else None


def needs(*modules):
  return pytest.mark.skipif(missing(*modules) is not None, reason=missing(*modules) or '')


def assert_agree(got, want, limit, capsys, label):
  """Prints the largest relative RMS difference of outputs and of gradients, and holds both below `limit`."""
  assert got.keys() == want.keys()
  found = {name: draws.error(got[name], want[name]) for name in want}
  gradients = [off for name, off in found.items() if name not in ('o', 'state')]
  with capsys.disabled():
    print(f'\n  {label}: o {found["o"]:.1e}, state {found["state"]:.1e}, gradients {max(gradients):.1e}', end='')
  for name, off in found.items():
    assert off < limit, f'{name}: {off:.1e}, limit {limit}'


# FLA: token by token in torch, float64. Importing the package would ask for Triton, so its files are loaded by path.


class Float64Torch:
  """The module torch with float64 where it says float32: FLA's naive forms cast their operands to float32."""

  def __init__(self, torch):
    self.torch = torch

  def __getattr__(self, name):
    return self.torch.float64 if name in ('float', 'float32') else getattr(self.torch, name)


def fla_naive(operation, monkeypatch):
  """Returns FLA's module of naive forms of one operation, made to compute in float64."""
  import torch

  (package,) = importlib.util.find_spec('fla').submodule_search_locations
  path = pathlib.Path(package) / 'ops' / operation / 'naive.py'
  spec = importlib.util.spec_from_file_location(f'naive_{operation}', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  module.torch = Float64Torch(torch)
  monkeypatch.setattr(torch.Tensor, 'float', torch.Tensor.double)
  return module


def fla_outputs(decay, monkeypatch, q, k, v, beta, g, state):
  """Returns (o, final state) of FLA's naive recurrence; only that of KDA knows grouped heads."""
  if decay == 'channel':
    naive = fla_naive('kda', monkeypatch).naive_recurrent_kda
    return naive(q, k, v, g, beta, initial_state=state, output_final_state=True)
  q, k = (x.repeat_interleave(v.shape[2] // x.shape[2], dim=2) for x in (q, k))
  if decay == 'scalar':
    naive = fla_naive('gated_delta_rule', monkeypatch).naive_recurrent_gated_delta_rule
    return naive(q, k, v, beta, g, initial_state=state, output_final_state=True)
  naive = fla_naive('delta_rule', monkeypatch).delta_rule_recurrence
  o, state = naive(*(x.transpose(1, 2) for x in (q, k, v, beta)), initial_state=state)
  return o.transpose(1, 2), state


@needs('torch', 'fla', 'einops')
@pytest.mark.parametrize('strongest', [1.0, 2.0], ids=lambda beta: f'beta to {beta:.0f}')
@pytest.mark.parametrize('heads', [(2, 2), (2, 4)], ids=['heads alike', 'grouped'])
@pytest.mark.parametrize('decay', ['none', 'scalar', 'channel'])
def test_the_oracle_is_fla_s_naive_recurrence_in_float64(decay, heads, strongest, monkeypatch, capsys):
  import torch

  spec = specs.Spec(2, 65, *heads, 16, 24, decay)
  drawn, _ = draws.operands(spec)
  drawn['beta'] = drawn['beta'] * strongest
  seeds = draws.seeds(spec)
  leaves = {name: torch.from_numpy(x).requires_grad_() for name, x in drawn.items()}
  outputs = fla_outputs(decay, monkeypatch, *(leaves.get(name) for name in NAMES))
  assert all(x.dtype == torch.float64 for x in outputs)
  gradients = torch.autograd.grad(outputs, list(leaves.values()), [torch.from_numpy(x) for x in seeds])
  theirs = dict(zip(('o', 'state'), (x.detach().numpy() for x in outputs), strict=True))
  theirs |= dict(zip(leaves, (x.numpy() for x in gradients), strict=True))
  assert_agree(draws.truth(drawn, None, seeds), theirs, 1e-13, capsys, f'FLA, {decay}')


# JAX packages: their plain-JAX forms in float32, on CPU.


def deltanet_tpu_form(decay, q, k, v, beta, g, state, segment_ids):
  import deltanet_tpu

  call = {'none': deltanet_tpu.chunk_delta_rule, 'scalar': deltanet_tpu.chunk_gdn, 'channel': deltanet_tpu.chunk_kda}
  gates = (beta,) if decay == 'none' else (g, beta)
  options = {'segment_ids': segment_ids, 'initial_state': state, 'output_final_state': True}
  return call[decay](q, k, v, *gates, **options, precision='fp32', fallback_scan=True)


def jax_linear_attention_form(module, decay, q, k, v, beta, g, state, segment_ids):
  ops = importlib.import_module(f'jla.ops.{module}')
  call = {'none': ops.delta_rule, 'scalar': ops.gated_delta_rule, 'channel': ops.kda}
  gates = (beta,) if decay == 'none' else (g, beta)
  return call[decay](q, k, v, *gates, initial_state=state, output_final_state=True, segment_ids=segment_ids)


FORMS = {
  'deltanet_tpu': (deltanet_tpu_form, specs.Spec(1, 200, 1, 2, 128, 128)),  # K = V = 128 is all it takes
  'jla chunked': (functools.partial(jax_linear_attention_form, 'chunked'), specs.Spec(2, 150, 2, 2, 32, 48)),
  'jla reference': (functools.partial(jax_linear_attention_form, 'reference'), specs.Spec(2, 150, 2, 2, 32, 48)),
}


@pytest.mark.parametrize('boundary', [0.0, 0.02], ids=['one document', 'packed'])
@pytest.mark.parametrize('decay', ['none', 'scalar', 'channel'])
@pytest.mark.parametrize('form', [pytest.param(name, marks=needs(name.split()[0])) for name in FORMS])
def test_the_xla_form_is_theirs(form, decay, boundary, capsys):
  call, spec = FORMS[form]
  spec = dataclasses.replace(spec, decay=decay, boundary=boundary)
  drawn, ids = draws.operands(spec)
  ids = None if ids is None else ids - ids[:, :1]  # the first token continues the initial state, in theirs as in ours
  x, seeds = draws.narrowed(drawn), draws.narrowed(draws.seeds(spec))

  @jax.jit
  def theirs(x, seeds):
    segment_ids = None if ids is None else jnp.asarray(ids, jnp.int32)
    (o, state), pull = jax.vjp(lambda x: call(decay, *(x.get(name) for name in NAMES), segment_ids), x)
    return {'o': o, 'state': state, **pull(seeds)[0]}

  ours = draws.outputs_and_gradients(x, ids, *seeds, implementation='xla')
  want = jax.tree.map(np.asarray, theirs(x, seeds))
  assert_agree(ours, want, 1e-5, capsys, f'{form}, {decay}{", packed" if boundary else ""}')
