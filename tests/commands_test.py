"""The command line as a user meets it: a real search, its archive read back, and every kind of bad input."""

import inspect
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from asiarch_jax import main, records
from asiarch_jax.shell import archive
from asiarch_jax.shell import runner as runners
from tests.cli import ROOT, asiarch, in_process
from tests.marks import slow_but
from tests.planted import planted

PATHS = (
  *('evaluate', 'top', 'tree', 'report', 'show', 'search', 'check', 'train', 'suite', 'prepare', 'cognition'),
  *('config', 'doctor', 'verify', 'claim', 'arms', 'ablate', 'scale', 'tabulate', 'replay', 'plan'),
  *('import', 'export', 'dump', 'load', 'merge'),
)


def test_every_command_is_listed_here():
  assert set(PATHS) == set(main.COMMANDS)


@pytest.mark.parametrize('name', main.COMMANDS)
def test_a_command_runs_a_function_of_flags_and_arguments(name):
  assert len(inspect.signature(main.function(main.COMMANDS[name])).parameters) == 2


def test_help_imports_nothing_of_a_command():
  code = 'import sys; from asiarch_jax import main; main.main(["--help"]); main.main(["search", "--help"])'
  done = subprocess.run(
    [sys.executable, '-c', f'{code}; print(*sys.modules)'], capture_output=True, text=True, check=True
  )
  assert not {'jax', 'scipy', 'matplotlib', 'asiarch_jax.commands'} & set(done.stdout.splitlines()[-1].split())


def test_what_only_reads_imports_nothing_that_draws_or_takes_long(smoke):
  code = f"""import gc, os, sys
from asiarch_jax import main
sys.argv = ['asiarch', 'top', '--workdir={smoke[0]}']
try:
  main.run()
except SystemExit as end:
  print(end.code, *sys.modules)
import jax
print(jax.config.jax_platforms)  # accelerators belong to the workers, whoever imports it
print(os.environ['OPENBLAS_NUM_THREADS'])
print(*gc.get_threshold())
"""
  untold = {name: value for name, value in os.environ.items() if name != 'OPENBLAS_NUM_THREADS'}
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, env=untold)
  *_, modules, platforms, threads, seldom = done.stdout.splitlines()
  assert modules.startswith('0 ') and not {'matplotlib', 'scipy.stats', 'jax'} & set(modules.split())
  assert platforms == 'cpu' and threads == '1' and seldom == '20000 20 50'


@pytest.mark.parametrize('command', PATHS)
def test_help_says_what_a_command_does_and_names_its_flags(command, capsys):
  assert main.main([command, '--help']) == 0
  text = capsys.readouterr().out
  assert f'usage: asiarch {command}' in text and '--json' in text and len(text.splitlines()) > 6


def test_help_lists_every_command(capsys):
  assert main.main(['--help']) == 0
  text = capsys.readouterr().out
  assert [command for command in PATHS if f'  {command} ' not in text] == []
  assert main.main([]) == 2


def test_search_measures_proposals_and_says_what_it_found(smoke):
  workdir, process = smoke
  assert process.returncode == 0, process.stderr
  assert '95 % interval' in process.stdout and 'report:' in process.stdout
  assert (workdir / 'report/index.html').stat().st_size > 5_000


def top(capsys, workdir):
  """Returns the rows of `asiarch top --json`."""
  return json.loads(in_process(capsys, 'top', f'--workdir={workdir}', '--json')[1])['outcomes']


def test_top_prints_one_json_document_with_every_outcome(smoke):
  process = asiarch('top', f'--workdir={smoke[0]}', '--json')
  rows = json.loads(process.stdout)['outcomes']
  assert [row['proposal']['name'] for row in sorted(rows, key=lambda r: r['id'])][:2] == [
    'delta_net',
    'gated_delta_net',
  ]
  assert len(rows) == 4 and {row['outcome'] for row in rows} <= {'Entry', 'Rejection'}


def test_candidates_have_the_parameters_of_the_baseline(smoke, capsys):
  counts = [row['training']['parameters'] for row in top(capsys, smoke[0]) if row['outcome'] == 'Entry']
  assert len(counts) >= 3 and max(counts) <= 1.021 * min(counts)


def test_show_prints_motivation_source_and_diff(smoke, capsys):
  def shown(*arguments):
    return in_process(capsys, 'show', *arguments, f'--workdir={smoke[0]}')[1]

  text = shown('0', '--source')
  assert 'class Mixer' in text and 'motivation' in text
  child = next(row for row in top(capsys, smoke[0]) if row['proposal']['parent_id'] is not None)
  assert '@@' in shown(child['proposal']['name'], '--diff')
  assert json.loads(shown('1', '--json'))['id'] == 1


