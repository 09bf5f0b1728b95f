"""`asiarch doctor`: for every check a machine or setting that it objects to, and one that it lets pass."""

import dataclasses
import doctest
import json
import os
import pathlib
import re
import time

import pytest

from asiarch_jax import config, main
from asiarch_jax.cognition import paper
from asiarch_jax.commands import doctor
from asiarch_jax.commands.doctor import Row
from asiarch_jax.shell import archive as archives
from asiarch_jax.shell import corpus, library, machine, sandbox
from tests import samples
from tests.cli import ROOT, asiarch
from tests.model_server import Answer, ModelServer

KEY = 'AIza-a-key-of-these-tests-0123'
ENVIRONMENT = {'GEMINI_API_KEY': KEY, 'OPENAI_API_KEY': KEY}
EXPERIMENT = config.Experiment()
CPU = machine.Device('cpu', 'cpu')
GPU = machine.Device('gpu', 'NVIDIA H100 80GB HBM3', 60 << 30)


def with_(experiment=EXPERIMENT, **parts):
  """Returns an experiment with settings changed: `with_(runner={'workers': 2})`."""
  changed = {name: dataclasses.replace(getattr(experiment, name), **values) for name, values in parts.items()}
  return dataclasses.replace(experiment, **changed)


MODEL = with_(researcher={'kind': 'llm'})


def holds(row, mark, found, remedy=''):
  """Asserts what a row says. One that is not ok names a remedy."""
  assert row.mark == mark and re.search(found, row.found), row
  assert bool(row.remedy) == (mark != 'ok') and remedy in row.remedy, row


# Experiment, versions, extras.

PRESENT = {
  'asiarch-jax': '0.1.0',
  'python': '3.12.1',
  'jax': '0.10.2',
  'jaxlib': '0.10.2',
  'flax': '0.12.8',
  'optax': '0.2.8',
  'orbax-checkpoint': '0.12.8',
  'google-genai': '3.4.0',
}
REQUIRED = {'python': '>=3.11', 'jax': '>=0.10.2', 'jaxlib': '>=0.10.1,<=0.10.2', 'google-genai': '>=3.4'}


def without(name):
  return {key: value for key, value in PRESENT.items() if key != name}


def test_hosts_know_their_place_and_the_first_one():
  told = {'TPU_WORKER_ID': '1', 'TPU_WORKER_HOSTNAMES': '127.0.0.1,127.0.0.2'}
  holds(doctor.check_hosts(config.Runner(), told), 'ok', 'host 1 of 2, which follows 127.0.0.1:8477')
  lost = {**told, 'TPU_WORKER_HOSTNAMES': 'no-such-host.invalid,b'}
  holds(doctor.check_hosts(config.Runner(), lost), 'FAIL', "nobody here knows 'no-such-host.invalid'", 'IP address')
  spmd = with_(runner={'kind': 'spmd', 'platform': 'tpu'})
  rows = {row.subject: row for row in doctor.examined(doctor.checks(spmd, 'runs/none', {}))}
  holds(rows['hosts'], 'FAIL', 'nothing says which of how many hosts this is')
  holds(rows['devices'], 'ok', 'the first job opens them')


def test_the_experiment_names_baselines_that_there_are():
  holds(doctor.check_experiment(EXPERIMENT, EXPERIMENT.search.baselines), 'ok', 'default: 15 outcomes.*evolution')
  holds(doctor.check_experiment(EXPERIMENT, ['delta_net']), 'FAIL', 'gated_delta_net, softmax_attention', 'delta_net')


VERSIONS = {
  'as declared': (PRESENT, REQUIRED, 'ok', r'asiarch-jax 0\.1\.0, python 3\.12\.1, jax 0\.10\.2', ''),
  'a preview': (PRESENT | {'jax': '0.11.0.dev2026'}, REQUIRED, 'ok', r'0\.11\.0\.dev2026', ''),
  'old jax': (PRESENT | {'jax': '0.4.30'}, REQUIRED, 'warn', r'supported are jax>=0\.10\.2', 'pip install'),
  'new jaxlib': (PRESENT | {'jaxlib': '0.11.0'}, REQUIRED, 'warn', 'jaxlib', 'pip install'),
  'old python': (PRESENT | {'python': '3.10.4'}, REQUIRED, 'warn', r'python>=3\.11', 'another Python'),
  'no flax': (without('flax'), REQUIRED, 'FAIL', 'flax missing', 'pip install flax'),
  'a bare checkout': (without('asiarch-jax'), {}, 'warn', 'not known', 'pip install -e .'),
}


