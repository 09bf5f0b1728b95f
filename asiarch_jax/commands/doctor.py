"""`asiarch doctor`: what this machine has, and whether a search as configured would run; one row a check.

A check is a function from values to a `Row`. `checks` says which there are and where each takes its values from; an
exception in one is a row, too.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import platform
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

from absl import flags
from packaging.specifiers import SpecifierSet
from rich.table import Table
from rich.text import Text

from asiarch_jax import commands, config
from asiarch_jax.cognition import paper
from asiarch_jax.commands import UsageError
from asiarch_jax.dialogue import FAULTS, price_of, prices, settings_of
from asiarch_jax.shell import archive as archives
from asiarch_jax.shell import corpus as corpora
from asiarch_jax.shell import hosts, library, llm, machine, places, sandbox
from asiarch_jax.shell.calls import Unavailable, redacted

Mark = Literal['ok', 'warn', 'FAIL']
LIBRARIES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint')
OPTIONAL = {  # distribution -> the extra that brings it
  'google-genai': 'llm',
  'openai': 'openai',
  'datasets': 'data',
  'pyarrow': 'data',
  'gcsfs': 'gcs',
  'ray': 'cluster',
  'lm_eval': 'eval',
}
ROOMY_BYTES, LEAST_BYTES = 5 << 30, 200 << 20  # free on the disk of a workdir
PROVIDER_SECONDS = 30.0  # that a person waits for one answer of a language model
NAMED = 6  # settings in which an archive differs that a row spells out
BUSY = 'wait for it or stop it, or use another --workdir'
STYLES = {'ok': 'green', 'warn': 'yellow', 'FAIL': 'bold red'}
KEYS = {'gemini': llm.GEMINI_KEYS, 'openai': ('OPENAI_API_KEY',)}  # variables that hold a provider's key
_COLON = re.compile(r': (?=(?:pip install|put|run) )')  # before a remedy, where no semicolon is
AGENTS = {  # setting of an agent -> the roles in which it asks a language model
  'researcher': ('researcher', 'repairer', 'novelty', 'summariser'),
  'judge': ('judge',),
  'analyst': ('analyst',),
}


@dataclasses.dataclass(frozen=True)
class Row:
  """What one check found. FAIL would stop a search, warn would not; `remedy` is for both."""

  mark: Mark
  subject: str
  found: str
  remedy: str = ''


def doctor(values: flags.FlagValues, _: list[str]) -> int:
  """Prints the rows as they are found; exit status 1 when one of them would stop a search."""
  experiment = commands.experiment_of(values)
  console = commands.standard_output()
  rows = []
  with commands.terminable():
    for row in examined(checks(experiment, values.workdir, os.environ), secrets_of(os.environ)):
      if row.subject == 'archive' and not values['workdir'].present:
        row = unnamed(row, values.workdir)
      rows.append(row)
      if not values.json:
        console.print(drawn(row))
  status, sentence = verdict(rows)
  if values.json:
    listed = [dataclasses.asdict(row) for row in rows]
    print(json.dumps({'ready': not status, 'workdir': values.workdir, 'rows': listed}))
  else:
    console.print(f'\n{sentence}', style='red' if status else 'green')
  return status


def verdict(rows: Sequence[Row]) -> tuple[int, str]:
  """Returns the exit status, and the sentence for it.

  >>> verdict([Row('ok', 'jail', 'bubblewrap'), Row('warn', 'memory', '2 GiB', 'free some')])
  (0, 'a search would run; look at memory')
  """
  failed, warned = ([row.subject for row in rows if row.mark == mark] for mark in ('FAIL', 'warn'))
  if failed:
    return 1, f'a search would not run: see {", ".join(failed)}'
  return 0, 'a search would run' + (f'; look at {", ".join(warned)}' if warned else '')


def checks(experiment: config.Experiment, workdir: str, environment: Mapping[str, str]) -> dict[str, Callable[[], Row]]:
  """Returns every check by its subject, in the order in which they are made."""

  together = experiment.runner.kind == 'spmd'

  @functools.cache
  def worker_jail() -> str:
    return sandbox.choose(experiment.runner.jail, together)

  def devices() -> Row:
    if together and experiment.runner.platform != 'cpu':
      # A worker alone would wait for those of the other hosts before it saw a chip.
      files = machine.accelerators()
      return Row('ok', 'devices', f'{len(files)} device files; the first job opens them, together with the other hosts')
    return check_devices(experiment, started(), machine.accelerators())

  def started() -> machine.Start:
    try:
      jail = worker_jail()
    except RuntimeError:  # no jail works, which is a row of its own; what is started is no proposal and may do without
      jail = 'none'
    return machine.worker_start(experiment.runner, jail)

  present = machine.installed((machine.PACKAGE, *LIBRARIES, *OPTIONAL))
  return {
    'experiment': lambda: check_experiment(experiment, commands.baseline_names()),
    'versions': lambda: check_versions({'python': platform.python_version()} | present, machine.required()),
    'extras': lambda: check_extras(experiment, present, machine.required(), machine.program('bwrap'), workdir),
    **({'hosts': lambda: check_hosts(experiment.runner, environment)} if together else {}),
    'devices': devices,
    'jail': lambda: check_jail(worker_jail(), sandbox.weaknesses(worker_jail(), together)),
    'memory': lambda: check_memory(experiment.runner, machine.share()),
    'workdir': lambda: check_workdir(workdir, machine.disk(commands.jobs_folder(workdir))),
    'archive': lambda: check_archive(experiment, workdir, _content_hash(experiment), machine.archive_writer(workdir)),
    'corpus': lambda: check_corpus(experiment, corpus_place(experiment)),
    'cognition': lambda: check_cognition(library.packaged(), _own_papers(experiment), experiment.cognition.papers),
    'language model': lambda: check_language_model(experiment, workdir, environment),
    'prices': lambda: check_prices(experiment),
  }


def examined(every: Mapping[str, Callable[[], Row]], secrets: Sequence[str] = ()) -> Iterator[Row]:
  """Yields the row of each check, with the secrets taken out. A check that raises gets a FAIL with what it raised."""
  for subject, check in every.items():
    try:
      row = check()
    except Exception as error:  # whatever a broken machine makes of a look at it
      row = Row('FAIL', subject, *told(error))
    yield dataclasses.replace(row, found=redacted(row.found, secrets), remedy=redacted(row.remedy, secrets))


def drawn(row: Row) -> Table:
  """Returns a row for the terminal: mark, subject, and what was found above its remedy."""
  table = Table.grid(padding=(0, 2, 0, 0))
  table.add_column(width=4)
  table.add_column(width=14)
  table.add_column(overflow='fold')
  told = Text(row.found)
  if row.remedy:
    told.append(f'\n→ {row.remedy}', style='yellow')
  table.add_row(Text(row.mark, style=STYLES[row.mark]), Text(row.subject, style='bold'), told)
  return table


def check_hosts(settings: config.Runner, environment: Mapping[str, str]) -> Row:
  """Says which of the hosts this is, and whether the others have an address for the first.

  >>> check_hosts(config.Runner(), {'TPU_WORKER_ID': '0', 'TPU_WORKER_HOSTNAMES': '127.0.0.1,127.0.0.2'}).found
  'host 0 of 2, the controller; the others reach it at 127.0.0.1:8477'
  """
  place = hosts.place(settings, environment)
  where = f'{place.controller}:{place.port}'
  try:
    hosts.address_of(place.controller)
  except OSError as error:
    return Row(
      'FAIL', 'hosts', f'nobody here knows {place.controller!r}: {error}', 'give an IP address: runner.address'
    )
  if place.leads:
    return Row('ok', 'hosts', f'host 0 of {place.hosts}, the controller; the others reach it at {where}')
  return Row('ok', 'hosts', f'host {place.host} of {place.hosts}, which follows {where}')


def check_experiment(experiment: config.Experiment, baselines: Sequence[str]) -> Row:
  """Says what would be searched, and whether its baselines are there."""
  search = experiment.search
  unknown = [name for name in search.baselines if name not in baselines]
  if unknown:
    return Row(
      'FAIL',
      'experiment',
      f'search.baselines names {", ".join(unknown)}, which the package does not have',
      f'use some of {", ".join(baselines)}',
    )
  agents = ', '.join(f'{agent}.kind = {getattr(experiment, agent).kind}' for agent in AGENTS)
  return Row('ok', 'experiment', f'{experiment.name}: {search.cycles} outcomes; {agents}')


def check_versions(present: Mapping[str, str], required: Mapping[str, str]) -> Row:
  """Holds the installed versions against those that the package was installed to work with."""
  names = ('python', *LIBRARIES)
  found = ', '.join(f'{name} {present.get(name, "missing")}' for name in (machine.PACKAGE, *names))
  missing = [name for name in LIBRARIES if name not in present]
  if missing:
    return Row('FAIL', 'versions', found, f'pip install {" ".join(missing)}')
  if machine.PACKAGE not in present:
    return Row('warn', 'versions', f'{found}; which are supported is not known', 'pip install -e . in the checkout')
  outside = [f'{name}{required[name]}' for name in names if not _inside(name, present, required)]
  if outside:
    wanted = [name for name in outside if not name.startswith('python')]
    remedy = f'pip install {shlex.join(wanted)}' if wanted else 'make an environment with another Python'
    return Row('warn', 'versions', f'{found}; supported are {", ".join(outside)}', remedy)
  return Row('ok', 'versions', found)


def check_extras(
  experiment: config.Experiment,
  present: Mapping[str, str],
  required: Mapping[str, str],
  bubblewrap: str,
  workdir: str = '',
) -> Row:
  """Says which optional packages there are, and which extra the experiment or its workdir lacks."""
  there = [f'{name} {present[name]}' for name in OPTIONAL if name in present] + ['bubblewrap'] * bool(bubblewrap)
  absent = [name for name in OPTIONAL if name not in present] + ['bubblewrap'] * (not bubblewrap)
  found = ', '.join(there) or 'none'
  found += f'; not installed: {", ".join(absent)}' if absent else ''
  lacking = {name: why for name, why in _needed(experiment, workdir).items() if name not in present}
  if lacking:
    why = '; '.join(f'{setting} needs {name}' for name, setting in lacking.items())
    extras = ','.join(dict.fromkeys(OPTIONAL[name] for name in lacking))
    return Row('FAIL', 'extras', f'{why}. There: {found}', f"pip install '{machine.PACKAGE}[{extras}]'")
  old = [name for name in OPTIONAL if name in present and not _inside(name, present, required)]
  if old:
    wanted = [f'{name}{required[name]}' for name in old]
    return Row('warn', 'extras', f'{found}; supported are {", ".join(wanted)}', f'pip install {shlex.join(wanted)}')
  return Row('ok', 'extras', found)


def check_devices(experiment: config.Experiment, start: machine.Start, accelerators: Sequence[str]) -> Row:
  """Judges the devices that a worker gets. `accelerators` are the device files of this machine."""
  runner, parallel = experiment.runner, experiment.training.data_parallel
  if start.fault:
    extra = {'tpu': 'tpu', 'cuda': 'gpu', 'gpu': 'gpu'}.get(runner.platform.partition(',')[0])
    ways = [f"pip install '{machine.PACKAGE}[{extra}]' if that is missing"] if extra else []
    ways += ['end what else holds the device', 'set --config.runner.platform=cpu'] if runner.platform != 'cpu' else []
    said = f'it said: {start.said}' if start.said else 'it said nothing'
    return Row(
      'FAIL',
      'devices',
      f'a worker with runner.platform = {runner.platform!r} {start.fault}; {said}',
      ', or '.join(ways) or 'put right what it says',
    )
  found = f'{_devices_in_words(start.devices)}; a worker starts in {start.seconds:.1f} s'
  count = len(start.devices)
  if parallel > count:
    return Row(
      'FAIL',
      'devices',
      f'{found}; training.data_parallel = {parallel} needs as many',
      f'set --config.training.data_parallel={count}'
      + (f' or --config.runner.host_devices={parallel}' if start.devices[0].platform == 'cpu' else ''),
    )
  on_cpu = start.devices[0].platform == 'cpu'
  if accelerators and on_cpu and not runner.platform:
    extra = 'gpu' if 'nvidia' in accelerators[0] else 'tpu'
    return Row(
      'warn',
      'devices',
      f'{found}; {", ".join(accelerators)} is there, and JAX does not use it',
      f"pip install '{machine.PACKAGE}[{extra}]', or set --config.runner.platform=cpu if that is meant",
    )
  if runner.workers > 1 and not on_cpu:
    return Row(
      'warn',
      'devices',
      f'{found}; runner.workers = {runner.workers}, and each takes all devices with most of their memory',
      'set --config.runner.workers=1: replicas are spread over devices by one worker',
    )
  return Row('ok', 'devices', found)


def check_jail(jail: str, weaknesses: Sequence[str]) -> Row:
  """Says in which jail workers run, and what it was seen not to stop."""
  if jail == 'none':
    return Row(
      'warn',
      'jail',
      f'none: proposed source runs with your rights ({len(weaknesses)} of {len(sandbox.SENTENCES)} attempts succeeded)',
      'leave runner.jail at auto, unless you trust every proposal',
    )
  found = f'{jail}, tried by starting a process in it'
  if not weaknesses:
    return Row('ok', 'jail', found)
  ways = ['docs/SECURITY.md says what that means']
  ways += ['bubblewrap stops more (apt install bubblewrap)'] if jail != 'bubblewrap' else []
  ways += ['run as a user who is not root'] if sandbox.SENTENCES['root'] in weaknesses else []
  return Row('warn', 'jail', f'{found}; not stopped here: {", ".join(weaknesses)}', '; '.join(ways))


def check_memory(runner: config.Runner, share: machine.Share) -> Row:
  """Holds memory and cores against what workers may take of them."""
  total, available = share.memory_total / 2**30, share.memory_available / 2**30
  wanted = runner.memory_gib * runner.workers
  found = f'{available:.1f} of {total:.1f} GiB available, {share.cores:g} core{"s"[: share.cores != 1]}'
  if available < wanted:
    return Row(
      'warn',
      'memory',
      f'{found}; jobs may take {wanted:g} GiB (runner.workers = {runner.workers}, each runner.memory_gib = '
      f'{runner.memory_gib:g})',
      f'free memory, or set --config.runner.memory_gib={max(0.5, int(2 * available / runner.workers) / 2):g}',
    )
  busy = runner.workers * (runner.host_devices if runner.platform == 'cpu' else 1)
  if busy > share.cores:
    return Row(
      'warn',
      'memory',
      f'{found}; runner.workers = {runner.workers} with {busy // runner.workers} CPU devices each share them',
      'lower runner.workers or runner.host_devices: more than cores make a search slower, and its seconds noisier',
    )
  return Row('ok', 'memory', f'{found}; jobs may take {wanted:g} GiB')


def check_workdir(workdir: str, disk: machine.Disk) -> Row:
  """Judges the disk that a workdir is on."""
  if places.is_address(workdir):
    there = f'{workdir}, its jobs on the disk of {disk.folder}'
  else:
    there = workdir if os.path.abspath(workdir) == disk.folder else f'{workdir} (to be made in {disk.folder})'
  found = f'{there}: {_size(disk.free_bytes)} free'
  if not disk.writable:
    return Row('FAIL', 'workdir', f'{found}, and you may not write there', 'name another --workdir')
  if disk.free_bytes < ROOMY_BYTES:
    mark: Mark = 'FAIL' if disk.free_bytes < LEAST_BYTES else 'warn'
    return Row(mark, 'workdir', found, f'free {_size(ROOMY_BYTES)} there, or name a --workdir on another disk')
  return Row('ok', 'workdir', found)


def unnamed(row: Row, workdir: str) -> Row:
  """Returns the row of the archive where nobody named the workdir: a search has to, so that nothing there stops it."""
  if row.mark == 'ok':
    return row
  return Row('ok', row.subject, f'a search needs another --workdir than {workdir}: {row.found}')


def check_archive(experiment: config.Experiment, workdir: str, corpus_hash: str, writer: str) -> Row:
  """Says what a workdir holds, and whether this experiment may continue it. `writer` is who appends to it now."""
  try:
    header = archives.read_header(workdir)
  except FileNotFoundError:
    if writer:
      return Row('FAIL', 'archive', f'{writer} is just beginning one', BUSY)
    return Row('ok', 'archive', 'none yet: a search would begin one')
  with archives.OrbaxArchive.open_read_only(workdir) as archive:
    count = len(archive.outcomes())
  found = f'{count} outcome{"s"[: count != 1]} of experiment {header.experiment.name}'
  differing = config.differences(experiment, header.experiment)
  if differing:
    named = [f'{key} is {there!r} there and {here!r} here' for key, (here, there) in differing.items()]
    named[NAMED:] = [f'{len(named) - NAMED} more'] if len(named) > NAMED else []
    return Row(
      'FAIL',
      'archive',
      f'{found}, which is another one: {"; ".join(named)}',
      'use the settings it was begun with, or another --workdir',
    )
  if corpus_hash and corpus_hash != header.corpus:
    return Row(
      'FAIL',
      'archive',
      f'{found}, begun on a corpus with content hash {header.corpus[:12]} and not {corpus_hash[:12]}',
      'bring back the text it was begun with, or use another --workdir',
    )
  if writer:
    return Row('FAIL', 'archive', f'{found}; {writer} is appending to it', BUSY)
  if count >= experiment.search.cycles:
    return Row('ok', 'archive', f'{found}: as many as search.cycles asks for; --cycles={count + 10} goes on')
  return Row('ok', 'archive', f'{found}, {experiment.search.cycles - count} to come')


def check_corpus(experiment: config.Experiment, place: pathlib.Path) -> Row:
  """Loads the corpus and holds it against the settings that read from it."""
  path, training, evaluation = experiment.corpus.path, experiment.training, experiment.evaluation
  if places.is_address(path) and not place.exists():
    card = corpora.read_card(path)
    return Row('ok', 'corpus', f'{path}: {card.tokens:,} tokens, fetched to this disk before the first job')
  if path == 'docs' and not place.exists():
    return Row('ok', 'corpus', 'docs: built on first use, from the docstrings of the installed libraries')
  corpus = corpora.load(place)
  card = corpus.card
  tokenizer = card.tokenizer if len(card.tokenizer) < 20 else f'{card.tokenizer[:19]}…'
  found = f'{path}: {card.tokens:,} tokens ({tokenizer}) of {card.documents:,} documents'
  ids = f'{card.vocabulary} token ids, model.vocabulary = {experiment.model.vocabulary}'
  if card.vocabulary > experiment.model.vocabulary:
    return Row('FAIL', 'corpus', f'{found}; {ids}', f'set --config.model.vocabulary={card.vocabulary}')
  count = corpus.training_windows(training.length)
  if count < training.batch:
    return Row(
      'FAIL',
      'corpus',
      f'{found}; {count} training windows of {training.length} tokens, and a batch has {training.batch}',
      'use a larger corpus, or lower training.length or training.batch',
    )
  for split, windows in (('validation', evaluation.validation_windows), ('test', evaluation.test_windows)):
    corpus.windows(split, windows, training.length, evaluation.batch)  # raises where the split is too short
  return Row('ok', 'corpus', f'{found}; {ids}')


def check_cognition(packaged: Mapping[str, str], own: Mapping[str, str], folder: str) -> Row:
  """Counts papers and insights, and reads one's own for faults. Both map a file's name to its text."""
  papers = [(name, paper.parsed(text, name)) for name, text in (*sorted(packaged.items()), *sorted(own.items()))]
  insights = sum(len(each.entries) for _, each in papers)
  found = f'{len(papers)} papers, {insights} insights'
  found += f'; {len(own)} papers of your own' if folder else ''
  faults = [line for line in paper.lint(papers) if line.partition(': ')[0] in own]
  if faults:
    return Row(
      'warn',
      'cognition',
      f'{found}, with {len(faults)} fault{"s"[: len(faults) != 1]}, such as {faults[0]}',
      f'asiarch cognition lint --papers={folder} lists all',
    )
  return Row('ok', 'cognition', found)


def check_language_model(experiment: config.Experiment, workdir: str, environment: Mapping[str, str]) -> Row:
  """Asks the provider one tiny thing, and whether it has the model of every role in use."""
  subject, settings, roles = 'language model', experiment.llm, roles_in_use(experiment)
  if not roles:
    return Row('ok', subject, f'not used (researcher.kind = {experiment.researcher.kind})')
  if experiment.researcher.embedder == 'gemini' and settings.provider != 'gemini':
    return Row(
      'FAIL',
      subject,
      f"researcher.embedder = 'gemini' needs llm.provider = 'gemini', not {settings.provider!r}",
      'set --config.researcher.embedder=lexical',
    )
  quick = dataclasses.replace(settings, attempts=1, timeout=min(settings.timeout, PROVIDER_SECONDS))
  with contextlib.closing(llm.open_model(quick, environment, workdir)):
    pass  # raises what is wrong with key, package, address or file
  # The tiny call is the researcher's, who may not be among those who ask.
  asked = quick if 'researcher' in roles else dataclasses.replace(quick, researcher=getattr(quick, roles[0]))
  try:
    said = llm.reachable(asked, environment)
  except Unavailable as error:
    return Row('FAIL', subject, str(error), 'see whether this machine reaches the provider, then ask again')
  except (PermissionError, ValueError) as error:
    found, remedy = told(error)
    return Row('FAIL', subject, found, remedy.replace('llm.researcher.', f'llm.{roles[0]}.'))
  credential = credential_of(settings, environment)
  said += f', by {credential}' if credential else ''
  if any(fault in said for fault in FAULTS.values()):
    return Row('warn', subject, said, 'see whether llm.model and llm.base_url are those you mean')
  return _models_known(quick, environment, roles, said)


def _models_known(settings: config.Llm, environment: Mapping[str, str], roles: Sequence[str], said: str) -> Row:
  """Returns the row of a provider that has answered, by whether it has the other roles' models too."""
  subject = 'language model'
  names = list(dict.fromkeys(settings_of(settings, role).model for role in roles))
  try:
    unknown = llm.models_known(settings, environment, roles)
  except (Unavailable, PermissionError) as error:
    return Row('warn', subject, f'{said}; it lists no models ({error})', f'see whether it has {", ".join(names)}')
  if names[0] in unknown:  # which has just answered
    rest = ', '.join(names[1:])
    return Row('warn' if rest else 'ok', subject, f'{said}; it lists no models', rest and f'see whether it has {rest}')
  if unknown:
    found, remedy = told(ValueError(next(iter(unknown.values()))))
    return Row('FAIL', subject, f'{said}; it does not have {", ".join(unknown)} ({found})', remedy)
  listed = f'; it has the model of every role ({", ".join(names)})' if settings.provider in KEYS else ''
  return Row('ok', subject, f'{said}{listed}')


