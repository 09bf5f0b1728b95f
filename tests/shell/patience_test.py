import concurrent.futures
import threading

import pytest

from asiarch_jax.config import Llm
from asiarch_jax.dialogue import Prompt, Reply
from asiarch_jax.shell import llm
from asiarch_jax.shell.calls import Unavailable
from asiarch_jax.shell.patience import Patient
from tests.model_server import Answer, ModelServer

PROMPT = Prompt('researcher', 'system', 'text')


class Clock:
  """Time that passes by sleeping alone."""

  def __init__(self):
    self.now, self.waits = 0.0, []

  def __call__(self):
    return self.now

  def sleep(self, seconds):
    self.waits.append(seconds)
    self.now += seconds


class Outage:
  """Fails `times` times, then answers; counts its calls."""

  def __init__(self, times, error=None):
    self.left, self.error, self.calls, self.closed = times, error or Unavailable('p m: 503 busy after 6 attempts'), 0, 0

  def complete(self, prompt, schema):
    self.calls += 1
    self.left -= 1
    if self.left >= 0:
      raise self.error
    return Reply(prompt.text)

  def close(self):
    self.closed += 1


def patient(model, pause=60.0):
  clock, said = Clock(), []
  return Patient(model, pause, said.append, sleep=clock.sleep, clock=clock), clock, said


def test_a_model_that_answers_is_not_waited_for():
  model, clock, said = patient(Outage(0))
  assert model.complete(PROMPT, {}).text == 'text'
  assert (clock.waits, said) == ([], [])


def test_an_outage_pauses_the_run_longer_each_time_up_to_an_hour_and_says_so():
  model, clock, said = patient(Outage(8))
  assert model.complete(PROMPT, {}).text == 'text'
  assert clock.waits == [60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 3600.0, 3600.0]
  assert said[0] == (
    'p m: 503 busy after 6 attempts; the run pauses 60 s and then asks again (Ctrl-C stops it; nothing is lost)'
  )
  assert said[-1] == 'the model answers again; the run goes on after 10,980 s'
  assert len(said) == 9


def test_a_second_outage_begins_with_the_short_pause_again():
  outage = Outage(2)
  model, clock, _ = patient(outage)
  model.complete(PROMPT, {})
  outage.left = 1
  model.complete(PROMPT, {})
  assert clock.waits == [60.0, 120.0, 60.0]


def test_without_a_pause_the_failure_comes_out():
  model, clock, said = patient(Outage(1), pause=0.0)
  with pytest.raises(Unavailable):
    model.complete(PROMPT, {})
  assert (clock.waits, said) == ([], [])


@pytest.mark.parametrize('error', [ValueError('bad model'), PermissionError('bad key'), KeyboardInterrupt()])
def test_what_no_pause_mends_comes_out_at_once_even_after_one(error):
  outage = Outage(1, error)

  def sleep(seconds):
    outage.left, outage.error = 1, error

  model = Patient(outage, 60.0, lambda line: None, sleep=sleep)
  with pytest.raises(type(error)):
    model.complete(PROMPT, {})
  outage.left, outage.error = 1, Unavailable('busy')
  with pytest.raises(type(error)):
    model.complete(PROMPT, {})
  assert outage.calls == 3
  assert model.complete(PROMPT, {}).text == 'text', 'the pause has ended with the probe'


def test_threads_share_one_pause_and_one_of_them_probes():
  down, in_pause, go_on = threading.Event(), threading.Event(), threading.Event()
  down.set()
  calls, said = [], []
  first_round = threading.Barrier(4)

  class Model:
    def complete(self, prompt, schema):
      calls.append(prompt.text)
      if len(calls) <= 4:
        first_round.wait(timeout=10)  # all four are in flight when the service goes down
      if down.is_set():
        raise Unavailable('p m: down')
      return Reply(prompt.text)

    def close(self):
      pass

  def sleep(seconds):
    in_pause.set()
    assert go_on.wait(timeout=10)
    if len(said) == 2:
      down.clear()

  model = Patient(Model(), 1.0, said.append, sleep=sleep)
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    replies = [pool.submit(model.complete, Prompt('judge', '', str(number)), {}) for number in range(4)]
    assert in_pause.wait(timeout=10)
    late = [pool.submit(model.complete, Prompt('judge', '', str(number)), {}) for number in range(4, 8)]
    concurrent.futures.wait([*replies, *late], timeout=0.1)
    assert len(calls) == 4, 'late threads wait for the pause to end'
    go_on.set()
    assert [reply.result(timeout=10).text for reply in [*replies, *late]] == list('01234567')
  # Four failures at first, one probe that failed, one that was answered; then the other seven.
  assert len(calls) == 4 + 2 + 7
  assert [line.split(';')[0] for line in said] == ['p m: down', 'p m: down', 'the model answers again']


def test_closing_ends_a_pause():
  outage = Outage(10**6)
  said = threading.Event()
  model = Patient(outage, 3600.0, lambda line: said.set())
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    calls = [pool.submit(model.complete, PROMPT, {}) for _ in range(2)]
    assert said.wait(timeout=10)
    model.close()
    for call in calls:
      assert isinstance(call.exception(timeout=10), Unavailable)
  assert outage.closed == 1


def test_other_calls_of_the_provider_may_be_patient_too():
  model, clock, _ = patient(Outage(0))
  outage = Outage(1)
  assert model.ask(lambda: [outage.complete(PROMPT, {})]) == [Reply('text')]
  assert clock.waits == [60.0]


def test_a_run_outlasts_a_server_that_is_down():
  clock, said = Clock(), []
  with ModelServer(lambda request: Answer(status=503) if request.number < 5 else Answer(json={})) as server:
    inner = llm.Gemini(
      Llm(base_url=server.url, attempts=2), {'GEMINI_API_KEY': 'a-key-of-tests'}, sleep=clock.sleep, jitter=lambda: 0.5
    )
    model = Patient(inner, 60.0, said.append, sleep=clock.sleep, clock=clock)
    assert model.complete(PROMPT, {}).text == '{}'
    model.close()
  assert clock.waits == [2.0, 60.0, 2.0, 120.0, 2.0]
  assert said[0].startswith('gemini gemini-3.8-flash: 503 UNAVAILABLE after 2 attempts; the run pauses 60 s')
