"""A search with language models on a local server and a stand-in for training, for tests and for a process of its own.

Usage: python tests/model_team.py WORKDIR URL CYCLES. Everything but the worker and the model behind the protocol is
real: the SDK, retries, agents, cycle, budgets, archive, traces and journal.
"""

import contextlib
import dataclasses
import io
import json
import pathlib
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from rich.console import Console

from asiarch_jax import config, records
from asiarch_jax.commands import searching, staff
from asiarch_jax.shell import archive, display, journal
from tests import fakes, samples
from tests.model_server import Answer, vector_of

KEY = 'AIzaSecretKeyOfTheseTests0123456789'
ROLES = {
  'ProposalReply': 'researcher',
  'RepairReply': 'repairer',
  'RepeatReply': 'novelty',
  'SummaryReply': 'summariser',
  'JudgeReply': 'judge',
  'AnalysisReply': 'analyst',
}


def experiment(url='', cycles=5, **parts):
  """Returns an experiment with models in every place, two baselines, and quick retries."""
  return config.from_dict(
    {
      'search': {
        'baselines': ['delta_net', 'gated_delta_net'], 'anchors': [], 'cycles': cycles, 'cold_start': 1, 'refresh': 1,
        **parts.pop('search', {}),
      },
      'researcher': {'kind': 'llm', 'revive': 0.0, 'embedder': 'lexical', **parts.pop('researcher', {})},
      'judge': {'kind': 'llm', 'calls': 1, **parts.pop('judge', {})},
      'analyst': {'kind': 'llm', **parts.pop('analyst', {})},
      'evidence': {'floor': 1, 'placebo': 0.0, **parts.pop('evidence', {})},
      'llm': {'base_url': url, 'backoff': 0.01, 'pause': 0.05, 'timeout': 20.0, **parts.pop('llm', {})},
      **parts,
    }
  )  # fmt: skip


class Respond:
  """Answers each role with `fakes.REPLIES`, each proposal with another source; or with what is listed for it first.

  A listed dict is a reply, an Answer is given as it is. `seconds` is how long every answer takes.
  """

  def __init__(self, seconds=0.0, **listed):
    self._listed = {role: list(answers) for role, answers in listed.items()}
    self._lock = threading.Lock()
    self._seconds = seconds
    self.count = 0

  def __call__(self, request):
    if request.kind == 'embed':
      return Answer(json=[vector_of(text) for text in request.texts])
    if request.kind == 'model' or 'title' not in request.schema:  # `asiarch doctor` looks who is there
      return Answer(json={'ready': True})
    role = ROLES[request.schema['title']]
    with self._lock:
      self.count += 1
      number = self.count
      answer = self._listed[role].pop(0) if self._listed.get(role) else dict(fakes.REPLIES[role])
    if isinstance(answer, Answer):
      return answer
    if role in ('researcher', 'repairer'):
      answer = {**answer, 'source': f'{answer["source"]}# {number}\n'}
    if role == 'researcher':
      answer['name'] = f'{answer["name"]}_{number}'
    return Answer(json=answer, delay=self._seconds)


def trained(job, seconds=0.0):
  """Returns what training might give: a function of the job's content alone."""
  time.sleep(seconds)
  number = int(job.key[:4], 16)
  entry = samples.entry(3 + number % 97, improvement=(number % 13 - 6) / 100)
  return records.JobResult(
    job.key,
    findings=entry.findings,
    fingerprint=job.source,
    cost=entry.cost,
    training=entry.training if job.kind == 'train' else None,
    scores=entry.scores,
    timing=records.Timing(accelerator_seconds=10.0),
  )


@dataclasses.dataclass
class Rehearsed:
  """What a search left and said."""

  search: searching.Search
  outcomes: list
  said: str
  events: list

  def named(self, event):
    return [line for line in self.events if line['event'] == event]


def rehearse(workdir, chosen, environment=None, runner=None, out=None):
  """Runs a search to its end, as the command does, in this process."""
  said = out or io.StringIO()
  show = display.Display(Console(file=said, width=400), plain=True)
  with contextlib.ExitStack() as stack:
    kept = stack.enter_context(archive.OrbaxArchive.open(workdir, chosen, 'text'))
    environment = {'GEMINI_API_KEY': KEY, 'OPENAI_API_KEY': KEY} if environment is None else environment
    people = stack.enter_context(staff.staff_of(chosen, workdir, show.line, environment))
    lines = journal.JsonLines(pathlib.Path(workdir) / 'journal.jsonl')
    search = searching.Search(
      chosen,
      people,
      searching.Slots(runner or fakes.FakeRunner(trained), chosen.runner.workers),
      lines,
      kept,
      show,
      'text',
      time.monotonic(),
      list(kept.outcomes()),
    )
    search.go()
    return Rehearsed(search, search.outcomes, said.getvalue() if out is None else '', lines.events())


if __name__ == '__main__':
  done = rehearse(sys.argv[1], experiment(sys.argv[2], int(sys.argv[3])), out=sys.stderr)
  print(json.dumps([records.to_json(records.without_timing(outcome)) for outcome in done.outcomes]))
