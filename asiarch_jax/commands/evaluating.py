"""`asiarch evaluate`: an archived entry on tasks of EleutherAI's harness, its mixer answering in the jail.

The harness runs here; parameters and requests go to a worker as a folder, answers come back as its arrays. What was
measured is kept in WORKDIR/zero_shot, one JSON file an entry, for the report and for the comparison with the baseline.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags
from rich.table import Table

from asiarch_jax import commands, config
from asiarch_jax.commands import UsageError
from asiarch_jax.commands.asked import asked, trained
from asiarch_jax.evidence import task_noise
from asiarch_jax.records import (
  Entry,
  Outcome,
  ZeroShot,
  ZeroShotScore,
  entries_of,
  to_json,
)
from asiarch_jax.shell import archive as archives
from asiarch_jax.shell import corpus as corpora
from asiarch_jax.shell import questions, text_encoding, zero_shot
from asiarch_jax.shell.display import Display


def evaluate(values: flags.FlagValues, arguments: list[str]) -> int:
  harness = _harness()
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
  encoding = _encoding(values.tokenizer, experiment, corpus)
  with Display() as display, commands.terminable():
    jail = commands.choose_jail(experiment, display)
    display.line(f'reading {", ".join(asking.tasks)}', 'dim')
    with contextlib.redirect_stdout(sys.stderr):  # whatever data sets and metrics print
      tasks = harness.tasks(asking.tasks, values.include)
    asked = _Asked(values.workdir, entry, experiment, parameters, encoding, asking.max_length, jail, display)
    display.start_cycle(0, 1, None)
    model = harness.Model(encoding, asked.answers, asking.max_length)
    with contextlib.redirect_stdout(sys.stderr):
      measured = harness.measure(model, tasks, asking.limit or None)
  scores = tuple(
    ZeroShotScore(
      one.task,
      one.metric,
      one.value,
      task_noise.jackknife(one.aggregate, one.items),
      len(one.items),
      one.chance,
      one.cut,
    )
    for one in measured
  )
  result = ZeroShot(entry.id, entry.proposal.name, asking.limit, asking.max_length, harness.VERSION, scores)
  zero_shot.keep(values.workdir, result)
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


@dataclasses.dataclass
class _Asked:
  """The jailed model: a job for each list of requests."""

  workdir: str
  entry: Entry
  experiment: config.Experiment
  parameters: Mapping[str, Any]
  encoding: text_encoding.Encoding
  max_length: int
  jail: str
  display: Display

  def answers(self, requests: Sequence[questions.Request]) -> list[questions.Answer]:
    """Returns the answers to the requests; those that were given before are not computed again.

    Raises:
      UsageError: the worker failed; says in what.
    """
    training = self.experiment.training
    terms = questions.Terms(
      max_length=self.max_length,
      tokens_per_call=max(self.experiment.evaluation.batch * training.length, self.max_length),
      vocabulary=self.encoding.vocabulary,
      end=self.encoding.end,
    )
    arrays = asked(
      self.workdir, self.entry, self.experiment, 'answer', (requests, terms, self.encoding, self.parameters), self.jail,
      self.display,
    )[1]  # fmt: skip
    return questions.unpack(arrays, len(requests))


def _harness() -> Any:
  """Returns `shell.harness`, which needs the extra.

  Raises:
    UsageError: it is not installed.
  """
  try:
    return importlib.import_module('asiarch_jax.shell.harness')
  except ImportError as error:
    raise UsageError(f"EleutherAI's harness is not installed ({error}); pip install 'asiarch-jax[eval]'") from error


def wanted(values: flags.FlagValues, experiment: config.Experiment) -> config.ZeroShot:
  """Returns what is to be asked: flags go before settings, and a length of zero is what the model was trained at.

  Raises:
    UsageError: no task is named.
  """
  chosen = experiment.zero_shot
  names = tuple(name.strip() for name in values.tasks or () if name.strip())
  limit = chosen.limit if values.limit is None else values.limit
  length = values.max_length or chosen.max_length or experiment.training.length
  if not (names or chosen.tasks):
    raise UsageError('no task is named: --tasks=piqa,arc_easy, or zero_shot.tasks of the experiment')
  return config.ZeroShot(names or chosen.tasks, limit, length)


def _encoding(given: str | None, experiment: config.Experiment, corpus: str) -> text_encoding.Encoding:
  """Returns the tokenizer that the entry was trained with.

  Raises:
    UsageError: it is gone and none is named, or another one is named.
  """
  path, trained, own = experiment.corpus.path, text_encoding.BYTES, text_encoding.BYTES
  if path != 'docs':
    try:
      card = corpora.read_card(path)
    except FileNotFoundError as error:
      if given is None:
        raise UsageError(
          f'{path}, which this archive was trained on, is gone, and with it the tokenizer; '
          'name it: --tokenizer=tokenizer.json, or bytes'
        ) from error
      trained = ''
    else:
      if card.content_hash != corpus:
        raise UsageError(f'{path} holds another corpus than the archive was trained on; bring that one back')
      trained = card.tokenizer
      if trained != text_encoding.BYTES:
        own = os.path.join(path, corpora.TOKENIZER)
  encoding = text_encoding.encoding(given or own)
  if trained and encoding.name != trained:
    raise UsageError(
      f'--tokenizer={given} is {encoding.name} and the entry was trained with {trained}; leave the flag out'
    )
  if encoding.vocabulary > experiment.model.vocabulary:
    raise UsageError(
      f'the tokenizer has {encoding.vocabulary} ids and the model {experiment.model.vocabulary}: '
      'it is not the one that the entry was trained with'
    )
  return encoding


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
