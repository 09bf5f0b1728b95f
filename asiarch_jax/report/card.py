"""The card of an exported mixer: one page on what it is, where it comes from, and how far it can be believed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from asiarch_jax import config
from asiarch_jax.evidence.claims import Verdict
from asiarch_jax.evidence.posterior import Posterior
from asiarch_jax.records import Entry, Finding, Outcome
from asiarch_jax.report.text import visible


@dataclasses.dataclass(frozen=True)
class Facts:
  """What the card tells. `steps` says whether states can be carried; `candidates` how many stood to choose from."""

  entry: Entry
  model: config.Model
  training: config.Training
  lineage: Sequence[Outcome]
  believed: Posterior | None
  baseline: str
  verdicts: Sequence[Verdict]
  candidates: int
  steps: Finding
  made: Mapping[str, str]
  vendored: bool
  package: str


def written(facts: Facts) -> str:
  """Returns the card in Markdown."""
  entry, package = facts.entry, facts.package
  return '\n'.join([
    f'# {visible(entry.proposal.name)}',
    '',
    f'A token mixer for a linear-attention language model, written by {visible(entry.proposal.author)} in an '
    f'architecture search (entry {entry.id}) and exported by asiarch-jax.',
    '',
    *_quoted(entry.proposal.motivation),
    '',
    '## Use',
    '',
    '```python',
    f'from {package} import Mixer',
    '',
    'mixer = Mixer(width=512, heads=4)          # Flax Linen: x [B, T, width] to [B, T, width], causal',
    'variables = mixer.init(key, x)',
    'y = mixer.apply(variables, x)',
    '',
    f'from {package}.nnx_form import nnx_mixer   # Flax NNX',
    f'from {package} import generate, load_model',
    'model, parameters = load_model()           # as it was trained in the search',
    'tokens = generate(model, parameters, prompt, 100)',
    '```',
    '',
    'Prove that it computes what the archive does: `pip install -e .[test] && pytest`. '
    + ('Needs jax and flax; the kernels are here, in their XLA form.' if facts.vendored
       else 'The kernels come with asiarch-jax; an export with --vendor brings them along.'),
    '',
    '## Evidence',
    '',
    *_evidence(facts),
    '',
    '## Lineage',
    '',
    *([f'{rank}. {visible(one.proposal.name)} (#{one.id}, {one.proposal.operator})'
       for rank, one in enumerate(facts.lineage, 1)] or ['None: an independent design.']),
    '',
    '## Cost',
    '',
    f'| | a mixer | the model |\n| --- | --- | --- |\n'
    f'| parameters | {entry.cost.mixer_parameters:,} | {entry.training.parameters:,} |\n'
    f'| FLOPs a token, forward | {entry.cost.flops_per_token:,.0f} | {entry.training.flops_per_token:,.0f} |\n'
    f'| state bytes a sequence | {entry.cost.state_bytes:,} | {entry.training.state_bytes:,} |',
    '',
    f'FLOPs grow as T^{entry.cost.growth:.2f}. The model: {facts.model.layers} layers, width {facts.model.width}, '
    f'{facts.model.heads} heads, feed-forward {facts.model.mlp_width}, vocabulary {facts.model.vocabulary}.',
    '',
    '## Limits',
    '',
    f'- Trained for {facts.training.steps} steps of {facts.training.batch} x {facts.training.length} tokens. What it '
    'does at other sizes was not measured unless said above.',
    '- ' + ('Decoding: states are carried from token to token, and equal the whole text.' if facts.steps.passed else
            f'Decoding reads the whole text for each token ({visible(facts.steps.detail.splitlines()[0])}).'),
    f'- `{package}/mixer.py` was written by a program. It passed the checks of the search and ran in a jail there; '
    'read it before it runs outside of one.',
    '',
    '## Provenance and licence',
    '',
    ', '.join(f'{name} {value}' for name, value in facts.made.items()) + f', job {entry.job_key or "unknown"}.',
    'Apache-2.0, as asiarch-jax; the text of the licence lies beside this page.',
    '',
  ])  # fmt: skip


def _quoted(text: str) -> list[str]:
  return [f'> {line}' for line in visible(text).splitlines()] or ['> No motivation was given.']


def _evidence(facts: Facts) -> list[str]:
  found, e, b = [], facts.entry.evidence, facts.believed
  if facts.entry.role != 'candidate':
    found.append(f'- A {facts.entry.role} of the search; {facts.baseline} is what all are compared with.')
  if e is not None and math.isinf(e.low):
    found.append(
      f'- Measured: {e.improvement:+.4f} bits per byte over {facts.baseline}, without a lower end: '
      + (f'{e.dropped} pairs lost a replica.' if e.dropped else f'{e.replicas} pair says nothing of noise.')
    )
  elif e is not None:
    found.append(
      f'- Measured: {e.improvement:+.4f} bits per byte over {facts.baseline} at matched parameters, 95 % interval '
      f'{e.low:+.4f} .. {e.high:+.4f}, {e.replicas} paired replicas. Read on windows that the search chose by.'
    )
  if b is not None:
    found.append(
      f'- Believed, since it was chosen among {facts.candidates}: {b.mean:+.4f} ({b.low:+.4f} .. {b.high:+.4f}); '
      f'probability of being better {b.probability_better:.2f}.'
    )
  for one in facts.verdicts:
    if one.reason:
      found.append(f'- Claimed, matched by {one.matched}: not shown ({one.reason}).')
      continue
    found.append(
      f'- Claimed on fresh seeds and unread windows, matched by {one.matched}: '
      f'{"shown" if one.shown else "not shown"}, {one.effect:+.4f} ({one.low:+.4f} .. {one.high:+.4f}), {one.pairs} '
      f'pairs, p = {one.adjusted:.2g} by Holm'
      + (f'; the baseline needs {one.multiplier} its FLOPs for this loss.' if one.multiplier else '.')
    )
  if not facts.verdicts:
    found.append('- No claim was made (`asiarch claim`): nothing here was confirmed on fresh seeds.')
  return found
