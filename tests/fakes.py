"""Stand-ins for the ports, to be used instead of patching: each does in memory what its real counterpart does outside.

`MemoryArchive` passes the same contract tests as the archive on disk (tests/shell/archive_test.py).
"""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from asiarch_jax import dialogue, records

MIXER = """import flax.linen as nn
import jax.numpy as jnp
from typing import Any


class Mixer(nn.Module):
  width: int
  heads: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x_BTD):
    return nn.Dense(self.width, dtype=self.dtype)(x_BTD)
"""


class MemoryArchive:
  """An archive that forgets at the end of the process. Outcomes go through JSON, as they do on disk."""

  def __init__(self, outcomes: Iterable[records.Outcome] = ()):
    self._texts: dict[int, str] = {}
    self._arrays: dict[int, dict[str, np.ndarray]] = {}
    for outcome in outcomes:
      self.append(outcome, {})

  def append(self, outcome: records.Outcome, arrays: Mapping[str, Any]) -> None:
    if outcome.id in self._texts:
      raise FileExistsError(errno.EEXIST, f'outcome {outcome.id} is in the archive already')
    if outcome.id < 0:
      raise ValueError(f'outcome id {outcome.id} is negative; ids count from 0')
    copies = {path: np.array(array) for path, array in arrays.items()}
    for path, array in copies.items():
      if array.dtype.kind in 'OSUMm':
        raise TypeError(f'array {path!r} has dtype {array.dtype}; the archive holds numbers and booleans only')
    self._texts[outcome.id] = json.dumps(records.to_json(outcome), allow_nan=False)
    self._arrays[outcome.id] = copies

  def outcomes(self) -> tuple[records.Outcome, ...]:
    return tuple(records.from_json(records.Outcome, json.loads(text)) for _, text in sorted(self._texts.items()))

  def arrays(self, outcome_id: int) -> Mapping[str, np.ndarray]:
    if outcome_id not in self._arrays:
      raise KeyError(f'no outcome {outcome_id} in memory; it holds {len(self._texts)}')
    return {path: array.copy() for path, array in self._arrays[outcome_id].items()}

  def close(self) -> None:
    pass


class MemoryJournal:
  """Keeps events in a list; time is their number."""

  def __init__(self) -> None:
    self.lines: list[dict[str, Any]] = []

  def write(self, event: str, **fields: Any) -> None:
    self.lines.append({'time': float(len(self.lines)), 'event': event, **records.to_json(fields)})

  def events(self) -> list[dict[str, Any]]:
    return list(self.lines)

  def named(self, event: str) -> list[dict[str, Any]]:
    """Returns the events of one kind."""
    return [line for line in self.lines if line['event'] == event]


class FakeRunner:
  """Gives back scripted results, by the name of the job or from a function of it; the same key runs once.

  `jobs` lists what was really run, in order.
  """

  def __init__(
    self,
    results: Mapping[str, records.JobResult] | Callable[[records.Job], records.JobResult],
    arrays: Mapping[str, Mapping[str, Any]] | None = None,
  ):
    self._results = results
    self._arrays = dict(arrays or {})
    self._done: dict[str, records.JobResult] = {}
    self.jobs: list[records.Job] = []

  def run(self, job: records.Job, on_progress: Callable[[records.Progress], None] | None = None) -> records.JobResult:
    if job.key not in self._done:
      self.jobs.append(job)
      if on_progress:
        on_progress(records.Progress(stage='train', step=1, steps=1))
      if not callable(self._results) and job.name not in self._results:
        raise KeyError(f'no result is scripted for job {job.name!r}; there are {sorted(self._results)}')
      self._done[job.key] = self._results(job) if callable(self._results) else self._results[job.name]
    return self._done[job.key]

  def arrays(self, key: str) -> Mapping[str, Any]:
    return self._arrays.get(key, {})