def check_prices(experiment: config.Experiment) -> Row:
  """Says whether dollars can be counted, without which a budget in dollars cannot be kept."""
  roles = roles_in_use(experiment)
  if not roles:
    return Row('ok', 'prices', 'not needed without a language model')
  table, limit = prices(experiment.llm.prices), experiment.budget.dollars
  # A limit is refused for any role without a price, in use or not.
  names = list(dict.fromkeys(settings_of(experiment.llm, role).model for role in (config.ROLES if limit else roles)))
  unknown = [name for name in names if price_of(table, name) is None]
  if unknown:
    row = 'a row of llm.prices (MODEL PROMPT CACHED REPLY DATE, dollars for a million tokens)'
    return Row(
      'FAIL' if limit else 'warn',
      'prices',
      f'none for {", ".join(unknown)}' + (f', and budget.dollars = {limit:g}' if limit else ': its dollars count as 0'),
      f'add {row}' + (', or set budget.tokens instead' if limit else ''),
    )
  listed = ((name, price_of(table, name)) for name in names)
  found = ', '.join(f'{name} ${p.prompt:g} in, ${p.reply:g} out a million tokens ({p.date})' for name, p in listed if p)
  return Row('ok', 'prices', found)


def roles_in_use(experiment: config.Experiment) -> tuple[str, ...]:
  """Returns the roles in which the experiment asks a language model.

  >>> roles_in_use(config.Experiment(judge=config.Judge(kind='llm')))
  ('judge',)
  """
  return tuple(role for agent, roles in AGENTS.items() if getattr(experiment, agent).kind == 'llm' for role in roles)


