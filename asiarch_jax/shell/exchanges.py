"""Exchanges with language models on disk: what was asked and answered, and models that answer from there.

    WORKDIR/traces/00000012.jsonl    the exchanges of cycle 12, one JSON object a line, in the order answered

The numbers of an exchange stand before its texts, so that adding up a long run's spend reads the head of each line.
"""

from __future__ import annotations

import collections
import difflib
import itertools
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from asiarch_jax import config, dialogue, records
from asiarch_jax.dialogue import Prompt, Reply, Usage
from asiarch_jax.records import Spend
from asiarch_jax.shell import journal

FOLDER = 'traces'
_EVENT = 'exchange'
_NAME = re.compile(r'(\d{8,})\.jsonl(\.parts)?')


class Traces:
  """The exchanges of the run in `workdir` (a folder or gs://...). Several threads may write, one process.

  A line is written by one call, so a killed writer leaves at most its last line cut short: readers pass over it.
  """

  def __init__(self, workdir: str | os.PathLike[str], *, clock: Callable[[], float] = time.time):
    self._folder = epath.Path(workdir) / FOLDER
    self._clock = clock
    self._lock = threading.Lock()

  def write(self, cycle: int, prompt: Prompt, schema: Mapping[str, Any], reply: Reply, dollars: float) -> None:
    """Appends one exchange.

    Raises:
      OSError: it could not be written, such as on a full disk.
    """
    # Opened for one line: a run has more cycles than a process may have open files.
    with self._lock:
      lines = journal.JsonLines(self._path(cycle), clock=self._clock)
      try:
        lines.write(
          _EVENT,
          cycle=cycle,
          dollars=dollars,
          seconds=reply.seconds,
          attempts=reply.attempts,
          usage=reply.usage,  # first of the objects and after it the first text: `spent` relies on that
          role=prompt.role,
          model=reply.model,
          key=dialogue.key_of(prompt, schema),
          fault=reply.fault,
          detail=reply.detail,
          system=prompt.system,
          prompt=prompt.text,
          schema=schema,
          reply=reply.text,
        )
      finally:
        lines.close()

  def begin(self, cycle: int) -> None:
    """Notes that a cycle begins, perhaps once more: a replay takes what follows the last such note."""
    with self._lock:
      lines = journal.JsonLines(self._path(cycle), clock=self._clock)
      lines.write('begun', cycle=cycle)
      lines.close()

  def read_last(self, cycle: int) -> list[dict[str, Any]]:
    """Returns the exchanges of a cycle since it was last begun: those behind its outcome."""
    events = journal.JsonLines(self._path(cycle), read_only=True).events()
    first = max((place for place, event in enumerate(events) if event['event'] == 'begun'), default=-1) + 1
    return [event for event in events[first:] if event['event'] == _EVENT]

  def read(self, cycle: int) -> list[dict[str, Any]]:
    """Returns the exchanges of a cycle in the order written, none where there are none."""
    events = journal.JsonLines(self._path(cycle), read_only=True).events()
    return [event for event in events if event['event'] == _EVENT]

  def cycles(self) -> list[int]:
    """Returns the cycles that have exchanges."""
    if not self._folder.exists():
      return []
    names = (_NAME.fullmatch(path.name) for path in self._folder.iterdir())
    return sorted({int(name[1]) for name in names if name})

  def spent(self) -> Spend:
    """Returns what all exchanges took, those of a cycle that was cut off included."""
    return dialogue.total(spend for cycle in self.cycles() for line in self._lines(cycle) for spend in _spend_of(line))

  def _path(self, cycle: int) -> epath.Path:
    return self._folder / f'{cycle:08d}.jsonl'

  def _lines(self, cycle: int) -> Iterator[bytes]:
    path = self._path(cycle)
    for part in (path, *journal.parts_of(path)):
      if part.exists():
        yield from part.read_bytes().split(b'\n')


