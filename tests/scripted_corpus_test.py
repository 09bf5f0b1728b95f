"""What the table of scripted proposals says of each is what the gate finds."""

import dataclasses
import functools

import jax.numpy as jnp
import pytest

from asiarch_jax import config, worker
from asiarch_jax.arch import contract, lm
from asiarch_jax.checks import cost, source
from asiarch_jax.cognition import paper
from asiarch_jax.records import Job
from asiarch_jax.shell import library
from tests.scripted_corpus import CORPUS, FOLDER, ROWS, motivation_of, reply_of, source_of

DEFAULT = config.Experiment()
# The sizes of configs/smoke.py. The gate's clock is set aside: it would judge how busy the machine is.
SETTINGS = dataclasses.replace(
  DEFAULT,
  model=dataclasses.replace(DEFAULT.model, width=16, layers=1, mlp_width=48),
  training=dataclasses.replace(DEFAULT.training, batch=2, length=32),
  checks=dataclasses.replace(DEFAULT.checks, seconds=3600.0),
)
SOUND = [row for row in CORPUS if row.outcome == 'sound']
WRONG = [row for row in CORPUS if row.outcome not in ('sound', 'duplicate')]
REPEATED = [row for row in CORPUS if row.outcome == 'duplicate']


@functools.cache
def baseline_parameters():
  text = (FOLDER.parents[1] / 'asiarch_jax/arch/baselines/delta_net.py').read_text()
  return lm.parameter_count(contract.load(text, 'delta_net'), SETTINGS.model)


def checked(name, known=None):
  """Returns the result of a job that gates a proposal, as a worker in a search does."""
  experiment = config.worker_part(SETTINGS)
  job = Job(name, source_of(name), experiment, 'check', parameters=baseline_parameters(), known=known or {})
  return worker.run(job, '', '', lambda _: None)[0]


@functools.cache
def fingerprint(name):
  mixer = contract.load(source_of(name), name)
  return cost.fingerprint(contract.build(mixer, contract.MixerSpec(16, 2, jnp.dtype('float32'))), 16)


def by_name(row):
  return row.name


def test_the_table_holds_every_file_and_no_other():
  assert sorted(ROWS) == sorted(path.stem for path in FOLDER.glob('*.py'))
  assert len(ROWS) == len(CORPUS)
  assert len(SOUND) >= 12 and len(WRONG) >= 4


def test_motivations_are_of_a_few_sentences_and_differ():
  motivations = [motivation_of(name) for name in ROWS]
  assert len(set(motivations)) == len(ROWS)
  assert all(200 < len(text) < 1000 for text in motivations), [len(text) for text in motivations]


@pytest.mark.parametrize('row', CORPUS, ids=by_name)
def test_a_reply_holds_the_file_and_where_its_ideas_come_from(row):
  reply = reply_of(row.name)
  assert reply['source'] == source_of(row.name) and reply['motivation'] and 1 <= len(reply['ideas']) <= 3
  assert {idea['origin'] for idea in reply['ideas']} <= {'cognition', 'analysis', 'original'}
  assert all(bool(idea['reference']) == (idea['origin'] != 'original') for idea in reply['ideas'])


def test_papers_that_ideas_come_from_are_in_the_base():
  papers = [paper.parsed(text, name) for name, text in library.packaged().items()]
  keys = {f'{each.key}#{number}' for each in papers for number in range(1, len(each.entries) + 1)}
  named = {idea.reference for row in CORPUS for idea in row.ideas if idea.kind == 'cognition'}
  assert named - keys == set()


def test_what_repairs_a_proposal_is_sound_and_changes_a_few_lines():
  repaired = [row for row in CORPUS if row.repaired_by]
  assert len(repaired) >= 3
  for row in repaired:
    assert ROWS[row.repaired_by].outcome == 'sound'
    before, after = (
      {line.strip() for line in source_of(name).rpartition('"""\n\n')[2].splitlines()}
      for name in (row.name, row.repaired_by)
    )
    assert 0 < len(before ^ after) <= 4, sorted(before ^ after)


@pytest.mark.parametrize('row', SOUND + REPEATED, ids=by_name)
def test_the_text_of_a_sound_proposal_is_allowed(row):
  assert [finding for finding in source.check(source_of(row.name)) if not finding.passed] == []


# Some in every run, since each takes seconds; some in CI's; the rest in the sweep.
def some(rows):
  marks = {0: [], 3: pytest.mark.slow, 6: pytest.mark.slow, 9: pytest.mark.slow, 12: pytest.mark.slow}
  return [
    pytest.param(row, marks=marks.get(n % 24 if n % 12 == 0 else n % 12, pytest.mark.sweep))
    for n, row in enumerate(rows)
  ]


@pytest.mark.parametrize('row', some(SOUND), ids=by_name)
def test_a_sound_proposal_passes_the_gate(row):
  result = checked(row.name)
  assert result.failure is None, result.failure
  assert result.fingerprint == fingerprint(row.name)


@pytest.mark.parametrize('row', some(WRONG), ids=by_name)
def test_a_wrong_proposal_is_refused_for_its_own_reason(row):
  failure = checked(row.name).failure
  assert failure is not None and failure.kind == row.outcome
  assert row.says in failure.reason, failure.reason


@pytest.mark.slow
def test_sound_proposals_are_different_functions():
  names = {}
  for row in SOUND:
    names.setdefault(fingerprint(row.name), []).append(row.name)
  assert [same for same in names.values() if len(same) > 1] == []


@pytest.mark.slow
@pytest.mark.parametrize('row', REPEATED, ids=by_name)
def test_a_repeated_proposal_is_its_twin_in_other_words(row):
  assert fingerprint(row.name) == fingerprint(row.twin)
  assert motivation_of(row.name) != motivation_of(row.twin)
  failure = checked(row.name, known={fingerprint(row.twin): 7}).failure
  assert failure is not None and failure.kind == row.outcome
  assert failure.reason == f'{row.says} 7'
