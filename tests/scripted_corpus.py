"""Proposals as a good researcher writes them, sound and wrong, for tests that need an author without a language model.

Each row of CORPUS is a file in `tests/scripted`: its module docstring is the motivation, its text the source. The rows
say what the gate makes of them (`tests/scripted_corpus_test.py` holds them to it), and `reply_of` gives what a language
model would answer.
"""

from __future__ import annotations

import ast
import dataclasses
import pathlib
from typing import Any

from asiarch_jax.records import Origin

FOLDER = pathlib.Path(__file__).parent / 'scripted'


@dataclasses.dataclass(frozen=True)
class Scripted:
  """One proposal. `outcome` is sound or the kind of failure (`records.FAILURES`) that its check ends with.

  `says` is a fragment of the failure's reason. A duplicate is sound by itself, and fails once `twin` is in the archive.
  `repaired_by` names the row with the same idea, mended.
  """

  name: str
  outcome: str
  repaired_by: str = ''
  says: str = ''
  twin: str = ''
  ideas: tuple[Origin, ...] = ()


CORPUS = (
  # Sound.
  Scripted(
    'fir_delta_fusion',
    'sound',
    ideas=(
      Origin('short FIR path', 'cognition', '2512.17351#1'),
      Origin('31-tap FIR path', 'cognition', '2302.06646#2'),
      Origin('softmax over paths a head and token', 'original'),
    ),
  ),
  Scripted(
    'two_time_scales',
    'sound',
    ideas=(
      Origin('slow and fast memory under one key', 'analysis', '1'),
      Origin('softmax over time scales', 'cognition', '2506.04761#1'),
    ),
  ),
  Scripted(
    'reflecting_delta',
    'sound',
    ideas=(
      Origin('beta up to two', 'cognition', '2411.12537#1'),
      Origin('scalar decay a head', 'cognition', '2412.06464#1'),
    ),
  ),
  Scripted(
    'agreement_gate',
    'sound',
    ideas=(
      Origin('sigmoid gate on each head', 'cognition', '2505.06708#1'),
      Origin('agreement of read and value in the gate', 'original'),
    ),
  ),
  Scripted(
    'channel_decay',
    'sound',
    ideas=(
      Origin('decay a key channel', 'cognition', '2510.26692#1'),
      Origin('low-rank decay', 'cognition', '2312.06635#1'),
    ),
  ),
  Scripted(
    'read_before_write',
    'sound',
    ideas=(
      Origin('bonus for the current token', 'cognition', '2404.05892#1'),
      Origin('read before write', 'original'),
    ),
  ),
  Scripted('two_level_memory', 'sound', ideas=(Origin('states by time scale', 'cognition', '2506.04761#1'),)),
  Scripted('two_householders', 'sound', ideas=(Origin('two writes a token', 'cognition', '2502.10297#1'),)),
  Scripted(
    'shifted_recurrence',
    'sound',
    ideas=(
      Origin('token shift', 'cognition', '2305.13048#1'),
      Origin('real-gated linear recurrence', 'cognition', '2402.19427#1'),
    ),
  ),
  Scripted(
    'rotary_retention',
    'sound',
    ideas=(
      Origin('fixed decays over the heads', 'cognition', '2307.08621#1'),
      Origin('rotary queries and keys', 'cognition', '2104.09864#1'),
    ),
  ),
  Scripted(
    'gated_long_convolution',
    'sound',
    ideas=(
      Origin('gates around a long filter', 'cognition', '2302.10866#1'),
      Origin('windows spread over channels', 'cognition', '2302.06646#2'),
    ),
  ),
  Scripted(
    'squared_features',
    'sound',
    ideas=(
      Origin('affine map, then the square', 'cognition', '2402.10644#1'),
      Origin('running normaliser', 'cognition', '2006.16236#1'),
    ),
  ),
  Scripted('momentum_keys', 'sound', ideas=(Origin('keys averaged over the recent past', 'original'),)),
  # Sound, and known already.
  Scripted(
    'reflecting_delta_again',
    'duplicate',
    twin='reflecting_delta',
    says='computes the same function as entry',
    ideas=(Origin('negative eigenvalues', 'cognition', '2411.12537#1'),),
  ),
  # The future, seen through a maximum over all tokens.
  Scripted(
    'write_budget',
    'checks',
    'write_budget_repaired',
    says='causality: the output at position',
    ideas=(Origin('strength against the largest interest', 'original'),),
  ),
  Scripted('write_budget_repaired', 'sound', ideas=(Origin('strength against the running maximum', 'original'),)),
  # A weight made for the width of keys, where values are wider.
  Scripted(
    'wide_values',
    'checks',
    'wide_values_repaired',
    says='contract: the mixer raised at line 48 (return jnp.einsum(',
    ideas=(Origin('values wider than keys', 'cognition', '2412.06464#1'),),
  ),
  Scripted('wide_values_repaired', 'sound', ideas=(Origin('values wider than keys', 'cognition', '2412.06464#1'),)),
  # An import and a call outside the contract.
  Scripted(
    'ladder_of_horizons',
    'checks',
    'ladder_of_horizons_repaired',
    says="imports: line 13: import of 'numpy'",
    ideas=(
      Origin('geometric ladder of decays', 'cognition', '2307.08621#1'),
      Origin('bounded move by the token', 'original'),
    ),
  ),
  Scripted(
    'ladder_of_horizons_repaired',
    'sound',
    ideas=(
      Origin('geometric ladder of decays', 'cognition', '2307.08621#1'),
      Origin('bounded move by the token', 'original'),
    ),
  ),
  Scripted(
    'surprised_writes',
    'checks',
    'surprised_writes_repaired',
    says='jax.debug.print: a mixer makes no calls to the host',
    ideas=(Origin('strength from surprise', 'cognition', '2501.00663#1'),),
  ),
  Scripted(
    'surprised_writes_repaired', 'sound', ideas=(Origin('strength from surprise', 'cognition', '2501.00663#1'),)
  ),
  # Quadratic: a sequence 16 times shorter is still as long as T.
  Scripted(
    'block_summaries',
    'checks',
    says='growth: FLOPs grow as T^1.6',
    ideas=(
      Origin('attention to block summaries', 'cognition', '2502.11089#1'),
      Origin('a score that belongs to no block', 'original'),
    ),
  ),
  # Numbers: an overflow at once, and a derivative at zero.
  Scripted(
    'unchunked_decay',
    'checks',
    says='finite: at initialisation the output at position',
    ideas=(
      Origin('decay a channel', 'cognition', '2312.06635#1'),
      Origin('cumulative sums without chunks', 'original'),
    ),
  ),
  Scripted(
    'moving_keys',
    'checks',
    says="gradients: the gradient of parameter ['key']['kernel'] is not finite for one token repeated",
    ideas=(Origin('decay from the distance of keys', 'original'),),
  ),
  # Another function at another length.
  Scripted(
    'sequence_schedule',
    'checks',
    says='prefix: the output at position',
    ideas=(Origin('strengths that fall along the sequence', 'original'),),
  ),
  # An initialiser with arguments that it does not have.
  Scripted(
    'leaky_averages',
    'error',
    says="TypeError: uniform() got an unexpected keyword argument 'minval'",
    ideas=(
      Origin('leaky average a channel', 'cognition', '2303.06349#1'),
      Origin('SiLU gate', 'cognition', '2312.00752#2'),
    ),
  ),
)
ROWS = {row.name: row for row in CORPUS}


def source_of(name: str) -> str:
  """Returns the text of a proposal."""
  return (FOLDER / f'{name}.py').read_text()


def motivation_of(name: str) -> str:
  """Returns the module docstring of a proposal, with its lines joined to paragraphs."""
  text = ast.get_docstring(ast.parse(source_of(name))) or ''
  return '\n\n'.join(' '.join(paragraph.split()) for paragraph in text.split('\n\n'))


def reply_of(name: str) -> dict[str, Any]:
  """Returns what a language model that is asked for a proposal would answer."""
  return {
    'name': name,
    'motivation': motivation_of(name),
    'source': source_of(name),
    'ideas': [
      {'component': idea.component, 'origin': idea.kind, 'reference': idea.reference} for idea in ROWS[name].ideas
    ],
  }
