"""EleutherAI's evaluation harness: its tasks and its scoring, with a model that answers elsewhere.

The harness reads data sets, writes prompts and counts what is right; it runs in the controller and never sees a mixer.
A model is asked through `ask`, requests in and answers out, which the command line leads into a jailed worker.

Importing this module needs `lm_eval` (extra `[eval]`), which brings no PyTorch.
"""

from __future__ import annotations

import collections
import dataclasses
import difflib
import importlib.metadata
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import datasets
import lm_eval
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.tasks import TaskManager

from asiarch_jax.shell.questions import Answer, Request
from asiarch_jax.shell.text_encoding import Encoding

Ask = Callable[[Sequence[Request]], Sequence[Answer]]
VERSION = importlib.metadata.version('lm_eval')
MOST = 256  # tokens generated where a task does not say; the harness's own default
LIMITS = ('max_gen_toks', 'max_new_tokens', 'max_tokens', 'max_completion_tokens')  # its names for it, first goes first


@dataclasses.dataclass(frozen=True)
class Measured:
  """One metric of one task: its value, and the items it was aggregated from, so that an error can be told.

  `items` are what the task gave for each document: numbers, or pairs of a sum and a weight. `aggregate(items)` is
  `value`. `chance` is the accuracy of guessing, None where the metric is no accuracy.
  """

  task: str
  metric: str
  value: float
  items: tuple[Any, ...]
  aggregate: Callable[[list[Any]], float]
  chance: float | None
  cut: int