def credential_of(settings: config.Llm, environment: Mapping[str, str]) -> str:
  """Returns in words where the credential of a provider comes from, never the credential.

  >>> credential_of(config.Llm(), {'GOOGLE_API_KEY': 'a-key'})
  'the key in GOOGLE_API_KEY'
  """
  if settings.provider not in KEYS:
    return ''
  if settings.provider == 'gemini' and settings.project:
    file = 'GOOGLE_APPLICATION_CREDENTIALS'
    return f'application-default credentials{f" of {file}" if environment.get(file) else ""} for {settings.project}'
  name = next((name for name in KEYS[settings.provider] if environment.get(name, '').strip()), '')
  return f'the key in {name}' if name else 'no key'


def secrets_of(environment: Mapping[str, str]) -> tuple[str, ...]:
  """Returns the keys in the environment, which no row may hold."""
  values = (environment.get(name, '').strip() for names in KEYS.values() for name in names)
  return tuple(value for value in values if len(value) >= llm.SHORTEST_SECRET)


def corpus_place(experiment: config.Experiment) -> pathlib.Path:
  """Returns the folder that a search reads its corpus from."""
  path = experiment.corpus.path
  if places.is_address(path):
    return places.fetched_folder(commands.cache_folder(), corpora.read_card(path).content_hash)
  return corpora.docs_folder(commands.cache_folder()) if path == 'docs' else pathlib.Path(path)


