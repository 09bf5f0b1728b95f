import ast
import dataclasses
import json

import numpy as np
import pytest

from asiarch_jax import config
from asiarch_jax.agents import evolution, genome, variation, writer
from asiarch_jax.agents.genes import GENES, Genome
from asiarch_jax.agents.genome import GENOMES
from asiarch_jax.records import Cost, Entry, Evidence, Finding, Proposal, Rejection, Selection, TrainSummary, to_json

SETTINGS = config.Researcher()
TRAINING = TrainSummary((), 0, 0, 0, 0.0, 0, 1, 1e-3)


def entry(id, name, design=None, improvement=0.0, role='candidate', operator='mutate'):
  proposal = Proposal(name, '', '', operator=operator, genome=design and design.to_json())
  evidence = Evidence(improvement, improvement - 0.01, improvement + 0.01, 0.5, 4)
  return Entry(id, proposal, role, (), '', Cost(1, 1.0, 1, 1.0), TRAINING, (), str(id), evidence=evidence)


def rejection(id, name, design, stage='checks'):
  return Rejection(id, stage, 'so', Proposal(name, '', '', operator='mutate', genome=design.to_json()))


BASELINES = (
  entry(0, 'delta_net', role='baseline', operator='seed'),
  entry(1, 'gated_delta_net', improvement=0.01, role='baseline', operator='seed'),
  entry(2, 'softmax_attention', role='anchor', operator='seed'),
)


def search(cycles, settings=SETTINGS, seed=0, gain=lambda design: 0.0):
  """A search without training: improvement is `gain` of the genome. Returns the outcomes."""
  outcomes, researcher = list(BASELINES), evolution.Evolution(settings)
  for cycle in range(3, 3 + cycles):
    rng = np.random.default_rng([seed, cycle])
    parents = [outcome for outcome in outcomes if isinstance(outcome, Entry) and outcome.role != 'anchor']
    best = sorted(parents, key=lambda parent: -parent.evidence.improvement)[:5]
    parent = best[int(rng.integers(len(best)))]
    proposal = researcher.propose(Selection(parent, ()), tuple(outcomes), rng)
    design = Genome.from_json(proposal.genome)
    measured = entry(cycle, proposal.name, design, gain(design))
    outcomes.append(dataclasses.replace(measured, proposal=proposal))
  return outcomes


@pytest.fixture(scope='module')
def found():
  return search(40)


def candidates(outcomes):
  return [outcome.proposal for outcome in outcomes[3:]]


def test_the_same_archive_and_seed_give_the_same_proposals_byte_for_byte(found):
  again = search(12)
  assert json.dumps(to_json(again)) == json.dumps(to_json(found[:15]))
  assert candidates(search(12, seed=1)) != candidates(again)


def test_no_design_and_no_name_comes_twice(found):
  designs = [json.dumps(proposal.genome, sort_keys=True) for proposal in candidates(found)]
  assert len(set(designs)) == len(designs)
  names = [outcome.proposal.name for outcome in found]
  assert len(set(names)) == len(names)
  baselines = [json.dumps(design.to_json(), sort_keys=True) for design in GENOMES.values()]
  assert not set(baselines) & set(designs), 'a baseline was proposed again'


def test_proposals_are_complete(found):
  for proposal in candidates(found):
    design = Genome.from_json(proposal.genome)
    assert genome.canonical(design) == design and evolution.affordable(design)
    assert proposal.author == 'evolution'
    assert proposal.source == writer.write(design, proposal.name, proposal.motivation)
    assert proposal.name == proposal.name.lower() and proposal.name.isidentifier() and len(proposal.name) < 60
    assert ' '.join(ast.get_docstring(ast.parse(proposal.source)).split()).endswith(proposal.motivation)
    assert proposal.operator in ('fresh', 'mutate', 'combine', 'simplify')
    assert (proposal.parent_id is None) == (proposal.operator == 'fresh')
    assert bool(proposal.reference_ids) == (proposal.operator == 'combine')
    assert 2 <= proposal.motivation.count('. ') + proposal.motivation.count('? ') + 1 <= 5


def test_motivations_name_every_changed_field_and_the_parent(found):
  by_id = {outcome.id: outcome.proposal for outcome in found}
  for proposal in candidates(found):
    if proposal.parent_id is None:
      continue
    parent = evolution.genome_of(by_id[proposal.parent_id])
    changed = genome.changed_fields(parent.to_json(), proposal.genome)
    assert changed
    for field in changed:
      assert GENES[field].about in proposal.motivation.lower(), (field, proposal.motivation)
    assert by_id[proposal.parent_id].name in proposal.motivation
    for reference in proposal.reference_ids:
      assert by_id[reference].name in proposal.motivation


