"""How much of their time workers are busy while a slow language model thinks: `python -m tests.benchmarks.throughput`.

    python -m tests.benchmarks.throughput                     # 1, 4, as many cycles in flight as are needed, and more
    python -m tests.benchmarks.throughput --in_flight=30,40 --workers=4 --cycles=200
    python -m tests.benchmarks.throughput --provider=openai --scale=1

A model on a local server answers each call in 60 s, through the real SDK, and each job takes 20 s; both times --scale.
All else is the program: a cycle asks for its summaries at once, then for the proposal, gates it, asks whether it is a
repeat, trains it, and asks the judge (judge.calls times, one after the other) and the analyst. So it holds a place for
two jobs and waits for `judge.calls + 4` calls, and n cycles in flight keep the places busy for at most

    n x jobs x 20 s / (places x (calls x 60 s + jobs x 20 s))      of the time. n is needed where that is 1.

There it is less, since cycles also wait for one another: `queue` is the same cycles in a queue without a program, and
what `measured` misses of it is the program's own. Counted is from the first outcome of a candidate until the last cycle
begins: neither the start, where all are at their first call, nor the tail, where nothing is left to begin. Baselines
take no time here. Outcomes an hour are for scale 1. Processor seconds are of an outcome, and of this process: search,
SDK and server; divided by the scale they are to be small against 20 s.
"""

import argparse
import collections
import dataclasses
import heapq
import math
import tempfile
import threading
import time

from asiarch_jax import config
from tests import fakes
from tests.model_server import ModelServer
from tests.model_team import ROLES, Respond, experiment, rehearse, trained

CALL, JOB = 60.0, 20.0  # seconds at scale 1
JOBS = 2  # of a cycle: the gate and training
ROUNDS = 4  # cycles of a row for each in flight, where --cycles says nothing


@dataclasses.dataclass(frozen=True)
class Load:
  """What a cycle waits for, in order and at scale 1: seconds of calls before its gate, before training, and after."""

  places: int
  waits: tuple[float, float, float]

  def needed(self) -> int:
    """Returns the least number of cycles in flight that could keep every place busy.

    >>> Load(2, (120.0, 60.0, 240.0)).needed()
    23
    """
    return math.ceil(self.places * (sum(self.waits) + JOBS * JOB) / (JOBS * JOB))

  def share(self, in_flight: int) -> float:
    """Returns the share of the time that places can be busy at most.

    >>> round(Load(2, (120.0, 60.0, 240.0)).share(4), 3)
    0.174
    """
    return min(1.0, in_flight * JOBS * JOB / (self.places * (sum(self.waits) + JOBS * JOB)))


@dataclasses.dataclass(frozen=True)
class Course:
  """How a search went: when places were taken, when candidates ended, and when the last of them began."""

  taken: tuple[tuple[float, float], ...]
  ended: tuple[float, ...]
  last: float

  def busy(self, places: int) -> float:
    """Returns the share of the time that places were taken, without start and tail."""
    begin, end = min(self.ended), self.last
    seconds = sum(max(0.0, min(end, ended) - max(begin, began)) for began, ended in self.taken)
    return seconds / (places * (end - begin)) if end > begin else math.nan

  def an_hour(self, scale: float) -> float:
    """Returns the outcomes of an hour at scale 1, without start and tail."""
    begin, end = min(self.ended), self.last
    return 3600 * scale * sum(begin < time <= end for time in self.ended) / (end - begin) if end > begin else math.nan


def queue(load: Load, in_flight: int, cycles: int) -> Course:
  """Returns the course of cycles that wait for calls and places and for nothing else, first come first served.

  >>> alone = queue(Load(2, (120.0, 60.0, 240.0)), 1, 3)
  >>> alone.ended, round(alone.busy(2), 3)
  ((460.0, 920.0, 1380.0), 0.043)
  """
  begun, last, free = min(in_flight, cycles), 0.0, load.places
  waiting: collections.deque[int] = collections.deque()
  # (time, what happens, number of the job): a job is asked for or done, or its cycle ends. Jobs done go first.
  ahead = [(load.waits[0], 'job', 0)] * begun
  taken, ended = [], []
  while ahead:
    now, what, job = heapq.heappop(ahead)
    if what == 'job':
      waiting.append(job)
    elif what == 'done':
      free += 1
      heapq.heappush(ahead, (now + load.waits[job + 1], 'job' if job + 1 < JOBS else 'outcome', job + 1))
    else:
      ended.append(now)
      if begun < cycles:
        begun, last = begun + 1, now
        heapq.heappush(ahead, (now + load.waits[0], 'job', 0))
    while free and waiting:
      free -= 1
      taken.append((now, now + JOB))
      heapq.heappush(ahead, (now + JOB, 'done', waiting.popleft()))
  return Course(tuple(taken), tuple(ended), last)