@pytest.mark.parametrize('name', VERSIONS)
def test_versions_are_held_against_those_supported(name):
  present, required, mark, found, remedy = VERSIONS[name]
  holds(doctor.check_versions(present, required), mark, found, remedy)


def test_what_is_installed_and_what_is_required_are_read_from_this_environment():
  present = machine.installed((machine.PACKAGE, *doctor.LIBRARIES, 'no-such-package'))
  assert set(present) == {machine.PACKAGE, *doctor.LIBRARIES}
  required = machine.required()
  assert required['python'].startswith('>=3') and 'jaxlib' in required and 'google-genai' in required


EXTRAS = {
  'none needed': (EXPERIMENT, {}, '/usr/bin/bwrap', 'ok', 'bubblewrap; not installed: google-genai', ''),
  'needed and there': (MODEL, PRESENT, '', 'ok', r'google-genai 3\.4\.0; not installed: openai, .*bubblewrap', ''),
  'no google-genai': (MODEL, {}, '', 'FAIL', "'gemini' needs google-genai", "'asiarch-jax[llm]'"),
  'no openai': (with_(MODEL, llm={'provider': 'openai'}), PRESENT, '', 'FAIL', 'needs openai', '[openai]'),
  'no ray': (with_(runner={'kind': 'cluster'}), PRESENT, '', 'FAIL', 'cluster.* needs ray', '[cluster]'),
  'no gcsfs': (with_(corpus={'path': 'gs://bucket/text'}), PRESENT, '', 'FAIL', 'corpus.path .* needs gcsfs', '[gcs]'),
  'no harness': (with_(zero_shot={'in_search': True}), PRESENT, '', 'FAIL', 'in_search .* needs lm_eval', '[eval]'),
  'old': (MODEL, PRESENT | {'google-genai': '1.0'}, '', 'warn', 'supported are google-genai', 'pip install'),
}


@pytest.mark.parametrize('name', EXTRAS)
def test_extras_are_needed_where_the_experiment_asks_for_them(name):
  experiment, present, bubblewrap, mark, found, remedy = EXTRAS[name]
  holds(doctor.check_extras(experiment, present, REQUIRED, bubblewrap), mark, found, remedy)


# Devices and jail.

DATA_PARALLEL = with_(training={'data_parallel': 4, 'batch': 8})
HUNG = machine.Start(fault='did not start within 90 s', said='waiting for the TPU')
DEVICES = {
  'cpu': (EXPERIMENT, machine.Start((CPU, CPU), 2.1), (), 'ok', r'^2 cpu devices; a worker starts in 2\.1 s', ''),
  'gpu': (EXPERIMENT, machine.Start((GPU,), 9.0), ('/dev/nvidia0',), 'ok', r'NVIDIA H100 80GB HBM3, 60\.0 GiB', ''),
  'meant': (with_(runner={'platform': 'cpu'}), machine.Start((CPU,)), ('/dev/nvidia0',), 'ok', '1 cpu device', ''),
  'unused': (EXPERIMENT, machine.Start((CPU,)), ('/dev/nvidia0',), 'warn', '/dev/nvidia0 is there', '[gpu]'),
  'hung': (with_(runner={'platform': 'tpu'}), HUNG, (), 'FAIL', '90 s; it said: waiting for the TPU', '[tpu]'),
  'silent': (EXPERIMENT, machine.Start(fault='was ended by SIGSEGV'), (), 'FAIL', 'SIGSEGV; it said nothing', 'cpu'),
  'few': (DATA_PARALLEL, machine.Start((CPU,)), (), 'FAIL', 'data_parallel = 4', '--config.runner.host_devices=4'),
  'shared': (with_(runner={'workers': 2}), machine.Start((GPU,)), (), 'warn', 'workers = 2', 'workers=1'),
}


@pytest.mark.parametrize('name', DEVICES)
def test_devices_are_judged_by_what_the_experiment_asks_of_them(name):
  experiment, start, files, mark, found, remedy = DEVICES[name]
  holds(doctor.check_devices(experiment, start, files), mark, found, remedy)


def test_a_worker_sees_the_devices_that_the_runner_forces():
  start = machine.worker_start(config.Runner(platform='cpu', host_devices=3), 'none')
  assert start.devices == (CPU,) * 3 and not start.fault and start.seconds > 0