def told(error: Exception) -> tuple[str, str]:
  """Returns what an exception found and the remedy that it names: the errors of this package end in one.

  >>> told(ValueError('chunk 3 does not divide 8; pad first'))
  ('chunk 3 does not divide 8', 'pad first')
  """
  if not isinstance(error, ValueError | OSError | ImportError | RuntimeError | UsageError):
    return f'this check itself failed with {type(error).__name__}: {error}', 'the other rows hold; report it as a bug'
  text = str(error.strerror if isinstance(error, OSError) and error.strerror else error)
  if isinstance(error, OSError) and error.filename:
    text = f'{error.filename}: {text}'
  found, _, remedy = text.rpartition('; ')
  if not found:
    found, _, remedy = _COLON.sub('\0', text).partition('\0')
  return (found, remedy) if remedy else (text, 'put right what it says')


def _content_hash(experiment: config.Experiment) -> str:
  """Returns the content hash of the corpus, empty where it cannot be read: the corpus has its own row."""
  try:
    return corpora.read_card(corpus_place(experiment)).content_hash
  except (OSError, ValueError, ImportError):
    return ''


def _own_papers(experiment: config.Experiment) -> dict[str, str]:
  folder = experiment.cognition.papers
  return {f'{folder}/{name}': text for name, text in library.folder(folder).items()} if folder else {}


