"""The analyst that is a language model, and the reading that follows an analysis."""

import dataclasses

from asiarch_jax.agents import analyst, briefs, model_analyst, reading
from asiarch_jax.cognition import paper, retrieval
from asiarch_jax.shell import library
from tests import fakes, samples

TEMPLATES = library.prompts()
BASE = retrieval.Base(tuple(paper.parsed(text, name) for name, text in sorted(library.packaged().items())))
FAMILY = (
  *samples.baselines(),
  samples.entry(3, 0.02),
  samples.entry(4, 0.05, parent_id=3, name='strong_sibling'),
  samples.entry(5, 0.01, parent_id=3, name='weak_sibling'),
  samples.entry(6, 0.04, parent_id=3, name='second_sibling'),
)
CHILD = samples.entry(7, 0.03, parent_id=3, proposal_changes={'source': samples.SOURCE + '# another line\n'})


def analysed(*listed, entry=CHILD):
  model = fakes.FakeModel(analyst=listed)
  return model_analyst.ModelAnalyst(model, analyst.MeasuredAnalyst(), TEMPLATES, 'delta_net')(entry, FAMILY), model


def test_a_reply_becomes_an_analysis_with_typed_lessons_and_its_author():
  analysis, _ = analysed()
  assert analysis.lessons == ('unclear: the gate was not shown to help',) and analysis.author == 'fake'
  assert analysis.weaknesses == 'associative recall is weak: keys interfere in the state'


def test_relatives_are_parent_grandparent_and_the_strongest_siblings_by_fitness():
  found = [(kind, entry.proposal.name) for kind, entry in model_analyst.relatives(CHILD, FAMILY)]
  assert found == [
    ('parent', 'gated_mean_3'), ('grandparent', 'delta_net'), ('sibling', 'strong_sibling'),
    ('sibling', 'second_sibling'),
  ]  # fmt: skip


def test_the_prompt_holds_measurements_relatives_difference_and_the_measured_facts():
  text = analysed()[1].asked[0].text
  for part in ('training loss, nats a token', '+# another line', 'grandparent: entry 0', 'strong_sibling',
               'All that follows holds at 95 % together'):  # fmt: skip
    assert part in text, part
  assert 'weak_sibling' not in text


def test_where_the_model_gives_nothing_the_measured_analysis_stands():
  analysis, _ = analysed({}, {}, {})
  assert analysis == analyst.MeasuredAnalyst()(CHILD, FAMILY)


def test_the_weaknesses_retrieve_papers_which_are_kept():
  read = reading.Reading(lambda entry, outcomes: analysed(entry=entry)[0], BASE, 3, 'delta_net')(CHILD, FAMILY)
  assert len(read.retrieved) == 3
  assert read.retrieved == tuple(hit.key for hit in BASE.search(read.weaknesses, 3))
  fewer = reading.Reading(lambda entry, outcomes: analysed(entry=entry)[0], BASE, 1, 'delta_net')(CHILD, FAMILY)
  assert fewer.retrieved == read.retrieved[:1]


def test_an_analysis_without_weaknesses_gets_them_from_the_measurements():
  weak = samples.entry(8, -0.05, parent_id=0, tasks=(0.30, 0.10), cost={'state_bytes': 99_999})
  read = reading.Reading(analyst.MeasuredAnalyst(), BASE, 3, 'delta_net')(weak, FAMILY)
  assert 'multi-query associative recall is weak' in read.weaknesses and 'state is large' in read.weaknesses
  assert 'worse than the baseline' in read.weaknesses and len(read.retrieved) == 3
  assert reading.Reading(lambda entry, outcomes: None, BASE, 3, 'delta_net')(weak, FAMILY) is None


def test_an_unstable_entry_is_said_to_be_so():
  assert 'unstable' in briefs.weaknesses(samples.entry(9, diverged=(1,)), FAMILY[0])


def test_an_entry_without_a_parent_has_no_relatives():
  alone = dataclasses.replace(CHILD, proposal=dataclasses.replace(CHILD.proposal, parent_id=None))
  assert 'It has no parent.' in analysed(entry=alone)[1].asked[0].text