@pytest.mark.parametrize('platform, said', [('no_such', "^RuntimeError: .* 'no_such'"), ('cuda', "^JAX has no|'cuda'")])
def test_a_platform_that_is_not_there_is_a_fault_with_what_jax_says(platform, said):
  if platform == 'cuda' and machine.accelerators():
    pytest.skip('it may be there')
  start = machine.worker_start(config.Runner(platform=platform), 'none')
  assert start.fault == 'ended with status 1' and re.search(said, start.said) and start.devices == (), start


def test_a_hung_start_is_ended_with_all_that_it_began_and_its_last_words_kept():
  code = """
import os, subprocess, sys, time
subprocess.Popen(['sleep', '4321'])
print('many words\\n' * 500, 'waiting for', os.environ['JAX_PLATFORMS'], '\\x1b[31m', file=sys.stderr, flush=True)
time.sleep(60)
"""
  began = time.monotonic()
  start = machine.worker_start(config.Runner(platform='cpu'), 'none', 1.5, code)
  assert start.fault == 'did not start within 1.5 s' and time.monotonic() - began < 10
  assert start.said.endswith('waiting for cpu [31m') and len(start.said) <= machine.TAIL_CHARACTERS
  commands = [path.read_bytes() for path in pathlib.Path('/proc').glob('[0-9]*/cmdline') if os.access(path, os.R_OK)]
  assert not any(b'4321' in command for command in commands)


def test_a_start_that_says_nonsense_is_a_fault():
  assert machine.worker_start(config.Runner(), 'none', 20, 'print("hello")').fault == 'did not name its devices'


def test_device_files_of_accelerators_are_found(tmp_path):
  (tmp_path / 'dev').mkdir()
  assert machine.accelerators(tmp_path) == ()
  for name in ('nvidia0', 'nvidiactl', 'accel1', 'null'):
    (tmp_path / 'dev' / name).touch()
  assert [pathlib.Path(path).name for path in machine.accelerators(tmp_path)] == ['accel1', 'nvidia0']


JAILS = {
  'tight': ('bubblewrap', (), 'ok', 'bubblewrap', ''),
  'holes': (
    'sandlock',
    (sandbox.SENTENCES['list'],),
    'warn',
    'not stopped here: seeing',
    'apt install bubblewrap',
  ),
  'root': ('bubblewrap', (sandbox.SENTENCES['root'],), 'warn', 'keeping user id 0', 'not root'),
  'none': ('none', tuple(sandbox.SENTENCES.values()), 'warn', 'your rights .18 of 18', 'leave runner.jail at auto'),
}


@pytest.mark.parametrize('name', JAILS)
def test_jails_are_judged_by_what_they_do_not_stop(name):
  jail, weaknesses, mark, found, remedy = JAILS[name]
  holds(doctor.check_jail(jail, weaknesses), mark, found, remedy)


def test_without_a_jail_a_search_would_not_run_and_devices_are_looked_at_all_the_same(monkeypatch, tmp_path):
  monkeypatch.setenv('PATH', str(tmp_path))
  every = doctor.checks(with_(runner={'platform': 'cpu', 'jail': 'bubblewrap'}), 'nowhere', {})
  devices, jail = doctor.examined({name: every[name] for name in ('devices', 'jail')})
  holds(devices, 'ok', '1 cpu device')
  holds(jail, 'FAIL', "runner.jail = 'bubblewrap' cannot be had: bubblewrap is not installed", 'apt install bubblewrap')


# Memory, disk, archive.

MEMORY = {
  'roomy': ({}, machine.Share(32 << 30, 20 << 30, 8), 'ok', r'20\.0 of 32\.0 GiB available, 8 cores', ''),
  'tight': ({'workers': 3}, machine.Share(32 << 30, 20 << 30, 8), 'warn', 'jobs may take 24 GiB', 'memory_gib=6.5'),
  'crowded': (
    {'workers': 2, 'platform': 'cpu', 'host_devices': 2},
    machine.Share(32 << 30, 20 << 30, 2),
    'warn',
    'workers = 2 with 2 CPU devices',
    'lower runner.workers',
  ),
}


@pytest.mark.parametrize('name', MEMORY)
def test_memory_and_cores_are_held_against_what_workers_may_take(name):
  runner, share, mark, found, remedy = MEMORY[name]
  holds(doctor.check_memory(config.Runner(**runner), share), mark, found, remedy)


def test_this_machine_has_memory_and_cores():
  share = machine.share()
  assert 0 < share.memory_available <= share.memory_total and share.cores > 0