def test_operators_follow_the_settings():
  only = {
    'fresh': config.Researcher(fresh=1.0, combine=0.0),
    'combine': config.Researcher(fresh=0.0, combine=1.0),
    'mutate': config.Researcher(fresh=0.0, combine=0.0),
  }
  for operator, settings in only.items():
    operators = {proposal.operator for proposal in candidates(search(12, settings))}
    assert operator in operators and operators <= {operator, *(['simplify'] if operator == 'mutate' else [])}
  assert 'simplify' in {proposal.operator for proposal in candidates(search(60, only['mutate']))}


def test_more_mutations_change_more_fields():
  def changes(mutations):
    parent, researcher = entry(3, 'p', Genome(copy=True, fusion='softmax')), None
    researcher = evolution.Evolution(config.Researcher(fresh=0.0, combine=0.0, mutations=mutations))
    return [
      len(genome.changed_fields(parent.proposal.genome, proposal.genome))
      for seed in range(30)
      for proposal in [researcher.propose(Selection(parent), (parent,), np.random.default_rng(seed))]
      if proposal.operator == 'mutate'
    ]

  assert np.mean(changes(6.0)) > np.mean(changes(1.0)) + 2


def test_without_a_readable_parent_a_design_is_independent():
  researcher = evolution.Evolution(SETTINGS)
  human = entry(7, 'by_hand')
  for selection in (Selection(None), Selection(human)):
    proposal = researcher.propose(selection, (), np.random.default_rng(0))
    assert proposal.operator == 'fresh' and proposal.parent_id is None


def test_a_genome_of_another_version_is_left_alone():
  strange = dataclasses.replace(BASELINES[0], proposal=Proposal('old', '', '', genome={'wings': 2}))
  assert evolution.genome_of(strange.proposal) is None
  proposal = evolution.Evolution(SETTINGS).propose(Selection(strange), (strange,), np.random.default_rng(0))
  assert proposal.operator == 'fresh'


def test_only_seeds_are_recognised_by_name():
  assert evolution.genome_of(Proposal('delta_net', '', '')) == Genome()
  assert evolution.genome_of(Proposal('delta_net', '', '', operator='mutate')) is None


def archive(good, bad=(), count=30, noise=0.002):
  """Random designs whose improvement is 0.02 with the value `good`, else 0; those with the value `bad` failed."""
  outcomes = []
  for index in range(count):
    rng = np.random.default_rng([21, index])
    design = variation.mutated(Genome(copy=True, short_fir=True, fusion='softmax'), 5, rng)
    gain = 0.02 * (getattr(design, good[0]) == good[1]) + noise * rng.normal()
    failed = bad and getattr(design, bad[0]) == bad[1]
    outcomes.append(rejection(index, f'd{index}', design) if failed else entry(index, f'd{index}', design, gain))
  return tuple(outcomes)


def test_effects_find_what_pays_and_shrink_what_was_seen_seldom():
  outcomes = archive(('output_norm', 'width'), count=60)
  lore = evolution.learn(outcomes)
  seen = lore.effects['output_norm', 'width']
  assert seen.count >= 3 and 0.003 < seen.gain < 0.02
  assert seen.gain == max(effect.gain for effect in lore.effects.values())
  once = evolution.learn((entry(0, 'a', Genome(), 0.0), entry(1, 'b', Genome(rotary=100), 0.02)))
  assert 0 < once.effects['rotary', 100].gain < 0.01


def test_what_pays_is_proposed_more_often_and_what_failed_less_often():
  def share(outcomes, field, value):
    parent = entry(999, 'p', Genome(copy=True, short_fir=True, fusion='softmax'))
    researcher = evolution.Evolution(config.Researcher(fresh=0.0, combine=0.0, mutations=1.0))
    proposals = [
      researcher.propose(Selection(parent), outcomes, np.random.default_rng([4, seed])).genome for seed in range(120)
    ]
    return sum(proposal[field] == value for proposal in proposals) / len(proposals)

  naive = share((), 'output_norm', 'width')
  assert share(archive(('output_norm', 'width'), count=60), 'output_norm', 'width') > naive + 0.01
  lore = evolution.learn(archive(('rotary', 1), bad=('token_shift', True), count=60))
  move = next(m for m in variation.moves(Genome()) if m.field == 'token_shift')
  assert lore.weigh(move) < 0.6 * variation.prior(move)


def test_exploration_never_ends():
  """A value that has only failed is still drawn: a share of moves ignores the archive."""
  failed = tuple(rejection(index, f'd{index}', Genome(rotary=100, query_conv=index % 3 * 4)) for index in range(20))
  move = next(m for m in variation.moves(Genome()) if (m.field, m.new) == ('rotary', 100))
  assert evolution.learn(failed).weigh(move) > 0
  assert 0.1 <= evolution.EXPLORE <= 0.5


