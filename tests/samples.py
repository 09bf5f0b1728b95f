"""Realistic records for tests: `entry(id=4, improvement=0.03)`, `rejection(id=5)`, `baselines()`, `archive(40)`.

Everything is a pure function of its arguments. Replicas share a seed's luck with the baseline, as paired training gives
it: `improvement` is the true gain in bits per byte over delta_net, and what is measured is that plus noise.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from typing import Any

import numpy as np

from asiarch_jax import config, records
from asiarch_jax.evidence.improvement import improvement as measured_improvement
from asiarch_jax.search import fitness

BASE_BITS = 2.4  # test bits per byte of delta_net
NOISE = 0.01  # standard deviation of what a replica has for itself, bits per byte
SEED_LUCK = 0.02  # standard deviation of what the replicas of one seed share
LEARNING_RATE = 4e-3
STEPS, LOG_EVERY = 120, 10
BASE_TASKS = (('recall_slice', 0.31), ('mqar', 0.42))
RULE = config.FitnessRule()
SEARCH = config.Search()

SOURCE = '''"""A causal average over the past, gated by the present."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from typing import Any


class Mixer(nn.Module):
  width: int
  heads: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x_BTD):
    seen_T = 1 + jnp.arange(x_BTD.shape[1], dtype=x_BTD.dtype)
    mean_BTD = jnp.cumsum(x_BTD, axis=1) / seen_T[:, None]
    gate_BTD = jax.nn.sigmoid(nn.Dense(self.width, dtype=self.dtype)(x_BTD))
    return nn.Dense(self.width, dtype=self.dtype)(gate_BTD * mean_BTD)
