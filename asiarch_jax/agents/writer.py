"""Flax source from a genome: readable, commented, stand-alone, and nothing in it that the genome does not need.

The text follows the contract of a proposal (`arch.contract`) and reads as the baselines do. It is put together section
by section in the order of the computation; imports and helper functions are those that the sections name.
"""

from __future__ import annotations

import dataclasses
import re
import textwrap
from collections.abc import Mapping
from typing import Any

from asiarch_jax.agents.genes import Genome
from asiarch_jax.agents.genome import canonical, convolves, paths, recalls
from asiarch_jax.agents.written_functions import HELPERS

ACTIVATIONS = {
  'identity': '{}',
  'none': '{}',
  'silu': 'nn.silu({})',
  'gelu': 'nn.gelu({})',
  'relu': 'nn.relu({})',
  'tanh': 'jnp.tanh({})',
  'elu_plus_one': '1 + nn.elu({})',
  'sigmoid': 'nn.sigmoid({})',
}
NORMS = {
  'l2': 'l2_normalise({})',
  'l1': 'sum_normalise({})',
  'softmax': 'nn.softmax({}, axis=-1)',
  'bounded': 'bounded({})',
  'scale': '{} / math.sqrt(K)',
  'none': '{}',
}
OUTPUTS = {  # the variable that holds each path
  'delta': 'delta_BTHV',
  'second_memory': 'second_BTHV',
  'retention': 'kept_BTHV',
  'short_fir': 'short_BTHV',
  'long_fir': 'long_BTHV',
  'average': 'mean_BTHV',
}
TITLES = {
  'delta': 'a delta-rule memory',
  'second_memory': 'a second memory with smoother keys',
  'retention': 'fading linear attention',
  'short_fir': 'a short filter',
  'long_fir': 'a long filter',
  'average': 'a moving average',
  'copy': 'the value itself',
}
SIZES = {0.5: 'max(1, self.width // (2 * H))', 1.0: 'self.width // H', 2.0: '2 * self.width // H'}
TIMES = {'fast': (4, 64), 'spread': (4, 1024), 'slow': (64, 2048)}  # tokens, of `decay_init`
UNIT_STEP = 0.5413  # softplus of it is 1


@dataclasses.dataclass(frozen=True)
class Layout:
  """What several sections must agree on."""

  genome: Genome
  keys: str  # axes of queries and keys as projected
  key_heads: str  # how many heads they have there, as an expression
  local: str  # the variable that local paths read

  @property
  def outputs(self) -> tuple[str, ...]:
    return tuple(self.result(path) for path in paths(self.genome))

  def result(self, path: str) -> str:
    """Returns the variable that a path is written to: the fused output itself when it is the only one."""
    return 'o_BTHV' if len(paths(self.genome)) == 1 else OUTPUTS.get(path, self.local)


def write(genome: Genome | Mapping[str, Any], name: str, motivation: str) -> str:
  """Returns the source of a mixer that does what the genome says.

  Only what the canonical genome needs is written: no switches, no dead parameters. The docstring is the motivation.
  """
  g = canonical(genome if isinstance(genome, Genome) else Genome.from_json(genome))
  layout = Layout(
    genome=g,
    keys='BT1K' if g.key_heads == 'shared' else 'BTHK',
    key_heads='1' if g.key_heads == 'shared' else 'H',
    local='raw_BTHV' if g.path_source == 'raw' else 'v_BTHV',
  )
  sections = [
    _sizes(layout),
    _token_shift(layout),
    _queries(layout),
    _keys(layout),
    _values(layout),
    _memory(layout),
    _retention(layout),
    _filters(layout),
    _average(layout),
    _fusion(layout),
    _residual(layout),
    _output(layout),
  ]
  body = '\n\n'.join(textwrap.indent('\n'.join(lines), '    ') for lines in sections if lines)
  call = f'  @nn.compact\n  def __call__(self, x_BTD: jax.Array) -> jax.Array:\n{body}'
  fields = '  width: int\n  heads: int\n  dtype: Any = jnp.float32'
  mixer = '\n\n'.join([f'class Mixer(nn.Module):\n{_summary(g)}', fields, *_methods(g), call])
  helpers = [text.strip() for helper, text in HELPERS.items() if re.search(rf'\b{helper}\b', mixer)]
  blocks = [*helpers, mixer]
  head = '\n\n'.join([_docstring(name, motivation), _imports('\n'.join(blocks)), *_constants(g)])
  return '\n\n\n'.join([head, *blocks]) + '\n'


