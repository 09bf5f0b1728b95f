"""Who works on a search is what the configuration says, and how many at a time."""

import dataclasses
import io
import json
import threading
import time

import pytest
from rich.console import Console

from asiarch_jax.agents import evolution, judge, model_judge, researcher
from asiarch_jax.cognition import retrieval
from asiarch_jax.commands import UsageError, searching, staff
from asiarch_jax.records import Job
from asiarch_jax.shell import archive, display, embeddings, exchanges, llm
from tests import fakes, samples
from tests.model_server import Answer, ModelServer
from tests.model_team import KEY, Respond, experiment, rehearse, trained


def people(workdir, chosen, environment=None):
  return staff.staff_of(chosen, workdir, print, {'GEMINI_API_KEY': KEY} if environment is None else environment)


def script(tmp_path):
  lines = [{'role': role, 'reply': reply, 'always': True} for role, reply in fakes.REPLIES.items()]
  (tmp_path / 'script.jsonl').write_text('\n'.join(map(json.dumps, lines)))
  return str(tmp_path / 'script.jsonl')


def test_the_provider_is_the_one_that_was_set(tmp_path):
  rehearse(tmp_path / 'first', experiment(cycles=2, llm={'provider': 'scripted', 'exchanges': script(tmp_path)}), {})
  kinds = {
    'gemini': (llm.Gemini, {}),
    'openai': (llm.OpenAI, {'base_url': 'http://127.0.0.1:9/v1'}),
    'scripted': (exchanges.Scripted, {'exchanges': script(tmp_path)}),
    'recorded': (exchanges.Recorded, {'exchanges': str(tmp_path / 'first')}),
  }
  for name, (kind, settings) in kinds.items():
    with people(tmp_path / name, experiment(llm={'provider': name, **settings})) as team:
      assert isinstance(team.model._model, kind), name


def test_without_a_model_in_any_place_none_is_opened_and_no_key_is_needed(tmp_path):
  offline = experiment(researcher={'kind': 'evolution'}, judge={'kind': 'measured'}, analyst={'kind': 'measured'})
  with people(tmp_path, offline, {}) as team:
    assert team.model is None
    crew = staff.team_of(5, team, fakes.FakeRunner(trained), fakes.MemoryJournal())
    assert isinstance(crew.researcher, evolution.Evolution) and isinstance(crew.judge, judge.MeasuredJudge)


def test_each_place_is_set_by_itself(tmp_path):
  mixed = experiment(researcher={'kind': 'llm'}, judge={'kind': 'measured'}, analyst={'kind': 'measured'})
  with people(tmp_path, mixed) as team:
    crew = staff.team_of(5, team, fakes.FakeRunner(trained), fakes.MemoryJournal())
    assert isinstance(crew.researcher, researcher.ModelResearcher) and isinstance(crew.judge, judge.MeasuredJudge)
  with people(tmp_path, experiment(researcher={'kind': 'evolution'})) as team:
    crew = staff.team_of(5, team, fakes.FakeRunner(trained), fakes.MemoryJournal())
    assert isinstance(crew.researcher, evolution.Evolution) and isinstance(crew.judge, model_judge.ModelJudge)


def test_a_missing_key_is_said_before_anything_runs(tmp_path):
  with pytest.raises(PermissionError, match='GEMINI_API_KEY'):
    with people(tmp_path, experiment(), {}):
      pass


def test_what_compares_motivations_is_what_was_set(tmp_path):
  for kind, found in (
    ('lexical', None),
    ('gemini', embeddings.EmbeddedNeighbours),
    ('auto', embeddings.EmbeddedNeighbours),
  ):
    with people(tmp_path, experiment(researcher={'embedder': kind})) as team:
      assert team.neighbours is retrieval.nearest_texts if found is None else isinstance(team.neighbours, found)
  elsewhere = {'provider': 'openai', 'base_url': 'http://127.0.0.1:9/v1'}
  with people(tmp_path, experiment(llm=elsewhere, researcher={'embedder': 'auto'})) as team:
    assert team.neighbours is retrieval.nearest_texts
  with pytest.raises(UsageError, match=r"needs llm\.provider = 'gemini'"):
    with people(tmp_path, experiment(llm=elsewhere, researcher={'embedder': 'gemini'})):
      pass


def test_embeddings_of_the_provider_find_the_nearest_motivations(tmp_path):
  with ModelServer(Respond()) as server:
    done = rehearse(tmp_path, experiment(server.url, 4, researcher={'embedder': 'gemini'}))
    embedded = [request for request in server.requests if request.kind == 'embed']
  assert len(done.outcomes) == 4 and embedded and (tmp_path / 'embeddings.jsonl').exists()
  texts = [text for request in embedded for text in request.texts]
  assert len(texts) == len(set(texts)), 'each text is embedded once'


def test_papers_of_ones_own_are_read(tmp_path):
  own = {
    'title': 'A Memory of Two Speeds', 'authors': ['A. Person'], 'year': 2026, 'arxiv': None,
    'url': 'https://example.org/paper', 'topic': 'delta rule', 'checked': False, 'note': 'unpublished',
    'entries': [{'idea': 'Keep one fast and one slow state', 'trigger': 'xylophone ' * 30, 'algorithm': 'S ' * 120,
                 'guidance': 'two calls of delta_rule ' * 12, 'history': 'linear attention ' * 6,
                 'fails': 'when both speeds are equal ' * 4}],
  }  # fmt: skip
  (tmp_path / 'mine').mkdir()
  (tmp_path / 'mine/two_speeds.json').write_text(json.dumps(own))
  with people(tmp_path, experiment(cognition={'papers': str(tmp_path / 'mine')})) as team:
    assert team.base.search('xylophone', 1)[0].paper.title == 'A Memory of Two Speeds'
  with people(tmp_path, experiment()) as team:
    assert team.base.search('xylophone', 1) == ()
  with pytest.raises(FileNotFoundError, match='nowhere'):
    with people(tmp_path, experiment(cognition={'papers': str(tmp_path / 'nowhere')})):
      pass


