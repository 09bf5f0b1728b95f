"""What the gate says of the designs of the offline researcher: nearly all pass, and it matters that it looks."""

import dataclasses
import functools

import numpy as np
import pytest

from asiarch_jax import config
from asiarch_jax.agents import genome, variation, writer
from asiarch_jax.agents.evolution import suspected
from asiarch_jax.agents.genes import Genome
from asiarch_jax.arch import contract
from asiarch_jax.checks import behaviour

SETTINGS = config.Experiment()
LOOSE = Genome(key_norm='none')  # the delta rule with keys of any length


@functools.cache
def refused(design, lengths=SETTINGS.checks.lengths):
  """Returns the failed findings for a design at the default size."""
  mixer = contract.load(writer.write(design, 'design', 'It may help.'), 'design')
  checks = dataclasses.replace(SETTINGS.checks, lengths=lengths)
  findings = behaviour.gate(mixer, contract.spec_of(SETTINGS.model), checks)
  return tuple(finding for finding in findings if not finding.passed)


@pytest.mark.slow
def test_keys_of_any_length_are_for_the_gate_to_judge():
  """What the genome cannot know: the erasing memory runs away on such keys, the one that only adds does not."""
  assert 'finite' in {finding.check for finding in refused(LOOSE)}
  assert refused(genome.canonical(Genome(key_norm='none', delta=False, retention=True))) == ()


@pytest.mark.slow
def test_what_the_gate_refused_is_repaired():
  first = suspected(LOOSE, refused(LOOSE))[0]
  assert (first.field, first.new) == ('key_norm', 'l2')
  assert refused(variation.applied(LOOSE, first.field, first.new)) == ()


@pytest.mark.sweep
@pytest.mark.timeout(3600)
def test_more_than_nineteen_of_twenty_designs_pass_the_gate_and_not_all():
  found = {}
  for index in range(200):
    rng = np.random.default_rng([23, index])
    design = variation.fresh(rng) if index % 2 else variation.mutated(variation.fresh(rng), 2, rng)
    found[index] = design, refused(design)
  guilty = {index: (design, findings) for index, (design, findings) in found.items() if findings}
  said = {index: [finding.detail for finding in findings] for index, (_, findings) in guilty.items()}
  assert 0 < len(guilty) < 10, said
  assert all(design.key_norm == 'none' for design, _ in guilty.values()), said