def _docstring(name: str, motivation: str) -> str:
  text = ' '.join(motivation.split()).replace('\\', '/').replace('"""', "'''")
  lines = textwrap.wrap(text, 118, break_on_hyphens=False) or ['A token mixer.']
  if lines[-1].endswith('"'):
    lines[-1] += ' '
  title = ' '.join(name.split()).replace('\\', '/').replace('"', "'")
  return f'"""{title}\n\n' + '\n'.join(lines) + '\n"""'


def _summary(g: Genome) -> str:
  *most, last = (TITLES[path] for path in paths(g))
  parts = f'{", ".join(most)} and {last}' if most else last
  joined = {
    'sum': ', summed',
    'static': ', weighted per head',
    'softmax': ', chosen among by a soft-max router',
    'sigmoid': ', each behind its own sigmoid gate',
    'hierarchical': ', chosen among in two stages',
  }
  lines = textwrap.wrap(f'{parts[0].upper()}{parts[1:]}{joined[g.fusion] if most else ""}.', 110)
  if len(lines) == 1:
    return f'  """{lines[0]}"""'
  return textwrap.indent('"""' + '\n'.join(lines) + '\n"""', '  ')


def _imports(code: str) -> str:
  standard = ['import math'] if 'math.' in code else []
  third = ['import jax', 'import jax.numpy as jnp']
  third += ['from einops import rearrange'] if 'rearrange(' in code else []
  third += ['from flax import linen as nn']
  kernels = [name for name in ('causal_conv', 'delta_rule', 'l2_normalise') if f'{name}(' in code]
  ours = [f'\nfrom pallas_kernels import {", ".join(kernels)}'] if kernels else []
  return '\n'.join([*standard, 'from typing import Any', '', *third, *ours])


def _constants(g: Genome) -> list[str]:
  lines = []
  if g.retention or g.average == 'ema':
    lines.append('CHUNK = 32  # tokens that are mixed by one masked product')
  if g.rotary:
    lines.append(f'ROTARY_BASE = {g.rotary}.0  # the slowest pair of channels turns this much slower than the fastest')
  return ['\n'.join(lines)] if lines else []


def _methods(g: Genome) -> list[str]:
  """Returns the methods of the mixer that the sections call."""
  methods = [
    '''
  def project(self, x_BTD, size, name):
    """A linear map without bias."""
    return nn.Dense(size, use_bias=False, dtype=self.dtype, name=name)(x_BTD)
'''
  ]
  if convolves(g):
    init = {
      'uniform': "nn.initializers.variance_scaling(1.0, 'fan_in', 'uniform', 0, 1)",
      'dirac': 'near_identity(0.02)',
    }[g.conv_init]
    methods.append(f'''
  def convolve(self, x_BTX, taps, name):
    """A short causal convolution along time, one filter per channel; the last tap is the present token."""
    init = {init}
    taps_WX = self.param(name, init, (taps, x_BTX.shape[-1]))
    return causal_conv(x_BTX, taps_WX.astype(self.dtype))[0]
''')
  if g.short_fir or g.long_fir:
    init = {'dirac': 'identity_taps', 'noisy_dirac': 'near_identity(0.02)', 'fading': 'fading_taps'}[g.fir_init]
    size, of = ('V', 'channel') if g.fir_sharing == 'channel' else ('1', 'head')
    spread = '' if size == 'V' else '\n    taps_WHV = jnp.broadcast_to(taps_WH1, (taps, H, V))'
    methods.append(f'''
  def filtered(self, v_BTHV, taps, name):
    """A causal filter over the values, one per {of}; the last tap is the present token."""
    H, V = v_BTHV.shape[2:]
    taps_WH{size} = self.param(name, {init}, (taps, H, {size})){spread}
    y_BTX, _ = causal_conv(join_heads(v_BTHV), taps_WHV.reshape(taps, H * V).astype(self.dtype))
    return {ACTIVATIONS[g.fir_activation].format('split_heads(y_BTX, H)')}
''')
  return [method.strip('\n') for method in methods]