def test_cycles_in_flight_overlap_and_workers_keep_to_their_places(tmp_path):
  def searched(in_flight, workers, name):
    at_once, most, lock = [0], [0], threading.Lock()

    def train(job):
      with lock:
        at_once[0] += 1
        most[0] = max(most[0], at_once[0])
      made = trained(job, 0.05)
      with lock:
        at_once[0] -= 1
      return made

    with ModelServer(Respond(0.05)) as server:
      chosen = experiment(server.url, 10, search={'in_flight': in_flight}, runner={'workers': workers})
      done = rehearse(tmp_path / name, chosen, runner=fakes.FakeRunner(train))
      return most[0], server.most_at_once, sorted(outcome.id for outcome in done.outcomes), done

  assert searched(1, 4, 'one')[0] == 1
  jobs, calls, ids, done = searched(4, 2, 'four')
  assert jobs == 2 and calls > 2 and ids == list(range(10))
  seen = {line['cycle']: line['seen'] for line in done.named('selected')}
  assert all(max(seen[number], default=-1) < number for number in seen) and len(seen) == 10
  assert any(len(seen[number]) < number for number in range(3, 10)), 'a cycle begins before its elders have ended'


def test_a_slot_that_is_taken_is_counted_and_a_wait_for_one_is_not():
  slots = searching.Slots(fakes.FakeRunner(lambda job: trained(job, 0.2)), 1)
  threads = [threading.Thread(target=slots.run, args=(Job(f'job {n}', str(n), {}),)) for n in range(3)]
  began = time.monotonic()
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert 0.55 < slots.seconds <= time.monotonic() - began + 0.01


def test_what_goes_wrong_in_a_flying_cycle_comes_out(tmp_path):
  def broken(job):
    if job.name not in ('delta_net', 'gated_delta_net'):
      raise OSError(28, 'No space left on device', 'job.json')
    return trained(job)

  with ModelServer(Respond()) as server:
    with pytest.raises(OSError, match='No space'):
      rehearse(tmp_path, experiment(server.url, 8, search={'in_flight': 3}), runner=fakes.FakeRunner(broken))


def test_a_failed_baseline_ends_the_search(tmp_path):
  def worse(job):
    return dataclasses.replace(trained(job), training=None)

  with ModelServer(Respond()) as server:
    with pytest.raises(UsageError, match='the baseline delta_net was rejected'):
      rehearse(tmp_path, experiment(server.url), runner=fakes.FakeRunner(worse))
  assert samples.SOURCE


def test_a_request_that_is_refused_costs_a_judgement_and_no_trained_entry(tmp_path):
  too_long = Answer(status=400, message='The input token count exceeds the maximum')
  with ModelServer(Respond(judge=[{**fakes.REPLIES['judge']}] * 2 + [too_long] * 9, analyst=[too_long] * 9)) as server:
    done = rehearse(tmp_path, experiment(server.url, 4))
  assert [type(outcome).__name__ for outcome in done.outcomes] == ['Entry'] * 4
  assert done.outcomes[3].judgement is None and done.outcomes[3].analysis.author == 'measured'


def test_what_is_finished_is_archived_though_another_cycle_fails(tmp_path):
  started = threading.Barrier(3, timeout=30)

  def train(job):
    if job.name in ('delta_net', 'gated_delta_net') or job.kind == 'check':
      return trained(job)
    place = started.wait()
    if place == 0:
      time.sleep(0.5)  # after the others are done
      raise OSError(28, 'No space left on device', 'job.json')
    return trained(job)

  with ModelServer(Respond()) as server:
    chosen = experiment(server.url, 5, search={'in_flight': 3}, runner={'workers': 3})
    with pytest.raises(OSError, match='No space'):
      rehearse(tmp_path, chosen, runner=fakes.FakeRunner(train))
  with archive.OrbaxArchive.open_read_only(tmp_path) as kept:
    assert len(kept.outcomes()) == 4


def test_a_crowd_of_cycles_is_not_begun_on_a_small_budget(tmp_path):
  with ModelServer(Respond()) as server:
    chosen = experiment(server.url, 40, search={'in_flight': 8}, budget={'dollars': 0.01})
    done = rehearse(tmp_path, chosen)
  each = done.search.spent().dollars / len(done.outcomes)
  assert done.search.spent().dollars < 0.01 + 4 * each  # a crowd would go over by seven


def test_a_run_with_embeddings_is_replayed_without_a_key(tmp_path):
  with ModelServer(Respond()) as server:
    rehearse(tmp_path / 'first', experiment(server.url, 4, researcher={'embedder': 'auto'}))
  recorded = {'provider': 'recorded', 'exchanges': str(tmp_path / 'first')}
  again = rehearse(tmp_path / 'again', experiment('', 4, llm=recorded, researcher={'embedder': 'auto'}), environment={})
  assert len(again.outcomes) == 4


def test_a_line_for_the_terminal_carries_no_orders_to_it():
  said = io.StringIO()
  show = display.Display(Console(file=said, width=100, force_terminal=False), plain=True)
  show.line('says \x1b]0;pwned\x07\x1b[2J the idea again')
  assert '\x1b' not in said.getvalue() and 'the idea again' in said.getvalue()
