import dataclasses
import itertools
import json

import numpy as np
import pytest

from asiarch_jax.agents import genome, variation
from asiarch_jax.agents.genes import GENES, Genome
from asiarch_jax.agents.genome import GENOMES


def samples(count):
  """Fresh designs, mutants and crosses, each from its own seed."""
  for index in range(count):
    rng = np.random.default_rng([3, index])
    kinds = (
      lambda rng: variation.fresh(rng),
      lambda rng: variation.mutated(GENOMES['gated_delta_net'], 6, rng),
      lambda rng: variation.crossed(variation.fresh(rng), variation.fresh(rng), rng),
    )
    yield kinds[index % 3](rng)


def as_distant(ours, theirs):
  return genome.distance(ours.to_json(), theirs.to_json())


def wildly(rng):
  """Any combination of values, contradictions included."""
  return Genome(**{name: gene.values[rng.integers(len(gene.values))] for name, gene in GENES.items()})


def test_there_are_at_least_thirty_fields_each_with_words_for_every_value():
  assert len(GENES) >= 30
  for name, gene in GENES.items():
    assert len(gene.values) == len(set(gene.values)) >= 2, name
    assert gene.default in gene.values, name
    assert gene.about.startswith('the ') and gene.about == gene.about.strip(), name
    for choice in gene.choices:
      assert choice.says and choice.why and choice.weight > 0, name
      assert not choice.why.endswith('.') and not choice.says.endswith('.'), name
      assert genome.describe(name, choice.value) == f'{gene.about}: {choice.says}'
      assert genome.reason(name, choice.value) == choice.why
  assert len({gene.about for gene in GENES.values()}) == len(GENES)


def test_every_field_can_be_changed_alone_from_some_genome():
  movable = {(move.field, move.new) for sample in samples(200) for move in variation.moves(sample)}
  assert {field for field, _ in movable} == set(GENES)
  missing = {(name, value) for name, gene in GENES.items() for value in gene.values} - movable
  assert not missing, f'no sampled genome can be given {missing}'


def test_the_fields_that_rules_name_exist():
  assert set(genome.HEARD) | set(variation.COMPONENTS) <= set(GENES)
  assert len(variation.COMPONENTS) == len(set(variation.COMPONENTS))


def test_canonical_is_idempotent_and_keeps_the_baselines():
  for index in range(300):
    once = genome.canonical(wildly(np.random.default_rng([1, index])))
    assert genome.canonical(once) == once
  for baseline in GENOMES.values():
    assert genome.canonical(baseline) == baseline


def test_canonical_mends_contradictions():
  assert genome.canonical(Genome(delta=False)).delta, 'nothing would mix tokens'
  assert genome.canonical(Genome(delta=False, copy=True)).delta, 'a copy mixes no tokens'
  lone = genome.canonical(Genome(delta=False, second_memory=True))
  assert lone.delta and not lone.second_memory
  assert genome.canonical(Genome(copy=True, fusion='hierarchical')).fusion == 'softmax', (
    'one context needs no second stage'
  )
  assert genome.canonical(Genome(short_fir=True, copy=True, fusion='hierarchical')).fusion == 'hierarchical'
  gate = Genome(output_gate='silu', output_gate_rank='head', output_gate_order='before')
  assert genome.canonical(gate).output_gate_order == 'after', 'a norm per head undoes a number per head'


def test_silent_fields_do_not_tell_genomes_apart():
  loud = Genome(long_fir_taps=63, floor='learned', router_hidden=0.5, decay_form='static')
  assert genome.canonical(loud) == Genome()
  assert genome.changed_fields({}, loud.to_json()) == ()
  assert as_distant(loud, Genome()) == 0


def test_json_round_trip():
  for sample in samples(60):
    assert Genome.from_json(json.loads(json.dumps(sample.to_json()))) == sample
  assert Genome.from_json({}) == Genome()


@pytest.mark.parametrize(
  'values, says',
  [
    ({'tapps': 3}, 'tapps'),
    ({'query_conv': 5}, 'query_conv = 5'),
    ({'query_conv': False}, 'query_conv'),
    ({'delta': 1}, 'delta'),
    ({'delta': [True]}, 'delta'),
  ],
)
def test_json_outside_the_domain_is_refused_by_name(values, says):
  with pytest.raises(ValueError, match=says):
    Genome.from_json(values)