def _sizes(layout: Layout) -> list[str]:
  g = layout.genome
  lines = ['H = self.heads']
  if recalls(g):
    lines.append(f'K = {SIZES[g.key_expand]}')
  return [*lines, f'V = {SIZES[g.value_expand]}']


def _token_shift(layout: Layout) -> list[str]:
  if not layout.genome.token_shift:
    return []
  return [
    '# Each channel mixes the token with the one before it, by a learned share.',
    "share_D = self.param('shift', nn.initializers.constant(0.2), (self.width,)).astype(self.dtype)",
    'before_BTD = jnp.pad(x_BTD, ((0, 0), (1, 0), (0, 0)))[:, :-1]',
    'x_BTD = x_BTD + share_D * (before_BTD - x_BTD)',
  ]


def _finished(layout: Layout, source: str, taps: int, name: str, norm: str, to: str) -> list[str]:
  """Returns the lines that make queries or keys `to` from the projection `source`."""
  g, axes = layout.genome, to.split('_')[0]
  lines = []
  if taps:
    lines.append(f"{axes}_BTX = self.convolve({source}, {taps}, '{name}')")
    source = f'{axes}_BTX'
  value = ACTIVATIONS[g.key_query_activation].format(f'split_heads({source}, {layout.key_heads})')
  if norm == 'scale' and g.key_query_activation == 'elu_plus_one':
    value = f'({value})'
  value = NORMS[norm].format(value)
  return [*lines, f'{to} = {f"rotate({value})" if g.rotary else value}']


def _queries(layout: Layout) -> list[str]:
  g = layout.genome
  if not recalls(g):
    return []
  shared = layout.key_heads == '1'
  return [
    *(['# One head of queries and keys serves all heads of values.'] if shared else []),
    f"q_BTX = self.project(x_BTD, {'K' if shared else 'H * K'}, 'query')",
    *_finished(layout, 'q_BTX', g.query_conv, 'query_taps', g.query_norm, f'q_{layout.keys}'),
  ]


def _keys(layout: Layout) -> list[str]:
  g, shared = layout.genome, layout.key_heads == '1'
  if not recalls(g):
    return []
  source = 'key_BTX' if g.second_memory else 'k_BTX'
  lines = [
    f"{source} = self.project(x_BTD, {'K' if shared else 'H * K'}, 'key')",
    *_finished(layout, source, g.key_conv, 'key_taps', g.key_norm, f'k_{layout.keys}'),
  ]
  names = ['q', 'k']
  if g.second_memory:
    lines += [
      '# The second memory has smoother keys.',
      *_finished(layout, source, g.second_taps, 'second_taps', g.key_norm, f'smooth_{layout.keys}'),
    ]
    names.append('smooth')
  # Repeated here and not by the kernel's grouped heads: jax.vmap of the gradient of delta_rule with one key head for
  # several value heads ends in a segmentation fault on the CPU (JAX 0.10.2), and training maps over replicas.
  return lines + [f'{name}_BTHK = jnp.repeat({name}_BT1K, H, axis=2)' for name in names if shared]


def _values(layout: Layout) -> list[str]:
  g, raw = layout.genome, layout.local == 'raw_BTHV'
  source = 'raw_BTX' if raw else 'v_BTX'
  lines = [f"{source} = self.project(x_BTD, H * V, 'value')"]
  if raw:
    lines.append('raw_BTHV = split_heads(raw_BTX, H)  # what the local paths read')
  if g.value_conv:
    lines.append(f"v_BTX = self.convolve({source}, {g.value_conv}, 'value_taps')")
    source = 'v_BTX'
  lines.append(f'v_BTHV = {ACTIVATIONS[g.value_activation].format(f"split_heads({source}, H)")}')
  if g.value_gate == 'head':
    lines += [
      '# Unimportant tokens leave no trace.',
      "v_BTHV = v_BTHV * nn.sigmoid(nn.Dense(H, dtype=self.dtype, name='value_gate')(x_BTD))[..., None]",
    ]
  if g.value_gate == 'channel':
    lines += [
      '# Parts of a token can be withheld; the gate is of low rank.',
      "low_BTR = self.project(x_BTD, max(1, self.width // 8), 'value_gate_down')",
      "gate_BTX = nn.Dense(H * V, dtype=self.dtype, name='value_gate')(low_BTR)",
      'v_BTHV = v_BTHV * split_heads(nn.sigmoid(gate_BTX), H)',
    ]
  return lines


