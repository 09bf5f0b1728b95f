"""What agents are told of an entry, in words and numbers that are the same at every run: no clock enters a prompt."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence

import numpy as np

from asiarch_jax.agents.prompting import fenced
from asiarch_jax.cognition.retrieval import Hit
from asiarch_jax.evidence.held_out import held_out_loss
from asiarch_jax.records import Entry, Outcome, Rejection, entries_of

POINTS = 12  # of a training curve
FAILURES = 6  # latest rejections that a researcher is told


def baseline_of(outcomes: Sequence[Outcome], name: str) -> Entry | None:
  """Returns the entry of the baseline `name`; None before it is measured."""
  return next((e for e in entries_of(outcomes) if e.role == 'baseline' and e.proposal.name == name), None)


def headline(entry: Entry) -> str:
  """Returns one line that names an entry."""
  return f'entry {entry.id} ({entry.proposal.name}, {entry.role}, by {entry.proposal.author})'


def measured(entry: Entry, base: Entry | None) -> str:
  """Returns what was measured of an entry: held-out loss with its interval, tasks, counted cost, curve, fitness."""
  loss = held_out_loss(entry.training)
  lines = [f'held-out bits per byte: {loss:.4f}' if loss is not None and math.isfinite(loss) else 'held-out loss: none']
  if entry.evidence is not None and base is not None and base.id != entry.id:
    e = entry.evidence
    sure = 'better' if e.low > 0 else 'worse' if e.high < 0 else 'not distinguishable from it'
    lines.append(
      f'improvement over {base.proposal.name}: {e.improvement:+.4f} bits per byte, 95 % interval {e.low:+.4f} to '
      f'{e.high:+.4f} over {e.replicas} paired replicas: {sure}'
    )
  for score in entry.scores:
    lines.append(f'{score.task}: {score.value:.4f} ± {score.stderr:.4f} ({score.unit})')
  c = entry.cost
  ratio = (
    f' ({c.flops_per_token / base.cost.flops_per_token:.2f} times {base.proposal.name})'
    if base is not None and base.id != entry.id and base.cost.flops_per_token
    else ''
  )
  lines.append(
    f'mixer: {c.mixer_parameters} parameters, {c.flops_per_token:.3g} FLOPs a token{ratio}, {c.state_bytes} bytes of '
    f'state, FLOPs grow as T^{c.growth:.2f}'
  )
  lines.append(f'training loss, nats a token: {curve(entry)}')
  if entry.fitness is not None:
    lines.append(f'fitness: {entry.fitness.total:.4f}')
  return '\n'.join(lines)


def curve(entry: Entry) -> str:
  """Returns the mean training loss of the chosen replicas at about POINTS steps, evenly spaced."""
  kept = [replica.losses for replica in entry.training.chosen if not replica.diverged and replica.losses]
  if not kept:
    return 'every replica diverged'
  mean = np.mean([losses[: min(map(len, kept))] for losses in kept], axis=0)
  places = np.unique(np.linspace(0, len(mean) - 1, min(POINTS, len(mean))).round().astype(int))
  return ', '.join(f'step {(place + 1) * entry.training.log_every}: {mean[place]:.3f}' for place in places)


def lessons(entry: Entry) -> str:
  """Returns the analysis of an entry in short: synthesis and lessons."""
  if entry.analysis is None:
    return 'not analysed'
  return '\n'.join([entry.analysis.synthesis, *(f'- {lesson}' for lesson in entry.analysis.lessons)])


def whole(entry: Entry, base: Entry | None) -> str:
  """Returns an entry with its source, fenced as data."""
  parts = [f'{headline(entry)}', measured(entry, base), fenced('motivation', entry.proposal.motivation, 3_000)]
  if entry.analysis is not None:
    parts.append(fenced('analysis', lessons(entry), 4_000))
  parts.append(fenced('source', entry.proposal.source, 40_000))
  return '\n'.join(parts)


def insights(hits: Sequence[Hit]) -> str:
  """Returns insights of papers with the keys by which they are cited."""
  return '\n\n'.join(
    f'[{hit.key}] {hit.paper.citation}\nidea: {hit.insight.idea}\nhelps when: {hit.insight.trigger}\n'
    f'algorithm: {hit.insight.algorithm}\nguidance: {hit.insight.guidance}\nfails: {hit.insight.fails}'
    for hit in hits
  )


def failures(outcomes: Sequence[Outcome]) -> str:
  """Returns the latest failures, a line each."""
  rejected = [outcome for outcome in outcomes if isinstance(outcome, Rejection)][-FAILURES:]
  return '\n'.join(
    f'- {outcome.proposal.name}: {outcome.stage}: {" ".join(outcome.reason.split())[:240]}' for outcome in rejected
  )


def changes(before: str, after: str) -> str:
  """Returns the unified difference of two sources."""
  return '\n'.join(difflib.unified_diff(before.splitlines(), after.splitlines(), 'parent', 'child', lineterm='', n=2))


def weaknesses(entry: Entry, base: Entry | None) -> str:
  """Returns what the measurements of an entry show to be lacking, in the words that papers use: a retrieval query."""
  said = []
  e = entry.evidence
  if e is not None and e.high < 0:
    said.append('language modelling loss is worse than the baseline; the update or the gating loses information')
  elif e is not None and e.low <= 0:
    said.append('loss is not distinguishable from the baseline; the change adds little expressiveness')
  theirs = {score.task: score for score in base.scores} if base else {}
  for score in entry.scores:
    other = theirs.get(score.task)
    if score.unit == 'accuracy' and (other is None or score.value < other.value + 2 * score.stderr):
      said.append(TASK_WEAKNESSES.get(score.task, f'{score.task} accuracy does not improve'))
  if base is not None and base.id != entry.id:
    for what, ours, its in (
      ('compute: FLOPs a token are high', entry.cost.flops_per_token, base.cost.flops_per_token),
      ('memory: the recurrent state is large', entry.cost.state_bytes, base.cost.state_bytes),
      ('parameters of the mixer crowd out the feed-forward layer', entry.cost.mixer_parameters,
       base.cost.mixer_parameters),
    ):  # fmt: skip
      if ours > 1.3 * its:
        said.append(what)
  if any(replica.diverged for replica in entry.training.chosen):
    said.append('training is unstable: replicas diverge, gates or decays saturate')
  return '; '.join(said)


TASK_WEAKNESSES = {
  'mqar': 'multi-query associative recall is weak: keys interfere, the state overwrites or forgets values',
  'recall_slice': 'in-context recall of repeated tokens is weak: earlier occurrences are not retrieved',
  'selective_copying': 'selective copying is weak: irrelevant tokens are written to the state',
}