GROUPS = {
  'version 2': {
    'proc/self/cgroup': '0::/user/job',
    'sys/fs/cgroup/user/memory.max': str(4 << 30),
    'sys/fs/cgroup/user/memory.current': str(3 << 30),
    'sys/fs/cgroup/user/memory.stat': f'anon 1\ninactive_file {1 << 30}',
    'sys/fs/cgroup/user/job/memory.max': 'max',
    'sys/fs/cgroup/user/job/cpu.max': '50000 100000',
  },
  'version 1': {
    'proc/self/cgroup': '4:memory:/job\n1:cpu,cpuacct:/\n0::/',
    'sys/fs/cgroup/memory/memory.limit_in_bytes': str(4 << 30),
    'sys/fs/cgroup/memory/memory.usage_in_bytes': str(3 << 30),
    'sys/fs/cgroup/memory/memory.stat': f'inactive_file 1\ntotal_inactive_file {1 << 30}',
    'sys/fs/cgroup/cpu/cpu.cfs_quota_us': '50000',
    'sys/fs/cgroup/cpu/cpu.cfs_period_us': '100000',
  },
}


@pytest.mark.parametrize('version', GROUPS)
def test_a_control_group_limits_what_the_kernel_has(version, tmp_path):
  files = {'proc/meminfo': f'MemTotal: {64 << 20} kB\nMemFree: 1 kB\nMemAvailable: {32 << 20} kB'} | GROUPS[version]
  for name, text in files.items():
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(text)
  assert machine.share(tmp_path) == machine.Share(4 << 30, 2 << 30, 0.5)


DISKS = {
  'roomy': ('run', machine.Disk(os.path.abspath('run'), 9 << 30, True), 'ok', r'^run: 9\.0 GiB free', ''),
  'new': ('a/run', machine.Disk(os.path.abspath('.'), 9 << 30, True), 'ok', r'^a/run \(to be made in ', ''),
  'low': ('run', machine.Disk(os.path.abspath('run'), 4 << 30, True), 'warn', r'4\.0 GiB', 'free 5.0 GiB'),
  'full': ('run', machine.Disk(os.path.abspath('run'), 100 << 20, True), 'FAIL', '100 MiB free', 'another disk'),
  'locked': ('run', machine.Disk(os.path.abspath('run'), 9 << 30, False), 'FAIL', 'may not write', 'another --workdir'),
  'bucket': ('gs://b/run', machine.Disk('/', 9 << 30, True), 'ok', 'gs://b/run, its jobs on the disk of /: 9', ''),
}


@pytest.mark.parametrize('name', DISKS)
def test_the_disk_of_a_workdir_has_room_and_takes_files(name):
  workdir, disk, mark, found, remedy = DISKS[name]
  holds(doctor.check_workdir(workdir, disk), mark, found, remedy)


def test_a_disk_is_found_without_making_the_workdir(tmp_path):
  disk = machine.disk(tmp_path / 'a/b')
  assert (disk.folder, disk.writable) == (str(tmp_path), True) and disk.free_bytes > 0
  assert list(tmp_path.iterdir()) == []
  (tmp_path / 'file').touch()
  with pytest.raises(NotADirectoryError, match='file is not a folder; remove it'):
    machine.disk(tmp_path / 'file/run')


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  """A workdir whose archive holds three outcomes."""
  folder = tmp_path_factory.mktemp('run')
  with archives.OrbaxArchive.open(folder, EXPERIMENT, 'c0ffee') as archive:
    for outcome in samples.archive(3)[:3]:
      archive.append(outcome, {})
  return folder


def test_an_archive_of_this_experiment_is_continued(workdir, tmp_path):
  holds(doctor.check_archive(EXPERIMENT, str(tmp_path), '', ''), 'ok', 'none yet')
  holds(doctor.check_archive(EXPERIMENT, str(workdir), 'c0ffee', ''), 'ok', '3 outcomes of .*default, 12 to come')
  done = with_(search={'cycles': 3})
  holds(doctor.check_archive(done, str(workdir), '', ''), 'ok', 'as many as search.cycles asks for; --cycles=13')


def test_an_archive_of_another_experiment_or_corpus_is_not(workdir):
  other = with_(training={'steps': 300, 'batch': 4})
  row = doctor.check_archive(other, str(workdir), 'c0ffee', '')
  holds(row, 'FAIL', 'training.steps is 200 there and 300 here; training.batch is 8 there and 4 here', 'another')
  many = with_(other, model=dataclasses.asdict(config.Model(128, 4, 4, 400, 512, True)))
  holds(doctor.check_archive(many, str(workdir), 'c0ffee', ''), 'FAIL', '; 1 more$', 'another')
  holds(doctor.check_archive(EXPERIMENT, str(workdir), 'decade', ''), 'FAIL', 'c0ffee and not decade', 'the text')