class Slow:
  """Answers as `Respond`, each after `seconds`, but for the baselines: theirs come before the first summary."""

  def __init__(self, seconds: float):
    self._respond, self._seconds, self._slow = Respond(), seconds, False

  def __call__(self, request):
    self._slow = self._slow or ROLES[request.schema['title']] in ('summariser', 'researcher')
    return dataclasses.replace(self._respond(request), delay=self._seconds if self._slow else 0.0)


class Occupied(fakes.FakeRunner):
  """Runs stand-in jobs of `seconds`, those of baselines at once, and notes when a place was taken."""

  def __init__(self, seconds: float, baselines: tuple[str, ...]):
    super().__init__(trained)
    self.taken: list[tuple[float, float]] = []
    self._seconds, self._baselines, self._lock = seconds, baselines, threading.Lock()

  def run(self, job, on_progress=None):
    if job.name in self._baselines:
      return super().run(job, on_progress)
    began = time.time()
    time.sleep(self._seconds)
    with self._lock:
      self.taken.append((began, time.time()))
    return super().run(job, on_progress)


def searched(in_flight: int, cycles: int, options: argparse.Namespace) -> tuple[Course, int, float]:
  """Returns the course of a search, the most calls at once, and the processor's seconds for an outcome."""
  with ModelServer(Slow(options.scale * CALL)) as server, tempfile.TemporaryDirectory() as workdir:
    chosen = experiment(
      server.url,
      search={'in_flight': in_flight},
      judge={'calls': options.judge_calls},
      runner={'workers': options.workers},
      llm={'provider': options.provider, 'timeout': 300.0},
    )
    baselines = chosen.search.baselines
    search = dataclasses.replace(chosen.search, cycles=len(baselines) + cycles)
    runner = Occupied(options.scale * JOB, baselines)
    processor = time.process_time()
    done = rehearse(workdir, dataclasses.replace(chosen, search=search), runner=runner)
    processor = time.process_time() - processor
    most = server.most_at_once
  ended = [line['time'] for line in done.named('measured') if line['cycle'] >= len(baselines)]
  last = max(line['time'] for line in done.named('selected'))
  return Course(tuple(runner.taken), tuple(ended), last), most, processor / len(done.outcomes)


def main(arguments: list[str] | None = None) -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--scale', type=float, default=0.05, help='of 60 s a call and 20 s a job')
  parser.add_argument('--in_flight', default='', help='cycles in flight, with commas between')
  parser.add_argument('--workers', type=int, default=2)
  parser.add_argument('--cycles', type=int, default=0, help=f'of each row; {ROUNDS} for each in flight')
  parser.add_argument('--judge_calls', type=int, default=config.Judge().calls)
  parser.add_argument('--provider', default='gemini', help='gemini or openai')
  options = parser.parse_args(arguments)
  load = Load(options.workers, (2 * CALL, CALL, (options.judge_calls + 1) * CALL))
  needed = load.needed()
  print(
    f'{sum(load.waits) / CALL:.0f} calls of {CALL:g} s in sequence and {JOBS} jobs of {JOB:g} s a cycle, '
    f'{load.places} places, {options.provider}, scale {options.scale:g}: {needed} cycles in flight needed'
  )
  print('                             busy                 outcomes/h')
  print('in flight  cycles  at most  queue  measured    queue  measured  calls at once  processor s')
  rows = [int(number) for number in options.in_flight.split(',') if number]
  for in_flight in rows or [1, 4, needed, math.ceil(1.3 * needed)]:
    cycles = options.cycles or ROUNDS * in_flight
    ideal = queue(load, in_flight, cycles)
    course, most, processor = searched(in_flight, cycles, options)
    print(
      f'{in_flight:9}  {cycles:6}  {load.share(in_flight):7.1%}  {ideal.busy(load.places):5.1%}  '
      f'{course.busy(load.places):8.1%}  {ideal.an_hour(1.0):7.1f}  {course.an_hour(options.scale):8.1f}  '
      f'{most:13}  {processor:11.3f}',
      flush=True,
    )


if __name__ == '__main__':
  main()
