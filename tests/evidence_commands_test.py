"""verify, claim, arms and ablate, whole, over searches whose truth is planted; with real workers in the sweep."""

import dataclasses
import itertools
import json
import math
import pathlib
import re
import shutil
import types

import pytest

from asiarch_jax import config, main, records
from asiarch_jax.commands import ablating, claiming, registry, trials
from asiarch_jax.evidence import claims
from asiarch_jax.shell import results
from asiarch_jax.shell import runner as runners
from tests import samples
from tests.cli import asiarch
from tests.cli import in_process as run
from tests.planted import OWN, planted

ROOT = pathlib.Path(__file__).parents[1]
WORLDS = 60
TRAINING = config.Training(steps=8, steps_per_call=4)


def better(share=0.25, by=0.15):
  """A quarter of the designs improve by as much; the baseline and its copies by nothing."""

  def effect(job):
    copied = 'class Mixer' in job.source and re.search(r'return \w+\(self\.width', job.source)
    if job.name == 'delta_net' or copied:
      return 0.0
    return by if sum(job.name.encode()) % 4 < 4 * share else 0.0

  return effect


@pytest.fixture
def use(monkeypatch):
  def install(**plan):
    kind = planted(**plan)
    monkeypatch.setattr(runners, 'LocalRunner', kind)
    return kind

  return install


CONFIG = ('--config=configs/smoke.py', '--config.evidence.floor=8', '--config.training.seeds=4',
          '--config.rungs.small.training.seeds=4', '--config.rungs.small.false_discoveries=0.2',
          '--config.claims.replicas=8')  # fmt: skip


@pytest.fixture(scope='module')
def template(tmp_path_factory):
  """A search of 20 outcomes, made once."""
  folder = tmp_path_factory.mktemp('searched')
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(runners, 'LocalRunner', planted(effect=better()))
    assert main.main(['search', *CONFIG, f'--workdir={folder}', '--cycles=20']) == 0
  return folder


@pytest.fixture
def searched(use, template, tmp_path):
  shutil.copytree(template, tmp_path / 'run')
  return tmp_path / 'run', use(effect=better())


def rows_of(capsys, workdir):
  _, out, _ = run(capsys, 'top', f'--workdir={workdir}', '--json')
  return {row['id']: row for row in json.loads(out)['outcomes'] if row['outcome'] == 'Entry'}


def improves(row):
  return better()(records.Job(row['proposal']['name'], row['proposal']['source'], {})) > 0


