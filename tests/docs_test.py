"""What the README and the docs say is run here: every command, every piece of Python, every link."""

import importlib.util
import json
import pathlib
import re
import shlex
import shutil
import subprocess

import pytest

from asiarch_jax import config, main
from asiarch_jax.shell import runner as runners
from tests import samples
from tests.cli import ROOT, asiarch
from tests.model_server import ModelServer
from tests.model_team import KEY, Respond
from tests.planted import planted
from tests.suite_command_test import Runner as Answering
from tests.suite_command_test import answer

PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]
# What trains. Here its results are planted; real workers do the same in tests of the commands, some in the sweep.
TRAINS = ('search', 'train', 'check', 'verify', 'claim', 'arms', 'ablate', 'scale', 'tabulate', 'import')
# What these do is read and written here too; the others start workers, or look at what they are started in.
READS = ('cognition', 'config', 'dump', 'load', 'merge', 'prepare', 'replay', 'report', 'show', 'top', 'tree')
# Commands whose arguments are the reader's own (a bucket, a file of theirs); each needs a reason.
NOT_RUN = {
  'SOURCE': 'a placeholder',
  'FILE.py': 'a placeholder',
  'FILE.json': 'a placeholder',
  'gs://': 'needs a bucket',
  'hf:HuggingFaceFW': 'needs the network',
  'evaluate ID': 'a placeholder; its data sets need the network',
}


def blocks(path, language):
  return re.findall(rf'^```{language}\n(.*?)^```', path.read_text(), re.DOTALL | re.MULTILINE)


def commands_of(path):
  """Returns the commands of a page: lines of sh blocks, and indented lines, that start with asiarch or make."""
  text = path.read_text()
  lines = [line for block in blocks(path, 'sh') for line in block.splitlines()]
  lines += [line[4:] for line in text.splitlines() if re.match(r'    (asiarch|make) ', line)]
  commands = [line.partition('  #')[0].strip() for line in lines]
  return [line for line in commands if line.startswith(('asiarch ', 'make '))]


def what_runs(command):
  """Returns a command as it matters here: its blanks and where it writes do not."""
  return re.sub(r'--out=\S+', '--out=', ' '.join(command.split()))


# A command that several pages give is run once.
EVERY = {what_runs(command): (path.name, command) for path in PAGES[::-1] for command in commands_of(path)}
COMMANDS = sorted(EVERY.values())


def test_the_readme_has_commands():
  assert len(COMMANDS) > 10


@pytest.fixture(scope='module')
def reader(tmp_path_factory):
  """A folder with the files that the pages take for granted: the reader's own books, crawl and tokenizer."""
  import tokenizers
  import zstandard

  folder = tmp_path_factory.mktemp('reader')
  (folder / 'books').mkdir()
  pages = [
    f'Chapter {n}. The key {n * n % 89} opens the gate that the value {n} left ajar.\n\n' * 20 for n in range(60)
  ]
  for number in range(4):
    (folder / f'books/{number}.txt').write_text(''.join(pages[number::4]))
  lines = '\n'.join(json.dumps({'content': text}) for text in pages)
  (folder / 'crawl.jsonl.zst').write_bytes(zstandard.compress(lines.encode()))
  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
  trainer = tokenizers.trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=['<end>'])
  tokenizer.train_from_iterator(pages, trainer)
  tokenizer.save(str(folder / 'tokenizer.json'))
  return folder


GEMINI = ['researcher.kind=llm', 'judge.kind=llm', 'judge.calls=1', 'analyst.kind=llm', 'researcher.revive=0.0']


@pytest.fixture(scope='module')
def gemini(tmp_path_factory):
  """A model server and the workdir of a search with it."""
  workdir = tmp_path_factory.mktemp('gemini') / 'run'
  with ModelServer(Respond()) as server, pytest.MonkeyPatch.context() as patch:
    patch.setenv('GEMINI_API_KEY', KEY)
    patch.chdir(ROOT)
    patch.setattr(runners, 'LocalRunner', planted())
    settings = with_a_model(['search', '--config=configs/gemini.py', '--workdir=runs/gemini'], (server.url, workdir))
    assert main.main(settings) == 0
    yield server.url, workdir