def _memory(layout: Layout) -> list[str]:
  g = layout.genome
  if not g.delta:
    return []
  heads, axis = ('2 * H', 'M') if g.second_memory else ('H', 'H')
  lines = _beta(g, heads, axis)
  arguments = ['q_BTHK', 'k_BTHK', 'v_BTHV', f'beta_BT{axis}']
  if g.decay != 'none':
    lines += ['', *_decay(g)]
    arguments.append('log_decay_BTH' if g.decay == 'head' else 'log_decay_BTHK')
  if g.second_memory:
    lines += ['', '# Both memories in one pass, as further heads: M = 2 H. The second does not decay.']
    stacked = [('q_BTHK', 'q_BTHK', 'q_BTMK'), ('k_BTHK', 'smooth_BTHK', 'k_BTMK')]
    stacked += [('v_BTHV', 'v_BTHV', 'v_BTMV')]
    if g.decay != 'none':
      stacked += [(arguments[4], f'jnp.zeros_like({arguments[4]})', arguments[4].replace('BTH', 'BTM'))]
      arguments[4] = stacked[-1][2]
    lines += [f'{to} = jnp.concatenate([{first}, {second}], axis=2)' for first, second, to in stacked]
    arguments[:3] = ['q_BTMK', 'k_BTMK', 'v_BTMV']
  options = ['scale=1.0']
  if g.initial_state:
    lines += [
      '',
      '# Frequent associations are known before the first token.',
      f"state_{axis}KV = self.param('initial_state', nn.initializers.normal(0.02), ({heads}, K, V))",
      f'state_B{axis}KV = jnp.broadcast_to(state_{axis}KV, (x_BTD.shape[0], {heads}, K, V))',
    ]
    options.append(f'initial_state=state_B{axis}KV')
  result = layout.result('delta') if not g.second_memory else 'both_BTMV'
  lines.append(f'{result}, _ = delta_rule({", ".join(arguments + options)})')
  if g.second_memory:
    lines.append('delta_BTHV, second_BTHV = jnp.split(both_BTMV, 2, axis=2)')
  return lines


def _beta(g: Genome, heads: str, axis: str) -> list[str]:
  factor = '2 * ' if g.beta_range == 2 else ''
  note = ['# Up to 2: the state may flip along a key, which tracking needs.'] if factor else []
  if g.beta == 'static':
    init = f'nn.initializers.constant({g.beta_bias})' if g.beta_bias else 'nn.initializers.zeros'
    return [
      *note,
      f"beta_{axis} = {factor}nn.sigmoid(self.param('beta', {init}, ({heads},)))",
      f'beta_BT{axis} = jnp.broadcast_to(beta_{axis}, (*x_BTD.shape[:2], {heads})).astype(self.dtype)',
    ]
  bias = f'bias_init=nn.initializers.constant({g.beta_bias})' if g.beta_bias else 'use_bias=False'
  return [
    *note,
    f"beta_BT{axis} = nn.Dense({heads}, {bias}, dtype=self.dtype, name='beta')(x_BTD)",
    f'beta_BT{axis} = {factor}nn.sigmoid(beta_BT{axis})',
  ]