def test_verify_lets_the_better_climb_in_rounds_and_says_how_the_rungs_agree(searched, capsys):
  workdir, kind = searched
  rows, before = rows_of(capsys, workdir), len(kind.jobs)
  status, out, error = run(capsys, 'verify', f'--workdir={workdir}', '--json')
  assert status == 0, error
  page = json.loads(out)['rungs'][0]
  promoted = [row for row in page['rows'] if row['climbed'] == 'promoted']
  assert promoted and sum(improves(rows[row['id']]) for row in promoted) >= 0.7 * len(promoted)
  assert sum(row['climbed'] == 'by lot' for row in page['rows']) == 1
  # The better half has a second block of four seeds, the others have one.
  pairs = sorted(row['evidence']['replicas'] for row in page['rows'])
  assert pairs == [4] * (len(pairs) // 2) + [8] * (len(pairs) - len(pairs) // 2)
  assert page['agreement']['pairs'] == len(page['rows'])
  assert {job.experiment['model']['layers'] for job in kind.jobs[before:]} == {2}
  _, text, _ = run(capsys, 'verify', f'--workdir={workdir}')
  assert 'correlate by' in text and 'believed here' in text


def test_what_the_last_round_measured_is_archived_as_it_arrives(searched, capsys):
  workdir, kind = searched
  kind.interrupt_after = len(kind.jobs) + 7
  arguments = ('verify', f'--workdir={workdir}', *CONFIG, '--config.rungs.small.rounds=1')
  assert run(capsys, *arguments)[0] == 130
  before = set(rows_of(capsys, workdir / 'rungs/small'))
  assert len(before) > 3, 'more than the baselines'
  kind.interrupt_after = None
  assert run(capsys, *arguments)[0] == 0
  assert before < set(rows_of(capsys, workdir / 'rungs/small'))


@pytest.mark.parametrize('into', [0, 1])
def test_who_gets_more_replicas_does_not_hang_on_an_interruption(searched, capsys, use, into):
  """However far `into` the second round the climb is stopped."""
  workdir, kind = searched
  other, before = workdir.with_name('whole'), len(kind.jobs)
  shutil.copytree(workdir, other)

  def replicas(where):
    return {id: row['evidence']['replicas'] for id, row in rows_of(capsys, where / 'rungs/small').items() if id > 1}

  assert run(capsys, 'verify', f'--workdir={other}')[0] == 0
  whole, jobs = replicas(other), len(kind.jobs) - before
  kind = use(effect=better(), interrupt_after=jobs - sum(count == 8 for count in whole.values()) + into)
  assert run(capsys, 'verify', f'--workdir={workdir}')[0] == 130
  kind.interrupt_after = None
  assert run(capsys, 'verify', f'--workdir={workdir}')[0] == 0
  assert replicas(workdir) == whole


@pytest.mark.slow
def test_verify_again_lets_only_the_others_climb_and_an_interrupted_choice_stands(searched, capsys):
  workdir, kind = searched
  kind.interrupt_after = len(kind.jobs) + 4
  status, _, error = run(capsys, 'verify', f'--workdir={workdir}')
  assert status == 130 and 'To resume: asiarch verify' in error
  chosen = [json.loads(line) for line in (workdir / 'rungs/small/climbs.jsonl').read_text().splitlines()]
  kind.interrupt_after = None
  assert run(capsys, 'verify', f'--workdir={workdir}')[0] == 0
  again = [json.loads(line) for line in (workdir / 'rungs/small/climbs.jsonl').read_text().splitlines()]
  assert again == chosen
  on_rung = rows_of(capsys, workdir / 'rungs/small')
  assert set(chosen[0]['promoted']) <= set(on_rung)
  assert (workdir / 'rungs/small/report/index.html').exists()
  jobs = len(kind.jobs)
  run(capsys, 'verify', f'--workdir={workdir}')
  assert set(on_rung) == set(rows_of(capsys, workdir / 'rungs/small')) and len(kind.jobs) == jobs  # nobody is new
  wider = (*CONFIG, '--config.rungs.small.share=1', '--config.rungs.small.false_discoveries=0.999')
  assert run(capsys, 'verify', f'--workdir={workdir}', *wider)[0] == 0
  assert set(on_rung) < set(rows_of(capsys, workdir / 'rungs/small'))
  found = rows_of(capsys, workdir / 'rungs/small')
  assert run(capsys, 'search', *CONFIG, f'--workdir={workdir}', '--cycles=26')[0] == 0
  assert run(capsys, 'verify', f'--workdir={workdir}')[0] == 0
  assert set(found) < set(rows_of(capsys, workdir / 'rungs/small'))


def test_a_design_that_fails_on_a_rung_is_a_rejection_there(searched, capsys, use):
  workdir, _ = searched
  use(
    effect=better(),
    fails=lambda job: 'too large' if job.experiment['model']['layers'] == 2 and improves_job(job) else '',
  )
  status, out, error = run(capsys, 'verify', f'--workdir={workdir}', '--json')
  assert status == 0, error
  failed = [row for row in json.loads(out)['rungs'][0]['rows'] if row['failure']]
  assert failed and all('too large' in row['failure'] and row['evidence'] is None for row in failed)


def improves_job(job):
  return better()(job) > 0


def test_a_claim_shows_what_is_planted_and_not_what_is_not(searched, capsys):
  workdir, kind = searched
  rows = rows_of(capsys, workdir)
  good = next(id for id, row in rows.items() if id > 1 and improves(row))
  null = next(id for id, row in rows.items() if id > 1 and not improves(row))
  before = len(kind.jobs)
  status, out, error = run(capsys, 'claim', good, null, f'--workdir={workdir}', '--json')
  assert status == 0, error
  claim = json.loads(out)['claims'][0]
  verdicts = {(row['id'], row['matched']): row for row in claim['verdicts']}
  assert all(verdicts[good, matched]['shown'] for matched in ('parameters', 'flops', 'seconds'))
  assert not any(verdicts[null, matched]['shown'] for matched in ('parameters', 'flops', 'seconds'))
  one = verdicts[good, 'parameters']
  assert one['low'] < 0.15 < one['high'] and one['pairs'] == 8 and 'x (95 % interval' in one['multiplier']
  made = kind.jobs[before:]
  assert {job.split for job in made} == {'vault'}
  assert min(job.experiment['training']['first_seed'] for job in made) == 1_000_000
  assert any(job.flops for job in made) and {job.experiment['training']['steps'] for job in made} == {4, 8, 16}
  assert json.loads((workdir / 'claims/0001/family.json').read_text())['entries'] == sorted([good, null])
  # The baseline is timed anew beside each entry, and what is matched by time was run before: planted seconds are alike.
  order = [job.name for job in made if job.name != 'delta_net' or job.experiment['training']['first_seed'] > 1_500_000]
  names = [rows[id]['proposal']['name'] for id in sorted([good, null])]
  assert [name for name, _ in itertools.groupby(order)] == [names[0], 'delta_net', names[1], 'delta_net']


def test_without_a_time_beside_it_nothing_is_matched_by_time(searched, capsys, use):
  workdir, _ = searched
  use(effect=better(), fails=lambda job: 'busy' if job.experiment['training']['first_seed'] > 1_500_000 else '')
  _, out, error = run(capsys, 'claim', 4, f'--workdir={workdir}', '--matched=parameters,seconds', '--json')
  rows = {row['matched']: row for row in json.loads(out)['claims'][0]['verdicts']}
  assert rows['parameters']['reason'] == '' and not rows['seconds']['shown'], error
  assert 'could not be timed beside it' in rows['seconds']['reason'] and 'busy' in rows['seconds']['reason']


@pytest.mark.parametrize('slower, steps', [(1.0, 8), (0.5, 16), (1.25, 4), (0.8, 8), (9.0, 4)])
def test_what_is_matched_by_time_takes_no_longer(slower, steps):
  """In whole calls of four steps, one at least."""
  base, entry = (dataclasses.replace(samples.training(), seconds_per_step=each) for each in (0.1, 0.1 * slower))
  assert claiming.equal_time_steps(base, entry, TRAINING) == steps


@pytest.mark.parametrize('flops, steps, worth', [(1.0, 8, 2.0), (2.0, 8, 1.0), (1.0, 16, 1.0)])
def test_a_multiplier_counts_the_flops_of_both_trainings(flops, steps, worth):
  """A design with the loss of the baseline's doubled training: at twice its FLOPs or steps it saves nothing."""
  settings = dataclasses.replace(config.Experiment(), training=TRAINING)
  luck = (0.01, -0.01, 0.02, -0.02, 0.0, 0.01, -0.01, 0.0)

  def trained(bits, flops_per_token=1e6):
    replicas = [
      dataclasses.replace(samples.replica(seed=n), test_bits=bits + one, diverged=False) for n, one in enumerate(luck)
    ]
    return dataclasses.replace(samples.training(replicas=tuple(replicas)), flops_per_token=flops_per_token)

  budgets = {budget: [bits + one for one in luck] for budget, bits in ((0.5, 3.2), (1.0, 3.0), (2.0, 2.8), (4.0, 2.6))}
  found = claiming._verdict(
    samples.entry(5), 'parameters', trained(2.8, flops * 1e6), '', trained(3.0), trained(3.0), budgets, steps, settings
  )
  assert found.multiplier.startswith(f'{worth:g}x ('), found.multiplier


def test_the_vault_is_read_once_for_an_entry(searched, capsys):
  workdir, _ = searched
  assert run(capsys, 'claim', 2, f'--workdir={workdir}', '--matched=parameters')[0] == 0
  status, out, error = run(capsys, 'claim', 2, 3, f'--workdir={workdir}', '--matched=parameters')
  assert status == 2 and '#2 was claimed before: family 1 has read the vault' in error and out == ''
  assert not (workdir / 'claims/0002').exists()
  assert run(capsys, 'claim', 3, f'--workdir={workdir}', '--matched=parameters')[0] == 0
  _, out, _ = run(capsys, 'claim', f'--workdir={workdir}', '--json')
  families = [one['family'] for one in json.loads(out)['claims']]
  assert [family['number'] for family in families] == [1, 2] and families[1]['error'] < families[0]['error'] / 3
  assert families[0]['first_seed'] != families[1]['first_seed']
  _, text, _ = run(capsys, 'claim', f'--workdir={workdir}')
  assert text.count('Family') == 2 and 'shown' in text
  curves = re.findall(r'so 8 of them show (.*?)%\.', ' '.join(text.split()))
  chances = [[int(one) for one in re.findall(r'with (\d+)', curve)] for curve in curves]
  assert len(chances) == 2 and all(one == sorted(one) and one[0] < 30 and one[-1] > 95 for one in chances)
  assert text.count('with 80 % power') == sum(
    not row['shown'] and row['effect'] > 0 for one in json.loads(out)['claims'] for row in one['verdicts']
  )


def test_an_interrupted_claim_stays_registered_and_goes_on(searched, capsys):
  workdir, kind = searched
  kind.interrupt_after = len(kind.jobs) + 1
  status, _, error = run(capsys, 'claim', 2, f'--workdir={workdir}')
  assert status == 130 and 'family 1 stays registered' in error
  kind.interrupt_after = None
  assert 'Registered and not finished' in ' '.join(run(capsys, 'claim', f'--workdir={workdir}')[1].split())
  status, _, error = run(capsys, 'claim', 3, 2, f'--workdir={workdir}')
  assert status == 2 and 'is registered to read' in error
  family, before = workdir / 'claims/0001/family.json', len(kind.jobs)
  family.write_text(json.dumps({**json.loads(family.read_text()), 'windows': 12}))
  assert run(capsys, 'claim', 2, f'--workdir={workdir}')[0] == 0
  assert {job.experiment['evaluation']['test_windows'] for job in kind.jobs[before:]} == {12}  # what was registered
  assert len(list((workdir / 'claims').iterdir())) == 1


@pytest.mark.slow
def test_the_vault_is_read_once_for_whoever_stands_on_either_side(searched, capsys):
  workdir, _ = searched
  ids = sorted(id for id in rows_of(capsys, workdir) if id > 1)
  work = (f'--workdir={workdir}', '--matched=parameters')
  assert run(capsys, 'claim', ids[0], f'--against={ids[1]}', *work)[0] == 0
  for arguments in ((ids[1],), (ids[2], f'--against={ids[0]}'), (ids[2], f'--against={ids[1]}')):
    status, _, error = run(capsys, 'claim', *arguments, *work)
    assert status == 2 and 'was claimed before: family 1 has read the vault for it' in error
  assert run(capsys, 'claim', ids[2], *work)[0] == 0  # the baseline stands on the other side of every claim
  assert run(capsys, 'claim', ids[3], *work)[0] == 0


def test_only_claims_against_the_baseline_confirm(searched, capsys):
  workdir, _ = searched
  rows = rows_of(capsys, workdir)
  good = [id for id, row in rows.items() if id > 1 and improves(row)]
  null = next(id for id, row in rows.items() if id > 1 and not improves(row))
  search = config.Search(baselines=('delta_net', 'gated_delta_net'))
  work = (f'--workdir={workdir}', '--matched=parameters')
  _, out, _ = run(capsys, 'claim', good[0], f'--against={null}', *work, '--json')
  assert json.loads(out)['claims'][0]['verdicts'][0]['shown']
  assert registry.confirmed(workdir, search) is None
  run(capsys, 'claim', good[1], f'--workdir={workdir}', '--matched=flops')
  assert registry.confirmed(workdir, search) is None
  run(capsys, 'claim', good[2], *work)
  assert registry.confirmed(workdir, search) == {good[2]}


def test_a_claim_on_a_rung_trains_as_the_rung_was_measured(searched, capsys):
  """Its settings may have come from the command line of `verify` alone."""
  workdir, kind = searched
  longer = ('--config.rungs.small.training.steps=16', '--config.rungs.small.model.width=64')
  assert run(capsys, 'verify', f'--workdir={workdir}', *CONFIG, *longer)[0] == 0
  id, before = max(rows_of(capsys, workdir / 'rungs/small')), len(kind.jobs)
  status, _, error = run(capsys, 'claim', id, '--rung=small', f'--workdir={workdir}', '--matched=parameters')
  assert status == 0, error
  made = {(job.experiment['training']['steps'], job.experiment['model']['width']) for job in kind.jobs[before:]}
  assert made == {(8, 64), (16, 64), (32, 64)}


def test_lengths_that_are_one_to_whole_calls_give_no_multiplier_and_say_so(searched, capsys):
  workdir, _ = searched
  path = workdir / 'archive/header.json'
  header = json.loads(path.read_text())
  header['experiment']['claims']['budgets'] = [0.9, 1.0, 1.1]
  path.write_text(json.dumps(header))
  _, out, error = run(capsys, 'claim', 2, f'--workdir={workdir}', '--matched=parameters', '--json')
  assert json.loads(out)['claims'][0]['verdicts'][0]['multiplier'] == ''
  assert 'claims.budgets = (0.9, 1.0, 1.1) of 8 steps are 1 different lengths in calls of 4' in error


def test_a_length_counts_as_the_share_that_was_trained():
  def trained(entry, *, steps, parameters):
    return samples.training(), ''

  training = dataclasses.replace(TRAINING, steps=30, steps_per_call=10)
  settings = dataclasses.replace(config.Experiment(), training=training)
  only = types.SimpleNamespace(experiment=settings, trained=trained, say=print)
  assert list(claiming._budgets(only, samples.entry(5), samples.training())) == [2 / 3, 1.0, 2.0]


def test_a_rung_is_no_place_for_claims(searched, capsys):
  workdir, _ = searched
  assert run(capsys, 'verify', f'--workdir={workdir}')[0] == 0
  rung = workdir / 'rungs/small'
  id = next(id for id in rows_of(capsys, rung) if id > 1)
  status, _, error = run(capsys, 'claim', id, f'--workdir={rung}')
  assert status == 2 and '--rung=small' in error and not (rung / 'claims').exists()


REFUSED = {
  'nobody': (['claim', 'nobody'], 'neither an id nor a name'),
  'against itself': (['claim', '0'], 'cannot be claimed against itself'),
  'matched': (['claim', '2', '--matched=size'], 'name one or more of parameters'),
  'one replica': (['claim', '2', '--replicas=7'], 'claims.replicas = 7; a claim takes at least 8'),
  'empty rung': (['claim', '2', '--rung=small'], "nothing stands on rung 'small'"),
  'no rung': (['verify', '--rung=huge'], "'huge' is not on the ladder"),
  'few sizes': (['scale', '2', '--factors=1,2,3'], 'needs at least 4'),
  'sizes alike': (['scale', '2', '--factors=1,1.01,2,3'], 'some twice'),
  'endless': (['scale', '2', '--factors=inf,1,2,3'], 'inf,1,2,3 names 4 sizes; a scaling fit needs at least 4, all'),
  'no number': (['scale', '2', '--factors=nan,1,2,3'], 'at most 1000'),
  'no size': (['scale', '2', '--factors=1,big'], 'give numbers'),
  'two seeds': (['scale', '2', '--seeds=2'], 'needs at least 3'),
  'with itself': (['scale', '0'], 'cannot be compared with itself'),
  'no part': (['ablate', '0'], 'has neither genome nor parent'),
}


@pytest.mark.parametrize('name', REFUSED)
def test_what_cannot_be_done_is_said_and_nothing_is_written(name, searched, capsys):
  workdir, kind = searched
  before = len(kind.jobs)
  arguments, said = REFUSED[name]
  status, out, error = run(capsys, *arguments, f'--workdir={workdir}')
  assert status == 2 and said in error and out == ''
  assert len(kind.jobs) == before and not (workdir / 'claims').exists()


def test_a_claim_on_a_diverging_design_is_not_shown(searched, capsys, use):
  workdir, _ = searched
  use(effect=better(), fails=lambda job: 'nan' if job.split == 'vault' and job.name != 'delta_net' else '')
  _, out, _ = run(capsys, 'claim', 2, f'--workdir={workdir}', '--json')
  rows = json.loads(out)['claims'][0]['verdicts']
  assert not any(row['shown'] for row in rows) and all('nan' in row['reason'] for row in rows)


def test_settings_of_claims_are_those_of_the_jobs(use, tmp_path, capsys):
  """`claims.*`: seeds, windows, lengths of training and error of a family."""
  kind = use(effect=better())
  chosen = ('--config.claims.replicas=9', '--config.claims.windows=4', '--config.claims.budgets=(1.0,1.5,3.0)',
            '--config.claims.error=0.2')  # fmt: skip
  assert run(capsys, 'search', *CONFIG, *chosen, f'--workdir={tmp_path}', '--cycles=4')[0] == 0
  before = len(kind.jobs)
  _, out, error = run(capsys, 'claim', 2, f'--workdir={tmp_path}', '--matched=parameters', '--json')
  family, made = json.loads(out)['claims'][0]['family'], kind.jobs[before:]
  assert (family['replicas'], family['windows']) == (9, 4), error
  assert family['error'] == pytest.approx(0.2 * 6 / math.pi**2)
  assert {job.experiment['evaluation']['test_windows'] for job in made} == {4}
  assert {job.experiment['training']['steps'] for job in made} == {8, 12, 24}
  assert sum(job.experiment['training']['seeds'] for job in made if job.name != 'delta_net') == 9


def test_more_work_may_take_longer(monkeypatch):
  """Twice the steps twice the seconds of the search, and of four times the weights four times."""
  said = []

  class Answering:
    def __init__(self, folder, settings, corpus):
      self.settings = settings

    def run(self, job, on_progress):
      said.append(results.limits_of(job, self.settings)['wall_seconds'])
      return records.JobResult(job.key, training=samples.training())

  monkeypatch.setattr(runners, 'LocalRunner', Answering)
  begun = dataclasses.replace(config.Experiment(), training=TRAINING)
  begun = dataclasses.replace(begun, runner=dataclasses.replace(begun.runner, wall_seconds=100.0))
  here = trials.Bench(types.SimpleNamespace(start_cycle=print, progress=print, line=print), None, '', 'none')
  wide = dataclasses.replace(begun, model=dataclasses.replace(begun.model, width=2 * begun.model.width))
  made = here.trials('anywhere', begun, 0, 1)
  made.trained(samples.entry(5))
  made.trained(samples.entry(5), steps=16)
  made.trained(samples.entry(5), steps=4)
  dataclasses.replace(made, experiment=wide).trained(samples.entry(5))
  assert said == [100.0, 200.0, 100.0, 400.0]


def test_arms_measure_what_searching_brings(use, tmp_path, capsys):
  kind = use(effect=better())
  arguments = ('arms', *CONFIG, f'--workdir={tmp_path}', '--cycles=10', '--arms=search,random,placebo', '--top=2')
  status, out, error = run(capsys, *arguments, '--json')
  assert status == 0, error
  page = json.loads(out)
  assert [run['arm'] for run in page['runs']] == ['search', 'random', 'placebo']
  assert [(lift['arm'], lift['against']) for lift in page['lifts']] == [('search', 'random'), ('search', 'placebo')]
  blind = page['runs'][2]
  assert blind['placebos'] == blind['measured'] == 8 and abs(blind['fresh']) < 0.03
  truth = min((0.0, 0.075, 0.15), key=lambda value: abs(value - page['runs'][0]['fresh']))  # 0, 1 or 2 of the best two
  assert page['lifts'][1]['low'] < truth < page['lifts'][1]['high'] and truth > 0.0
  jobs = len(kind.jobs)
  status, text, _ = run(capsys, *arguments)
  assert status == 0 and len(kind.jobs) == jobs  # all of it is there
  assert 'Lift of search over placebo' in text and '--repeats=3' in text


@pytest.mark.sweep
def test_arms_with_repeats_pair_runs(use, tmp_path, capsys):
  kind = use(effect=better())
  _, out, error = run(capsys, 'arms', *CONFIG, f'--workdir={tmp_path}', '--cycles=6', '--arms=search,placebo',
                      '--top=1', '--repeats=2', '--json')  # fmt: skip
  assert json.loads(out)['lifts'][0]['runs'] == 2, error
  orders = {}  # a replica's data order is that of the search's seed and its own, added
  for settings in (job.experiment for job in kind.jobs):
    training = settings['training']
    first = settings['seed'] + training['first_seed']
    orders.setdefault(settings['seed'], set()).update(range(first, first + training['seeds']))
  assert len(orders) == 2 and not set.intersection(*orders.values())


@pytest.mark.parametrize('arms, said', [('search', 'name two or more'), ('search,luck', "'luck' is not an arm")])
def test_arms_that_are_none_are_refused(arms, said, tmp_path, capsys):
  status, _, error = run(capsys, 'arms', *CONFIG, f'--workdir={tmp_path}', f'--arms={arms}')
  assert status == 2 and said in error


def test_a_part_without_which_training_diverges_is_told_so():
  whole, without = samples.entry(3, seeds=8).training, samples.entry(4, seeds=8, diverged=(1, 4, 6)).training
  row = ablating._row('norm', whole, without, '')
  assert row.reason == '3 of 8 diverge without it' and math.isnan(row.worth)
  assert ablating._row('norm', whole, samples.entry(4, seeds=8).training, '').reason == ''


def test_ablation_credits_the_part_that_matters(use, tmp_path, capsys):
  """Planted: the decay brings 0.3 bits, everything else nothing."""
  use(effect=lambda job: 0.3 if 'decay' in job.source.partition('@nn.compact')[2] else 0.0, own=0.01)
  assert run(capsys, 'search', *CONFIG, f'--workdir={tmp_path}', '--cycles=20')[0] == 0
  rows = rows_of(capsys, tmp_path)
  several = [
    id for id, row in rows.items()
    if id > 1 and row['proposal']['genome'] and row['proposal']['genome']['decay'] != 'none'
  ]  # fmt: skip
  status, out, error = run(capsys, 'ablate', several[0], f'--workdir={tmp_path}', '--json')
  assert status == 0, error
  parts = {part['part']: part for part in json.loads(out)['parts']}
  decay = next(part for name, part in parts.items() if 'decay' in name.lower())
  assert decay['worth'] == pytest.approx(0.3, abs=0.05) and decay['adjusted'] < 0.05
  status, text, _ = run(capsys, 'ablate', several[0], f'--workdir={tmp_path}')
  assert 'helps' in text
  status, out, error = run(capsys, 'ablate', several[0], f'--workdir={tmp_path}', '--by=diff', '--json')
  assert status == 0 and all(part['part'].startswith('lines ') for part in json.loads(out)['parts']), error


def test_a_lead_that_is_planted_at_every_size_is_a_shifted_constant(searched, capsys, use):
  workdir, _ = searched
  rows = rows_of(capsys, workdir)
  good = next(id for id, row in rows.items() if id > 1 and improves(row))
  kind = use(effect=better(), own=0.005)
  arguments = ('scale', good, f'--workdir={workdir}', '--factors=1,2,3,4')
  status, out, error = run(capsys, *arguments, '--json')
  assert status == 0, error
  page = json.loads(out)
  assert [len(page[arm]) for arm in ('baseline', 'entry')] == [4, 4] and page['found']['headline']['low'] > 1.0
  widths = sorted({job.experiment['model']['width'] for job in kind.jobs})
  steps = sorted({job.experiment['training']['steps'] for job in kind.jobs})
  assert widths == [16, 32, 48, 64] and steps == [8, 32, 72, 128]
  status, text, _ = run(capsys, *arguments)
  assert status == 0 and 'saves compute at the largest size' in ' '.join(text.split())


@pytest.mark.sweep
def test_two_hundred_copies_of_the_baseline_promote_few_and_claim_none(use, tmp_path, capsys):
  """Acceptance of the placebo arm on planted noise; docs/EVIDENCE.md has the same with real training."""
  use()
  arguments = (*CONFIG, '--config.evidence.placebo=1.0', f'--workdir={tmp_path}')
  assert run(capsys, 'search', *arguments, '--cycles=202')[0] == 0
  _, out, _ = run(capsys, 'verify', f'--workdir={tmp_path}', '--json')
  climbed = [row['id'] for row in json.loads(out)['rungs'][0]['rows'] if row['climbed'] == 'promoted']
  assert len(climbed) <= 10
  best = sorted(rows_of(capsys, tmp_path).values(), key=lambda row: row['test_bits'])[:10]
  ids = [row['id'] for row in best if row['id'] > 1]
  _, out, _ = run(capsys, 'claim', *ids, f'--workdir={tmp_path}', '--json')
  assert not any(row['shown'] for row in json.loads(out)['claims'][0]['verdicts'])


@pytest.mark.sweep
@pytest.mark.timeout(1800)
def test_two_hundredths_of_a_nat_are_shown_with_the_power_that_their_price_promises(template, use, tmp_path, capsys):
  """Acceptance of claims on planted noise, over the worlds that `WORLDS` counts; docs/EVIDENCE.md has what it costs."""
  effect, error = 0.02 / math.log(2), claims.family_error(1, config.Claims().error)
  pairs = claims.pairs_needed(effect, math.sqrt(2) * OWN, error)

  def shown(planted):
    count = 0
    for world in range(WORLDS):
      workdir = tmp_path / f'{planted}_{world}'
      shutil.copytree(template, workdir)
      use(effect=lambda job: 0.0 if job.name == 'delta_net' else planted, world=(world,))
      arguments = (2, f'--workdir={workdir}', '--matched=parameters', f'--replicas={pairs}', '--json')
      status, out, said = run(capsys, 'claim', *arguments)
      assert status == 0, said
      count += json.loads(out)['claims'][0]['verdicts'][0]['shown']
    return count

  found, half = shown(effect), shown(effect / 2)
  print(f'{pairs} pairs show it in {found} of {WORLDS} worlds, and half of it in {half}')
  assert found >= 0.8 * WORLDS and half < 0.6 * WORLDS


@pytest.mark.sweep
@pytest.mark.timeout(3600)
def test_with_real_workers(tmp_path):
  work = f'--workdir={tmp_path}'
  assert asiarch('search', '--config=configs/smoke.py', work, '--cycles=5', timeout=900).returncode == 0
  for arguments in (
    ('verify',),
    ('claim', '2'),
    ('ablate', '2'),
  ):
    process = asiarch(*arguments, work, timeout=1800)
    assert process.returncode == 0, process.stderr
  arms = asiarch('arms', '--config=configs/smoke.py', work, '--cycles=4', '--arms=search,placebo', timeout=1800)
  assert arms.returncode == 0 and 'Lift of search over placebo' in arms.stdout, arms.stderr
