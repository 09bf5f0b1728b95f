"""The line from selection to outcome, against fakes: what goes where, what is repaired, what a restart repeats."""

import dataclasses

import pytest

from asiarch_jax import config, cycle, records
from tests import fakes, samples

EXPERIMENT = config.Experiment()
JUDGEMENT = samples.judgement()
ANALYSIS = samples.analysis('helps: gate')


def result_of(job, **changes):
  """Returns what a worker gives for a sound mixer: everything measured."""
  entry = samples.entry(7)
  first = job.experiment['training']['first_seed']
  replicas = tuple(dataclasses.replace(replica, seed=first + replica.seed) for replica in entry.training.replicas)
  measured = {
    'findings': entry.findings, 'fingerprint': f'f-{job.key}', 'cost': entry.cost,
    'training': dataclasses.replace(entry.training, replicas=replicas),
    'scores': entry.scores, 'timing': entry.timing,
  }  # fmt: skip
  return records.JobResult(job.key, **{**measured, **changes})


def team(runner, researcher=None, judgement=JUDGEMENT, analysis=ANALYSIS):
  return cycle.Team(
    researcher or fakes.FakeResearcher(),
    fakes.FakeJudge(judgement),
    fakes.FakeAnalyst(analysis),
    runner,
    fakes.MemoryJournal(),
  )


def run(outcomes, number, people):
  return cycle.run_cycle(outcomes, number, EXPERIMENT, people, corpus='text')


def test_a_sound_proposal_becomes_an_entry_with_every_stage_filled():
  people = team(fakes.FakeRunner(result_of))
  entry = run(samples.baselines(), 3, people)
  assert isinstance(entry, records.Entry) and entry.role == 'candidate' and entry.id == 3
  assert entry.judgement == JUDGEMENT and entry.analysis == ANALYSIS
  assert entry.evidence is not None and entry.evidence.replicas == 4
  assert entry.fitness.judge == pytest.approx((JUDGEMENT.score - 1) / 9)
  assert [line['event'] for line in people.journal.events()] == ['selected', 'proposed', 'measured']


def test_the_baseline_is_measured_against_itself_and_has_no_evidence():
  entry = run([], 0, team(fakes.FakeRunner(result_of), judgement=None))
  assert entry.role == 'baseline' and entry.evidence is None
  assert entry.fitness == records.Fitness(0.5, 0.5, None, 0.5)


def test_an_anchor_is_waived_its_growth_and_a_candidate_is_not():
  runner = fakes.FakeRunner(result_of)
  assert run(samples.baselines()[:2], 2, team(runner)).role == 'anchor'
  run(samples.baselines(), 3, team(runner))
  assert [job.waived for job in runner.jobs] == [('growth',), ()]


def test_what_the_examiner_asks_joins_the_scores_and_whoever_gives_no_answer_is_rejected():
  asked = records.TaskScore('piqa', 0.6, 0.02, 500)

  def examiner(failure=None):
    def ask(entry, parameters, on_progress):
      assert parameters == {'w': 1} and entry.training is not None
      scores = () if failure else (asked,)
      return records.JobResult('', scores=scores, failure=failure, timing=records.Timing(3.0, 0.0, 6.0, 9.0))

    return ask

  def examined(failure=None):
    runner = fakes.FakeRunner(result_of)
    runner.arrays = lambda key: {'w': 1} if key == runner.jobs[-1].key else {}
    return run(samples.baselines(), 3, dataclasses.replace(team(runner), examiner=examiner(failure)))

  alone = run(samples.baselines(), 3, team(fakes.FakeRunner(result_of)))
  entry = examined()
  assert entry.scores == (*alone.scores, asked)
  assert entry.timing.accelerator_seconds == alone.timing.accelerator_seconds + 6.0
  rejected = examined(records.Failure('time', 'ran for more than 9 s'))
  assert isinstance(rejected, records.Rejection) and rejected.stage == 'time'
  assert rejected.reason == 'trained, and gave no answers: ran for more than 9 s'
  assert rejected.training == entry.training and rejected.timing == entry.timing