def _decay(g: Genome) -> list[str]:
  shortest, longest = TIMES[g.decay_init]
  axes, shape = ('H', '(H,)') if g.decay == 'head' else ('HK', '(H, K)')
  lines = [
    '# The decay is a product over time, so it is kept in float32 whatever the compute type.',
    f"rate_{axes} = jnp.exp(self.param('log_rate', log_rates({shortest}, {longest}), {shape}))",
  ]
  if g.decay_form == 'static':
    return [*lines, f'log_decay_BT{axes} = jnp.broadcast_to(-rate_{axes}, (*x_BTD.shape[:2], *rate_{axes}.shape))']
  bias = f'bias_init=nn.initializers.constant({UNIT_STEP}), ' if g.decay_form == 'softplus' else ''
  if g.decay == 'head':
    lines.append(f"step_BTH = nn.Dense(H, {bias}dtype=jnp.float32, name='step')(x_BTD)")
  else:
    lines += [
      "low_BTR = nn.Dense(max(1, self.width // 8), use_bias=False, dtype=jnp.float32, name='step_down')(x_BTD)",
      f"step_BTX = nn.Dense(H * K, {bias}dtype=jnp.float32, name='step')(low_BTR)",
      'step_BTHK = split_heads(step_BTX, H)',
    ]
  size = 'nn.softplus({})' if g.decay_form == 'softplus' else '2 * nn.sigmoid({})'
  return [*lines, f'log_decay_BT{axes} = -rate_{axes} * {size.format(f"step_BT{axes}")}']


def _retention(layout: Layout) -> list[str]:
  g = layout.genome
  if not g.retention:
    return []
  if g.retention_fading == 'fixed':
    fading = f'-1 / jnp.geomspace(4.0, {g.retention_window}.0, H)'
  else:
    fading = f"-jnp.exp(self.param('retention_log_rate', log_rates(4, {g.retention_window}), (H,)))"
  lines = [f'# A memory that only adds, and fades over 4 to {g.retention_window} tokens, a window per head.']
  return [*lines, f'{layout.result("retention")} = fading_sum(q_BTHK, k_BTHK, v_BTHV, {fading})']


def _filters(layout: Layout) -> list[str]:
  g, lines = layout.genome, []
  if g.short_fir:
    lines.append(f"{layout.result('short_fir')} = self.filtered({layout.local}, {g.short_fir_taps}, 'short_filter')")
  if g.long_fir:
    lines.append(f"{layout.result('long_fir')} = self.filtered({layout.local}, {g.long_fir_taps}, 'long_filter')")
  return lines


def _average(layout: Layout) -> list[str]:
  g, local, result = layout.genome, layout.local, layout.result('average')
  if g.average == 'cumulative':
    return [
      '# The mean over all tokens so far.',
      f'count_T11 = jnp.arange(1, {local}.shape[1] + 1)[:, None, None]',
      f'{result} = (jnp.cumsum({local}.astype(jnp.float32), axis=1) / count_T11).astype(self.dtype)',
    ]
  if g.average == 'ema':
    return [
      f'# An exponential moving average per head, over 2 to {g.average_window} tokens at first: a fading sum of ones.',
      f"fading_H = -jnp.exp(self.param('average_log_rate', log_rates(2, {g.average_window}), (H,)))",
      f'one_BTH1 = jnp.ones((*{local}.shape[:3], 1))',
      f'sum_BTHV = fading_sum(one_BTH1, one_BTH1, {local}, fading_H)',
      f'{result} = ((1 - jnp.exp(fading_H))[:, None] * sum_BTHV).astype(self.dtype)',
    ]
  return []


def _fusion(layout: Layout) -> list[str]:
  g, outputs = layout.genome, layout.outputs
  if len(outputs) == 1:
    return []
  if g.fusion == 'sum' and not g.branch_norm:
    return [f'o_BTHV = {" + ".join(outputs)}']
  lines = [f'paths_BTHPV = jnp.stack([{", ".join(outputs)}], axis=3)']
  if g.branch_norm:
    lines += [
      '# No path wins by its scale alone.',
      'paths_BTHPV = nn.RMSNorm(epsilon=1e-5, use_scale=False, dtype=self.dtype)(paths_BTHPV)',
    ]
  if g.fusion == 'sum':
    return [*lines, 'o_BTHV = jnp.sum(paths_BTHPV, axis=3)']
  if g.fusion == 'static':
    return [
      *lines,
      f"weight_HP = self.param('path_weight', nn.initializers.ones, (H, {len(outputs)})).astype(self.dtype)",
      "o_BTHV = jnp.einsum('bthpv,hp->bthv', paths_BTHPV, weight_HP)",
    ]
  return [*lines, '', *_router(layout)]


