"""Each guilty mixer is caught for its own reason, and innocent ones pass."""

import dataclasses
import itertools
import pathlib
import re
from typing import Any

import jax.numpy as jnp
import pytest
from flax import linen as nn

from asiarch_jax import config
from asiarch_jax.arch import contract
from asiarch_jax.checks import behaviour, cost, source
from tests.marks import slow_but

ROOT = pathlib.Path(__file__).parents[2]
HERE = pathlib.Path(__file__).parent
GUILTY = sorted((HERE / 'guilty').glob('*.py'))
INNOCENT = sorted((HERE / 'innocent').glob('*.py'))
SPEC = contract.MixerSpec(16, 2, jnp.dtype('float32'))
CHECKS = config.Checks()


def guilt(path):
  """The line `# guilty: names of checks`, behind `text` where the text alone gives it away."""
  return re.search('^# guilty: (.*)$', path.read_text(), re.MULTILINE)[1].split()


IN_TEXT = [path for path in GUILTY if guilt(path)[0] == 'text']
IN_DEED = [path for path in GUILTY if path not in IN_TEXT]


def failed(findings):
  return [finding for finding in findings if not finding.passed]


def gate(path, spec=SPEC, **options):
  return behaviour.gate(contract.load(path.read_text(), path.stem), spec, CHECKS, trained=((5, 64),), **options)


@pytest.mark.parametrize('path', IN_DEED, ids=lambda path: path.stem)
def test_a_guilty_mixer_is_caught_for_its_own_reason(path):
  found = failed(gate(path))
  assert {finding.check for finding in found} == set(guilt(path)), [finding.detail for finding in found]
  assert all(len(finding.detail) > 30 for finding in found), 'a finding is a sentence that says what to change'


@pytest.mark.parametrize('path', IN_TEXT, ids=lambda path: path.stem)
def test_a_guilty_text_is_caught_for_its_own_reason(path):
  assert {finding.check for finding in failed(source.check(path.read_text()))} == set(guilt(path)[1:])


@pytest.mark.parametrize('path', INNOCENT, ids=lambda path: path.stem)
def test_an_innocent_mixer_passes_every_check(path):
  findings = gate(path)
  assert failed(findings) == []
  assert [finding.check for finding in findings] == list(behaviour.CHECKS)


def test_there_are_guilty_mixers_for_every_check():
  assert len(GUILTY) >= 45
  assert {name for path in IN_DEED for name in guilt(path)} == set(behaviour.CHECKS)


@pytest.mark.parametrize('name', slow_but(['delta_net'], ['delta_net', 'gated_delta_net']))
def test_baselines_pass_at_the_default_size(name):
  path = ROOT / f'asiarch_jax/arch/baselines/{name}.py'
  assert failed(gate(path, contract.spec_of(config.Model()))) == []


def test_softmax_attention_fails_in_growth_alone():
  path = ROOT / 'asiarch_jax/arch/baselines/softmax_attention.py'
  findings = gate(path, contract.spec_of(config.Model()), waived=('growth',))
  assert [finding.check for finding in failed(findings)] == ['growth']
  assert [finding.check for finding in findings] == list(behaviour.CHECKS)


def test_a_quadratic_part_is_seen_where_its_share_is_small():
  path = HERE / 'guilty/small_quadratic.py'
  (finding,) = failed(gate(path, contract.MixerSpec(256, 2, jnp.dtype('float32'))))
  assert finding.check == 'growth' and 'the sum does not yet show it' in finding.detail


def test_a_model_in_bfloat16_is_judged_like_one_in_float32():
  assert failed(gate(HERE / 'innocent/token_scan.py', contract.MixerSpec(16, 2, jnp.dtype('bfloat16')))) == []


def test_growth_is_that_of_the_type_that_is_trained():
  class Mixer(nn.Module):
    width: int
    heads: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_BTD):
      v_BTD = nn.Dense(self.width, dtype=self.dtype)(x_BTD)
      if x_BTD.dtype != jnp.bfloat16:
        return jnp.cumsum(v_BTD, 1)
      scores_BTT = jnp.tril(x_BTD @ v_BTD.mT)
      return (scores_BTT @ v_BTD).astype(x_BTD.dtype)

  spec = contract.MixerSpec(16, 2, jnp.dtype('bfloat16'))
  assert 'growth' in {finding.check for finding in failed(behaviour.gate(Mixer, spec, CHECKS))}


