"""`asiarch evaluate`: an archived entry on tasks of EleutherAI's harness, its mixer answering in the jail."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence

from absl import flags
from rich.table import Table

from asiarch_jax import commands, config
from asiarch_jax.commands import UsageError, examining
from asiarch_jax.commands.asked import reader, trained, unanswered
from asiarch_jax.evidence import task_noise
from asiarch_jax.records import Outcome, ZeroShot, entries_of, to_json
from asiarch_jax.shell import archive as archives
from asiarch_jax.shell import zero_shot
from asiarch_jax.shell.display import Display


def evaluate(values: flags.FlagValues, arguments: list[str]) -> int:
  examining.harness()  # before anything is opened
  with archives.OrbaxArchive.open_read_only(values.workdir) as archive:
    outcomes = archive.outcomes()
    entry = trained(commands.named(arguments[0], outcomes))
    parameters = archive.arrays(entry.id)
    experiment = archive.experiment
  if not parameters:
    raise UsageError(f'entry {entry.id} ({entry.proposal.name}) has no parameters in the archive; nothing can be asked')
  corpus = archives.read_header(values.workdir).corpus
  if values.config is not None:
    chosen = commands.experiment_of(values)
    experiment = dataclasses.replace(experiment, zero_shot=chosen.zero_shot, runner=chosen.runner)
  asking = wanted(values, experiment)
  encoding = examining.encoding_of(values.tokenizer, experiment, corpus)
  with Display() as display, commands.terminable():
    jail = commands.choose_jail(experiment, display)
    display.line(f'reading {", ".join(asking.tasks)}', 'dim')
    reading = reader(values.workdir, experiment, jail)
    examination = examining.Examination(values.workdir, experiment, asking, encoding, reading)
    display.start_cycle(0, 1, None)
    try:
      result = examination.measured(entry, parameters, display.progress)
    except examining.UnansweredError as error:
      raise unanswered(entry, error.failure) from error
  base = _base(values.workdir, outcomes, experiment, result)
  compared = _compared(result, base, experiment) if base is not None else None
  if values.json:
    document = {'result': to_json(result), 'against': to_json(compared) if compared else None}
    print(json.dumps(document))
  else:
    _say(result, compared, experiment.search.baseline)
  return 0


@dataclasses.dataclass(frozen=True)
class Compared:
  """Mean accuracies of an entry and of the baseline on the same tasks, and the task term that they would make.

  `tasks` are those with an accuracy on both sides. `moved` is the term of an entry that equals the baseline and was
  measured one standard error too high.
  """

  tasks: tuple[str, ...]
  mean: float
  stderr: float
  base: float
  base_stderr: float
  term: float
  moved: float


def wanted(values: flags.FlagValues, experiment: config.Experiment) -> config.ZeroShot:
  """Returns what is to be asked: flags go before settings, and a length of zero is what the model was trained at.

  Raises:
    UsageError: no task is named.
  """
  chosen = examining.of_settings(experiment)
  names = tuple(name.strip() for name in values.tasks or () if name.strip())
  if not (names or chosen.tasks):
    raise UsageError('no task is named: --tasks=piqa,arc_easy, or zero_shot.tasks of the experiment')
  return dataclasses.replace(
    chosen,
    tasks=names or chosen.tasks,
    limit=chosen.limit if values.limit is None else values.limit,
    max_length=values.max_length or chosen.max_length,
    include=values.include or chosen.include,
  )


def _base(
  workdir: str, outcomes: Sequence[Outcome], experiment: config.Experiment, result: ZeroShot
) -> ZeroShot | None:
  """Returns what the baseline was measured at under the same conditions, None where it was not or is the one."""
  for entry in entries_of(outcomes):
    if entry.role == 'baseline' and entry.proposal.name == experiment.search.baseline and entry.id != result.entry:
      return next((one for one in zero_shot.of(workdir, entry.id) if one.conditions == result.conditions), None)
  return None


def _compared(result: ZeroShot, base: ZeroShot, experiment: config.Experiment) -> Compared | None:
  ours, theirs = task_noise.accuracies(result), task_noise.accuracies(base)
  shared = tuple(score.task for score in ours if score.task in {other.task for other in theirs})
  mean, reference = task_noise.mean_accuracy(ours, shared), task_noise.mean_accuracy(theirs, shared)
  if mean is None or reference is None:
    return None
  both = math.hypot(mean.stderr, reference.stderr)
  rule = experiment.fitness
  return Compared(
    shared,
    mean.value,
    mean.stderr,
    reference.value,
    reference.stderr,
    task_noise.moved(mean.value - reference.value, reference.value, rule),
    task_noise.moved(both, reference.value, rule),
  )


def _say(result: ZeroShot, compared: Compared | None, baseline: str) -> None:
  console = commands.standard_output()
  table = Table(title=f'#{result.entry} {result.name}', title_justify='left')
  for name in ('task', 'metric', 'value', 'standard error', 'chance', 'items', 'cut'):
    table.add_column(name, justify='left' if name in ('task', 'metric') else 'right')
  for score in result.scores:
    error = _number(score.stderr) if math.isfinite(score.stderr) else '–'
    chance = f'{score.chance:.4f}' if score.chance is not None else ''
    table.add_row(score.task, score.metric, _number(score.value), error, chance, str(score.n), str(score.cut or ''))
  console.print(table)
  if any(score.cut for score in result.scores):
    console.print(
      f'cut: requests longer than {result.max_length} tokens, which lost their left end; --max_length shows more',
      soft_wrap=True,
    )
  mean = task_noise.mean_accuracy(task_noise.accuracies(result))
  if mean is not None and mean.tasks > 1:
    console.print(f'mean accuracy of {mean.tasks} tasks: {mean.value:.4f} ± {mean.stderr:.4f}')
  if compared is not None:
    console.print(
      f'{baseline} on the same {len(compared.tasks)}: {compared.base:.4f} ± {compared.base_stderr:.4f}; the task term '
      f'would be {compared.term:.2f}, and one standard error of the difference moves it from 0.50 to '
      f'{compared.moved:.2f}',
      soft_wrap=True,
    )


def _number(value: float) -> str:
  """Returns four decimals, or of what is large (a perplexity of an untrained model) four digits."""
  return f'{value:.4f}' if abs(value) < 1000 else f'{value:.3e}'