class Recorded:
  """Replays the run in `workdir`: the n-th asking of a prompt gets the n-th reply that it got then, byte for byte.

  Raises:
    FileNotFoundError: the workdir holds no exchanges.
  """

  def __init__(self, workdir: str | os.PathLike[str]):
    self._workdir = os.fspath(workdir)
    self._traces = Traces(workdir)
    self._replies: dict[str, list[Reply]] = collections.defaultdict(list)
    for exchange in self._exchanges():
      self._replies[exchange['key']].append(_reply_of(exchange))
    if not self._replies:
      raise FileNotFoundError(
        f'{self._workdir} holds no exchanges with a model; llm.exchanges names the workdir of a run'
      )
    self._given: collections.Counter[str] = collections.Counter()
    self._lock = threading.Lock()

  def __len__(self) -> int:
    return sum(map(len, self._replies.values()))

  def complete(self, prompt: Prompt, schema: Mapping[str, Any]) -> Reply:
    """Returns the recorded reply.

    Raises:
      ValueError: there is none (named: the role and where the nearest recorded prompt differs), or no further one.
    """
    key = dialogue.key_of(prompt, schema)
    with self._lock:
      number = self._given[key]
      self._given[key] += 1
    replies = self._replies.get(key, [])
    if number < len(replies):
      return replies[number]
    if replies:
      raise ValueError(
        f'{self._workdir} has {len(replies)} replies to this prompt of the {prompt.role}, and it is asked once more'
      )
    raise ValueError(
      f'{self._workdir} has no reply to this prompt of the {prompt.role}; {self._nearest(prompt, schema)}'
    )

  def close(self) -> None:
    pass

  def _exchanges(self) -> Iterator[dict[str, Any]]:
    return (exchange for cycle in self._traces.cycles() for exchange in self._traces.read_last(cycle))

  def _nearest(self, prompt: Prompt, schema: Mapping[str, Any]) -> str:
    # Read again, since prompts are long and a replay that goes well needs none of them.
    recorded = [exchange for exchange in self._exchanges() if exchange['role'] == prompt.role]
    if not recorded:
      return 'it recorded no prompt of that role'
    near = _most_alike(prompt, recorded)
    where = f'the nearest, of cycle {near["cycle"]}, differs'
    for part, ours, theirs in (('system', prompt.system, near['system']), ('text', prompt.text, near['prompt'])):
      lines = itertools.zip_longest(ours.split('\n'), theirs.split('\n'))
      for number, (our, their) in enumerate(lines, start=1):
        if our != their:
          return f'{where} first in line {number} of its {part}: {_apart(our, their)}'
    return f'{where} in its schema'


class Scripted:
  """Replies from a file of JSON lines, in order for each role.

      {"role": "researcher", "reply": {"name": "gated_mean", ...}}
      {"role": "judge", "fault": "truncated", "usage": {"prompt": 900, "reply": 100}}
      {"role": "analyst", "reply": "text that is no JSON", "always": true}

  A line with `always` answers every later call of its role. Other fields: fault, detail, usage (of `dialogue.Usage`).

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: a line is not such an object (named: file, line and what is wrong).
  """

  def __init__(self, path: str | os.PathLike[str]):
    self._path = os.fspath(path)
    file = epath.Path(path)
    if not file.is_file():
      raise FileNotFoundError(
        f'{self._path}: no such file; llm.exchanges names a file of replies, one JSON object a line'
      )
    self._replies: dict[str, list[tuple[Reply, bool]]] = collections.defaultdict(list)
    for number, line in enumerate(file.read_bytes().decode('utf-8-sig', 'replace').split('\n'), start=1):
      if line.strip():
        role, reply, always = _scripted_line(line, f'{self._path}, line {number}')
        self._replies[role].append((reply, always))
    self._given: collections.Counter[str] = collections.Counter()
    self._lock = threading.Lock()

  def __len__(self) -> int:
    return sum(map(len, self._replies.values()))

  def complete(self, prompt: Prompt, schema: Mapping[str, Any]) -> Reply:
    """Returns the next reply of the prompt's role.

    Raises:
      ValueError: there is no further one.
    """
    replies = self._replies.get(prompt.role, [])
    with self._lock:
      number = self._given[prompt.role]
      if number >= len(replies):
        raise ValueError(f'{self._path} has {len(replies)} replies of the {prompt.role}, and one more is asked for')
      reply, always = replies[number]
      if not always:
        self._given[prompt.role] += 1
    return reply

  def close(self) -> None:
    pass