class Model(TemplateLM):
  """A model as the harness wants it; all that is ours is how text becomes ids and who is asked.

  Requests that are alike are asked once. Sampling is refused: decoding is greedy.
  """

  def __init__(self, encoding: Encoding, ask: Ask, max_length: int) -> None:
    super().__init__()
    self.encoding, self.max_length, self._ask = encoding, max_length, ask
    self.cut: collections.Counter[str] = collections.Counter()

  @property
  def eot_token_id(self) -> int:
    return self.encoding.end

  @property
  def tokenizer_name(self) -> str:
    return self.encoding.name

  def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
    # Zero characters are taken out of corpora, too: byte 0 ends a document.
    return self.encoding.encode(string.replace('\0', '')).tolist() if string else []

  def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
    """As `TemplateLM`, which says what belongs to a continuation; nothing is an answer too, of probability one."""
    asked = []
    for request in requests:
      context, continuation = request.args
      context_ids, ids = self._encode_pair(context, continuation) if context else ([], self.tok_encode(continuation))
      if not context_ids and ids[:1] != [self.eot_token_id]:
        context_ids = [self.eot_token_id]
      elif not context_ids:
        context_ids, ids = ids[:1], ids[1:]
      self._count_cut(request, len(context_ids) + len(ids) - 1)
      asked.append(Request((*context_ids, *ids), scored=len(ids)))
    return [(answer.nats, answer.greedy) for answer in self._answers(asked)]

  def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
    """The log-probability of whole texts after an end token, in consecutive windows where they are long."""
    asked = []
    for request in requests:
      ids = self.tok_encode(request.args[0])
      asked.append(Request((self.eot_token_id, *ids), scored=len(ids)))
    return [answer.nats for answer in self._answers(asked)]

  def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
    """Greedy continuations, cut before the first stop string.

    Raises:
      ValueError: a task wants its text sampled.
    """
    asked = []
    for request in requests:
      context, wanted = request.args
      if wanted.get('do_sample') and wanted.get('temperature', 1.0) > 0:
        raise ValueError(
          f'{request.task_name} samples its text ({wanted}); decoding here is greedy: set do_sample: false'
        )
      until = wanted.get('until') or []
      stops = tuple(stop for stop in ([until] if isinstance(until, str) else until) if stop)
      most = int(next((wanted[name] for name in LIMITS if wanted.get(name) is not None), MOST))
      ids = self.tok_encode(context) or [self.eot_token_id]
      self._count_cut(request, len(ids) + most)
      asked.append(Request(tuple(ids), most=most, stops=stops))
    answers = self._answers(asked)
    return [self._cut_at_stops(answer, request.stops) for answer, request in zip(answers, asked, strict=True)]

  def _cut_at_stops(self, answer: Answer, stops: Sequence[str]) -> str:
    text = self.encoding.decode(answer.following)
    for stop in stops:
      text = text.split(stop)[0]
    return text

  def _loglikelihood_tokens(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
    asked = [Request((*context, *ids), scored=len(ids)) for _, context, ids in requests]
    return [(answer.nats, answer.greedy) for answer in self._answers(asked)]

  def _answers(self, requests: Sequence[Request]) -> list[Answer]:
    different = list(dict.fromkeys(requests))
    answers = dict(zip(different, self._ask(different), strict=True)) if different else {}
    return [answers[request] for request in requests]

  def _count_cut(self, request: Instance, length: int) -> None:
    self.cut[request.task_name] += length > self.max_length


def tasks(names: Sequence[str], include: str | None = None) -> dict[str, Any]:
  """Returns the harness's tasks by name, groups and tags as what is in them, with their data read.

  `include` is a folder of task files (YAML, as the harness has them), which go before tasks of the same name. Where it
  has all names, the thousands of tasks that come with the harness are not looked through.

  Raises:
    FileNotFoundError: there is no such folder.
    ValueError: a name is unknown (the nearest is said), or its data cannot be read (why is said).
  """
  logging.getLogger('lm_eval').setLevel(logging.ERROR)  # it warns of every default that a task file leaves to it
  datasets.disable_progress_bars()
  if include is not None and not os.path.isdir(include):
    raise FileNotFoundError(f'{include}: no such folder; --include names a folder of task files (YAML)')
  manager = TaskManager(include_path=include, include_defaults=False) if include is not None else None
  if manager is None or not set(names) <= set(manager.all_tasks):
    manager = TaskManager(include_path=include)
  unknown = [name for name in names if name not in manager.all_tasks]
  if unknown:
    near = difflib.get_close_matches(unknown[0], manager.all_tasks, n=3)
    raise ValueError(
      f'{unknown[0]!r} is not a task of lm_eval {VERSION}'
      + (f' or of {include}' if include else '')
      + (f'; did you mean {", ".join(near)}?' if near else '; `lm-eval ls tasks` lists them')
    )
  found: dict[str, Any] = {}
  for name in dict.fromkeys(names):
    try:
      found |= manager.load([name])['tasks']
    except Exception as error:  # whatever the data-set library and what is below it raise
      first = next((line for line in str(error).splitlines() if line.strip()), '')
      raise ValueError(
        f'the data of {name} cannot be read: {type(error).__name__}: {first[:300]}\n'
        'Data sets come over the network on first use and are kept; without it, name a folder of task files with local '
        'data (--include, docs/ZERO_SHOT.md)'
      ) from error
  return found


def measure(model: Model, chosen: Mapping[str, Any], limit: int | None) -> list[Measured]:
  """Returns every metric of the tasks on their first `limit` items, None for all, in the order that tasks name them.

  Standard errors are left to the caller: the harness has none for several of these metrics.
  """
  results = lm_eval.simple_evaluate(
    model=model,
    tasks=list(chosen.values()),
    limit=limit,
    bootstrap_iters=0,
    log_samples=True,
    task_manager=TaskManager(include_defaults=False),
  )
  rows = []
  for name, task in chosen.items():
    samples = results['samples'][name]
    filters = dict.fromkeys(sample['filter'] for sample in samples)
    aggregations, chance = task.aggregation(), _chance(task, samples)
    for filter_ in filters:
      mine = [sample for sample in samples if sample['filter'] == filter_]
      for metric in mine[0]['metrics']:
        named = metric if filter_ == 'none' else f'{metric},{filter_}'
        value = results['results'][name][f'{metric},{filter_}']
        items = tuple(sample[metric] for sample in mine)
        guessed = chance if metric in ACCURACIES else None
        rows.append(Measured(name, named, float(value), items, aggregations[metric], guessed, model.cut[name]))
  return rows


ACCURACIES = ('acc', 'acc_norm', 'exact_match', 'contains')


def _chance(task: Any, samples: Sequence[Mapping[str, Any]]) -> float:
  """Returns the accuracy of guessing: one over the choices, averaged over items; of a free answer it is zero."""
  if task.OUTPUT_TYPE != 'multiple_choice':
    return 0.0
  halves = 2 if 'acc_mutual_info' in samples[0]['metrics'] else 1  # which asks each choice again without context
  return sum(halves / len(sample['arguments']) for sample in samples) / len(samples)