'''


def proposal(name: str = 'gated_mean', parent_id: int | None = 0, **changes: Any) -> records.Proposal:
  """Returns a proposal with a source that is inside the contract."""
  values: dict[str, Any] = {
    'motivation': f'{name} adds a gate to its parent, so that a token can ignore a long past.',
    'source': SOURCE,
    'reference_ids': (),
    'author': 'evolution',
    'operator': 'seed' if parent_id is None else 'mutate',
  }
  return records.Proposal(name=name, parent_id=parent_id, **{**values, **changes})


def replica(
  id: int = 3,
  seed: int = 0,
  improvement: float = 0.02,
  *,
  noise: float = NOISE,
  learning_rate: float = LEARNING_RATE,
  diverged: bool = False,
) -> records.Replica:
  """Returns one trained copy: a curve that falls to the held-out loss, or one that ends in nan."""
  luck = np.random.default_rng([seed, 7]).normal(0.0, SEED_LUCK)
  own = np.random.default_rng([id, seed, zlib.crc32(repr(learning_rate).encode())])
  bits = BASE_BITS - improvement + luck + own.normal(0.0, noise)
  steps = np.arange(LOG_EVERY, STEPS + 1, LOG_EVERY)
  end = bits * math.log(2)
  losses = end + (math.log(256) - end) * np.exp(-steps / 30.0) + own.normal(0.0, 0.01, len(steps))
  if diverged:
    losses, bits = np.where(steps > STEPS // 2, np.nan, losses), math.nan
  return records.Replica(
    seed=seed,
    learning_rate=learning_rate,
    steps=STEPS,
    losses=tuple(float(loss) for loss in losses),
    validation_bits=float(bits + own.normal(0.0, 0.002)),
    test_bits=float(bits),
    diverged=diverged,
  )


def training(
  id: int = 3,
  improvement: float = 0.02,
  *,
  seeds: int = 4,
  noise: float = NOISE,
  diverged: tuple[int, ...] = (),
  flops_per_token: float = 2.1e5,
  parameters: int = 99_264,
  state_bytes: int = 8_192,
  **changes: Any,
) -> records.TrainSummary:
  """Returns what training gave; `diverged` names seeds whose replica ended in nan."""
  values: dict[str, Any] = {
    'replicas': tuple(replica(id, s, improvement, noise=noise, diverged=s in diverged) for s in range(seeds)),
    'tokens': STEPS * 8 * 128,
    'parameters': parameters,
    'mlp_width': 192,
    'flops_per_token': flops_per_token,
    'state_bytes': state_bytes,
    'log_every': LOG_EVERY,
    'learning_rate': LEARNING_RATE,
    'stopped': 'finished',
    'tokens_per_second': 42_000.0,
    'seconds_per_step': 0.1,
    'compile_seconds': 6.5,
    'peak_bytes': 410_000_000,
  }
  return records.TrainSummary(**{**values, **changes})


def task_scores(values: tuple[float, ...] = (0.31, 0.42), n: int = 256) -> tuple[records.TaskScore, ...]:
  """Returns an accuracy for each default task, and the bits per byte that are listed beside them."""
  accuracies = tuple(
    records.TaskScore(name, value, math.sqrt(max(value * (1 - value), 0.0) / n), n)
    for (name, _), value in zip(BASE_TASKS, values, strict=True)
  )
  return (*accuracies, records.TaskScore('bits_per_byte', BASE_BITS, 0.02, 128, 'bits_per_byte'))


def findings() -> tuple[records.Finding, ...]:
  """Returns what a clean gate says."""
  return (
    records.Finding('source', True, 'imports and names are allowed', 0.01),
    records.Finding('causality', True, 'the past did not change when the future did, at T = 37, 64, 129', 1.2),
    records.Finding('growth', True, 'FLOPs grow as T^1.00', 0.3),
  )


def judgement(
  performance: float = 6.0, innovation: float = 5.0, complexity: float = 7.0, reason: str = ''
) -> records.Judgement:
  """Returns marks and their mean by the default weights."""
  weights = config.Judge()
  score = weights.performance * performance + weights.innovation * innovation + weights.complexity * complexity
  return records.Judgement(performance, innovation, complexity, score, reason or 'about as good at a lower cost')


def analysis(*lessons: str) -> records.Analysis:
  """Returns the five sections of an analysis."""
  return records.Analysis(
    design="A gate on the mean path; every other part is the parent's.",
    results='0.020 bits per byte better than delta_net (95 % interval 0.008 to 0.032, 4 pairs).',
    expectation='Expected: less smearing of old tokens. Seen: recall rose by 0.03.',
    explanation='The gate opens on separators, where the mean carries the least.',
    synthesis='Keep the gate; try it per head.',
    lessons=lessons or ('helps: output_gate (+0.020 ± 0.012 bits over 4 pairs)',),
  )


def entry(
  id: int = 3,
  improvement: float = 0.02,
  *,
  name: str | None = None,
  role: str = 'candidate',
  parent_id: int | None = 0,
  genome: dict[str, Any] | None = None,
  tasks: tuple[float, ...] | None = None,
  judged: bool = True,
  fitted: bool = True,
  analysed: bool = True,
  cost: dict[str, Any] | None = None,
  proposal_changes: dict[str, Any] | None = None,
  **training_changes: Any,
) -> records.Entry:
  """Returns a measured entry, complete with judgement, fitness, evidence against delta_net, and analysis.

  `judged`, `fitted`, `analysed` leave out what a stage has not given yet. `training_changes` go to `training`: seeds,
  noise, diverged, flops_per_token, parameters, state_bytes, stopped, ...
  """
  name = name or f'gated_mean_{id}'
  trained = training(id, improvement, **training_changes)
  counted = {
    'mixer_parameters': 16_640,
    'flops_per_token': trained.flops_per_token / 5,
    'state_bytes': trained.state_bytes // 2,
    'growth': 1.0,
    **(cost or {}),
  }
  made = records.Entry(
    id=id,
    proposal=proposal(name, parent_id, genome=genome, **(proposal_changes or {})),
    role=role,  # type: ignore[arg-type]
    findings=findings(),
    fingerprint=f'{zlib.crc32(f"{id} {name}".encode()):08x}',
    cost=records.Cost(**counted),
    training=trained,
    scores=task_scores(tasks or tuple(value + improvement for _, value in BASE_TASKS)),
    job_key=f'{id:024x}',
    judgement=judgement(5.0 + 50.0 * max(min(improvement, 0.1), -0.08)) if judged else None,
    timing=records.Timing(
      wall_seconds=31.0 + id % 7, check_seconds=4.0, accelerator_seconds=24.0, started=1.7e9 + 40 * id
    ),
  )
  base = made if id == 0 else baseline()
  if fitted:
    made = dataclasses.replace(
      made,
      fitness=fitness.composite(made, base, RULE),
      evidence=None if id == 0 else measured_improvement(made.training, base.training),
    )
  return dataclasses.replace(made, analysis=analysis()) if analysed else made


def baseline(id: int = 0, name: str = 'delta_net', improvement: float = 0.0, **changes: Any) -> records.Entry:
  """Returns a baseline's entry: a proposal without parent that a human wrote."""
  values = {'parent_id': None, 'role': 'baseline', 'proposal_changes': {'author': 'human'}}
  return entry(id, improvement, name=name, **{**values, **changes})


def baselines() -> tuple[records.Entry, ...]:
  """Returns the three first entries of a default search; the third is the anchor."""
  return (
    baseline(),
    baseline(1, 'gated_delta_net', 0.01),
    baseline(2, 'softmax_attention', 0.03, role='anchor', flops_per_token=4.4e5, cost={'growth': 2.0}),
  )


def rejection(
  id: int = 4,
  stage: str = 'checks',
  reason: str = 'output at token 3 depends on token 9',
  *,
  name: str | None = None,
  parent_id: int | None = 0,
  genome: dict[str, Any] | None = None,
  fingerprint: str = '',
) -> records.Rejection:
  """Returns a proposal that ended at a stage."""
  return records.Rejection(
    id=id,
    stage=stage,
    reason=reason,
    proposal=proposal(name or f'rejected_{id}', parent_id, genome=genome),
    findings=(records.Finding('causality', False, reason, 1.1),) if stage == 'checks' else findings(),
    fingerprint=fingerprint,
    job_key=f'{id:024x}',
    timing=records.Timing(wall_seconds=6.0, check_seconds=5.0, started=1.7e9 + 40 * id),
  )


def archive(count: int = 20, seed: int = 0, rejected: float = 0.2, **changes: Any) -> tuple[records.Outcome, ...]:
  """Returns the baselines and `count` outcomes after them: a lineage that improves slowly, with failures between."""
  rng = np.random.default_rng(seed)
  outcomes: list[records.Outcome] = list(baselines())
  gains = {outcome.id: 0.0 for outcome in outcomes if outcome.role != 'anchor'}  # type: ignore[union-attr]
  stages = (
    ('checks', 'output at token 3 depends on token 9'),
    ('duplicate', 'computes the same function as entry 3'),
    ('too_slow', 'a step takes 0.9 s, the limit is 0.3 s'),
    ('error', 'TypeError: dot_general requires contracting dimensions to have the same shape'),
  )
  for id in range(len(outcomes), len(outcomes) + count):
    parent = int(rng.choice(sorted(gains, key=lambda i: -gains[i])[:10]))
    if rng.random() < rejected:
      outcomes.append(rejection(id, *stages[int(rng.integers(len(stages)))], parent_id=parent))
      continue
    gains[id] = gains[parent] + float(rng.normal(-0.005, 0.02))
    outcomes.append(entry(id, gains[id], parent_id=parent, **changes))
  return tuple(outcomes)


PAPERS = ('yang2024deltanet#1', 'yang2024deltanet#2', 'gu2023mamba#1', 'arora2024based#1', 'katharopoulos2020linear#1')
CALLS = {
  'researcher': (14_200, 2_900),  # tokens of a prompt and its reply, thoughts included
  'repairer': (9_800, 2_100),
  'novelty': (3_100, 210),
  'summariser': (5_200, 640),
  'judge': (8_700, 380),
  'analyst': (11_400, 1_800),
}


def origins(rng: np.random.Generator, known: tuple[int, ...] = (0,)) -> tuple[records.Origin, ...]:
  """Returns one to five ideas with their origins; one from an outcome names an id of `known`."""
  components = ('per-head decay', 'output gate', 'short convolution', 'key normalisation', 'two time scales')
  found = []
  for component in rng.permutation(components)[: int(rng.integers(1, 6))]:
    kind = str(rng.choice(['cognition', 'analysis', 'original'], p=[0.5, 0.38, 0.12]))
    reference = {'cognition': str(rng.choice(PAPERS)), 'analysis': str(rng.choice(known))}.get(kind, '')
    found.append(records.Origin(str(component), kind, reference))  # type: ignore[arg-type]
  return tuple(found)


def thought_of(outcome: records.Outcome, rng: np.random.Generator) -> records.Outcome:
  """Returns an outcome as a search with language models leaves it: ideas, spend, repairs, raw marks, papers."""
  calls = int(rng.integers(3, 9))
  tokens = int(calls * rng.integers(6_000, 14_000))
  changes: dict[str, Any] = {'spend': records.Spend(calls, tokens, tokens * 1.1e-6, 4.5 * calls)}
  if isinstance(outcome, records.Rejection) or outcome.role == 'candidate':
    declared = origins(rng, tuple(range(max(1, min(outcome.id, 3)))))
    changes['proposal'] = dataclasses.replace(outcome.proposal, origins=declared, author='gemini-x', operator='fresh')
  if rng.random() < 0.3:
    broken = dataclasses.replace(outcome.proposal, name=f'{outcome.proposal.name}_0')
    changes['earlier'] = (records.Attempt(broken, 'checks', 'output at token 3 depends on token 9'),)
  if isinstance(outcome, records.Entry) and outcome.judgement and outcome.analysis:
    changes['judgement'] = dataclasses.replace(outcome.judgement, raw=(7.0, 6.0, 6.5), calls=(6.4, 6.1, 6.9))
    changes['analysis'] = dataclasses.replace(
      outcome.analysis,
      weaknesses='old keys are overwritten by new ones that resemble them',
      retrieved=tuple(str(key) for key in rng.choice(PAPERS, 2, replace=False)),
      author='gemini-x-001',
    )
  return dataclasses.replace(outcome, **changes)


def model_archive(count: int = 20, seed: int = 0, **changes: Any) -> tuple[records.Outcome, ...]:
  """Returns `archive` as a search with language models would leave it."""
  rng = np.random.default_rng([seed, 11])
  return tuple(thought_of(outcome, rng) for outcome in archive(count, seed, **changes))


def call(role: str = 'researcher', **changes: Any) -> dict[str, Any]:
  """Returns the journal's event of one call to a language model."""
  tokens = sum(CALLS.get(role, (1_000, 100)))
  values = {
    'cycle': 3,
    'role': role,
    'model': 'gemini-x-001',
    'fault': '',
    'tokens': tokens,
    'dollars': tokens * 1.1e-6,
  }
  return {'time': 1.7e9, 'event': 'call', **values, 'seconds': tokens / 900, 'attempts': 1, **changes}


def model_journal(outcomes: tuple[records.Outcome, ...]) -> list[dict[str, Any]]:
  """Returns the events of such a search: as many calls as the outcomes took, choices, repeats and repairs."""
  events, roles = [], tuple(CALLS)
  for outcome in outcomes:
    for number in range(outcome.spend.calls):
      fault = 'truncated' if (outcome.id + number) % 17 == 0 else ''
      attempts = 3 if (outcome.id + number) % 23 == 0 else 1
      events.append(call(roles[(outcome.id + number) % len(roles)], cycle=outcome.id, fault=fault, attempts=attempts))
    named = {'cycle': outcome.id, 'name': outcome.proposal.name}
    events += [{'event': 'repaired', **named, 'reason': attempt.reason} for attempt in outcome.earlier]
    if outcome.id % 5 == 4:
      events.append({'event': 'repeated', **named, 'reason': 'says the idea of entry 3 once more'})
    if outcome.id % 2:
      rows = [{'name': f's{n}', 'rank': n, 'loss': None, 'distance': 0.5, 'flops_per_token': 2e5} for n in (1, 2, 3)]
      events.append({'event': 'sampled', 'cycle': outcome.id, 'chosen': 's1', 'samples': rows})
  return events