@pytest.mark.slow
def test_an_archive_that_nobody_named_is_no_objection(workdir, tmp_path, monkeypatch, capsys):
  """After `make search` the usual workdir holds a run; asking about other settings is no mistake."""
  objection = doctor.check_archive(with_(training={'steps': 300}), str(workdir), '', '')
  holds(doctor.unnamed(objection, 'there'), 'ok', 'another --workdir than there: 3 outcomes .*training.steps is 200')
  fine = doctor.check_archive(EXPERIMENT, str(workdir), '', '')
  assert doctor.unnamed(fine, 'there') == fine
  (tmp_path / 'runs').mkdir()
  (tmp_path / 'runs/default').symlink_to(workdir)
  monkeypatch.chdir(tmp_path)
  flags = ['doctor', f'--config={ROOT}/configs/smoke.py', '--json']
  for also, mark in (([], 'ok'), (['--workdir=runs/default'], 'FAIL')):
    main.main([*flags, *also])
    document = json.loads(capsys.readouterr().out)
    assert document['workdir'] == 'runs/default'
    assert {row['subject']: row['mark'] for row in document['rows']}['archive'] == mark


def test_a_damaged_archive_is_a_row(tmp_path):
  (tmp_path / 'archive').mkdir()
  (tmp_path / 'archive/header.json').write_text('{"schema": -1, "experiment": {}, "corpus": ""}')
  check = lambda: doctor.check_archive(EXPERIMENT, str(tmp_path), '', '')  # noqa: E731
  holds(*doctor.examined({'archive': check}), 'FAIL', 'schema -1', 'another workdir')


def test_who_appends_to_an_archive_is_named_while_it_does(tmp_path):
  assert machine.archive_writer(tmp_path) == ''
  with archives.OrbaxArchive.open(tmp_path, EXPERIMENT, ''):
    writer = machine.archive_writer(tmp_path)
    assert writer.startswith(f'process {os.getpid()} on ')
    holds(doctor.check_archive(EXPERIMENT, str(tmp_path), '', writer), 'FAIL', f'{writer} is appending', 'stop it')
  assert machine.archive_writer(tmp_path) == ''
  holds(doctor.check_archive(EXPERIMENT, str(tmp_path / 'new'), '', writer), 'FAIL', 'just beginning', 'stop it')


def test_the_note_of_a_writer_that_was_killed_holds_nobody_up(tmp_path):
  note = tmp_path / 'archive/writer.lock'
  note.parent.mkdir()
  note.write_text(json.dumps({'pid': os.getpid(), 'host': 'here', 'since': 0.0}))
  assert machine.archive_writer(tmp_path) == ''
  archives.OrbaxArchive.open(tmp_path, EXPERIMENT, '').close()


# Corpus and papers.


@pytest.fixture(scope='module')
def text(tmp_path_factory):
  """A corpus of 60 kB."""
  folder = tmp_path_factory.mktemp('text')
  paragraphs = (f'[{number:05}] the delta rule keeps the rest as it was.' for number in range(1300))
  (folder / 'novel.txt').write_text('\n\n'.join(paragraphs))
  corpus.prepare(str(folder / 'novel.txt'), folder / 'out')
  return folder / 'out'


def corpus_row(text, **parts):
  check = lambda: doctor.check_corpus(with_(corpus={'path': str(text)}, **parts), text)  # noqa: E731
  return next(doctor.examined({'corpus': check}))


SHORT = {'validation_windows': 4, 'test_windows': 4, 'batch': 4}
CORPORA = {
  'fits': ({'evaluation': SHORT}, 'ok', r'[\d,]+ tokens \(bytes\) of .*256 token ids, model.vocabulary = 256', ''),
  'vocabulary': ({'model': {'vocabulary': 128}}, 'FAIL', 'model.vocabulary = 128', '--config.model.vocabulary=256'),
  'few windows': ({'training': {'batch': 600}, 'evaluation': SHORT}, 'FAIL', 'a batch has 600', 'larger corpus'),
  'short split': ({'evaluation': {**SHORT, 'test_windows': 4000}}, 'FAIL', 'the test split', 'use a larger corpus'),
}


@pytest.mark.parametrize('name', CORPORA)
def test_a_corpus_is_held_against_what_is_read_from_it(name, text):
  parts, mark, found, remedy = CORPORA[name]
  holds(corpus_row(text, **parts), mark, found, remedy)