def test_tree_hangs_children_under_parents(smoke, capsys):
  nodes = json.loads(in_process(capsys, 'tree', f'--workdir={smoke[0]}', '--json')[1])['nodes']
  assert any(node['parent'] in (0, 1) for node in nodes)
  assert 'delta_net' in in_process(capsys, 'tree', f'--workdir={smoke[0]}')[1]


def test_report_is_written_where_asked(smoke, tmp_path, capsys):
  _, out, _ = in_process(capsys, 'report', f'--workdir={smoke[0]}', f'--out={tmp_path / "page"}', '--json')
  assert json.loads(out)['report'] == str(tmp_path / 'page/index.html')
  assert 'http' not in (tmp_path / 'page/index.html').read_text().replace('http://www.w3.org', '')


@pytest.mark.slow
def test_a_second_search_adds_nothing(smoke, capsys):
  again = asiarch('search', '--config=configs/smoke.py', f'--workdir={smoke[0]}')
  assert again.returncode == 0 and 'nothing to add' in again.stdout
  document = in_process(capsys, 'search', '--config=configs/smoke.py', f'--workdir={smoke[0]}', '--json')[1]
  assert json.loads(document)['added'] == 0


def test_a_search_with_more_cycles_continues(smoke, tmp_path, monkeypatch, capsys):
  shutil.copytree(smoke[0], tmp_path / 'run')
  monkeypatch.setattr(runners, 'LocalRunner', planted())
  arguments = ('--config=configs/smoke.py', f'--workdir={tmp_path / "run"}', '--cycles=5', '--json')
  status, out, error = in_process(capsys, 'search', *arguments)
  assert status == 0, error
  document = json.loads(out)
  assert document['added'] == 1 and sorted(row['id'] for row in document['outcomes']) == [0, 1, 2, 3, 4]


REFUSED = {
  'unknown suite': (['suite', 'delta_net', '--suite=madd'], '--suite=madd is not a suite; there are mad, mad-base'),
  'a suite of nothing': (['suite', '--suite=mad-tiny'], 'names no mixer'),
  'unknown command': (['serach'], "'serach' is not a command"),
  'unknown flag': (['top', '--workdri=x'], 'workdri'),
  'missing workdir': (['search'], 'search: --workdir is missing; give --workdir=...'),
  'unknown key': (['check', 'delta_net', '--config=configs/smoke.py', '--config.training.stpes=3'], 'stpes'),
  'wrong type': (['check', 'delta_net', '--config=configs/smoke.py', '--config.training.steps=many'], 'steps'),
  'bad value': (['check', 'delta_net', '--config=configs/smoke.py', '--config.model.heads=3'], 'model.heads = 3'),
  'no config file': (['search', '--config=nowhere.py', '--workdir=x'], 'nowhere.py'),
  'no mixer': (['check', 'nobody'], 'no such file, and no baseline'),
  'no archive': (['top', '--workdir=nowhere'], 'top: there is no archive in nowhere'),
  'too many': (['check', 'a', 'b'], 'takes 1 argument'),
  'a device': (['check', '/dev/zero'], 'not a file'),
  'no source': (['prepare', 'nowhere.txt', '--out=nowhere'], 'nowhere.txt'),
}


@pytest.mark.parametrize('name', REFUSED)
def test_bad_input_gets_a_sentence_and_a_status(name, capsys, monkeypatch, tmp_path):
  arguments, said = REFUSED[name]
  assert main.main(arguments) == 2
  captured = capsys.readouterr()
  assert said in captured.err and not re.search(r'Traceback|^asiarch \w+: \[Errno', captured.err) and captured.out == ''