def test_duplicates_and_lost_workers_are_not_held_against_a_design():
  design = Genome(rotary=100)
  blamed = evolution.learn((rejection(0, 'a', design, 'checks'), entry(1, 'b', Genome())))
  free = evolution.learn((rejection(0, 'a', design, 'duplicate'), entry(1, 'b', Genome())))
  assert ('rotary', 100) in blamed.effects and ('rotary', 100) not in free.effects


def test_an_archive_without_measurements_teaches_nothing():
  assert evolution.learn(()).effects == {}
  nan = entry(0, 'a', Genome(rotary=100), float('nan'))
  assert evolution.learn((nan,)).effects == {}


def test_search_climbs_when_there_is_something_to_climb():
  def gain(design):
    return (
      0.01 * (design.output_gate == 'silu') + 0.01 * design.copy + 0.01 * design.short_fir - 0.01 * design.retention
    )

  outcomes = search(60, gain=gain)
  gains = [outcome.evidence.improvement for outcome in outcomes[3:]]
  assert np.mean(gains[-20:]) > np.mean(gains[:20]) and max(gains) >= 0.02


def proposed(design):
  return Proposal('x', 'An idea.', '', parent_id=1, author='evolution', operator='mutate', genome=design.to_json())


@pytest.mark.parametrize(
  'check, detail, design, field',
  [
    (
      'gradients',
      "parameter ['floor'] gets no gradient",
      Genome(copy=True, fusion='softmax', floor='learned'),
      'floor',
    ),
    ('finite', 'the output has nan', Genome(beta_range=2), 'beta_range'),
    ('too_slow', 'a step takes 4 times as long', Genome(second_memory=True), 'second_memory'),
    ('parameters', 'the band is 1 %', Genome(value_expand=2.0), 'value_expand'),
    ('causality', 'output at token 3 depends on token 9', Genome(average='cumulative'), 'average'),
    ('something else', 'it is wrong', Genome(rotary=100), 'rotary'),
  ],
)
def test_repair_changes_what_the_finding_implicates(check, detail, design, field):
  mended = evolution.Evolution(SETTINGS).repair(
    proposed(design), [Finding('shapes', True, ''), Finding(check, False, detail)], np.random.default_rng(0)
  )
  assert field in genome.changed_fields(design.to_json(), mended.genome)
  assert mended.operator == 'repair' and mended.parent_id == 1
  assert check in mended.motivation and GENES[field].about in mended.motivation.lower()
  assert mended.motivation.startswith('An idea.')
  assert mended.source == writer.write(mended.genome, mended.name, mended.motivation) and mended.name != 'x'


@pytest.mark.parametrize(
  'check', ['finite', 'growth', 'too_slow', 'parameters', 'causality', 'gradients', 'unheard of']
)
def test_repair_ends(check):
  researcher, finding = evolution.Evolution(SETTINGS), Finding(check, False, 'again')
  for seed in range(5):
    rng = np.random.default_rng([8, seed])
    proposal = proposed(variation.fresh(rng))
    for _ in range(100):
      proposal = researcher.repair(proposal, [finding], rng)
      if proposal is None:
        break
    assert proposal is None


def test_there_is_nothing_to_repair_without_a_genome_or_a_failure():
  researcher, rng = evolution.Evolution(SETTINGS), np.random.default_rng(0)
  assert researcher.repair(Proposal('x', '', ''), [Finding('finite', False, 'nan')], rng) is None
  assert researcher.repair(proposed(Genome(rotary=100)), [Finding('finite', True, '')], rng) is None
  assert researcher.repair(proposed(Genome()), [Finding('unheard of', False, '')], rng) is None


def test_names_say_what_a_design_has():
  assert evolution.name_of(Genome(decay='head', copy=True, fusion='softmax')).startswith('routed_fading_delta_copy_')
  assert (
    evolution.name_of(Genome())
    == evolution.name_of(Genome())
    != evolution.name_of(Genome(), {evolution.name_of(Genome())})
  )


@pytest.mark.parametrize('independent', [True, False])
def test_a_control_arm_learns_nothing_of_what_was_measured(found, independent):
  """Neither from what components were worth, nor by a partner, whatever candidates came to."""
  selection = Selection(BASELINES[0], independent=independent)
  rng = np.random.default_rng(5)
  others = [
    dataclasses.replace(
      outcome, evidence=dataclasses.replace(outcome.evidence, improvement=float(rng.standard_normal()))
    )
    for outcome in found
  ]
  researcher = evolution.Evolution(SETTINGS)
  made = [
    [researcher.propose(selection, tuple(archive), np.random.default_rng([6, n])) for n in range(40)]
    for archive in ([*BASELINES, *found[3:]], [*BASELINES, *others[3:]])
  ]
  assert (made[0] == made[1]) == independent
  crossed = {id for proposal in made[0] for id in proposal.reference_ids}
  assert (max(crossed) < len(BASELINES)) == independent
  assert not {proposal.name for proposal in made[0]} & {outcome.proposal.name for outcome in found}