def test_the_job_is_matched_and_watched_against_the_measured_baseline():
  base = samples.baselines()[0]
  runner = fakes.FakeRunner(result_of)
  run(samples.baselines(), 3, team(runner))
  job = runner.jobs[0]
  assert job.parameters == base.training.parameters and job.known[base.fingerprint] == 0
  assert len(job.baseline_losses) == len(base.training.replicas[0].losses)
  assert job.limits.seconds_per_step == pytest.approx(3.0 * base.training.seconds_per_step)
  first = fakes.FakeRunner(result_of)
  run([], 0, team(first))
  assert first.jobs[0].parameters is None and first.jobs[0].baseline_losses == ()


def test_the_baseline_gets_the_replicas_of_the_noise_floor_in_blocks_of_one_size():
  runner = fakes.FakeRunner(result_of)
  entry = run([], 0, team(runner))
  assert len(entry.training.chosen) >= EXPERIMENT.evidence.floor
  blocks = [job.experiment['training'] for job in runner.jobs]
  assert len(blocks) == 3 and [block['seeds'] for block in blocks] == [3, 3, 3]
  assert len({block['first_seed'] for block in blocks}) == 3
  other = fakes.FakeRunner(result_of)
  run(samples.baselines()[:1], 1, team(other))
  assert len(other.jobs) == 1  # the floor is that of the reference alone


def test_a_block_of_the_floor_that_fails_leaves_no_baseline():
  def failing(job):
    first = job.experiment['training']['first_seed']
    return result_of(job, failure=records.Failure('memory', 'too much') if first else None)

  outcome = run([], 0, team(fakes.FakeRunner(failing)))
  assert isinstance(outcome, records.Rejection) and (outcome.stage, outcome.reason) == ('memory', 'too much')


def test_more_replicas_of_an_entry_take_its_evidence_anew():
  runner = fakes.FakeRunner(result_of)
  people = team(runner)
  base = run([], 0, people)
  base = dataclasses.replace(base, proposal=samples.proposal('delta_net', None))
  entry = run([base], 3, people)
  more = cycle.replicated(entry, [base], EXPERIMENT, people, corpus='text')
  assert len(more.training.chosen) == 2 * len(entry.training.chosen)
  assert more.evidence.replicas == 2 * entry.evidence.replicas
  assert runner.jobs[-1].experiment['training']['first_seed'] == 4 and runner.jobs[-1].known == {}

  def failing(job):
    return result_of(job, failure=records.Failure('error', 'broke'))

  ended = cycle.replicated(entry, [base], EXPERIMENT, team(fakes.FakeRunner(failing)), corpus='text')
  assert isinstance(ended, records.Rejection) and ended.reason == 'broke'


def test_a_placebo_passes_as_a_candidate_though_its_function_is_archived():
  """`evidence.placebo`: the same outcome that is a duplicate from a researcher is an entry from the placebo arm."""
  blind = dataclasses.replace(EXPERIMENT, evidence=config.Evidence(placebo=1.0))
  open_ = dataclasses.replace(EXPERIMENT, evidence=config.Evidence(placebo=0.0))
  known = samples.baselines()[0].fingerprint
  outcomes = {
    name: cycle.run_cycle(
      samples.baselines(), 3, experiment, team(fakes.FakeRunner(lambda job: result_of(job, fingerprint=known))),
      corpus='text',
    )
    for name, experiment in (('blind', blind), ('open', open_))
  }  # fmt: skip
  assert isinstance(outcomes['blind'], records.Entry) and outcomes['blind'].role == 'candidate'
  assert outcomes['open'].stage == 'duplicate'
  assert cycle.job_of(samples.proposal(), samples.baselines(), 3, blind, 'text').known == {}
  assert cycle.settled(outcomes['blind'], samples.baselines(), blind) == outcomes['blind']


def test_matching_can_be_switched_off():
  free = dataclasses.replace(EXPERIMENT, search=dataclasses.replace(EXPERIMENT.search, match_parameters=False))
  job = cycle.job_of(samples.proposal(), samples.baselines(), 3, free, 'text')
  assert job.parameters is None


def test_a_failed_judge_is_a_missing_term_and_a_failed_analyst_no_analysis():
  entry = run(samples.baselines(), 3, team(fakes.FakeRunner(result_of), judgement=None, analysis=None))
  assert entry.fitness.judge is None and entry.analysis is None


