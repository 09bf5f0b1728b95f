"""Components read from the source, and what they are worth over the archive."""

import importlib.resources

import numpy as np
import pytest

from asiarch_jax.agents import components
from tests import samples

BASELINES = importlib.resources.files('asiarch_jax.arch.baselines')
PLAIN = samples.SOURCE
GATED = samples.SOURCE.replace('nn.Dense(self.width, dtype=self.dtype)(gate', 'nn.RMSNorm()(gate')


@pytest.mark.parametrize('name, present, absent', [
  ('delta_net', {'delta rule', 'causal convolution', 'normalised keys', 'SiLU'}, {'state decay'}),
  ('gated_delta_net', {'delta rule', 'state decay'}, {'softmax over paths'}),
  ('softmax_attention', {'softmax over paths'}, {'delta rule'}),
])  # fmt: skip
def test_the_components_of_the_baselines(name, present, absent):
  found = components.components((BASELINES / f'{name}.py').read_text())
  assert present <= found and not absent & found


@pytest.mark.parametrize('call, decays', [
  ('delta_rule(q, k, v, beta)', False), ('delta_rule(q, k, v, beta, None)', False),
  ('delta_rule(q, k, v, beta, g)', True),
  ('delta_rule(q, k, v, beta, log_decay=None)', False), ('delta_rule(q, k, v, beta, log_decay=g)', True),
])  # fmt: skip
def test_a_decay_is_one_that_is_given(call, decays):
  assert ('state decay' in components.components(call)) == decays


def test_source_that_does_not_parse_has_none():
  assert components.components('class Mixer(:') == frozenset()


def test_a_component_that_helps_is_found_whoever_wrote_it():
  outcomes = list(samples.baselines())
  for number in range(3, 19):
    gated = number % 2 == 1
    outcomes.append(
      samples.entry(
        number, 0.06 if gated else 0.0, parent_id=number - 1 if number > 3 else 0,
        proposal_changes={'source': GATED if gated else PLAIN, 'author': 'gemini' if gated else 'evolution'},
      )
    )  # fmt: skip
  rows = components.component_effects(outcomes)
  gain = next(row for row in rows if row.field == 'RMS normalisation')
  added = gain if gain.after else gain.reversed()
  assert added.low > 0 and added.effect == pytest.approx(0.06, abs=0.03)
  line = next(line for line in components.told(rows).splitlines() if 'RMS' in line)
  assert 'when added' in line and 'not distinguishable' not in line and np.isfinite(added.high)


def test_without_a_change_it_says_so():
  assert 'No component was added or dropped' in components.told(components.component_effects(samples.baselines()))
