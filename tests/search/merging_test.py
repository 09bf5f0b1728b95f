import dataclasses

import pytest

from asiarch_jax import config, records
from asiarch_jax.evidence.placebo import is_placebo
from asiarch_jax.search import merging
from tests import samples

EXPERIMENT = config.Experiment(evidence=config.Evidence(placebo=0.3))


def marked(outcomes, mark):
  """Returns outcomes whose sources, and functions, are those of one archive alone; baselines are common."""
  return tuple(
    dataclasses.replace(
      one,
      proposal=dataclasses.replace(one.proposal, source=f'{one.proposal.source}# {mark} {one.id}'),
      fingerprint=f'{mark} {one.id}',
    )
    if one.id > 2
    else one
    for one in outcomes
  )


OURS, THEIRS = marked(samples.archive(20), 'ours'), marked(samples.archive(25, seed=1), 'theirs')


def test_what_is_new_comes_after_ours_with_its_lineage():
  found = merging.merged(OURS, THEIRS, EXPERIMENT)
  places = {before: outcome.id for outcome, before in found.added} | {0: 0, 1: 1, 2: 2}
  assert len(found.added) == 25 and set(found.twins) == {0, 1, 2}
  ids = [outcome.id for outcome, _ in found.added]
  assert ids == sorted(set(ids)) and min(ids) > max(one.id for one in OURS)
  by_id = {one.id: one for one in THEIRS}
  for outcome, before in found.added:
    old = by_id[before]
    assert outcome.proposal.parent_id == places[old.proposal.parent_id] < outcome.id
    assert outcome.training == old.training and outcome.proposal.source == old.proposal.source


def test_a_placebo_stays_one_and_no_design_becomes_one():
  found = merging.merged(OURS, THEIRS, EXPERIMENT)
  kinds = {(is_placebo(before, EXPERIMENT), is_placebo(outcome.id, EXPERIMENT)) for outcome, before in found.added}
  assert kinds == {(True, True), (False, False)}


def test_names_stay_unique():
  found = merging.merged(OURS, THEIRS, EXPERIMENT)
  names = [one.proposal.name for one in (*OURS, *(outcome for outcome, _ in found.added))]
  assert len(set(names)) == len(names)


def test_an_archive_adds_nothing_to_itself_and_a_continuation_adds_its_end():
  assert merging.merged(OURS, OURS, EXPERIMENT).added == ()
  longer = marked(samples.archive(26), 'ours')
  assert [before for _, before in merging.merged(OURS, longer, EXPERIMENT).added] == list(range(23, 29))


def test_a_function_that_is_there_is_a_twin_and_its_children_are_ours():
  parent = next(o for o in THEIRS if isinstance(o, records.Entry) and o.id > 2 and not is_placebo(o.id, EXPERIMENT))
  child = next(o for o in THEIRS if o.proposal.parent_id == parent.id)
  same = next(o for o in OURS if isinstance(o, records.Entry) and o.id > 2 and not is_placebo(o.id, EXPERIMENT))
  theirs = [dataclasses.replace(one, fingerprint=same.fingerprint) if one.id == parent.id else one for one in THEIRS]
  found = merging.merged(OURS, theirs, EXPERIMENT)
  assert found.twins[parent.id] == same.id
  moved = next(outcome for outcome, before in found.added if before == child.id)
  assert moved.proposal.parent_id == same.id


def test_what_tells_of_other_entries_names_them_where_they_are():
  analysis = records.Analysis('better than entry 3', '', '', '', '', lessons=('see entry 999',))
  proposal = dataclasses.replace(
    THEIRS[10].proposal, origins=(records.Origin('gate', 'analysis', '3'), records.Origin('mix', 'cognition', '3')),
    reference_ids=(3, 0),
  )  # fmt: skip
  entry = next(o for o in THEIRS[9:] if isinstance(o, records.Entry))
  changed = dataclasses.replace(entry, analysis=analysis, proposal=proposal)
  found = merging.merged(OURS, [changed if o.id == entry.id else o for o in THEIRS], EXPERIMENT)
  third = next(outcome.id for outcome, before in found.added if before == 3)
  moved = next(outcome for outcome, before in found.added if before == entry.id)
  assert moved.analysis.design == f'better than entry {third}' and moved.analysis.lessons == ('see entry 999',)
  assert [origin.reference for origin in moved.proposal.origins] == [str(third), '3']
  assert moved.proposal.reference_ids == (third, 0)
  refused = next(o for o in THEIRS if isinstance(o, records.Rejection))
  twin = dataclasses.replace(refused, reason='computes the same function as entry 3')
  found = merging.merged(OURS, [twin if o.id == refused.id else o for o in THEIRS], EXPERIMENT)
  assert next(o for o, before in found.added if before == refused.id).reason.endswith(f'entry {third}')


def test_other_baselines_are_refused():
  other = dataclasses.replace(THEIRS[1], proposal=dataclasses.replace(THEIRS[1].proposal, name='mamba2'))
  with pytest.raises(ValueError, match='delta_net, gated_delta_net, softmax_attention and delta_net, mamba2'):
    merging.merged(OURS, [THEIRS[0], other, *THEIRS[2:]], EXPERIMENT)


def test_how_far_the_baselines_disagree():
  assert merging.disagreement(OURS, THEIRS) == 0.0
  worse = [dataclasses.replace(r, test_bits=r.test_bits + 0.25) for r in THEIRS[0].training.replicas]
  other = dataclasses.replace(THEIRS[0], training=dataclasses.replace(THEIRS[0].training, replicas=tuple(worse)))
  assert merging.disagreement(OURS, [other, *THEIRS[1:]]) == pytest.approx(0.25)
  assert merging.disagreement(OURS, ()) != merging.disagreement(OURS, ())  # nan