@pytest.mark.parametrize(
  'arguments, said',
  [
    (
      ['--config.model.widthh=3'],
      '--config.model.widthh: there is no such setting; did you mean --config.model.width?',
    ),
    (['--config.modl.width=3'], 'did you mean --config.model.width?'),
    (['--config.width=3'], 'did you mean --config.model.width?'),
    (['--config.model.width.x=2'], 'did you mean --config.model.width?'),
    (['--noconfig.tied'], '--config.tied: there is no such setting; did you mean --config.model.tied?'),
    (['--config.nope=1'], '--config.nope: there is no such setting; `asiarch config` lists them'),
    (['--config=FILE', '--config.rungs.small.model.widht=3'], 'did you mean --config.rungs.small.model.width?'),
    (['--config=none.py'], '--config=none.py: no such file'),
    (['--config', 'none.py:big', '--config.seed=3'], '--config=none.py: no such file'),
    (['--config='], '--config=: no such file'),
    (['--config=THREE'], 'get_config() of --config gave int; return config.as_config_dict('),
    (['--config=NONE'], 'get_config() of --config gave NoneType; return config.as_config_dict('),
    (['--config=EXIT'], 'exit.py, line 2: SystemExit: no data on this machine'),
    (['--config=EXIT', '--config.seed=3'], 'exit.py, line 2: SystemExit: no data on this machine'),
    (['--config=TYPO'], "typo.py, line 3: NameError: name 'confg' is not defined"),
    (
      ["--config.search.baselines=('delta_net','softmax_attention','gated_deltanet')"],
      "has 'gated_deltanet'; there are",
    ),
    (['--config.seed=x'], "--config.seed=x: invalid literal for int() with base 10: 'x'"),
  ],
)
def test_a_setting_that_is_none_is_told_with_the_nearest(arguments, said, tmp_path, capsys):
  (tmp_path / 'three.py').write_text('def get_config():\n  return 3\n')
  (tmp_path / 'none.py').write_text('def get_config():\n  3\n')
  (tmp_path / 'typo.py').write_text('from asiarch_jax import config\ndef get_config():\n  return confg.Experiment()\n')
  (tmp_path / 'exit.py').write_text("import sys\nsys.exit('no data on this machine')\n")
  files = {
    'FILE': ROOT / 'configs/smoke.py',
    **{n.upper(): tmp_path / f'{n}.py' for n in ('three', 'none', 'typo', 'exit')},
  }
  arguments = [
    re.sub('FILE|THREE|NONE|TYPO|EXIT', lambda name: str(files[name[0]]), argument) for argument in arguments
  ]
  assert main.main(['config', *arguments]) == 2
  told = capsys.readouterr().err
  assert told.startswith('asiarch config: ') and said in told and len(told.splitlines()) == 1


@pytest.mark.parametrize(
  'arguments, said',
  [
    (['check', 'delta_net', '--workdir='], '--workdir= is empty; name a place'),
    (['dump', '--workdir=x', '--out='], '--out= is empty'),
    (['prepare', '', '--out=x'], 'argument 1 of prepare is empty; is a variable of the shell not set?'),
    (['plan', 'a', 'b', '--topology=v5e:2x2'], 'plan takes at most 1 argument, got'),
    (['merge', 'a', '--workdir=x'], 'merge takes 2 or more arguments, got'),
    (['dump', '--workdir=x', '--out=gs://bucket/x.gz'], '--out=gs://bucket/x.gz is no place of this machine'),
    (['export', '0', '--workdir=x', '--out=gs://bucket/x'], '--out=gs://bucket/x is no place of this machine'),
    (['verify', '--workdir=x', '--config.runner.workers=2'], '--config.runner.workers: give --config=FILE too'),
    (['evaluate', '0', '--workdir=x', '--config.runner.workers=2'], '--config.runner.workers: give --config=FILE too'),
    (
      ['tabulate', '--workdir=x', '--config=configs/smoke.py', '--rung=nope', '--out=z.json.xz'],
      '--rung=nope is not on the ladder',
    ),
  ],
)
def test_what_is_no_place_or_too_much_is_told(arguments, said, capsys, tmp_path, monkeypatch):
  arguments = [argument.replace('configs/', f'{ROOT}/configs/') for argument in arguments]
  monkeypatch.chdir(tmp_path)
  assert main.main(arguments) == 2
  assert said in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_whoever_reads_or_writes_the_output_may_be_anything(smoke):
  def shell(command, **environment):
    line = command.replace('asiarch', f'{sys.executable} -m asiarch_jax.main')
    return subprocess.run(
      ['bash', '-c', line], capture_output=True, text=True, cwd=ROOT, env={**os.environ, **environment}
    )

  closed = shell(f'asiarch top --workdir={smoke[0]} >&-')
  assert closed.returncode == 0 and closed.stderr == ''
  ascii = shell(f'asiarch top --workdir={smoke[0]}', PYTHONIOENCODING='ascii')
  assert ascii.returncode == 0 and 'delta_net' in ascii.stdout and ascii.stderr == ''
  empty = shell('asiarch config --config=/dev/stdin < /dev/null')
  assert empty.returncode == 2 and len(empty.stderr.splitlines()) == 1
  full = shell('asiarch --help > /dev/full')
  assert full.returncode == 2 and full.stderr == 'asiarch: standard output: No space left on device\n'
  headed = shell('asiarch config | true; exit ${PIPESTATUS[0]}')
  assert headed.returncode in (0, 1) and headed.stderr == ''


def test_settings_of_the_default_search_are_changed_without_a_file(capsys):
  assert main.main(['config', '--config.seed=5', '--noconfig.model.tied', '--json']) == 0
  told = json.loads(capsys.readouterr().out)
  assert told['seed'] == 5 and told['model.tied'] is False and told['name'] == 'default'


def test_an_unknown_id_is_named(smoke, capsys):
  assert main.main(['show', '99', f'--workdir={smoke[0]}']) == 2
  assert 'ids run from 0 to 3' in capsys.readouterr().err