def _spend_of(line: bytes) -> Iterator[Spend]:
  """Gives the spend of one line, if it has one, from what stands before its texts."""
  head = line[: line.find(b'}') + 1]
  try:
    numbers = json.loads(head + b'}')
    usage = Usage(**numbers['usage'])
    yield Spend(1, usage.total, float(numbers['dollars']), float(numbers['seconds']))
  except (ValueError, TypeError, KeyError):  # a line that was cut short, or none of ours
    return


def _reply_of(exchange: Mapping[str, Any]) -> Reply:
  return Reply(
    text=exchange['reply'],
    fault=exchange['fault'],
    detail=exchange['detail'],
    usage=records.from_json(Usage, exchange['usage']),
    model=exchange['model'],
  )


def _scripted_line(line: str, where: str) -> tuple[str, Reply, bool]:
  try:
    body = json.loads(line)
  except ValueError as error:
    raise ValueError(f'{where}: not JSON ({error})') from error
  if not isinstance(body, dict):
    raise ValueError(f'{where}: not an object')
  unknown = set(body) - {'role', 'reply', 'fault', 'detail', 'usage', 'always'}
  if unknown:
    raise ValueError(f'{where}: no field {sorted(unknown)[0]!r}; use role, reply, fault, detail, usage, always')
  if body.get('role') not in config.ROLES:
    raise ValueError(f'{where}: role {body.get("role")!r}; use one of {", ".join(config.ROLES)}')
  fault = body.get('fault', '')
  if fault and fault not in dialogue.FAULTS:
    raise ValueError(f'{where}: fault {fault!r}; use one of {", ".join(dialogue.FAULTS)}')
  if not fault and 'reply' not in body:
    raise ValueError(f'{where}: neither reply nor fault')
  if not isinstance(body.get('always', False), bool):
    raise ValueError(f'{where}: always is true or false')
  try:
    usage = records.from_json(Usage, body.get('usage', {}))
  except (TypeError, ValueError) as error:
    raise ValueError(f'{where}: {error}') from error
  said = body.get('reply', '')
  text = said if isinstance(said, str) else json.dumps(said, ensure_ascii=False)
  reply = Reply(text, fault, str(body.get('detail', '')), usage, 'scripted')
  return body['role'], reply, body.get('always', False)


def _most_alike(prompt: Prompt, recorded: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
  """Returns the exchange whose prompt has the most lines in common with `prompt`."""
  matcher = difflib.SequenceMatcher(autojunk=False)
  matcher.set_seq2([*prompt.system.split('\n'), *prompt.text.split('\n')])
  near, most = recorded[0], -1.0
  for exchange in recorded:
    matcher.set_seq1([*exchange['system'].split('\n'), *exchange['prompt'].split('\n')])
    # Upper bounds first: the ratio itself is slow, and prompts are many.
    if matcher.real_quick_ratio() > most and matcher.quick_ratio() > most and matcher.ratio() > most:
      near, most = exchange, matcher.ratio()
  return near


def _apart(ours: str | None, theirs: str | None) -> str:
  """Returns two lines as a message shows them: from a little before they differ.

  >>> _apart('parent: 3', 'parent: 4'), _apart('one line more', None)
  ("'parent: 3', recorded 'parent: 4'", "'one line more', recorded no further line")
  """
  pairs = enumerate(zip(ours or '', theirs or '', strict=False))
  start = max(0, next((place for place, (our, their) in pairs if our != their), 0) - 60)
  shown = [
    'no further line' if line is None else repr(('...' if start else '') + line[start : start + 160])
    for line in (ours, theirs)
  ]
  return f'{shown[0]}, recorded {shown[1]}'