def test_a_corpus_that_is_not_there_is_said_how_to_make(tmp_path):
  holds(corpus_row(tmp_path / 'nowhere'), 'FAIL', 'no such folder', 'make one with: asiarch prepare')
  holds(doctor.check_corpus(EXPERIMENT, tmp_path / 'docs'), 'ok', 'docs: built on first use')


def test_ones_own_papers_are_read_for_faults():
  packaged = library.packaged()
  row = doctor.check_cognition(packaged, {}, '')
  holds(row, 'ok', rf'^{len(packaged)} papers, \d+ insights$')
  name, content = next(iter(sorted(packaged.items())))
  body = json.loads(content) | {'arxiv': None, 'title': 'A paper of ours'}
  good = {'ours/a.json': json.dumps(body)}
  holds(doctor.check_cognition(packaged, good, 'ours'), 'ok', '; 1 papers of your own')
  faulty = {'ours/a.json': json.dumps(body | {'topic': 'poetry'})}
  holds(doctor.check_cognition(packaged, faulty, 'ours'), 'warn', "1 fault, .*'poetry'", 'lint --papers=ours')
  assert paper.lint([(name, paper.parsed(content, name))]) == []
  checks = {'cognition': lambda: doctor.check_cognition(packaged, {'ours/a.json': '{'}, 'ours')}
  holds(*doctor.examined(checks), 'FAIL', 'ours/a.json: not JSON', 'put right')


# Language model and prices.


def model_row(server, environment=ENVIRONMENT, **settings):
  """Returns the row of an experiment whose researcher asks `server`."""
  llm = {'base_url': server.url if server else '', 'timeout': 20.0, 'model': 'gemini-3.8-flash'} | settings
  checks = {'language model': lambda: doctor.check_language_model(with_(MODEL, llm=llm), 'run', environment)}
  return next(doctor.examined(checks, doctor.secrets_of(environment)))


@pytest.mark.parametrize('provider', ['gemini', 'openai'])
def test_a_provider_that_answers_and_has_the_models_is_ok(provider):
  with ModelServer() as server:
    row = model_row(server, provider=provider)
  variable = {'gemini': 'GEMINI_API_KEY', 'openai': 'OPENAI_API_KEY'}[provider]
  holds(row, 'ok', rf'^{provider} gemini-3.8-flash answered in \d+\.\d s, by the key in {variable}; .*every role')


@pytest.mark.parametrize('provider', ['gemini', 'openai'])
def test_a_bad_key_is_said_without_the_key(provider):
  with ModelServer(lambda request: Answer(status=401, message=f'{KEY} is no key')) as server:
    row = model_row(server, provider=provider)
  holds(row, 'FAIL', r'401 \[key\] is no key', 'the key is in ')
  assert KEY not in row.found + row.remedy


def test_a_model_that_the_provider_does_not_have_is_named_with_its_setting():
  with ModelServer(models=['gemini-3.8-flash']) as server:
    holds(model_row(server, model='no-such-model'), 'FAIL', 'no-such-model: 404', '--config.llm.model=')
    row = model_row(server, repairer=config.Role(model='no-such-model'))
  holds(row, 'FAIL', 'answered in .* it does not have no-such-model', '--config.llm.repairer.model=')


def test_a_model_of_a_role_that_nobody_plays_is_not_asked_for():
  with ModelServer(models=['gemini-3.8-flash']) as server:
    holds(model_row(server, judge=config.Role(model='no-such-model')), 'ok', 'every role')
    assert {request.model for request in server.requests} == {'gemini-3.8-flash'}


def test_where_only_the_judge_is_a_model_it_is_the_judge_who_is_asked():
  with ModelServer(models=['of-the-judge']) as server:
    llm = {'base_url': server.url, 'judge': config.Role(model='of-the-judge')}
    experiment = with_(judge={'kind': 'llm'}, llm=llm)
    holds(doctor.check_language_model(experiment, 'run', ENVIRONMENT), 'ok', 'gemini of-the-judge answered')
    llm['judge'] = config.Role(model='no-such-model')
    row = doctor.check_language_model(with_(experiment, llm=llm), 'run', ENVIRONMENT)
  holds(row, 'FAIL', 'no-such-model: 404', '--config.llm.judge.model=')


def test_a_hung_provider_is_not_waited_for():
  began = time.monotonic()
  with ModelServer(lambda request: Answer(hang=True)) as server:
    row = model_row(server, timeout=0.5)
  holds(row, 'FAIL', r'no answer within 0\.5 s after 1 attempt', 'reaches the provider')
  assert time.monotonic() - began < 10