def _needed(experiment: config.Experiment, workdir: str) -> dict[str, str]:
  """Returns the optional packages that the experiment cannot do without, each with the setting that asks for it."""
  provider, paths = experiment.llm.provider, {'corpus.path': experiment.corpus.path, '--workdir': workdir}
  needed = {}
  if roles_in_use(experiment):
    paths['llm.exchanges'] = experiment.llm.exchanges
    package = {'gemini': 'google-genai', 'openai': 'openai'}.get(provider)
    needed = {package: f'llm.provider = {provider!r}'} if package else {}
  for name, path in paths.items():
    if path.startswith('gs://'):
      needed['gcsfs'] = f'{name} = {path!r}'
  if experiment.runner.kind == 'cluster':
    needed['ray'] = "runner.kind = 'cluster'"
  if experiment.zero_shot.in_search:
    needed['lm_eval'] = 'zero_shot.in_search = True'
  return needed


def _inside(name: str, present: Mapping[str, str], required: Mapping[str, str]) -> bool:
  return SpecifierSet(required.get(name, '')).contains(present[name], prereleases=True)


def _devices_in_words(devices: Sequence[machine.Device]) -> str:
  """Returns how many devices of each kind there are.

  >>> _devices_in_words([machine.Device('gpu', 'NVIDIA H100', 60 << 30)] * 2)
  '2 gpu devices (NVIDIA H100, 60.0 GiB each)'
  """
  said = []
  for device, count in collections.Counter(devices).items():
    about = [device.kind] if device.kind != device.platform else []
    about += [f'{_size(device.memory_bytes)}{" each" * (count > 1)}'] if device.memory_bytes else []
    said.append(f'{count} {device.platform} device{"s"[: count != 1]}' + (f' ({", ".join(about)})' if about else ''))
  return ', '.join(said)


def _size(count: int) -> str:
  return f'{count / 2**30:.1f} GiB' if count >= 2**30 else f'{count / 2**20:.0f} MiB'
