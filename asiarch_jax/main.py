"""The command line: `asiarch COMMAND [flags]`, or `python -m asiarch_jax.main COMMAND [flags]`."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import gc
import importlib
import io
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags
from ml_collections import config_flags


@dataclasses.dataclass(frozen=True)
class Command:
  """A row of COMMANDS: what it does, for whom, and the flags it takes.

  `run` names a function of `asiarch_jax.commands` or of a module of it: they take seconds to import, help needs none.
  """

  run: str
  summary: str
  usage: str
  details: str
  define: Sequence[Callable[[flags.FlagValues, Sequence[str]], None]]
  arguments: tuple[int, int] = (0, 0)  # least and most positional arguments
  jobs: bool = False  # whether it runs jobs, and so is followed on other hosts


PLACES = ('workdir', 'out', 'papers', 'table', 'include')  # flags that name files and folders
CONFIG_FILE, OVERRIDE = re.compile('--?config(=|$)'), re.compile(r'--?(?:no)?config\.([^=[]*)')


def _config_flag(values: flags.FlagValues, arguments: Sequence[str]) -> None:
  """Defines --config; overrides without it are of the default experiment."""
  if any(map(OVERRIDE.match, arguments)) and not any(map(CONFIG_FILE.match, arguments)):
    from asiarch_jax import config

    default = config.as_config_dict(config.Experiment())
    config_flags.DEFINE_config_dict('config', default, flag_values=values, sys_argv=['asiarch', *arguments])
  else:
    _define_config(values, arguments, 'the offline search')


def _begun_config_flag(values: flags.FlagValues, arguments: Sequence[str]) -> None:
  """Defines --config for a command that goes on with what its workdir holds: overrides need a file to be of."""
  _define_config(values, arguments, 'what the workdir was begun with')


def _define_config(values: flags.FlagValues, arguments: Sequence[str], default: str) -> None:
  config_flags.DEFINE_config_file(
    'config',
    None,
    'Python file whose get_config() returns the experiment; --config.KEY=VALUE overrides one setting '
    f'(docs/CONFIGURATION.md lists them). Default: {default}.',
    flag_values=values,
    sys_argv=['asiarch', *arguments],
  )


def _config_fault(command: Command, arguments: Sequence[str]) -> str:
  """Returns what is wrong with --config: a file that is not there, an override of no setting. Empty: neither."""
  if not {_config_flag, _begun_config_flag} & set(command.define):
    return ''
  from asiarch_jax import config

  overrides = [match[1] for match in map(OVERRIDE.match, arguments) if match]
  tree: Any = config.as_config_dict(config.Experiment())
  found = [index for index, argument in enumerate(arguments) if CONFIG_FILE.match(argument)]
  if found:
    argument, *following = arguments[found[-1] : found[-1] + 2]
    value = argument.partition('=')[2] if '=' in argument else ''.join(following)
    file = value.partition(':')[0]  # what follows is the file's own to read
    if not os.path.isfile(file):
      return f'--config={file}: no such file; give a Python file such as those in configs/'
    if not overrides:
      return ''
    values = flags.FlagValues()
    _config_flag(values, [f'--config={value}'])
    try:
      values(['asiarch', f'--config={value}'])
      tree = values.config
    except (Exception, SystemExit):  # the file's own fault, told by who reads it
      return ''
  elif overrides and _begun_config_flag in command.define:
    return (
      f'--config.{overrides[0]}: give --config=FILE too, which it changes; else settings are those that the workdir '
      'was begun with'
    )
  known = _settings(tree)
  for path in overrides:
    if path not in known:
      last = path.rpartition('.')[2]
      near = [one for one in known if one.rpartition('.')[2] == last] or difflib.get_close_matches(path, known, n=1)
      guess = f'did you mean --config.{near[0]}? ' if near else ''
      return f'--config.{path}: there is no such setting; {guess}`asiarch config` lists them'
  return ''


def _settings(tree: Any, path: str = '') -> list[str]:
  """Returns the paths of all settings and of the parts that hold them."""
  found = []
  for name, value in tree.items() if hasattr(tree, 'items') else ():
    found += [f'{path}{name}', *_settings(value, f'{path}{name}.')]
  return found


def _workdir_flag(values: flags.FlagValues, arguments: Sequence[str]) -> None:
  flags.DEFINE_string('workdir', None, 'Folder of the run: archive, jobs, report.', flag_values=values, required=True)


def _scratch_flag(values: flags.FlagValues, arguments: Sequence[str]) -> None:
  flags.DEFINE_string(
    'workdir', 'runs/scratch', 'Folder for the job; a repeated job is not run twice.', flag_values=values
  )


def _run_flag(values: flags.FlagValues, arguments: Sequence[str]) -> None:
  flags.DEFINE_string('workdir', 'runs/default', 'Folder of the run that is meant; need not exist.', flag_values=values)


def _json_flag(values: flags.FlagValues, arguments: Sequence[str]) -> None:
  flags.DEFINE_bool(
    'json', False, 'One JSON document on standard output, everything else on standard error.', flag_values=values
  )


def _cycles_flag(values: flags.FlagValues, arguments: Sequence[str]) -> None:
  flags.DEFINE_integer(
    'cycles', None, 'Outcomes in the archive when done, baselines included; default config.search.cycles.',
    lower_bound=1, flag_values=values,
  )  # fmt: skip


def _markdown_flag(values: flags.FlagValues, arguments: Sequence[str]) -> None:
  flags.DEFINE_bool('markdown', False, 'As a Markdown table.', flag_values=values)


def _limit_flag(values: flags.FlagValues, arguments: Sequence[str]) -> None:
  flags.DEFINE_integer('limit', 20, 'Rows to show.', lower_bound=1, flag_values=values)


def _show_flags(values: flags.FlagValues, arguments: Sequence[str]) -> None:
  flags.DEFINE_bool('source', False, 'Also print the source.', flag_values=values)
  flags.DEFINE_bool('trace', False, 'Print what was said to language models for it, and what they answered.',
                    flag_values=values)  # fmt: skip
  flags.DEFINE_bool('diff', False, 'Also print the difference to the parent.', flag_values=values)


def _out_flag(values: flags.FlagValues, arguments: Sequence[str]) -> None:
  flags.DEFINE_string('out', None, 'Folder to write to; default WORKDIR/report.', flag_values=values)


def _rung_flag(values: flags.FlagValues, arguments: Sequence[str]) -> None:
  flags.DEFINE_string('rung', None, 'Highest rung to climb to; default: the top of the ladder.', flag_values=values)


def _claim_flags(values: flags.FlagValues, arguments: Sequence[str]) -> None:
  flags.DEFINE_string('against', None, 'Id or name to claim against; default: search.baseline.', flag_values=values)
  flags.DEFINE_string('rung', None, 'Rung to claim at; default: the fidelity of the search.', flag_values=values)
  flags.DEFINE_list('matched', ['parameters', 'flops', 'seconds'], 'How sizes are matched, each its own test.',
                    flag_values=values)  # fmt: skip
  flags.DEFINE_integer('replicas', None, 'Fresh seeds of each side, 8 at least; default: claims.replicas.',
                       lower_bound=1, flag_values=values)  # fmt: skip


def _evaluate_flags(values: flags.FlagValues, arguments: Sequence[str]) -> None:
  flags.DEFINE_list('tasks', None, "Names that the harness knows; default: zero_shot.tasks, the paper's thirteen.",
                    flag_values=values)  # fmt: skip
  flags.DEFINE_integer('limit', None, 'First items of each task, 0 for all; default: zero_shot.limit.', lower_bound=0,
                       flag_values=values)  # fmt: skip
  flags.DEFINE_integer('max_length', None, 'Tokens that the model is shown at most; default: what it was trained at.',
                       lower_bound=2, flag_values=values)  # fmt: skip
  flags.DEFINE_string('include', None, 'Folder of task files (YAML) of your own; default: zero_shot.include.',
                      flag_values=values)  # fmt: skip
  flags.DEFINE_string('tokenizer', None, 'bytes, or a tokenizers JSON file, where the corpus is gone.',
                      flag_values=values)  # fmt: skip


def _arms_flags(values: flags.FlagValues, arguments: Sequence[str]) -> None:
  flags.DEFINE_list('arms', ['search', 'no_search', 'placebo'],
                    'Two or more of search, evolution, llm, no_search, random, placebo; lifts are of the first.',
                    flag_values=values)  # fmt: skip
  flags.DEFINE_integer('top', 3, 'Best entries of each run that are trained anew.', lower_bound=1, flag_values=values)
  flags.DEFINE_integer('repeats', 1, 'Runs of each arm, each with another seed.', lower_bound=1, flag_values=values)


def _by_flag(values: flags.FlagValues, arguments: Sequence[str]) -> None:
  flags.DEFINE_enum('by', 'auto', ['auto', 'genome', 'diff'], 'Parts: fields of the genome, hunks of the difference to '
                    'the parent, or the genome where there is one.', flag_values=values)  # fmt: skip


def _scale_flags(values: flags.FlagValues, arguments: Sequence[str]) -> None:
  flags.DEFINE_list('factors', ['0.5', '0.75', '1', '1.5'], 'Widths over model.width, four or more; steps grow with '
                    'their square.', flag_values=values)  # fmt: skip
  flags.DEFINE_integer('seeds', 3, 'Replicas at each size.', lower_bound=1, flag_values=values)
  flags.DEFINE_string('against', None, 'Id or name to compare with; default: search.baseline.', flag_values=values)


def _parent_flag(values: flags.FlagValues, arguments: Sequence[str]) -> None:
  flags.DEFINE_string('parent', None, 'Id or name of the entry that it was made from.', flag_values=values)


def _export_flags(values: flags.FlagValues, arguments: Sequence[str]) -> None:
  flags.DEFINE_string('out', None, 'Folder to write; must not exist.', flag_values=values, required=True)
  flags.DEFINE_bool('vendor', False, 'Bring the kernels along in their XLA form: jax and flax are all it needs.',
                    flag_values=values)  # fmt: skip


def _dump_flags(values: flags.FlagValues, arguments: Sequence[str]) -> None:
  flags.DEFINE_string('out', None, 'File to write: JSON lines, compressed if it ends in .gz or .xz; must not exist.',
                      flag_values=values, required=True)  # fmt: skip
  flags.DEFINE_bool('arrays', True, 'With parameters; --noarrays keeps records alone.', flag_values=values)


def _tabulate_flags(values: flags.FlagValues, arguments: Sequence[str]) -> None:
  flags.DEFINE_string('out', None, 'File to write, *.json.xz; must not exist.', flag_values=values, required=True)


def _replay_flags(values: flags.FlagValues, arguments: Sequence[str]) -> None:
  flags.DEFINE_string('table', None, 'File that asiarch tabulate wrote; default: the one of the package.',
                      flag_values=values)  # fmt: skip
  flags.DEFINE_list('parts', None, 'What to compare; default: all of it.', flag_values=values)
  flags.DEFINE_integer('replays', 40, 'Replays behind each mean.', lower_bound=2, flag_values=values)
  flags.DEFINE_integer('draws', 40, 'Designs that a search measures.', lower_bound=1, flag_values=values)
  flags.DEFINE_integer('designs', 60, 'Designs to promote from and to believe of.', lower_bound=4, flag_values=values)
  flags.DEFINE_integer('seeds', 2, 'Replicas of a design that a search and a rule see.', lower_bound=1,
                       flag_values=values)  # fmt: skip
  flags.DEFINE_integer('seed', 0, 'Of the luck of all replays.', lower_bound=0, flag_values=values)


def _prepare_flags(values: flags.FlagValues, arguments: Sequence[str]) -> None:
  flags.DEFINE_string('out', None, 'Folder to make; must not exist.', flag_values=values, required=True)
  flags.DEFINE_string('tokenizer', 'bytes', 'bytes, or a Hugging Face tokenizers JSON file.', flag_values=values)
  flags.DEFINE_string('text_field', 'text', 'Column or key that holds the text.', flag_values=values)
  flags.DEFINE_string('split', None, 'Split of a Hugging Face data set.', flag_values=values)
  flags.DEFINE_integer('limit_bytes', None, 'Stop after this much text.', lower_bound=1, flag_values=values)


def _plan_flags(values: flags.FlagValues, arguments: Sequence[str]) -> None:
  flags.DEFINE_string('topology', None, 'Slice to compile for, as GENERATION:SHAPE: v5e:16x16, v4:2x2x4, v6e:4x4.',
                      flag_values=values, required=True)  # fmt: skip
  flags.DEFINE_string('rung', '', 'Rung of the experiment; default: the search itself.', flag_values=values)
  flags.DEFINE_float('wall_seconds', 1800.0, 'That the compiler may take.', lower_bound=1.0, flag_values=values)


def _suite_flags(values: flags.FlagValues, arguments: Sequence[str]) -> None:
  flags.DEFINE_string('suite', 'mad-tiny', 'Name of the suite, or list: names and sizes.', flag_values=values)
  flags.DEFINE_integer('seeds', None, 'Runs that differ in seed and data; default: those of the suite.', lower_bound=1,
                       flag_values=values)  # fmt: skip


def _papers_flags(values: flags.FlagValues, arguments: Sequence[str]) -> None:
  flags.DEFINE_string('papers', None, 'Folder of your own papers, beside those of the package.', flag_values=values)
  flags.DEFINE_integer('limit', 3, 'Hits of a search.', lower_bound=1, flag_values=values)


COMMANDS = {
  'search': Command(
    'searching.search',
    'run or continue a search',
    '--config=FILE.py --workdir=DIR',
    'Sends the baselines, then proposals, through check, training and judgement, and archives every outcome in DIR. '
    'Run again, it continues; Ctrl-C loses nothing that is archived.',
    (_config_flag, _workdir_flag, _cycles_flag, _json_flag),
    jobs=True,
  ),
  'verify': Command(
    'verifying.verify',
    'let the best of a search climb to larger models',
    '--workdir=DIR',
    'Chooses entries by their posterior with a limit on false discoveries, measures them on each rung of the '
    "experiment's ladder in rounds that drop the less promising half, and says how far the rungs agree. "
    'Run again, it continues, or lets more climb where the search has gone on.',
    (_begun_config_flag, _workdir_flag, _rung_flag, _json_flag),
    jobs=True,
  ),
  'claim': Command(
    'claiming.claim',
    'test entries on fresh seeds and unread windows',
    '[ID...] --workdir=DIR',
    'Registers the entries as one family, trains both sides anew on seeds that nothing else used, reads the vault '
    'windows once, and prints "shown" or "not shown" for each, Holm-corrected, at matched parameters, FLOPs and time. '
    'Without an id it prints the claims that were made.',
    (_workdir_flag, _claim_flags, _json_flag),
    (0, 100),
    jobs=True,
  ),
  'arms': Command(
    'comparing.compare',
    'compare ways of searching under one budget',
    '--config=FILE.py --workdir=DIR',
    'Runs the search once in each arm, trains the best of each anew on fresh seeds, and prints what the first arm '
    'brings over the others. Run again, it continues.',
    (_config_flag, _workdir_flag, _cycles_flag, _arms_flags, _json_flag),
    jobs=True,
  ),
  'ablate': Command(
    'ablating.ablate',
    'train an entry without each of its parts in turn',
    'ID --workdir=DIR',
    'Takes away one component of a genome, or one hunk of the difference to the parent, at a time, trains what remains '
    'on fresh seeds at matched parameters, and prints what each part is worth with its interval.',
    (_workdir_flag, _by_flag, _json_flag),
    (1, 1),
    jobs=True,
  ),
  'scale': Command(
    'scaling.scale',
    'train an entry and its baseline over several sizes',
    'ID --workdir=DIR',
    'Trains both at four widths or more, tokens in proportion to parameters, fits a law to all of it at once and says '
    'how many times the compute the baseline needs for the same loss, and whether that grows or shrinks with size.',
    (_workdir_flag, _scale_flags, _json_flag),
    (1, 1),
    jobs=True,
  ),
  'tabulate': Command(
    'replaying.tabulate',
    'freeze a search and a rung for the replay bench',
    '--config=FILE.py --workdir=DIR --out=TABLE.json.xz',
    'Searches, measures everybody that climbs on the rung above, and writes all replicas of both with their curves '
    'into one small file. Run again, it continues.',
    (_config_flag, _workdir_flag, _cycles_flag, _rung_flag, _tabulate_flags, _json_flag),
    jobs=True,
  ),
  'replay': Command(
    'replaying.replay',
    'compare policies without training',
    '[--table=TABLE.json.xz] [--config=FILE.py]',
    'Replays searches, promotions, beliefs and early stops on a frozen table and prints how each policy fares, beside '
    'what --config does.',
    (_config_flag, _replay_flags, _json_flag),
  ),
  'check': Command(
    'check',
    'run a mixer file through the gate',
    'FILE.py|BASELINE',
    'Reads the source and runs it, jailed, against the contract of a proposal: shapes, causality, gradients, cost. '
    'Exit status 1 when it is outside.',
    (_config_flag, _scratch_flag, _json_flag),
    (1, 1),
    jobs=True,
  ),
  'train': Command(
    'train',
    'gate, train and measure one mixer',
    'FILE.py|BASELINE',
    'Trains all replicas (seeds x learning rates) in one program and prints held-out bits per byte and task scores.',
    (_config_flag, _scratch_flag, _json_flag),
    (1, 1),
    jobs=True,
  ),
  'evaluate': Command(
    'evaluating.evaluate',
    'ask an entry zero-shot questions',
    'ID|NAME --workdir=DIR [--tasks=piqa,arc_easy]',
    "Runs tasks of EleutherAI's harness (extra [eval]) on the best replica of an entry, whose mixer answers in the "
    'jail, and prints value, standard error and chance level of each. Kept in DIR for the report and for the '
    'comparison with the baseline (docs/ZERO_SHOT.md).',
    (_begun_config_flag, _workdir_flag, _evaluate_flags, _json_flag),
    (1, 1),
    jobs=True,
  ),
  'suite': Command(
    'suite.suite',
    'measure one mixer on a suite of synthetic tasks',
    'FILE.py|BASELINE --suite=NAME',
    'Trains it on every setting of MAD, MQAR or a small choice of them (docs/TASKS.md) and prints accuracies with '
    'their standard errors over seeds, hyper-parameters chosen on a validation split. A setting is a job, so that '
    'Ctrl-C loses one at most and a repeat is free. --suite=list prints the suites.',
    (_config_flag, _scratch_flag, _suite_flags, _json_flag),
    (0, 1),
    jobs=True,
  ),
  'plan': Command(
    'planning.plan',
    'say what a training step would take on a slice of TPUs',
    '[FILE.py|BASELINE] --config=FILE.py --topology=v5e:16x16',
    'Compiles the step of all replicas ahead of time with no TPU present (extra [aot]) and prints memory a device, '
    'exchanges between devices, FLOPs, static time, and what would not fit. Exit status 1 when it does not.',
    (_config_flag, _scratch_flag, _plan_flags, _json_flag),
    (0, 1),
  ),
  'top': Command(
    'top',
    'print the leaderboard of an archive',
    '--workdir=DIR',
    'Entries by held-out bits per byte, with the 95 % interval of the improvement over the baseline.',
    (_workdir_flag, _limit_flag, _json_flag),
  ),
  'show': Command(
    'show',
    'print one outcome',
    'ID --workdir=DIR',
    'Motivation, measurements, findings and analysis of the outcome with this id or name.',
    (_workdir_flag, _show_flags, _json_flag),
    (1, 1),
  ),
  'tree': Command(
    'tree', 'print the lineage', '--workdir=DIR', 'Every outcome under its parent.', (_workdir_flag, _json_flag)
  ),
  'report': Command(
    'report',
    'write the HTML report',
    '--workdir=DIR',
    'One page without network, and its figures as PNG files.',
    (_workdir_flag, _out_flag, _json_flag),
  ),
  'import': Command(
    'importing.bring',
    'bring a mixer of your own into an archive',
    'FILE.py --workdir=DIR [--parent=ID]',
    'Gates, trains, measures, judges and analyses it like any proposal; a search that goes on may breed from it. What '
    'was rejected is archived too, with exit status 1.',
    (_workdir_flag, _parent_flag, _json_flag),
    (1, 1),
    jobs=True,
  ),
  'export': Command(
    'exporting.export',
    'write an entry as a package of its own',
    'ID|NAME --workdir=DIR --out=DIR [--vendor]',
    'The mixer as Flax Linen and NNX, the model it was trained in with its parameters (safetensors, Orbax), '
    'generation, a card with its evidence, an example, and tests that prove it equal to the archived one '
    '(extra [export]).',
    (_workdir_flag, _export_flags, _json_flag),
    (1, 1),
    jobs=True,
  ),
  'dump': Command(
    'sharing.dump',
    'write an archive as one file of JSON lines',
    '--workdir=DIR --out=FILE.jsonl.gz',
    'The experiment, then every outcome with its arrays. asiarch load makes an archive of it again.',
    (_workdir_flag, _dump_flags, _json_flag),
  ),
  'load': Command(
    'sharing.load',
    'make an archive of a dump',
    'FILE --workdir=DIR',
    'Adds what is not there; run again after an interruption, it goes on.',
    (_workdir_flag, _json_flag),
    (1, 1),
  ),
  'merge': Command(
    'sharing.merge',
    'unite archives of one experiment',
    'DIR DIR... --workdir=NEW',
    'What is in several is taken once; the others get new ids and keep their lineage. The archives that are read stay '
    'as they are.',
    (_workdir_flag, _json_flag),
    (2, 100),
  ),
  'config': Command(
    'settings',
    'print every setting with its value',
    '[--config=FILE.py]',
    'Name, value and meaning of each setting, after --config and its overrides. --markdown prints the table of '
    'docs/CONFIGURATION.md.',
    (_config_flag, _markdown_flag, _json_flag),
  ),
  'prepare': Command(
    'prepare',
    'turn text into a corpus',
    'SOURCE --out=DIR',
    'SOURCE is docs (docstrings of the installed libraries), text files, JSON lines, parquet, ArrayRecord, or '
    'hf:NAME_OR_FOLDER (docs/DATA.md).',
    (_prepare_flags, _json_flag),
    (1, 1),
  ),
  'cognition': Command(
    'cognition.cognition',
    'look into the base of papers',
    'search QUERY|list|lint|add FILE',
    'search finds the insights that answer a weakness; list and lint go through all; add checks a JSON file of a paper '
    '(docs/EXTENDING.md) and copies it to --papers=DIR (default papers/).',
    (_papers_flags, _json_flag),
    (1, 2),
  ),
  'doctor': Command(
    'doctor.doctor',
    'say what this machine has and whether a search would run',
    '[--config=FILE.py] [--workdir=DIR]',
    'Looks at versions, devices as a worker sees them, jail, memory, disk, archive, corpus, papers and language model '
    '(one tiny call, if the experiment uses one), a row each, with the remedy where something is amiss. '
    'Exit status 1 when a search would not run.',
    (_config_flag, _run_flag, _json_flag),
  ),
}


def help_text(name: str | None = None) -> str:
  """Returns the help of the program, or of one command."""
  if name is None:
    rows = '\n'.join(f'  {command:9} {row.summary}' for command, row in COMMANDS.items())
    return f'usage: asiarch COMMAND [flags]\n\n{rows}\n\nasiarch COMMAND --help says more.\n'
  command = COMMANDS[name]
  values = flags.FlagValues()
  for define in command.define:
    define(values, ())
  described = '\n'.join(
    f'  --{flag.name}' + ('' if flag.boolean else '=…') + f'\n      {flag.help}'
    for flag in (values[key] for key in values)
    if flag.name not in ('config_override',)
  )
  return f'usage: asiarch {name} {command.usage}\n\n{command.details}\n\nflags:\n{described}\n'


def function(command: Command) -> Callable[[flags.FlagValues, list[str]], int]:
  """Returns what a command runs, imported."""
  module, _, name = command.run.rpartition('.')
  found = importlib.import_module(f'asiarch_jax.commands.{module}' if module else 'asiarch_jax.commands')
  return getattr(found, name)


def main(arguments: Sequence[str], before: Callable[[], None] = lambda: None) -> int:
  """Returns the exit status of `asiarch ARGUMENTS`: 0 done, 1 a check or training failed, 2 usage, 130 interrupted.

  `before` is called before anything of a command is imported.
  """
  if not arguments or arguments[0] in ('--help', '-h', 'help', '--helpfull'):
    print(help_text())
    return 0 if arguments else 2
  name, rest = arguments[0], list(arguments[1:])
  if name not in COMMANDS:
    print(f'asiarch: {name!r} is not a command\n\n{help_text()}', file=sys.stderr)
    return 2
  if any(argument in ('--help', '-h', '-help', '--helpfull') for argument in rest):
    print(help_text(name))
    return 0
  command = COMMANDS[name]
  values = flags.FlagValues()
  try:
    for define in command.define:
      define(values, rest)
    positional = values([f'asiarch {name}', *rest])[1:]
    least, most = command.arguments
    if not least <= len(positional) <= most:
      number = f'{least or "no"}' if least == most else f'{least} or more' if most > 99 else f'at most {most}'
      raise ValueError(f'{name} takes {number} argument{"s"[: number[-1] != "1"]}, got {positional}')
    for empty in [key for key in values if isinstance(values[key].value, str) and not values[key].value]:
      if values[empty].present and empty in PLACES:
        raise ValueError(f'--{empty}= is empty; name a place')
    if '' in positional:
      raise ValueError(f'argument {positional.index("") + 1} of {name} is empty; is a variable of the shell not set?')
    if any(map(CONFIG_FILE.match, rest)) and (fault := _config_fault(command, rest)):
      raise ValueError(fault)
  except (Exception, SystemExit) as error:  # of absl, or of the reader's own config file
    return _refuse(name, _config_fault(command, rest) or _own_fault(error) or _sentence(error))
  try:
    before()
    return _run(name, command, values, positional)
  except KeyboardInterrupt:
    print('interrupted', file=sys.stderr)
    return 128 + signal.SIGINT  # as shells have it, and commands


def _run(name: str, command: Command, values: flags.FlagValues, positional: list[str]) -> int:
  from asiarch_jax import commands
  from asiarch_jax.commands import together

  run = function(command)
  try:
    return together.run(run, values, positional) if command.jobs else run(values, positional)
  except BrokenPipeError:
    raise
  except (
    commands.UsageError,
    ValueError,
    OSError,
    ImportError,
    commands.runners.WorkerStartError,
  ) as error:  # the shell's errors name value, limit and remedy
    return _refuse(name, _sentence(error))


def _sentence(error: BaseException) -> str:
  """Returns what an error says, without the number of an `OSError` and the quotes of a `KeyError`."""
  if missing := re.search(r'Flag (--\w+) must have a value other than None', str(error)):
    return f'{missing[1]} is missing; give {missing[1]}=...'
  if isinstance(error, OSError) and error.strerror:
    return f'{error.filename}: {error.strerror}' if error.filename else str(error.strerror)
  return str(error.args[0] if error.args and isinstance(error, KeyError) else error)


def _own_fault(error: BaseException) -> str:
  """Returns what a config file raised, with its last line; empty where the error is not of one."""
  if "no attribute 'get_config'" in str(error):
    return 'the file of --config defines no get_config(); it returns the experiment'
  frames = traceback.extract_tb(error.__traceback__)
  files = [frame for frame in frames if frame.name in ('get_config', '<module>') and frame.filename != __file__]
  own = [
    frame for frame in files if 'site-packages' not in frame.filename and f'{os.sep}lib{os.sep}' not in frame.filename
  ]
  if not own:
    return ''
  return f'{own[-1].filename}, line {own[-1].lineno}: {type(error).__name__}: {_sentence(error)}'


def _refuse(name: str, reason: str) -> int:
  print(f'asiarch {name}'.rstrip() + f': {reason}', file=sys.stderr)
  return 2


def run() -> None:
  """The entry point of the `asiarch` script. The controller computes nothing: accelerators belong to the workers."""

  def on_processor() -> None:
    os.environ['JAX_PLATFORMS'] = 'cpu'  # read when JAX is imported, which not every command does
    if 'jax' in sys.modules:  # a config file did
      sys.modules['jax'].config.update('jax_platforms', 'cpu')

  # Threads of small matrix products wait for each other busily, which takes cores from the workers.
  os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')
  gc.set_threshold(20_000, 20, 50)  # a report's figures are many objects that live: a tenth of its time, by default
  for stream in (sys.stdout, sys.stderr):
    if isinstance(stream, io.TextIOWrapper):
      stream.reconfigure(errors='replace')  # a terminal that lacks a sign shows another
  try:
    status = main(sys.argv[1:], on_processor)
    if sys.stdout is not None:
      sys.stdout.flush()
  except OSError as error:
    with contextlib.suppress(OSError, ValueError):  # what is left in the buffer has nowhere to go
      os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if isinstance(error, BrokenPipeError):  # whoever reads has read enough
      sys.exit(1)
    status = _refuse('', f'standard output: {_sentence(error)}')
  sys.exit(status)


if __name__ == '__main__':
  run()