def failing(kind, findings=()):
  return lambda job: records.JobResult(
    job.key, findings=findings, failure=records.Failure(kind, f'{kind} it was', 'tail')
  )


@pytest.mark.parametrize('kind', sorted(set(records.FAILURES) - {'duplicate'}))
def test_every_failure_is_archived_with_its_stage(kind):
  outcome = run(samples.baselines(), 3, team(fakes.FakeRunner(failing(kind))))
  assert isinstance(outcome, records.Rejection)
  assert (outcome.stage, outcome.reason, outcome.id) == (kind, f'{kind} it was', 3)


def test_findings_go_back_to_the_researcher_a_set_number_of_times():
  leak = records.Finding('causality', False, 'token 3 sees token 9')
  mended = [samples.proposal(f'mended_{n}', None, source=f'{samples.SOURCE}# {n}\n') for n in range(5)]
  researcher = fakes.FakeResearcher(repairs=mended)
  runner = fakes.FakeRunner(failing('checks', (leak,)))
  outcome = run(samples.baselines(), 3, team(runner, researcher))
  assert len(runner.jobs) == 1 + EXPERIMENT.researcher.repairs
  assert researcher.findings == [(leak,)] * EXPERIMENT.researcher.repairs
  assert outcome.proposal.name == 'mended_1' and outcome.proposal.parent_id is not None


def test_a_repaired_proposal_is_measured():
  good = samples.proposal('good', source=f'{samples.SOURCE}# good\n')
  runner = fakes.FakeRunner(lambda job: result_of(job) if job.name == 'good' else failing('error')(job))
  researcher = fakes.FakeResearcher(repairs=[good])
  outcome = run(samples.baselines(), 3, team(runner, researcher))
  assert isinstance(outcome, records.Entry) and outcome.proposal.name == 'good'
  assert 'tail' in researcher.findings[0][0].detail


@pytest.mark.parametrize('kind', ['forged', 'killed', 'hopeless'])
def test_what_cannot_be_repaired_is_not_tried_again(kind):
  runner = fakes.FakeRunner(failing(kind))
  run(samples.baselines(), 3, team(runner, fakes.FakeResearcher(repairs=[samples.proposal()])))
  assert len(runner.jobs) == 1


def test_source_outside_the_list_never_reaches_a_worker():
  runner = fakes.FakeRunner(result_of)
  bad = samples.proposal('bad', source='import os\n' + samples.SOURCE)
  outcome = run(samples.baselines(), 3, team(runner, fakes.FakeResearcher([bad])))
  assert isinstance(outcome, records.Rejection) and outcome.stage == 'checks' and runner.jobs == []


def test_the_same_function_under_another_name_is_a_duplicate_of_the_first():
  twin = fakes.FakeRunner(lambda job: result_of(job, fingerprint=samples.baselines()[1].fingerprint))
  outcome = run(samples.baselines(), 3, team(twin))
  assert isinstance(outcome, records.Rejection) and outcome.stage == 'duplicate' and 'entry 1' in outcome.reason


def test_a_cycle_is_a_function_of_outcomes_number_and_seed():
  def outcome(number, seed=0):
    experiment = dataclasses.replace(EXPERIMENT, seed=seed)
    outcomes = samples.archive(12)[:number]
    people = team(fakes.FakeRunner(result_of))
    return cycle.run_cycle(outcomes, number, experiment, people, corpus='text').proposal

  assert outcome(12) == outcome(12)
  drawn = {(outcome(12, seed).parent_id, outcome(12, seed).reference_ids) for seed in range(6)}
  assert len(drawn) > 1


def llm(**changes):
  """Returns an experiment in which proposals are gated before one is trained."""
  return dataclasses.replace(EXPERIMENT, researcher=dataclasses.replace(config.Researcher(kind='llm'), **changes))


def draw(name, n=0):
  return samples.proposal(name, source=f'{samples.SOURCE}# {name} {n}\n')


def go(people, experiment, outcomes=None, number=3):
  return cycle.run_cycle(outcomes or samples.baselines(), number, experiment, people, corpus='text')