def test_words_for_what_does_not_exist_are_refused():
  with pytest.raises(ValueError, match='no field'):
    genome.describe('tapps', 3)
  with pytest.raises(ValueError, match='outside its domain'):
    genome.describe('query_conv', 5)


def test_distance_is_a_metric_in_the_unit_interval():
  points = [*GENOMES.values(), *samples(22)]
  apart = np.array([[as_distant(ours, theirs) for theirs in points] for ours in points])
  assert (apart >= 0).all() and (apart <= 1).all()
  assert (apart == apart.T).all() and (np.diag(apart) == 0).all()
  for (i, ours), (j, theirs) in itertools.combinations(enumerate(points), 2):
    assert (apart[i, j] > 0) == (ours != theirs)
  through = (apart[:, :, None] + apart[None, :, :]).min(axis=1)
  assert (apart <= through + 1e-12).all()


def test_distance_counts_steps_on_a_scale_and_structure_more_than_detail():
  near = as_distant(Genome(query_conv=2), Genome())
  assert near < as_distant(Genome(query_conv=0), Genome()) < as_distant(Genome(short_fir=True), Genome())


def test_mutation_changes_as_many_fields_as_asked_and_what_follows_from_them():
  for index in range(60):
    rng = np.random.default_rng([5, index])
    parent = variation.fresh(rng)
    child = variation.mutated(parent, 1, np.random.default_rng(index))
    changed = genome.differing(parent, child)
    assert changed and genome.canonical(child) == child
    explained = [
      move.field
      for move in variation.moves(parent)
      if variation.applied(parent, move.field, move.new) == child and move.field in changed
    ]
    assert explained, f'no single move explains {changed}'
    assert genome.changed_fields(parent.to_json(), child.to_json()) == changed


def test_a_move_reports_exactly_what_it_does():
  for sample in samples(30):
    for move in variation.moves(sample):
      child = variation.applied(sample, move.field, move.new)
      assert getattr(sample, move.field) == move.old != move.new == getattr(child, move.field)


def test_mutation_follows_the_weights():
  def weigh(move):
    return 1e9 if (move.field, move.new) == ('decay', 'channel') else 1.0

  children = [variation.mutated(Genome(), 1, np.random.default_rng(seed), weigh) for seed in range(10)]
  assert all(child == dataclasses.replace(Genome(), decay='channel') for child in children)


def test_crossover_takes_every_field_from_one_of_the_parents_and_mends_contradictions():
  mixed = 0
  for index in range(100):
    parents = [wildly(np.random.default_rng([9, index, parent])) for parent in range(2)]
    child = variation.inherited(*parents, np.random.default_rng(index))
    for name in GENES:
      assert getattr(child, name) in [getattr(parent, name) for parent in parents]
    mixed += child not in parents
    assert variation.crossed(*parents, np.random.default_rng(index)) == genome.canonical(child)
  assert mixed > 95


def test_crossover_with_itself_is_itself():
  for index, sample in enumerate(samples(40)):
    assert variation.crossed(sample, sample, np.random.default_rng(index)) == sample


def test_simplification_removes_and_ends():
  for index, sample in enumerate(samples(20)):
    rng = np.random.default_rng(index)
    for _ in range(100):
      simpler = variation.simplified(sample, rng)
      if simpler == sample:
        break
      sample = simpler
    else:
      pytest.fail('simplification does not end')
    assert len(genome.paths(sample)) == 1


def test_operators_are_functions_of_the_seed():
  for index in range(20):
    ours, theirs = (variation.fresh(np.random.default_rng([index, 0])) for _ in range(2))
    assert ours == theirs
    assert variation.mutated(ours, 4, np.random.default_rng(index)) == variation.mutated(
      ours, 4, np.random.default_rng(index)
    )


def test_fresh_designs_are_diverse_and_of_the_size_of_the_baselines():
  designs = [variation.fresh(np.random.default_rng([2, index])) for index in range(200)]
  assert len(set(designs)) > 150
  sizes = [genome.parameters(design, 64, 2) for design in designs]
  base = genome.parameters(Genome(), 64, 2)
  assert 0.6 * base < np.median(sizes) < 1.6 * base