def test_a_small_square_of_one_type_is_seen_beside_the_larger_sum_of_the_other():
  class Mixer(nn.Module):
    width: int
    heads: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_BTD):
      v_BTD = nn.Dense(self.width, dtype=self.dtype)(nn.Dense(4 * self.width, dtype=self.dtype)(x_BTD))
      if x_BTD.dtype == jnp.bfloat16:
        past_TT = jnp.tril(jnp.ones((x_BTD.shape[1],) * 2, x_BTD.dtype))
        return v_BTD + jnp.einsum('ts,bs->bt', past_TT, v_BTD[..., 0])[..., None]
      many_BTN = jnp.tile(v_BTD, 32)
      return v_BTD + jnp.fft.irfft(jnp.fft.rfft(many_BTN, axis=1), n=x_BTD.shape[1], axis=1)[..., : self.width]

  spec = contract.MixerSpec(256, 2, jnp.dtype('bfloat16'))
  growths = {dtype: cost.growth(Mixer(256, 2, dtype), 256) for dtype in (jnp.dtype('bfloat16'), jnp.dtype('float32'))}
  bfloat16, float32 = growths.values()
  assert bfloat16.exponent < float32.exponent < 1.2 and float32.steepest < 1.5 < 1.9 < bfloat16.steepest
  (finding,) = [one for one in failed(behaviour.gate(Mixer, spec, CHECKS)) if one.check == 'growth']
  assert 'the sum does not yet show it' in finding.detail


def test_findings_name_the_parameter_the_position_and_the_line():
  def detail(name, check):
    return next(finding.detail for finding in gate(HERE / f'guilty/{name}.py') if finding.check == check)

  assert "['unused'] gets no gradient at T = 37 and 129" in detail('dead_parameter', 'gradients')
  assert 'position 127' in detail('one_ahead', 'causality')
  assert 'tokens from position 128 on' in detail('one_ahead', 'causality')
  assert 'at line 18' in detail('whole_chunks_only', 'shapes')


def test_the_same_seed_gives_the_same_findings():
  path = HERE / 'guilty/gated_leak.py'
  assert gate(path, seed=3) == gate(path, seed=3)


def test_stages_are_announced_and_timed():
  stages, ticks = [], itertools.count()
  findings = gate(HERE / 'innocent/zero_gate.py', on_progress=stages.append, clock=lambda: float(next(ticks)) / 10)
  assert stages[0] == 'contract' and len(stages) == len(behaviour.STAGES)
  assert all(finding.seconds > 0 for finding in findings)


def test_the_gate_keeps_to_its_own_time():
  ticks = itertools.count(step=40)
  findings = gate(HERE / 'innocent/zero_gate.py', clock=lambda: float(next(ticks)))
  assert [finding.check for finding in failed(findings)] == ['seconds']
  assert '60 s allowed' in failed(findings)[0].detail


@pytest.mark.slow
@pytest.mark.parametrize('lengths', [(1,), (7,), (16, 40), (1, 3, 5, 33, 70)])
def test_other_lengths_can_be_configured(lengths):
  checks = dataclasses.replace(CHECKS, lengths=lengths)

  def check(name):
    path = HERE / name
    return {f.check for f in failed(behaviour.gate(contract.load(path.read_text()), SPEC, checks))}

  assert check('innocent/causal_convolution.py') == set()
  if lengths != (1,):
    assert 'causality' in check('guilty/mean_over_time.py')
  assert check('guilty/scaled_by_batch.py') == {'batch'}


@pytest.mark.parametrize(
  'name, limits, check',
  [('mean_over_time', {'tolerance': 1e9}, 'causality'), ('quadratic_attention', {'growth': 2.5}, 'growth')],
)
def test_limits_of_the_gate_can_be_configured(name, limits, check):
  mixer = contract.load((HERE / f'guilty/{name}.py').read_text())
  strict, lenient = CHECKS, dataclasses.replace(CHECKS, **limits)
  assert check in {finding.check for finding in failed(behaviour.gate(mixer, SPEC, strict))}
  assert check not in {finding.check for finding in failed(behaviour.gate(mixer, SPEC, lenient))}