def test_a_provider_that_asks_for_a_long_wait_is_not_waited_for():
  with ModelServer(lambda request: Answer(status=429, headers={'retry-after': '1800'})) as server:
    holds(model_row(server), 'FAIL', '429', 'ask again')


def test_a_server_that_lists_no_models_is_no_obstacle():
  answer = lambda request: Answer(status=404 if request.kind == 'model' else 200, json={})  # noqa: E731
  with ModelServer(answer) as server:
    holds(model_row(server, provider='openai'), 'ok', 'it lists no models')
    row = model_row(server, provider='openai', novelty=config.Role(model='small'))
  holds(row, 'warn', 'it lists no models', 'see whether it has small')
  answer = lambda request: Answer(status=403 if request.kind == 'model' else 200, json={})  # noqa: E731
  with ModelServer(answer) as server:
    holds(model_row(server, provider='openai'), 'warn', 'it lists no models .*403', 'see whether it has gemini')


def test_an_answer_that_cannot_be_used_is_a_warning():
  with ModelServer(lambda request: Answer(fault='empty')) as server:
    holds(model_row(server), 'warn', 'the reply holds no text', 'llm.base_url')


OPENING = {
  'no key': ({}, {}, 'finds no key', 'put one from https'),
  'a broken key': ({'GEMINI_API_KEY': 'two words'}, {}, 'a character that no key has', 'copy it anew'),
  'no address': (ENVIRONMENT, {'base_url': 'localhost'}, 'is no address', 'write http'),
  'no file': ({}, {'provider': 'scripted', 'exchanges': 'nowhere.jsonl'}, 'nowhere.jsonl', ''),
  'itself': ({}, {'provider': 'recorded', 'exchanges': 'run'}, 'the workdir of this run', 'replay it in another'),
}


@pytest.mark.parametrize('name', OPENING)
def test_a_model_that_cannot_be_opened_is_said_why(name):
  environment, settings, found, remedy = OPENING[name]
  holds(model_row(None, environment, **settings), 'FAIL', found, remedy)


def test_without_a_model_in_use_nobody_is_asked():
  holds(doctor.check_language_model(EXPERIMENT, 'run', {}), 'ok', r'not used \(researcher.kind = evolution\)')


def test_scripted_replies_are_counted(tmp_path):
  (tmp_path / 'replies.jsonl').write_text('{"role": "researcher", "reply": {}}\n')
  row = model_row(None, {}, provider='scripted', exchanges=str(tmp_path / 'replies.jsonl'))
  holds(row, 'ok', r'^scripted: 1 replies in ')


def test_embeddings_are_asked_of_the_provider_that_has_them():
  experiment = with_(MODEL, researcher={'embedder': 'gemini'}, llm={'provider': 'openai'})
  holds(doctor.check_language_model(experiment, 'run', {}), 'FAIL', "'gemini' needs", 'embedder=lexical')


CREDENTIALS = {
  'gemini': ({}, {'GOOGLE_API_KEY': KEY}, 'the key in GOOGLE_API_KEY'),
  'both': ({}, {'GOOGLE_API_KEY': KEY, 'GEMINI_API_KEY': KEY}, 'the key in GEMINI_API_KEY'),
  'vertex': ({'project': 'lab'}, {'GEMINI_API_KEY': KEY}, 'application-default credentials for lab'),
  'openai': ({'provider': 'openai'}, {'OPENAI_API_KEY': KEY}, 'the key in OPENAI_API_KEY'),
  'local': ({'provider': 'openai'}, {}, 'no key'),
  'scripted': ({'provider': 'scripted'}, {'OPENAI_API_KEY': KEY}, ''),
}


@pytest.mark.parametrize('name', CREDENTIALS)
def test_where_a_credential_is_found_is_said(name):
  settings, environment, words = CREDENTIALS[name]
  assert doctor.credential_of(config.Llm(**settings), environment) == words


STRANGE = {'judge': config.Role(model='strange')}
PRICES = {
  'not needed': (EXPERIMENT, 'ok', 'not needed', ''),
  'known': (MODEL, 'ok', r'gemini-3\.8-flash \$0\.75 in, \$3\.75 out a million tokens \(2026', ''),
  'unknown': (with_(MODEL, llm={'model': 'strange'}), 'warn', 'none for strange: its dollars count as 0', 'llm.prices'),
  'not in use': (with_(MODEL, llm=STRANGE), 'ok', 'gemini', ''),
  'limited': (with_(MODEL, llm=STRANGE, budget={'dollars': 5.0}), 'FAIL', 'strange, and budget.dollars = 5', 'tokens'),
  'both known': (with_(MODEL, budget={'dollars': 5.0}), 'ok', 'gemini', ''),
}