def shared(given, workdir, folder):
  """Returns the words of a command with files that the reader has, or that an earlier command of the page wrote."""
  if given[0] == 'load':
    assert asiarch('dump', f'--workdir={workdir}', f'--out={folder / "dumped.jsonl.gz"}').returncode == 0
    return [given[0], folder / 'dumped.jsonl.gz', f'--workdir={folder / "again"}']
  if given[0] == 'merge':
    shutil.copytree(workdir / 'archive', folder / 'again/archive')
    return [given[0], workdir, folder / 'again', f'--workdir={folder / "union"}']
  (folder / 'my_mixer.py').write_text(samples.SOURCE)
  return [given[0], folder / 'my_mixer.py', *given[2:]]


def with_a_model(words, gemini):
  """Returns the words of a command of runs/gemini with the small experiment, on the local server."""
  url, workdir = gemini
  words = [word.replace('runs/gemini', str(workdir)).replace('configs/gemini.py', 'configs/smoke.py') for word in words]
  if words[0] in ('search', 'doctor'):
    flags = [f'--config.{setting}' for setting in [*GEMINI, f'llm.base_url={url}']]
    words = [words[0], words[1], *flags, *words[2:]]
  return words


def spoken(path):
  """Returns what stands between single backquotes, outside of blocks."""
  text = re.sub(r'^```.*?^```', '', path.read_text(), flags=re.DOTALL | re.MULTILINE)
  return [' '.join(words.split()) for words in re.findall(r'(?<!`)`([^`]+)`(?!`)', text)]


SPOKEN = sorted({words for path in PAGES for words in spoken(path) if words.startswith(('asiarch ', 'make '))})
SETTINGS = sorted(
  {match for path in PAGES for match in re.findall(r'--config\.([a-z][\w.]*[a-z])', path.read_text(), re.ASCII)}
)


@pytest.mark.parametrize('command', SPOKEN)
def test_a_command_in_a_sentence_is_understood(command, monkeypatch, tmp_path):
  """What it does is run where the pages give it as a command of its own; here it is parsed as it stands."""
  words = shlex.split(command.replace('…', 'x'))
  if words[0] == 'make':
    targets = re.findall(r'^([\w-]+):', (ROOT / 'Makefile').read_text(), re.MULTILINE)
    assert words[1] in targets
    return
  asked = []
  monkeypatch.setattr(main, '_run', lambda name, *_: asked.append(name) or 0)
  name, *rest = words[1:]
  if name in ('COMMAND', '--help'):
    return
  required = {'--workdir': 'x', '--out': 'x', '--topology': 'v5e:4x4'}
  text = main.help_text(name)
  given = [f'{flag}={value}' for flag, value in required.items() if f'  {flag}=' in text and flag not in command]
  least = main.COMMANDS[name].arguments[0]
  assert main.main([name, *rest, *([] if any(not w.startswith('-') for w in rest) else ['x'] * least), *given]) == 0
  assert asked == [name] or '--help' in rest


def test_every_setting_that_the_pages_name_is_one():
  known = main._settings(config.as_config_dict(config.Experiment()))
  assert len(SETTINGS) > 12 and [name for name in SETTINGS if name not in known] == []