def _router(layout: Layout) -> list[str]:
  g, P = layout.genome, len(layout.outputs)
  heads, axis = ('1', '1') if g.router_sharing == 'shared' else ('H', 'H')
  weight = f'weight_BT{axis}P'
  lines, features = _router_features(g)
  if g.router_hidden:
    size = {0.25: 'max(1, self.width // 4)', 0.5: 'max(1, self.width // 2)'}[g.router_hidden]
    dense = f"nn.Dense({size}, dtype=self.dtype, name='router_hidden')({features})"
    lines.append(f'hidden_BTF = {ACTIVATIONS[g.router_activation].format(dense)}')
    features = 'hidden_BTF'
  count = P if axis == '1' else f'H * {P}'
  options = ['dtype=jnp.float32', "name='router'"]
  if g.router_init == 'small':
    lines.append('small = nn.initializers.normal(0.01)')
    options.insert(0, 'kernel_init=small')
  if g.favoured != 'none':
    lines.append(f'favour = favouring({", ".join(_biases(g))})  # at first, in the order of the paths')
    options.insert(0, 'bias_init=favour')
  lines.append(f'logit_BTX = nn.Dense({count}, {", ".join(options)})({features})')
  lines.append(f'logit_BT{axis}P = split_heads(logit_BTX, {heads})')
  if g.temperature == 'sharp':
    lines.append(f'logit_BT{axis}P = 2 * logit_BT{axis}P')
  if g.temperature == 'learned':
    lines += [
      f"sharpness_{axis}1 = nn.softplus(self.param('sharpness', nn.initializers.constant({UNIT_STEP}), ({heads}, 1)))",
      f'logit_BT{axis}P = sharpness_{axis}1 * logit_BT{axis}P',
    ]
  lines += _weights(g, axis)
  lines += _floor(g, heads, axis, P)
  if g.entropy:
    lines += [
      '# Rewards an undecided router, so that all paths are trained.',
      f'entropy = -jnp.mean(jnp.sum({weight} * jnp.log({weight} + 1e-9), axis=-1))',
      f"self.sow('losses', 'router_entropy', -{g.entropy} * entropy)",
    ]
  lines.append(f'{weight} = {weight}.astype(self.dtype)')
  if axis == '1':
    return [*lines, "o_BTHV = jnp.einsum('bthpv,btp->bthv', paths_BTHPV, weight_BT1P[:, :, 0])"]
  return [*lines, "o_BTHV = jnp.einsum('bthpv,bthp->bthv', paths_BTHPV, weight_BTHP)"]


def _router_features(g: Genome) -> tuple[list[str], str]:
  if g.router_input == 'token':
    return ['# The token decides how the paths are weighted.'], 'x_BTD'
  lines = ['# The token and what the paths hold decide how the paths are weighted.']
  if g.router_input == 'size':
    lines.append('seen_BTHP = jnp.mean(jnp.abs(paths_BTHPV), axis=-1)')
  else:
    lines += [
      'mean_BTHP = jnp.mean(paths_BTHPV, axis=-1)',
      'spread_BTHP = jnp.sqrt(jnp.var(paths_BTHPV, axis=-1) + 1e-6)',
      'seen_BTHP = jnp.concatenate([mean_BTHP, spread_BTHP], axis=-1)',
    ]
  lines.append('seen_BTF = jnp.concatenate([x_BTD, join_heads(seen_BTHP)], axis=-1)')
  return lines, 'seen_BTF'


def _biases(g: Genome) -> list[str]:
  favoured = ('copy',) if g.favoured == 'copy' else tuple(path for path in paths(g) if path in ('delta', 'retention'))
  return [str(g.favour if path in favoured else 0.0) for path in paths(g)]


