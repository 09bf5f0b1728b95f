"""What each command does: functions from parsed flags to an exit status.

They introduce the cycle to the shell, which do not know each other; `search` is the archive's only writer.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.resources
import json
import os
import pathlib
import signal
import sys
import tempfile
import types
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from absl import flags
from rich.console import Console

from asiarch_jax import config
from asiarch_jax.agents import genome, given
from asiarch_jax.checks import source
from asiarch_jax.commands import registry
from asiarch_jax.evidence import effects
from asiarch_jax.records import Entry, Job, JobResult, Limits, Outcome, Proposal, ZeroShot, to_json
from asiarch_jax.report import text
from asiarch_jax.shell import archive as archives
from asiarch_jax.shell import corpus as corpora
from asiarch_jax.shell import exchanges, places, sandbox, zero_shot
from asiarch_jax.shell import journal as journals
from asiarch_jax.shell import runner as runners
from asiarch_jax.shell.display import Display

MIXER_BYTES = 1 << 20  # of a file that is named on the command line
INTERRUPTED = 130  # exit status after Ctrl-C, as shells have it


class UsageError(Exception):
  """What a user has to put right: printed as one paragraph, exit status 2."""


def experiment_of(values: flags.FlagValues) -> config.Experiment:
  """Returns the validated experiment that --config and its overrides describe.

  Raises:
    UsageError: naming the setting, its value and the remedy.
  """
  try:
    given = values.config
    if not hasattr(given, 'items') and (given is not None or values['config'].present):
      kind = type(given).__name__
      raise ValueError(f'get_config() of --config gave {kind}; return config.as_config_dict(config.Experiment(...))')
    experiment = config.from_dict(given) if given is not None else config.Experiment()
    config.validate(experiment)
    for name in experiment.search.baselines:
      if name not in baseline_names():
        raise ValueError(f'search.baselines has {name!r}; there are {", ".join(baseline_names())}')
  except ValueError as error:
    raise UsageError(str(error)) from error
  return experiment


def check(values: flags.FlagValues, arguments: list[str]) -> int:
  result = _one_job(values, arguments[0], 'check')
  passed = result.failure is None
  if values.json:
    print(json.dumps(to_json(result)))
    return 0 if passed else 1
  console = standard_output()
  for finding in result.findings:
    console.print(
      f'{"ok  " if finding.passed else "FAIL"} {finding.check}: {finding.detail}', markup=False, soft_wrap=True
    )
  if result.failure and result.failure.kind != 'checks':
    console.print(f'{result.failure.kind}: {result.failure.reason}\n{result.failure.log}', markup=False, soft_wrap=True)
  if result.cost:
    c = result.cost
    console.print(
      f'{c.mixer_parameters:,} parameters, {c.flops_per_token:,.0f} FLOPs a token, {c.state_bytes:,} state bytes, '
      f'FLOPs grow as T^{c.growth:.2f}'
    )
  console.print('inside the contract' if passed else 'outside the contract', style='green' if passed else 'red')
  return 0 if passed else 1


def train(values: flags.FlagValues, arguments: list[str]) -> int:
  result = _one_job(values, arguments[0], 'train')
  if values.json:
    print(json.dumps(to_json(result)))
    return 0 if result.failure is None else 1
  console = standard_output()
  if result.failure:
    console.print(f'{result.failure.kind}: {result.failure.reason}\n{result.failure.log}', markup=False, soft_wrap=True)
  if result.training and result.cost:
    entry = Entry(
      0,
      Proposal(arguments[0], '', ''),
      'candidate',
      result.findings,
      result.fingerprint,
      result.cost,
      result.training,
      result.scores,
      result.key,
    )
    console.print(text.outcome_page(entry, [entry]))
  return 0 if result.failure is None else 1


def top(values: flags.FlagValues, _: list[str]) -> int:
  outcomes, experiment = _read(values.workdir)
  if values.json:
    print(json.dumps({'outcomes': text.as_json(outcomes)}))
  else:
    console = standard_output()
    console.print(text.leaderboard(outcomes, values.limit, experiment.search.baseline))
    console.print(text.summary(outcomes, experiment))
  return 0


def show(values: flags.FlagValues, arguments: list[str]) -> int:
  outcomes, _ = _read(values.workdir)
  outcome = named(arguments[0], outcomes)
  if values.json:
    calls = {'trace': exchanges.Traces(values.workdir).read(outcome.id)} if values.trace else {}
    print(json.dumps(to_json(outcome) | calls))
  else:
    standard_output().print(text.outcome_page(outcome, outcomes, source=values.source, diff=values.diff))
    if values.trace:
      standard_output().print(text.trace(exchanges.Traces(values.workdir).read(outcome.id)))
  return 0


def tree(values: flags.FlagValues, _: list[str]) -> int:
  outcomes, _experiment = _read(values.workdir)
  if values.json:
    nodes = [
      {'id': o.id, 'name': o.proposal.name, 'parent': o.proposal.parent_id, 'outcome': type(o).__name__}
      for o in outcomes
    ]
    print(json.dumps({'nodes': nodes}))
  else:
    standard_output().print(text.tree(outcomes))
  return 0


def report(values: flags.FlagValues, _: list[str]) -> int:
  outcomes, experiment = _read(values.workdir)
  workdir = places.folder(values.workdir)
  out = places.folder(values.out) if values.out else workdir / 'report'
  events = journals.JsonLines(workdir / 'journal.jsonl', read_only=True).events()
  written = write_report(
    outcomes, out, experiment, events, zero_shot.every(workdir), registry.confirmed(workdir, experiment.search)
  )
  print(json.dumps({'report': str(written)}) if values.json else written)
  return 0


def settings(values: flags.FlagValues, _: list[str]) -> int:
  experiment = experiment_of(values)
  declared = (importlib.resources.files('asiarch_jax') / 'config.py').read_text()
  chosen = config.flat(experiment)
  defaults = config.flat(config.Experiment())
  if values.json:
    print(json.dumps({name: list(v) if isinstance(v, tuple) else v for name, v in chosen.items()}))
  elif values.markdown:
    print('| setting | type | default | meaning |\n| --- | --- | --- | --- |')
    for name, kind, default, meaning in config.documentation(declared):
      print(f'| `{name}` | {kind} | `{default}` | {meaning} |')
  else:
    width = max(map(len, chosen))
    for name, _kind, value, meaning in config.documentation(declared, experiment):
      default = f'  (default {defaults[name]!r})' if name in defaults else ''
      print(f'{name:{width}}  {value:12}  {meaning}{default if defaults.get(name) != chosen[name] else ""}')
  return 0


def prepare(values: flags.FlagValues, arguments: list[str]) -> int:
  with Display() as display:
    card = corpora.prepare(
      arguments[0],
      values.out,
      tokenizer=values.tokenizer,
      text_field=values.text_field,
      split=values.split,
      limit_bytes=values.limit_bytes,
      on_progress=display.progress,
    )
  if values.json:
    print(json.dumps({'out': values.out, 'card': dataclasses.asdict(card)}))
  else:
    splits = ', '.join(f'{name} {stop - start:,}' for name, (start, stop) in card.splits.items())
    print(
      f'{values.out}: {card.tokens:,} tokens from {card.documents:,} documents ({splits}); {card.content_hash[:12]}'
    )
  return 0


def baseline_names() -> list[str]:
  """Returns the mixers that come with the package."""
  folder = importlib.resources.files('asiarch_jax.arch.baselines')
  return sorted(p.name.removesuffix('.py') for p in folder.iterdir() if p.name.endswith('.py') and p.name[0] != '_')


def baseline_proposal(name: str) -> Proposal:
  """Returns a baseline as the proposal that it is.

  Raises:
    UsageError: there is none of that name.
  """
  if name not in baseline_names():
    raise UsageError(f'{name!r} is not a baseline; there are {", ".join(baseline_names())}')
  written = (importlib.resources.files('asiarch_jax.arch.baselines') / f'{name}.py').read_text()
  return given.from_source(name, written, 'baseline')


def proposal_of(argument: str) -> Proposal:
  """Returns the proposal that a command's argument names: a baseline, or a file of mixer source."""
  if argument in baseline_names():
    return baseline_proposal(argument)
  path = pathlib.Path(argument)
  if path.exists() and not path.is_file():
    raise UsageError(f'{argument} is not a file; name a text file that defines class Mixer')
  if path.exists() and path.stat().st_size > MIXER_BYTES:
    raise UsageError(f'{argument} has {path.stat().st_size:,} bytes; a mixer has at most {MIXER_BYTES:,}')
  try:
    written = path.read_text(encoding='utf-8-sig')
  except FileNotFoundError as error:
    known = ', '.join(baseline_names())
    raise UsageError(f'{argument}: no such file, and no baseline of that name ({known})') from error
  except UnicodeDecodeError as error:
    raise UsageError(f'{argument}: not UTF-8 at byte {error.start}; a mixer is a text file') from error
  except OSError as error:
    raise UsageError(f'{argument}: {error.strerror}') from error
  return given.from_source(path.stem, written, 'human')