@pytest.mark.parametrize('page, command', COMMANDS)
def test_every_command_of_the_docs_runs(page, command, request, smoke, reader, tmp_path, monkeypatch):
  if any(mark in command for mark in NOT_RUN):
    pytest.skip(f'{command}: {next(why for mark, why in NOT_RUN.items() if mark in command)}')
  words = shlex.split(command)
  if (words[1] == 'evaluate' or 'in_search' in command) and importlib.util.find_spec('lm_eval') is None:
    pytest.skip(f'{command}: the extra [eval] is not installed')
  if words[1] == 'plan' and importlib.util.find_spec('libtpu') is None:
    pytest.skip(f'{command}: the extra [aot] is not installed')
  if words[0] == 'make':
    process = subprocess.run(['make', '-n', *words[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    return
  # The run that the page talks about is the small one here, and new files go where tests may write.
  given = [
    word.replace('runs/default', str(smoke[0])).replace('configs/default.py', 'configs/smoke.py') for word in words[1:]
  ]
  if 'gemini' in command:
    monkeypatch.setenv('GEMINI_API_KEY', KEY)
    server = request.getfixturevalue('gemini')
    given = with_a_model(given, server)
    given = [word.replace('runs/again', str(tmp_path / 'again')) for word in given]
  given = [re.sub(r'^--out=[^.]*', f'--out={tmp_path / "out"}', word) for word in given]
  given = [re.sub(r'^--cycles=\d+', '--cycles=4', word) for word in given]
  given = [re.sub(r'^--suite=(?!list).*', '--suite=mad-tiny', word) for word in given]
  given = [re.sub(r'^(--tokenizer=|)(?=books/|crawl\.|tokenizer\.json)', rf'\1{reader}/', word) for word in given]
  if given[:2] == ['prepare', 'docs']:  # some of the text is as good as all of it
    given.append('--limit_bytes=1000000')
  given = given[: given.index('>')] if '>' in given else given
  if given[0] in ('load', 'merge', 'import'):
    given = [str(one) for one in shared(given, smoke[0], tmp_path)]
  if given[0] == 'replay':
    given = [*(word for word in given if not word.startswith('--replays')), '--replays=2', '--designs=6']
  if given[0] == 'tabulate':  # the small experiment, whose every candidate climbs
    given = [word.replace('configs/replay.py', 'configs/smoke.py') for word in given]
    given += [f'--config.rungs.small.{name}' for name in ('share=1', 'false_discoveries=0.999', 'rounds=1')]
    given += ['--cycles=6', '--config.training.seeds=2']
    given = [word.replace('runs/replay', str(tmp_path / 'run/replay')) for word in given]
  if given[0] == 'suite':
    monkeypatch.setattr(runners, 'LocalRunner', lambda *_: Answering(answer))
    assert main.main([*given, f'--workdir={tmp_path / "scratch"}']) == 0
    return
  if '--config.runner.platform=cuda' in given:  # what a GPU would do, by the processor
    given = [word.replace('=cuda', '=cpu').replace('runs/gpu', str(smoke[0])) for word in given]
  if given[0] in ('check', 'train'):
    given.append(f'--workdir={tmp_path / "scratch"}')
  if given[0] in TRAINS:
    monkeypatch.setattr(runners, 'LocalRunner', planted())
    monkeypatch.chdir(ROOT)
    shutil.copytree(smoke[0], tmp_path / 'run')
    given = [word.replace(str(smoke[0]), str(tmp_path / 'run')) for word in given]
    given = [re.sub('^--workdir=runs/', f'--workdir={tmp_path}/', word) for word in given]
    assert main.main(given) == 0
    return
  if given[0] == 'plan':  # the small experiment, with a row for each device
    given = [word.replace('configs/tpu_pod.py', 'configs/smoke.py') for word in given]
    given += ['--config.training.batch=16', f'--workdir={tmp_path / "scratch"}']
  if given[0] in READS:
    monkeypatch.chdir(ROOT)
    assert main.main(given) == 0
    return
  process = asiarch(*given)
  assert process.returncode == 0, process.stderr


def test_the_python_of_the_readme_runs_and_its_mixer_passes_the_gate(tmp_path):
  mixer, kernels = blocks(ROOT / 'README.md', 'python')
  (tmp_path / 'gated_mean.py').write_text(mixer)
  process = asiarch('check', tmp_path / 'gated_mean.py', f'--workdir={tmp_path}')
  assert process.returncode == 0, process.stdout + process.stderr
  names = {}
  exec(kernels, names)
  assert names['o'].shape == (2, 100, 4, 32) and names['state'].shape == (2, 4, 32, 32)


def test_the_python_of_the_porting_page_runs():
  for block in blocks(ROOT / 'docs/PORTING.md', 'python'):
    exec(block, {})


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
  for target in re.findall(r'\]\(([^)#]+)\)', page.read_text()):
    assert target.startswith('http') or (page.parent / target).exists(), f'{page.name} links to {target}'


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_paths_that_pages_name_exist(page):
  named = re.findall(r'`((?:asiarch_jax|pallas_kernels|configs|tests|docs)/[\w/.-]+)`', page.read_text())
  for name in (name for name in named if 'NAME' not in name):  # NAME is the reader's
    assert (ROOT / name).exists(), f'{page.name} names {name}'


def test_the_settings_page_is_the_one_that_is_generated(capsys):
  assert main.main(['config', '--markdown']) == 0
  printed = capsys.readouterr().out
  page = (ROOT / 'docs/CONFIGURATION.md').read_text()
  assert page == printed, 'renew it: asiarch config --markdown > docs/CONFIGURATION.md'
  assert all(f'`{name}`' in page for name in config.flat(config.Experiment()))


def test_no_page_is_left_out_of_the_readme():
  readme = (ROOT / 'README.md').read_text()
  assert [page.name for page in PAGES[1:] if f'docs/{page.name}' not in readme] == []
  assert pathlib.Path(ROOT / 'LICENSE').read_text().lstrip().startswith('Apache License')