def _weights(g: Genome, axis: str) -> list[str]:
  logit, weight = f'logit_BT{axis}P', f'weight_BT{axis}P'
  if g.fusion == 'hierarchical':
    return [
      '# First copy (the last path) against context, then among the contexts.',
      f'copy_BT{axis}1 = nn.sigmoid({logit}[..., -1:])',
      f'context_BT{axis}C = (1 - copy_BT{axis}1) * nn.softmax({logit}[..., :-1], axis=-1)',
      f'{weight} = jnp.concatenate([context_BT{axis}C, copy_BT{axis}1], axis=-1)',
    ]
  return [f'{weight} = nn.softmax({logit}, axis=-1)' if g.fusion == 'softmax' else f'{weight} = nn.sigmoid({logit})']


def _floor(g: Genome, heads: str, axis: str, P: int) -> list[str]:
  weight = f'weight_BT{axis}P'
  if g.floor == 'none':
    return []
  note = '# A floor under the weights: no path starves of gradient.'
  if g.floor == 'static':
    share = round(1 - g.floor_size * (1 if g.fusion == 'sigmoid' else P), 6)
    return [note, f'{weight} = {g.floor_size} + {share} * {weight}']
  floor = f'floor_{axis}P'
  taken = floor if g.fusion == 'sigmoid' else f'jnp.sum({floor}, axis=-1, keepdims=True)'
  return [
    note,
    f"{floor} = {2 * g.floor_size} * nn.sigmoid(self.param('floor', nn.initializers.zeros, ({heads}, {P})))",
    f'{weight} = {floor} + (1 - {taken}) * {weight}',
  ]


def _residual(layout: Layout) -> list[str]:
  g, lines = layout.genome, []
  if g.value_residual == 'channel':
    lines += [
      '# The present token passes whatever the paths do.',
      "skip_HV = self.param('skip', nn.initializers.ones, (H, V)).astype(self.dtype)",
      'o_BTHV = o_BTHV + skip_HV * v_BTHV',
    ]
  if g.value_residual == 'gated':
    lines += [
      '# The present token passes where it is needed.',
      "skip_BTH = nn.sigmoid(nn.Dense(H, dtype=self.dtype, name='skip')(x_BTD))",
      'o_BTHV = o_BTHV + skip_BTH[..., None] * v_BTHV',
    ]
  if g.head_mix:
    lines += [
      '# Heads can cancel what they share.',
      "mix_HG = self.param('head_mix', identity_matrix, (H, H)).astype(self.dtype)",
      "o_BTHV = jnp.einsum('bthv,hg->btgv', o_BTHV, mix_HG)",
    ]
  return lines


def _output(layout: Layout) -> list[str]:
  g = layout.genome
  gated, lines = _gate(g)
  if gated and g.output_gate_order == 'before':
    lines.append(gated)
  if g.output_norm != 'none':
    scale = '' if g.norm_scale else 'use_scale=False, '
    norm = f"nn.RMSNorm(epsilon=1e-5, {scale}dtype=self.dtype, name='norm')"
    if g.output_norm == 'head':
      lines.append(f'o_BTHV = {norm}(o_BTHV)')
    else:
      lines += [f'norm = {norm}', 'o_BTHV = split_heads(norm(join_heads(o_BTHV)), H)']
  if gated and g.output_gate_order == 'after':
    lines.append(gated)
  lines.append("return self.project(join_heads(o_BTHV), self.width, 'output')")
  return lines


def _gate(g: Genome) -> tuple[str, list[str]]:
  """Returns the statement that applies the output gate, and those that compute it."""
  if g.output_gate == 'none':
    return '', []
  act = ACTIVATIONS[g.output_gate]
  if g.output_gate_rank == 'head':
    dense = "nn.Dense(H, dtype=self.dtype, name='gate')(x_BTD)"
    return 'o_BTHV = o_BTHV * gate_BTH[..., None]', [f'gate_BTH = {act.format(dense)}']
  lines, inner = [], 'x_BTD'
  if g.output_gate_rank == 'low':
    lines, inner = ["low_BTR = self.project(x_BTD, max(1, self.width // 8), 'gate_down')"], 'low_BTR'
  lines.append(f"gate_BTX = {act.format(f'''self.project({inner}, H * V, 'gate')''')}")
  return 'o_BTHV = o_BTHV * split_heads(gate_BTX, H)', lines