def open_corpus(experiment: config.Experiment, display: Display) -> tuple[pathlib.Path, corpora.Corpus]:
  """Returns the folder of the experiment's corpus and the corpus; `docs` is made on first use."""
  path = experiment.corpus.path
  if places.is_address(path):
    display.line(f'fetching {path} (once)')
    folder = places.fetched(path, cache_folder(), corpora.read_card(path).content_hash)
  elif path == 'docs':
    folder = corpora.docs_folder(cache_folder())
    if not folder.exists():
      display.line('building the corpus from the docstrings of the installed libraries (once)')
      corpora.prepare('docs', folder, on_progress=display.progress)
  else:
    folder = pathlib.Path(path)
  corpus = corpora.load(folder)
  require_vocabulary(experiment.model, corpus, 'model')
  return folder, corpus


def require_vocabulary(model: config.Model, corpus: corpora.Corpus, setting: str) -> None:
  """Refuses a model that has no row for some token of the corpus; `setting` is where its size is set."""
  if corpus.card.vocabulary > model.vocabulary:
    raise UsageError(
      f'{corpus.path} uses {corpus.card.vocabulary} token ids and {setting}.vocabulary = {model.vocabulary}; '
      f'set --config.{setting}.vocabulary={corpus.card.vocabulary}'
    )