def test_another_experiment_in_the_workdir_is_refused_with_the_key(smoke, capsys):
  arguments = ('--config=configs/smoke.py', f'--workdir={smoke[0]}', '--config.training.batch=4')
  status, _, error = in_process(capsys, 'search', *arguments)
  assert status == 2 and 'training.batch' in error and '4' in error


MIXERS = {
  'syntax': (b'class Mixer(:\n', 'line 1'),
  'no mixer': (b'import math\n', 'Mixer'),
  'import': (b'import os\nclass Mixer: pass\n', 'os'),
  'encoding': (b'\xff\xfe\x00', 'not UTF-8 at byte 0'),
}


@pytest.mark.parametrize('name', MIXERS)
def test_a_mixer_file_outside_the_contract_is_said_why(name, tmp_path, capsys):
  text, said = MIXERS[name]
  path = tmp_path / 'mixer.py'
  path.write_bytes(text)
  status = main.main(['check', str(path), f'--workdir={tmp_path}'])
  captured = capsys.readouterr()
  assert status in (1, 2) and said in captured.out + captured.err


def test_check_runs_a_leak_in_the_jail_and_names_it(tmp_path):
  path = tmp_path / 'leak.py'
  path.write_text(
    'from typing import Any\n\nimport flax.linen as nn\nimport jax.numpy as jnp\n\n\n'
    'class Mixer(nn.Module):\n  width: int\n  heads: int\n  dtype: Any = jnp.float32\n\n  @nn.compact\n'
    '  def __call__(self, x_BTD):\n    return nn.Dense(self.width, dtype=self.dtype)(jnp.roll(x_BTD, -1, axis=1))\n'
  )
  process = asiarch('check', path, '--config=configs/smoke.py', f'--workdir={tmp_path}')
  assert process.returncode == 1 and 'FAIL causality' in process.stdout, process.stdout + process.stderr


def test_train_prints_replicas_and_json(tmp_path, monkeypatch, capsys):
  """What a real worker trains is in `tests/spmd_search_test.py`."""
  monkeypatch.setattr(runners, 'LocalRunner', planted())
  arguments = ('--config=configs/smoke.py', f'--workdir={tmp_path}', '--json')
  status, out, error = in_process(capsys, 'train', 'delta_net', *arguments)
  assert status == 0, error
  result = json.loads(out)
  assert len(result['training']['replicas']) == 2 and result['failure'] is None


def start(workdir, *more):
  """Begins a search that listens to Ctrl-C, also where the tests themselves run in the background of a shell."""
  listening = (
    'import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\nfrom asiarch_jax import main; main.run()'
  )
  return subprocess.Popen(
    [sys.executable, '-c', listening, 'search', '--config=configs/smoke.py', f'--workdir={workdir}', *more],
    cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
  )  # fmt: skip


def wait_for(path, seconds=120):
  until = time.monotonic() + seconds
  while time.monotonic() < until:
    if list(path.parent.glob(path.name)):
      return
    time.sleep(0.1)
  raise AssertionError(f'{path} did not come')


@pytest.mark.parametrize('number', slow_but([signal.SIGINT], [signal.SIGINT, signal.SIGTERM]))
def test_interrupted_search_ends_cleanly_says_how_to_resume_and_leaves_no_worker(number, tmp_path):
  search = start(tmp_path / 'run')
  wait_for(tmp_path / 'run/jobs/*')
  time.sleep(2)
  search.send_signal(number)
  _, errors = search.communicate(timeout=30)
  assert search.returncode == 130 and 'To resume: asiarch search' in errors
  commands = subprocess.run(['ps', '-eo', 'args'], capture_output=True, text=True).stdout
  assert str(tmp_path) not in commands


def test_a_second_search_on_a_running_workdir_is_refused_with_the_pid(tmp_path):
  search = start(tmp_path / 'run')
  try:
    wait_for(tmp_path / 'run/jobs/*')
    second = asiarch('search', '--config=configs/smoke.py', f'--workdir={tmp_path / "run"}')
    assert second.returncode == 2 and str(search.pid) in second.stderr
  finally:
    os.kill(search.pid, signal.SIGINT)
    search.communicate(timeout=30)


@pytest.mark.sweep
def test_the_same_seed_gives_the_same_archive_to_the_bit(smoke, tmp_path):
  def outcomes(workdir):
    with archive.OrbaxArchive.open_read_only(workdir) as kept:
      parameters = [
        {path: array.tobytes() for path, array in kept.arrays(outcome.id).items()} for outcome in kept.outcomes()
      ]
      return [records.to_json(records.without_timing(outcome)) for outcome in kept.outcomes()], parameters

  again = asiarch('search', '--config=configs/smoke.py', f'--workdir={tmp_path / "again"}')
  assert again.returncode == 0, again.stderr
  assert outcomes(tmp_path / 'again') == outcomes(smoke[0])
