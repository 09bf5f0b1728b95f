"""Trained entries asked zero-shot tasks through EleutherAI's harness: by `asiarch evaluate`, or as a part of a search.

The harness runs here; parameters and requests go to a jailed worker as a folder, answers come back as its arrays. What
was measured is kept in WORKDIR/zero_shot, one JSON file an entry, for the report and for comparisons with the baseline.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from asiarch_jax import config
from asiarch_jax.commands import UsageError
from asiarch_jax.commands.asked import OnProgress, Reading, put
from asiarch_jax.evidence import task_noise
from asiarch_jax.records import Entry, Failure, JobResult, Timing, ZeroShot, ZeroShotScore, total
from asiarch_jax.shell import corpus as corpora
from asiarch_jax.shell import questions, text_encoding, zero_shot


class UnansweredError(Exception):
  """A worker gave no answers; `failure` says why."""

  def __init__(self, failure: Failure):
    super().__init__(failure.reason)
    self.failure = failure


class Examination:
  """The same questions for every entry of a workdir; a `ports.Examiner`.

  One entry is asked at a time: the harness keeps what it is at in its tasks.

  Args:
    workdir: where jobs and what was measured are kept.
    experiment: sizes of the models.
    asking: tasks, items and length, with nothing left open.
    encoding: the tokenizer that entries were trained with.
    reading: gives a runner whose jobs read a folder.

  Raises:
    UsageError: the harness is not installed.
    FileNotFoundError, ValueError: a task is unknown, or its data cannot be read.
  """

  def __init__(
    self,
    workdir: str | os.PathLike[str],
    experiment: config.Experiment,
    asking: config.ZeroShot,
    encoding: text_encoding.Encoding,
    reading: Reading,
  ):
    self._workdir, self._experiment, self._asking, self._encoding = workdir, experiment, asking, encoding
    self._reading = reading
    self._harness = harness()
    self._one = threading.Lock()
    with contextlib.redirect_stdout(sys.stderr):  # whatever data sets and metrics print
      self._tasks = self._harness.tasks(asking.tasks, asking.include or None)

  def __call__(self, entry: Entry, parameters: Mapping[str, Any], on_progress: OnProgress | None = None) -> JobResult:
    """Returns one accuracy a task, the first that it names, or the failure of the worker, and the time it took."""
    spans: list[Timing] = []
    try:
      measured = self.measured(entry, parameters, on_progress, spans)
    except UnansweredError as error:
      return JobResult(entry.job_key, failure=error.failure, timing=total(*spans))
    return JobResult(entry.job_key, scores=task_noise.accuracies(measured), timing=total(*spans))

  def measured(
    self,
    entry: Entry,
    parameters: Mapping[str, Any],
    on_progress: OnProgress | None = None,
    spans: list[Timing] | None = None,
  ) -> ZeroShot:
    """Returns every metric of the tasks, and keeps it. `spans` takes the time of each job that was run for it.

    Raises:
      UnansweredError: the worker failed.
    """
    spans = [] if spans is None else spans

    def answers(requests: Sequence[questions.Request]) -> list[questions.Answer]:
      asks = (requests, self._terms(), self._encoding, parameters)
      result, arrays = put(self._workdir, entry, self._experiment, 'answer', asks, self._reading, on_progress)
      spans.append(result.timing)
      if result.failure is not None:
        raise UnansweredError(result.failure)
      try:
        return questions.unpack(arrays, len(requests))
      except ValueError as error:
        raise UnansweredError(Failure('forged', str(error))) from error

    with self._one, contextlib.redirect_stdout(sys.stderr):
      model = self._harness.Model(self._encoding, answers, self._asking.max_length)
      rows = self._harness.measure(model, self._tasks, self._asking.limit or None)
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
        for one in rows
      )
    result = ZeroShot(
      entry.id, entry.proposal.name, self._asking.limit, self._asking.max_length, self._harness.VERSION, scores
    )
    zero_shot.keep(self._workdir, result)
    return result

  def _terms(self) -> questions.Terms:
    length = self._experiment.training.length
    return questions.Terms(
      max_length=self._asking.max_length,
      tokens_per_call=max(self._experiment.evaluation.batch * length, self._asking.max_length),
      vocabulary=self._encoding.vocabulary,
      end=self._encoding.end,
    )


def examiner(
  experiment: config.Experiment,
  workdir: str | os.PathLike[str],
  corpus: str,
  reading: Reading,
  say: Callable[[str], None],
) -> Examination | None:
  """Returns who asks the trained entries of a search, None where the search asks nothing.

  Raises:
    UsageError, FileNotFoundError, ValueError: as `Examination`; a search that cannot ask does not begin.
  """
  if not experiment.zero_shot.in_search:
    return None
  asking = of_settings(experiment)
  say(f'reading {", ".join(asking.tasks)}')
  return Examination(workdir, experiment, asking, encoding_of(None, experiment, corpus), reading)


def of_settings(experiment: config.Experiment) -> config.ZeroShot:
  """Returns what the settings ask: a length of zero is what the model is trained at."""
  chosen = experiment.zero_shot
  return dataclasses.replace(chosen, max_length=chosen.max_length or experiment.training.length)


def harness() -> Any:
  """Returns `shell.harness`, which needs the extra.

  Raises:
    UsageError: it is not installed.
  """
  os.environ.setdefault('TQDM_DISABLE', '1')  # it would draw a bar for every task of every entry
  try:
    return importlib.import_module('asiarch_jax.shell.harness')
  except ImportError as error:
    raise UsageError(f"EleutherAI's harness is not installed ({error}); pip install 'asiarch-jax[eval]'") from error


def encoding_of(given: str | None, experiment: config.Experiment, corpus: str) -> text_encoding.Encoding:
  """Returns the tokenizer that entries were trained with. `corpus` is the content hash of their text.

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