def test_what_a_model_writes_is_gated_before_it_is_compared_and_trained():
  runner = fakes.FakeRunner(result_of)
  entry = go(team(runner, fakes.FakeResearcher([draw('new')])), llm())
  assert isinstance(entry, records.Entry) and [job.kind for job in runner.jobs] == ['check', 'train']
  assert runner.jobs[0].corpus == '' and entry.timing.wall_seconds == 2 * samples.entry(7).timing.wall_seconds


def test_a_repeated_function_is_answered_and_drawn_again_before_any_model_is_asked():
  first = samples.baselines()[1].fingerprint
  runner = fakes.FakeRunner(lambda job: result_of(job, fingerprint=first) if job.name == 'old' else result_of(job))
  researcher = fakes.FakeResearcher([draw('old'), draw('new')])
  entry = go(team(runner, researcher), llm())
  assert entry.proposal.name == 'new' and [job.name for job in runner.jobs] == ['old', 'new', 'new']
  assert 'same function as entry 1' in researcher.drawn[1][0].fault


def test_a_repeated_idea_is_answered_and_drawn_again_and_in_the_end_rejected():
  repeated = {f'old_{n}': 'says the idea of entry 1 again' for n in range(9)}
  researcher = fakes.FakeResearcher([draw(f'old_{n}') for n in range(9)], repeated=repeated)
  runner = fakes.FakeRunner(result_of)
  outcome = go(team(runner, researcher), llm(redraws=2))
  assert isinstance(outcome, records.Rejection) and outcome.stage == 'repeat'
  assert len(researcher.asked) == 3 and all(job.kind == 'check' for job in runner.jobs)
  assert [draw.fault for draw in researcher.drawn[2]] == ['says the idea of entry 1 again'] * 2


def test_a_researcher_without_a_proposal_is_an_archived_outcome():
  declined = records.Declined('reply', 'no JSON, three times')
  outcome = go(team(fakes.FakeRunner(result_of), fakes.FakeResearcher([declined])), llm())
  assert (outcome.stage, outcome.reason, outcome.proposal.source) == ('reply', 'no JSON, three times', '')


def test_of_several_samples_the_best_by_a_cheap_score_is_trained():
  losses = {'first': 2.0, 'second': 1.5, 'third': 1.9}

  def result(job):
    made = result_of(job)
    if job.kind == 'train' and job.experiment['training']['seeds'] == 1:
      loss = losses[job.name]
      training = dataclasses.replace(
        made.training, replicas=tuple(dataclasses.replace(r, losses=(loss,)) for r in made.training.replicas[:1])
      )
      return dataclasses.replace(made, training=training)
    return made

  runner = fakes.FakeRunner(result)
  researcher = fakes.FakeResearcher([draw(name) for name in losses])
  people = team(runner, researcher)
  entry = go(people, llm(samples=3, micro_steps=5))
  assert entry.proposal.name == 'second'
  assert [(job.name, job.kind) for job in runner.jobs] == [
    *((name, 'check') for name in losses), *((name, 'train') for name in losses), ('second', 'train'),
  ]  # fmt: skip
  short = runner.jobs[3].experiment['training']
  assert (short['steps'], short['seeds'], len(short['learning_rates'])) == (10, 1, 1)  # whole calls of ten steps
  (event,) = people.journal.named('sampled')
  assert event['chosen'] == 'second' and [row['loss'] for row in event['samples']] == [2.0, 1.5, 1.9]
  assert [len(drawn) for drawn in researcher.drawn] == [0, 1, 2]


def test_without_a_short_run_samples_are_chosen_by_novelty_and_cost():
  runner = fakes.FakeRunner(result_of)
  go(team(runner, fakes.FakeResearcher([draw('first'), draw('second')])), llm(samples=2, micro_steps=0))
  assert [job.kind for job in runner.jobs] == ['check', 'check', 'train']


def test_the_offline_researcher_can_draw_samples_too():
  runner = fakes.FakeRunner(result_of)
  experiment = dataclasses.replace(EXPERIMENT, researcher=config.Researcher(samples=2, micro_steps=0))
  go(team(runner, fakes.FakeResearcher([draw('first'), draw('second')])), experiment)
  assert [job.kind for job in runner.jobs] == ['check', 'check', 'train']