class FakeResearcher:
  """Proposes from a list, in order, then numbered clones of one mixer; mends with what `repairs` says, in order.

  `repeated` says by name which proposals repeat an archived idea, and why.
  """

  def __init__(
    self,
    proposals: Sequence[records.Proposal | records.Declined] = (),
    repairs: Sequence[records.Proposal | None] = (),
    repeated: Mapping[str, str] | None = None,
  ):
    self._proposals = list(proposals)
    self._repairs = list(repairs)
    self._repeated = dict(repeated or {})
    self.drawn: list[tuple[records.Drawn, ...]] = []
    self.asked: list[records.Selection] = []
    self.findings: list[tuple[records.Finding, ...]] = []

  def propose(
    self,
    selection: records.Selection,
    outcomes: Sequence[records.Outcome],
    rng: Any,
    drawn: Sequence[records.Drawn] = (),
  ) -> records.Proposal | records.Declined:
    self.asked.append(selection)
    self.drawn.append(tuple(drawn))
    if self._proposals:
      return self._proposals.pop(0)
    number = len(self.asked)
    return records.Proposal(
      name=f'clone_{number}',
      motivation='the same once more',
      source=f'{MIXER}\n# {number}\n',
      parent_id=selection.parent.id if selection.parent else None,
      reference_ids=tuple(reference.id for reference in selection.references),
      author='fake',
      operator='mutate' if selection.parent else 'fresh',
    )

  def repeats(self, proposal: records.Proposal, outcomes: Sequence[records.Outcome]) -> str | None:
    return self._repeated.get(proposal.name)

  def repair(
    self, proposal: records.Proposal, findings: Sequence[records.Finding], rng: Any, earlier: Any = ()
  ) -> records.Proposal | None:
    self.findings.append(tuple(findings))
    return self._repairs.pop(0) if self._repairs else None


class FakeJudge:
  """Gives every entry the same marks; None when told so."""

  def __init__(self, judgement: records.Judgement | None):
    self._judgement = judgement
    self.asked: list[records.Entry] = []

  def __call__(self, entry: records.Entry, outcomes: Sequence[records.Outcome]) -> records.Judgement | None:
    self.asked.append(entry)
    return self._judgement


class FakeAnalyst:
  """Gives every entry the same analysis; None when told so."""

  def __init__(self, analysis: records.Analysis | None):
    self._analysis = analysis
    self.asked: list[records.Entry] = []

  def __call__(self, entry: records.Entry, outcomes: Sequence[records.Outcome]) -> records.Analysis | None:
    self.asked.append(entry)
    return self._analysis


REPLIES: dict[str, dict[str, Any]] = {
  'researcher': {
    'name': 'two_speed_memory',
    'motivation': 'The state forgets old keys; a second, slower memory keeps them, so recall should improve.',
    'source': MIXER,
    'ideas': [{'component': 'slow memory', 'origin': 'original', 'reference': ''}],
  },
  'repairer': {'diagnosis': 'The shape was wrong; it is right now.', 'source': f'{MIXER}\n# mended\n'},
  'novelty': {'comparisons': [], 'reason': 'none is alike'},
  'summariser': {'summary': 'It gates a causal mean; recall stays limited by what the mean smears together.'},
  'judge': {'reason': 'about as good at the same cost', 'performance': 6, 'innovation': 5, 'complexity': 7},
  'analyst': {
    'design': 'A gate on the mean path and nothing else.',
    'results': 'Not distinguishable from the baseline.',
    'expectation': 'Better recall was expected; it was not shown.',
    'explanation': 'The gate opens on separators only.',
    'synthesis': 'Keep the gate, try it per head.',
    'lessons': [{'kind': 'unclear', 'text': 'the gate was not shown to help'}],
    'weaknesses': 'associative recall is weak: keys interfere in the state',
  },
}


class FakeModel:
  """Answers each role with REPLIES, or with what `replies` lists for it, in order; a Reply is given as it is.

  `asked` lists the prompts, `schemas` what they were to be answered by.
  """

  def __init__(self, **replies: Sequence[dict[str, Any] | str | dialogue.Reply]):
    self._replies = {role: list(listed) for role, listed in replies.items()}
    self.asked: list[dialogue.Prompt] = []
    self.schemas: list[Mapping[str, Any]] = []

  def complete(self, prompt: dialogue.Prompt, schema: Mapping[str, Any]) -> dialogue.Reply:
    self.asked.append(prompt)
    self.schemas.append(schema)
    listed = self._replies.get(prompt.role)
    answer = listed.pop(0) if listed else REPLIES[prompt.role]
    if isinstance(answer, dialogue.Reply):
      return answer
    text = answer if isinstance(answer, str) else json.dumps(answer)
    return dialogue.Reply(text, usage=dialogue.Usage(prompt=len(prompt.text) // 4, reply=len(text) // 4), model='fake')

  def of(self, role: str) -> list[dialogue.Prompt]:
    """Returns the prompts of one role."""
    return [prompt for prompt in self.asked if prompt.role == role]