def new_place(out: str) -> pathlib.Path:
  """Returns the file or folder that --out names.

  Raises:
    UsageError: it is not of this machine.
  """
  if places.is_address(out):
    raise UsageError(f'--out={out} is no place of this machine; write one that is, and copy it there')
  return pathlib.Path(out)


def choose_jail(experiment: config.Experiment, display: Display) -> str:
  """Returns the jail that this host gives to workers, and says what it does not stop."""
  network = experiment.runner.kind == 'spmd'
  try:
    jail = sandbox.choose(experiment.runner.jail, network)
  except RuntimeError as error:
    raise UsageError(str(error)) from error
  holes = sandbox.weaknesses(jail, network)
  display.line(f'workers run in {jail}' + (f'; not stopped here: {"; ".join(holes)}' if holes else ''), 'dim')
  return jail


def standard_output() -> Console:
  """Returns standard output; where it is no terminal, wide enough for a table without cut cells."""
  return Console(highlight=False, width=None if sys.stdout is not None and sys.stdout.isatty() else 160)


def jobs_folder(workdir: str | os.PathLike[str]) -> pathlib.Path:
  """Returns the folder of this machine that holds the jobs of a workdir, which may be in a bucket."""
  return places.disk(workdir, cache_folder())


def cache_folder() -> pathlib.Path:
  base = os.environ.get('ASIARCH_CACHE') or os.path.join(
    os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache'), 'asiarch'
  )
  return pathlib.Path(base)


def _one_job(values: flags.FlagValues, argument: str, kind: str) -> JobResult:
  experiment, proposal = experiment_of(values), proposal_of(argument)
  with Display() as display, terminable():
    folder, content = pathlib.Path('.'), ''
    if kind == 'train':
      folder, corpus = open_corpus(experiment, display)
      content = corpus.card.content_hash
    anchor = proposal.author == 'baseline' and proposal.name in experiment.search.anchors
    job = Job(
      proposal.name,
      proposal.source,
      config.worker_part(experiment),
      kind=kind,  # type: ignore[arg-type]
      corpus=content,
      waived=('growth',) if anchor else (),
      limits=Limits(experiment.runner.wall_seconds),
    )
    findings = source.check(proposal.source)
    refused = source.failure(findings)
    if refused:
      return JobResult(job.key, findings=findings, failure=refused)
    jail = choose_jail(experiment, display)
    workdir = jobs_folder(values.workdir)
    runner = runners.of(workdir, dataclasses.replace(experiment.runner, jail=jail), folder if content else None)
    display.start_cycle(0, 1, None)
    return runner.run(job, display.progress)


def _read(workdir: str) -> tuple[tuple[Outcome, ...], config.Experiment]:
  with archives.OrbaxArchive.open_read_only(workdir) as archive:
    return archive.outcomes(), archive.experiment


def write_report(
  outcomes: Sequence[Outcome],
  out: Any,
  experiment: config.Experiment,
  events: Sequence[dict],
  measured: Sequence[ZeroShot] = (),
  confirmed: Collection[int] | None = None,
) -> Any:
  """Writes the report, with effects that count the changes from a baseline to its children too.

  `confirmed` are the entries that a claim has shown, None where nothing was claimed.
  """
  from asiarch_jax.report import page  # draws, and what draws takes a second to import

  designs = {name: design.to_json() for name, design in genome.GENOMES.items()}
  rows = effects.effects(outcomes, genomes=designs)
  with contextlib.ExitStack() as stack:
    remote = places.is_address(out)
    here = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory())) if remote else out
    written = page.write(
      outcomes,
      here,
      experiment=experiment,
      journal_events=events,
      effect_rows=rows,
      zero_shot=measured,
      confirmed=confirmed,
    )
    if remote:
      places.published(here, out)
      written = out / written.name
  return written


def named(argument: str, outcomes: Sequence[Outcome]) -> Outcome:
  """Returns the outcome with this id or name.

  Raises:
    UsageError: there is none.
  """
  for outcome in outcomes:
    if argument.lstrip('#') == str(outcome.id) or argument == outcome.proposal.name:
      return outcome
  last = max((outcome.id for outcome in outcomes), default=None)
  raise UsageError(
    f'{argument!r} is neither an id nor a name in this archive; '
    + (f'ids run from 0 to {last}' if last is not None else 'it is empty')
  )


@contextlib.contextmanager
def terminable() -> Iterator[None]:
  """Lets SIGTERM end a run as Ctrl-C does."""

  def interrupt(number: int, frame: types.FrameType | None) -> None:
    raise KeyboardInterrupt

  before = signal.signal(signal.SIGTERM, interrupt)
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, before)
