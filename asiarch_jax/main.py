"""The command line: `asiarch COMMAND [flags]`, or `python -m asiarch_jax.main COMMAND [flags]`."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence

import jax
from absl import flags
from ml_collections import config_flags

from asiarch_jax import commands
from asiarch_jax.commands import UsageError, cognition, doctor, searching


@dataclasses.dataclass(frozen=True)
class Command:
  """A row of COMMANDS: what it does, for whom, and the flags it takes."""

  run: Callable[[flags.FlagValues, list[str]], int]
  summary: str
  usage: str
  details: str
  define: Sequence[Callable[[flags.FlagValues, Sequence[str]], None]]
  arguments: tuple[int, int] = (0, 0)  # least and most positional arguments


def _config_flag(values: flags.FlagValues, arguments: Sequence[str]) -> None:
  config_flags.DEFINE_config_file(
    'config',
    None,
    'Python file whose get_config() returns the experiment; --config.KEY=VALUE overrides one setting '
    '(docs/CONFIGURATION.md lists them). Default: the offline search.',
    flag_values=values,
    sys_argv=['asiarch', *arguments],
  )


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


def _prepare_flags(values: flags.FlagValues, arguments: Sequence[str]) -> None:
  flags.DEFINE_string('out', None, 'Folder to make; must not exist.', flag_values=values, required=True)
  flags.DEFINE_string('tokenizer', 'bytes', 'bytes, or a Hugging Face tokenizers JSON file.', flag_values=values)
  flags.DEFINE_string('text_field', 'text', 'Column or key that holds the text.', flag_values=values)
  flags.DEFINE_string('split', None, 'Split of a Hugging Face data set.', flag_values=values)
  flags.DEFINE_integer('limit_bytes', None, 'Stop after this much text.', lower_bound=1, flag_values=values)


def _papers_flags(values: flags.FlagValues, arguments: Sequence[str]) -> None:
  flags.DEFINE_string('papers', None, 'Folder of your own papers, beside those of the package.', flag_values=values)
  flags.DEFINE_integer('limit', 3, 'Hits of a search.', lower_bound=1, flag_values=values)


COMMANDS = {
  'search': Command(
    searching.search,
    'run or continue a search',
    '--config=FILE.py --workdir=DIR',
    'Sends the baselines, then proposals, through check, training and judgement, and archives every outcome in DIR. '
    'Run again, it continues; Ctrl-C loses nothing that is archived.',
    (_config_flag, _workdir_flag, _cycles_flag, _json_flag),
  ),
  'check': Command(
    commands.check,
    'run a mixer file through the gate',
    'FILE.py|BASELINE',
    'Reads the source and runs it, jailed, against the contract of a proposal: shapes, causality, gradients, cost. '
    'Exit status 1 when it is outside.',
    (_config_flag, _scratch_flag, _json_flag),
    (1, 1),
  ),
  'train': Command(
    commands.train,
    'gate, train and measure one mixer',
    'FILE.py|BASELINE',
    'Trains all replicas (seeds x learning rates) in one program and prints held-out bits per byte and task scores.',
    (_config_flag, _scratch_flag, _json_flag),
    (1, 1),
  ),
  'top': Command(
    commands.top,
    'print the leaderboard of an archive',
    '--workdir=DIR',
    'Entries by held-out bits per byte, with the 95 % interval of the improvement over the baseline.',
    (_workdir_flag, _limit_flag, _json_flag),
  ),
  'show': Command(
    commands.show,
    'print one outcome',
    'ID --workdir=DIR',
    'Motivation, measurements, findings and analysis of the outcome with this id or name.',
    (_workdir_flag, _show_flags, _json_flag),
    (1, 1),
  ),
  'tree': Command(
    commands.tree, 'print the lineage', '--workdir=DIR', 'Every outcome under its parent.', (_workdir_flag, _json_flag)
  ),
  'report': Command(
    commands.report,
    'write the HTML report',
    '--workdir=DIR',
    'One page without network, and its figures as PNG files.',
    (_workdir_flag, _out_flag, _json_flag),
  ),
  'config': Command(
    commands.settings,
    'print every setting with its value',
    '[--config=FILE.py]',
    'Name, value and meaning of each setting, after --config and its overrides. --markdown prints the table of '
    'docs/CONFIGURATION.md.',
    (_config_flag, _markdown_flag, _json_flag),
  ),
  'prepare': Command(
    commands.prepare,
    'turn text into a corpus',
    'SOURCE --out=DIR',
    'SOURCE is docs (docstrings of the installed libraries), text files, JSON lines, parquet, ArrayRecord, or '
    'hf:NAME_OR_FOLDER (docs/DATA.md).',
    (_prepare_flags, _json_flag),
    (1, 1),
  ),
  'cognition': Command(
    cognition.cognition,
    'look into the base of papers',
    'search QUERY|list|lint|add FILE',
    'search finds the insights that answer a weakness; list and lint go through all; add checks a JSON file of a paper '
    '(docs/EXTENDING.md) and copies it to --papers=DIR (default papers/).',
    (_papers_flags, _json_flag),
    (1, 2),
  ),
  'doctor': Command(
    doctor.doctor,
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


def main(arguments: Sequence[str]) -> int:
  """Returns the exit status of `asiarch ARGUMENTS`: 0 done, 1 a check or training failed, 2 usage, 130 interrupted."""
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
  for define in command.define:
    define(values, rest)
  try:
    positional = values([f'asiarch {name}', *rest])[1:]
    least, most = command.arguments
    if not least <= len(positional) <= most:
      raise UsageError(f'{name} takes {least or "no"} argument{"s"[: least != 1]}, got {positional}')
  except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError, ImportError, SyntaxError) as error:
    return _refuse(name, _sentence(error))
  except UsageError as error:
    return _refuse(name, str(error))
  try:
    return command.run(values, positional)
  except UsageError as error:
    return _refuse(name, str(error))
  except (
    ValueError,
    OSError,
    ImportError,
    commands.runners.WorkerStartError,
  ) as error:  # the shell's errors name value, limit and remedy
    return _refuse(name, _sentence(error))
  except KeyboardInterrupt:
    print('interrupted', file=sys.stderr)
    return commands.INTERRUPTED


def _sentence(error: BaseException) -> str:
  """Returns what an error says, without the number of an `OSError` and the quotes of a `KeyError`."""
  if isinstance(error, OSError) and error.strerror:
    return f'{error.filename}: {error.strerror}' if error.filename else str(error.strerror)
  return str(error.args[0] if error.args and isinstance(error, KeyError) else error)


def _refuse(name: str, reason: str) -> int:
  print(f'asiarch {name}: {reason}', file=sys.stderr)
  return 2


def run() -> None:
  """The entry point of the `asiarch` script. The controller computes nothing: accelerators belong to the workers."""
  jax.config.update('jax_platforms', 'cpu')
  sys.exit(main(sys.argv[1:]))


if __name__ == '__main__':
  run()