def test_every_attempt_at_a_repair_is_kept_and_gate_and_training_share_the_count():
  def result(job):
    if job.name == 'leaks':
      return failing('checks', (records.Finding('causality', False, 'token 3 sees token 9'),))(job)
    return failing('non_finite')(job) if job.kind == 'train' else result_of(job)

  researcher = fakes.FakeResearcher([draw('leaks')], repairs=[draw('mended'), draw('again'), draw('never')])
  outcome = go(team(fakes.FakeRunner(result), researcher), llm(repairs=2))
  assert outcome.stage == 'non_finite' and outcome.proposal.name == 'again'
  assert [(a.proposal.name, a.stage) for a in outcome.earlier] == [('leaks', 'checks'), ('mended', 'non_finite')]


def test_what_models_took_stands_in_the_outcome():
  spend = records.Spend(4, 9_000, 0.25, 30.0)
  people = dataclasses.replace(team(fakes.FakeRunner(result_of)), spent=lambda: spend)
  assert go(people, EXPERIMENT).spend == spend
  lost = dataclasses.replace(team(fakes.FakeRunner(failing('time'))), spent=lambda: spend)
  assert go(lost, EXPERIMENT).spend == spend


def test_the_selection_that_a_cycle_saw_is_in_the_journal():
  people = team(fakes.FakeRunner(result_of))
  go(people, EXPERIMENT, samples.archive(12)[:12], 12)
  (event,) = people.journal.named('selected')
  assert event['seen'] == list(range(12)) and event['parent'] is not None and event['cycle'] == 12


def test_two_cycles_in_flight_cannot_both_bring_one_function():
  late = dataclasses.replace(samples.entry(5), fingerprint=samples.entry(4).fingerprint)
  outcomes = (*samples.baselines(), samples.entry(4))
  settled = cycle.settled(late, outcomes, config.Experiment())
  assert isinstance(settled, records.Rejection) and settled.stage == 'duplicate' and 'entry 4' in settled.reason
  assert cycle.settled(samples.entry(5), outcomes, config.Experiment()) == samples.entry(5)


def timed(job, seconds=10.0):
  return result_of(job, timing=records.Timing(accelerator_seconds=seconds))


def test_what_was_drawn_and_not_trained_is_paid_for_too():
  repeated = {'old_0': 'again', 'old_1': 'again'}
  researcher = fakes.FakeResearcher([draw('old_0'), draw('old_1'), draw('new')], repeated=repeated)
  entry = go(team(fakes.FakeRunner(timed), researcher), llm(redraws=2))
  assert entry.proposal.name == 'new' and entry.timing.accelerator_seconds == 40.0  # three gates and a training
  only = fakes.FakeResearcher([draw(f'old_{n}') for n in range(2)], repeated=repeated)
  assert go(team(fakes.FakeRunner(timed), only), llm(redraws=1)).timing.accelerator_seconds == 20.0


def test_of_several_samples_one_that_fails_is_in_the_journal_and_twins_are_one():
  def result(job):
    if job.name == 'bad':
      return failing('checks')(job)
    return result_of(job, fingerprint='twin' if job.name in ('first', 'same') else f'f-{job.source}')

  runner = fakes.FakeRunner(result)
  researcher = fakes.FakeResearcher([draw('first'), draw('bad'), draw('same'), draw('other')])
  people = team(runner, researcher)
  go(people, llm(samples=2, micro_steps=0, repairs=0))
  assert [line['name'] for line in people.journal.named('failed')] == ['bad']
  assert 'same function as first, drawn just now' in people.journal.named('repeated')[0]['reason']
  assert [row['name'] for row in people.journal.named('sampled')[0]['samples']] == ['first', 'other']


def test_a_name_that_another_cycle_took_meanwhile_gets_its_number():
  outcomes = (*samples.baselines(), samples.entry(4, name='two_speed'))
  assert cycle.settled(samples.entry(5, name='two_speed'), outcomes, config.Experiment()).proposal.name == 'two_speed_5'
  assert (
    cycle.settled(samples.entry(5, name='three_speed'), outcomes, config.Experiment()).proposal.name == 'three_speed'
  )