@pytest.mark.parametrize('name', PRICES)
def test_prices_are_missed_where_dollars_are_counted(name):
  experiment, mark, found, remedy = PRICES[name]
  holds(doctor.check_prices(experiment), mark, found, remedy)


# The command.


def test_the_examples_in_docstrings_hold():
  tried = doctest.testmod(doctor)
  assert tried.attempted and not tried.failed


def test_an_exception_in_a_check_is_its_row_and_the_others_go_on():
  def broken():
    raise KeyError(KEY)

  rows = list(doctor.examined({'broken': broken, 'prices': lambda: doctor.check_prices(EXPERIMENT)}, [KEY]))
  holds(rows[0], 'FAIL', r"this check itself failed with KeyError: '\[key\]'", 'report it')
  assert rows[0].subject == 'broken' and rows[1].mark == 'ok'


def test_an_error_is_divided_into_what_was_found_and_the_remedy():
  assert doctor.told(FileNotFoundError(2, 'No such file', '/x/y')) == ('/x/y: No such file', 'put right what it says')
  assert doctor.told(ImportError("a needs b: pip install 'c'")) == ('a needs b', "pip install 'c'")
  assert doctor.told(RuntimeError('no jail (a; b); install one')) == ('no jail (a; b)', 'install one')


def test_every_row_has_the_subject_that_its_check_is_listed_under():
  source = pathlib.Path(doctor.__file__).read_text()
  assert 'hosts' not in doctor.checks(EXPERIMENT, 'run', {})
  subjects = doctor.checks(with_(runner={'kind': 'spmd'}), 'run', {})
  assert set(re.findall(r"Row\(\s*'(?:ok|warn|FAIL)',\s*'([a-z ]+)'", source)) <= set(subjects) and len(subjects) == 13


def test_the_command_says_in_a_row_each_what_this_machine_has(tmp_path):
  process = asiarch('doctor', '--config=configs/smoke.py', f'--workdir={tmp_path / "run"}')
  lines = process.stdout.splitlines()
  marks = {line[6:22].strip(): line[:4].strip() for line in lines if line[:4].strip() in ('ok', 'warn', 'FAIL')}
  assert list(marks) == list(doctor.checks(EXPERIMENT, 'run', {})), process.stdout + process.stderr
  assert 'Traceback' not in process.stderr and re.search('devices +1 cpu device; a worker starts', process.stdout)
  failed = [subject for subject, mark in marks.items() if mark == 'FAIL']
  assert process.returncode == bool(failed) and set(failed) <= {'jail', 'workdir'}
  assert lines[-1].startswith('a search would not run' if failed else 'a search would run')
  assert not (tmp_path / 'run').exists()


def test_one_json_document_with_a_model_and_without_the_key(capsys, monkeypatch, tmp_path):
  monkeypatch.setenv('GEMINI_API_KEY', KEY)
  with ModelServer(lambda request: Answer(status=401, message=f'{KEY} is no key')) as server:
    arguments = ['doctor', '--config=configs/smoke.py', f'--workdir={tmp_path}', '--config.researcher.kind=llm']
    status = main.main([*arguments, f'--config.llm.base_url={server.url}', '--config.runner.jail=none', '--json'])
  captured = capsys.readouterr()
  document = json.loads(captured.out)
  rows = {row['subject']: Row(**row) for row in document['rows']}
  assert status == 1 and document['ready'] is False and document['workdir'] == str(tmp_path)
  holds(rows['language model'], 'FAIL', '401')
  holds(rows['jail'], 'warn', 'your rights')
  assert rows['prices'].mark == rows['experiment'].mark == 'ok' and KEY not in captured.out + captured.err


def test_exit_status_and_last_line_follow_the_marks():
  fine, odd, bad = Row('ok', 'disk', 'large'), Row('warn', 'jail', 'leaky', 'mend'), Row('FAIL', 'corpus', 'gone', 'go')
  assert doctor.verdict([fine]) == (0, 'a search would run')
  assert doctor.verdict([fine, odd]) == (0, 'a search would run; look at jail')
  assert doctor.verdict([fine, odd, bad]) == (1, 'a search would not run: see corpus')


def test_an_experiment_that_contradicts_itself_is_refused_before_anything_is_looked_at(capsys):
  assert main.main(['doctor', '--config=configs/smoke.py', '--config.model.heads=3']) == 2
  assert 'model.heads = 3' in capsys.readouterr().err
