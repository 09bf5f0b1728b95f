import asyncio
import concurrent.futures
import dataclasses
import datetime
import email.utils
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from asiarch_jax import config, dialogue
from asiarch_jax.config import Llm, Role
from asiarch_jax.dialogue import Prompt, Usage
from asiarch_jax.shell import calls, llm
from tests.model_server import CATEGORY, TOKEN, Answer, ModelServer, vector_of

KEY = 'AIza-a-key-of-these-tests-0123'
ENVIRONMENTS = {'gemini': {'GEMINI_API_KEY': KEY}, 'openai': {'OPENAI_API_KEY': KEY}}
SCHEMA = {'type': 'object', 'properties': {'name': {'type': 'string'}}, 'required': ['name']}
PROMPT = Prompt('researcher', 'You design token mixers.', 'Parent: delta_net.\nPropose a child.')
PROTOCOLS = ('gemini', 'openai')
RETRY_INFO = {'@type': 'type.googleapis.com/google.rpc.RetryInfo', 'retryDelay': '31.5s'}
DAILY = {
  '@type': 'type.googleapis.com/google.rpc.QuotaFailure',
  'violations': [{'quotaId': 'GenerateRequestsPerDayPerProjectPerModel-FreeTier', 'quotaValue': '20'}],
}


@pytest.fixture(params=PROTOCOLS)
def protocol(request):
  return request.param


@pytest.fixture
def connect():
  """Returns a function that gives an open model of a server, with the list of its waits."""
  models = []

  def connected(server, protocol, environment=None, role=None, **settings):
    waits = []
    settings = {'provider': protocol, 'model': 'model-x', 'base_url': server.url, 'attempts': 6, **settings}
    model = llm.PROVIDERS[protocol](
      Llm(**settings, **({'researcher': role} if role else {})),
      ENVIRONMENTS[protocol] if environment is None else environment,
      sleep=waits.append,
      jitter=lambda: 0.5,
    )
    models.append(model)
    return model, waits

  yield connected
  for model in models:
    model.close()


def answers(*given):
  """Returns a responder that gives these answers, the last one for ever."""
  return lambda request: given[min(request.number, len(given) - 1)]


def texts_of(error):
  """Returns every text that an exception brings with it: its own, those of its chain, and their attributes."""
  chain = []
  while error is not None:
    chain += [str(error), repr(error), repr(vars(error))]
    error = error.__cause__ or error.__context__
  return '\n'.join(chain)


def test_a_reply_comes_back_with_model_usage_and_seconds(protocol, connect):
  with ModelServer(answers(Answer(json={'name': 'gated_mean'}, usage=Usage(1000, 250, 70, 30), delay=0.05))) as server:
    model, waits = connect(server, protocol)
    reply = model.complete(PROMPT, SCHEMA)
  assert json.loads(reply.text) == {'name': 'gated_mean'} and reply.fault == ''
  assert reply.usage == Usage(prompt=1000, cached=250, reply=70, thoughts=30)
  assert (reply.model, reply.attempts, waits) == ('model-x', 1, [])
  assert 0.05 <= reply.seconds < 5
  (request,) = server.requests
  assert (request.system, request.text, request.schema) == (PROMPT.system, PROMPT.text, SCHEMA)


def test_the_settings_of_a_role_are_sent(protocol, connect):
  role = Role(model='model-y', temperature=0.0, reply_tokens=77, thinking='low')
  with ModelServer() as server:
    model, _ = connect(server, protocol, role=role)
    model.complete(PROMPT, SCHEMA)
    model.complete(dataclasses.replace(PROMPT, role='judge', system=''), SCHEMA)
  first, second = server.requests
  assert (first.model, second.model, second.system) == ('model-y', 'model-x', '')
  if protocol == 'gemini':
    generation = first.body['generationConfig']
    assert (generation['temperature'], generation['maxOutputTokens']) == (0.0, 77)
    assert 'LOW' in str(generation['thinkingConfig']) and generation['responseMimeType'] == 'application/json'
    assert not {'temperature', 'thinkingConfig'} & set(second.body['generationConfig'])
    assert 'systemInstruction' not in second.body
  else:
    assert (first.body['temperature'], first.body['max_tokens']) == (0.0, 77)
    assert first.body['reasoning_effort'] == 'low' and not first.body['response_format']['json_schema']['strict']
    assert not {'temperature', 'reasoning_effort'} & set(second.body)


def test_thinking_by_tokens_is_gemini_s_alone(connect):
  with ModelServer() as server:
    model, _ = connect(server, 'gemini', role=Role(thinking='2048'))
    model.complete(PROMPT, SCHEMA)
    assert '2048' in str(server.requests[0].body['generationConfig']['thinkingConfig'])
    with pytest.raises(ValueError, match=r"llm\.researcher\.thinking = '2048'.*minimal, low"):
      connect(server, 'openai', role=Role(thinking='2048'))


@pytest.mark.parametrize('fault', dialogue.FAULTS)
def test_faults_are_replies(protocol, connect, fault):
  usage = Usage(10, 0, 5, 2)
  answer = Answer(text='{"name": "gat', fault=fault, message='of a policy' if fault == 'blocked' else '', usage=usage)
  with ModelServer(answers(answer)) as server:
    reply = connect(server, protocol)[0].complete(PROMPT, SCHEMA)
  assert (reply.fault, reply.usage, reply.attempts) == (fault, usage, 1)
  assert reply.text == ('{"name": "gat' if fault == 'truncated' else '')
  assert reply.detail and ('of a policy' in reply.detail) == (fault == 'blocked')


def test_every_reason_to_withhold_is_a_block(connect):
  reasons = sorted(llm.BLOCKED)
  with ModelServer(answers(*(Answer(fault='blocked', reason=reason) for reason in reasons))) as server:
    model, _ = connect(server, 'gemini')
    for reason in reasons:
      reply = model.complete(PROMPT, SCHEMA)
      assert (reply.fault, reply.detail) == ('blocked', f'{reason}: {CATEGORY}')


def test_openai_s_400_of_a_filtered_prompt_is_a_block(connect):
  with ModelServer(answers(Answer(status=400, code='content_filter', message='of a policy'))) as server:
    reply = connect(server, 'openai')[0].complete(PROMPT, SCHEMA)
  assert (reply.fault, reply.detail) == ('blocked', 'content_filter: of a policy')


def test_a_reason_that_this_version_does_not_know_is_no_error(connect):
  with ModelServer(answers(Answer(text='{}', fault='odd', reason='NEW_REASON'))) as server, pytest.warns(UserWarning):
    assert connect(server, 'gemini')[0].complete(PROMPT, SCHEMA).text == '{}'


@pytest.mark.parametrize(
  'trouble',
  [
    *(Answer(status=status) for status in (408, 429, 500, 502, 503, 504, 529)),
    Answer(drop=True),
    Answer(json={}, cut=True),
    Answer(raw='<html>please log in</html>'),
  ],
  ids=lambda answer: (
    str(answer.status) if answer.status != 200 else 'drop' * answer.drop or 'cut' * answer.cut or 'page'
  ),
)
def test_trouble_is_asked_again_after_growing_waits(protocol, connect, trouble):
  with ModelServer(answers(trouble, trouble, trouble, Answer(json={'name': 'a'}))) as server:
    model, waits = connect(server, protocol)
    reply = model.complete(PROMPT, SCHEMA)
  assert json.loads(reply.text) == {'name': 'a'}
  assert (reply.attempts, waits, len(server.requests)) == (4, [2.0, 4.0, 8.0], 4)


@pytest.mark.parametrize('trouble', [Answer(status=503, message='overloaded'), Answer(drop=True)])
def test_trouble_that_stays_is_unavailable_after_all_attempts(protocol, connect, trouble):
  with ModelServer(answers(trouble)) as server:
    model, waits = connect(server, protocol, backoff=30.0)
    with pytest.raises(calls.Unavailable, match=rf'^{protocol} model-x: .* after 6 attempts$') as caught:
      model.complete(PROMPT, SCHEMA)
  assert len(server.requests) == 6
  assert waits == [30.0, 60.0, 120.0, 120.0, 120.0]
  assert trouble.drop or '503 overloaded' in str(caught.value)


def test_nobody_listening_is_unavailable(protocol, connect):
  with ModelServer() as server:
    pass
  model, waits = connect(server, protocol, attempts=2)
  with pytest.raises(calls.Unavailable, match='after 2 attempts'):
    model.complete(PROMPT, SCHEMA)
  assert waits == [2.0]


def test_a_storm_of_rate_limits_is_waited_out_as_the_server_asks(protocol, connect):
  date = email.utils.format_datetime(datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=300), usegmt=True)
  asked = [*({'Retry-After': value} for value in ('7', '0', date, '900.5')), {}]
  storm = [Answer(status=429, message='slow down', headers=headers) for headers in asked]
  with ModelServer(answers(*storm, Answer(json={}))) as server:
    model, waits = connect(server, protocol)
    assert model.complete(PROMPT, SCHEMA).attempts == 6
  assert [waits[0], waits[1], waits[3], waits[4]] == [7.0, 4.0, 900.5, 32.0]
  assert 290 < waits[2] <= 300


def test_gemini_s_retry_delay_is_waited_for(connect):
  trouble = Answer(status=429, message='Please retry in 31.5s.', details=(RETRY_INFO,))
  with ModelServer(answers(trouble, Answer(json={}))) as server:
    model, waits = connect(server, 'gemini')
    model.complete(PROMPT, SCHEMA)
  assert waits == [31.5]


@pytest.mark.parametrize(
  'protocol, trouble',
  [
    ('gemini', Answer(status=429, message='You exceeded your quota.', details=(DAILY, RETRY_INFO))),
    ('gemini', Answer(status=429, message='Quota exceeded for requests, limit: 0, model: model-x')),
    ('openai', Answer(status=429, message='Rate limit reached on requests per day (RPD): Limit 200')),
    ('openai', Answer(status=429, message='Check your plan and billing.', code='insufficient_quota')),
    ('openai', Answer(status=402, message='Insufficient balance')),
    ('openai', Answer(status=429, headers={'Retry-After': '86400'})),
  ],
)
def test_a_quota_of_the_day_is_unavailable_at_once(connect, protocol, trouble):
  with ModelServer(answers(trouble)) as server:
    model, waits = connect(server, protocol)
    with pytest.raises(calls.Unavailable, match=f'{protocol} model-x: {trouble.status} '):
      model.complete(PROMPT, SCHEMA)
  assert (waits, len(server.requests)) == ([], 1)


def test_a_hung_connection_ends_at_the_time_out(protocol, connect):
  with ModelServer(answers(Answer(hang=True), Answer(json={}))) as server:
    model, waits = connect(server, protocol, timeout=0.3)
    began = time.monotonic()
    assert model.complete(PROMPT, SCHEMA).attempts == 2
  assert waits == [2.0] and 0.3 <= time.monotonic() - began < 3


def test_an_answer_in_drops_ends_at_the_time_out_too(protocol, connect):
  """Each drop is in time for the SDK's own time-out, which counts from the last."""
  listener = socket.create_server(('127.0.0.1', 0))
  ended = threading.Event()

  def trickle():
    connection, _ = listener.accept()
    with connection:
      connection.sendall(b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 9999\r\n\r\n')
      while not ended.wait(0.05):
        try:
          connection.sendall(b' ')
        except OSError:
          return

  thread = threading.Thread(target=trickle)
  thread.start()
  with ModelServer() as server:
    server.url = f'http://127.0.0.1:{listener.getsockname()[1]}'
    model, _ = connect(server, protocol, timeout=0.4, attempts=1)
    began = time.monotonic()
    with pytest.raises(calls.Unavailable, match=r'no answer within 0\.4 s after 1 attempt$'):
      model.complete(PROMPT, SCHEMA)
    assert time.monotonic() - began < 3
  ended.set()
  thread.join()
  listener.close()


@pytest.mark.parametrize('status', [401, 403])
def test_a_bad_key_is_a_permission_error_that_names_its_variable(protocol, connect, status):
  with ModelServer(answers(Answer(status=status, message='no'))) as server:
    model, waits = connect(server, protocol)
    with pytest.raises(PermissionError, match=f'{status} no; the key is in {next(iter(ENVIRONMENTS[protocol]))}'):
      model.complete(PROMPT, SCHEMA)
  assert (waits, len(server.requests)) == ([], 1)


def test_gemini_s_400_of_a_bad_key_is_one_too(connect):
  details = ({'@type': 'type.googleapis.com/google.rpc.ErrorInfo', 'reason': 'API_KEY_INVALID'},)
  with ModelServer(answers(Answer(status=400, message='Bad.', details=details))) as server:
    with pytest.raises(PermissionError, match='the key is in GOOGLE_API_KEY'):
      connect(server, 'gemini', {'GOOGLE_API_KEY': KEY})[0].complete(PROMPT, SCHEMA)


def test_an_unknown_model_is_a_value_error_that_names_the_setting(protocol, connect):
  with ModelServer(models=['model-y']) as server:
    with pytest.raises(ValueError, match=r'model-x.*404.*--config\.llm\.model='):
      connect(server, protocol)[0].complete(PROMPT, SCHEMA)
    with pytest.raises(ValueError, match=r'model-z.*404.*--config\.llm\.researcher\.model='):
      connect(server, protocol, role=Role(model='model-z'))[0].complete(PROMPT, SCHEMA)


@pytest.mark.parametrize('status', [400, 413, 422])
def test_a_refused_request_is_a_value_error_with_the_provider_s_words(protocol, connect, status):
  with ModelServer(answers(Answer(status=status, message='temperature is too warm'))) as server:
    model, waits = connect(server, protocol)
    with pytest.raises(ValueError, match=f'model-x: {status} temperature is too warm'):
      model.complete(PROMPT, SCHEMA)
  assert (waits, len(server.requests)) == ([], 1)


def test_errors_in_any_form_are_understood(protocol, connect):
  bodies = (
    '',
    '<html>no</html>',
    '"no"',
    '[]',
    'null',
    '{"error": "no"}',
    '{"error": null}',
    '{"error": {"details": 1}}',
  )
  bad = [Answer(status=status, raw=body) for body in bodies for status in (500, 400)]
  with ModelServer(answers(*bad)) as server:
    model, waits = connect(server, protocol)
    for _ in bodies:
      with pytest.raises(ValueError, match='model-x: 400'):
        model.complete(PROMPT, SCHEMA)
  assert waits == [2.0] * len(bodies)


def test_calls_from_many_threads_overlap(protocol, connect):
  together = threading.Barrier(8)

  def respond(request):
    together.wait(timeout=10)  # for ever, if calls came one after the other
    return Answer(json={'name': request.text})

  with ModelServer(respond) as server:
    model, _ = connect(server, protocol)

    def asked(number):
      return json.loads(model.complete(dataclasses.replace(PROMPT, text=str(number)), SCHEMA).text)['name']

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
      assert list(pool.map(asked, range(8))) == [str(number) for number in range(8)]
  assert server.most_at_once == 8


def test_json_that_is_no_answer_is_empty_or_unavailable(protocol, connect):
  bodies = ('{}', '[]', 'null', '"no"', '{"choices": [3], "candidates": [3]}')
  json_type = {'content-type': 'application/json'}
  with ModelServer(answers(*(Answer(raw=body, headers=json_type) for body in bodies))) as server:
    model, _ = connect(server, protocol, attempts=1)
    for _ in bodies:
      try:
        assert model.complete(PROMPT, SCHEMA).fault == 'empty'
      except calls.Unavailable as error:
        assert 'not of the protocol' in str(error)
  assert len(server.requests) == len(bodies)


@pytest.mark.parametrize(
  'echo, shown',
  [
    *((Answer(status=status, message=f'bad key {KEY}'), True) for status in (400, 401, 404, 503)),
    (Answer(status=404, raw=f'<html>{KEY}</html>'), True),
    (Answer(status=400, message='x' * 590 + KEY), True),
    (Answer(json={'name': KEY}), True),
    (Answer(text=KEY, fault='truncated'), True),
    (Answer(fault='blocked', message=KEY), True),
    (Answer(raw=f'<html>{KEY}</html>'), False),
    (Answer(raw=json.dumps({'candidates': KEY, 'choices': KEY, 'usageMetadata': KEY, 'usage': KEY})), False),
  ],
)
def test_the_key_is_in_no_text(protocol, connect, echo, shown):
  with ModelServer(answers(echo)) as server:
    model, _ = connect(server, protocol, attempts=2)
    try:
      said = repr(model.complete(PROMPT, SCHEMA))
    except (ValueError, PermissionError, calls.Unavailable) as error:
      said = texts_of(error)
  assert KEY[:10] not in said and ('[key]' in said or not shown)
  assert any(KEY in value for value in server.requests[0].headers.values())


def test_keys_that_are_only_words_stay_words():
  with ModelServer(answers(Answer(text='none'))) as server:
    model = llm.OpenAI(Llm(provider='openai', base_url=server.url), {'OPENAI_API_KEY': 'none'})
    assert model.complete(PROMPT, SCHEMA).text == 'none'
    model.close()


@pytest.mark.parametrize('key', ['AIza with blanks', 'AIza\nlines', 'AIza“quoted”'])
def test_a_key_that_cannot_be_one_is_refused_without_showing_it(protocol, key):
  (name,) = ENVIRONMENTS[protocol]
  with pytest.raises(PermissionError, match=name) as caught:
    llm.PROVIDERS[protocol](Llm(provider=protocol), {name: key})
  assert key not in texts_of(caught.value)


def test_missing_credentials_name_the_remedy(protocol):
  (name,) = ENVIRONMENTS[protocol]
  with pytest.raises(PermissionError, match=name):
    llm.PROVIDERS[protocol](Llm(provider=protocol), {})


def test_a_line_break_after_the_key_does_no_harm(protocol, connect):
  (name,) = ENVIRONMENTS[protocol]
  with ModelServer() as server:
    connect(server, protocol, {name: f'{KEY}\n'})[0].complete(PROMPT, SCHEMA)
  assert KEY in {value.removeprefix('Bearer ') for value in server.requests[0].headers.values()}


@pytest.mark.parametrize('protocol, variable', [('gemini', 'GOOGLE_GEMINI_BASE_URL'), ('openai', 'OPENAI_BASE_URL')])
def test_the_address_may_come_from_the_environment(connect, protocol, variable):
  with ModelServer() as server:
    connect(server, protocol, ENVIRONMENTS[protocol] | {variable: server.url}, base_url='')[0].complete(PROMPT, SCHEMA)
  assert len(server.requests) == 1


@pytest.mark.parametrize('base_url', ['localhost:8000', 'http://', 'http://a b', 'http://localhost:99999', 'ftp://a'])
def test_an_address_that_is_none_is_refused(protocol, base_url):
  with pytest.raises(ValueError, match=rf"llm\.base_url = '{base_url}' is no address"):
    llm.PROVIDERS[protocol](Llm(provider=protocol, base_url=base_url), ENVIRONMENTS[protocol])


@pytest.mark.parametrize('protocol', PROTOCOLS)
def test_a_password_in_the_address_is_refused_without_showing_it(protocol):
  with pytest.raises(ValueError, match='holds a user or a password') as caught:
    llm.PROVIDERS[protocol](Llm(base_url='http://user:S3cret@127.0.0.1:9/v1'), ENVIRONMENTS[protocol])
  assert 'S3cret' not in texts_of(caught.value)


def test_a_local_server_needs_no_key(connect):
  with ModelServer() as server:
    connect(server, 'openai', {})[0].complete(PROMPT, SCHEMA)
    assert server.requests[0].headers['authorization'] == 'Bearer none'
  with ModelServer(answers(Answer(status=401))) as server:
    with pytest.raises(PermissionError, match='no key was sent; put one into OPENAI_API_KEY'):
      connect(server, 'openai', {})[0].complete(PROMPT, SCHEMA)


def test_a_server_without_json_schemas_gets_the_schema_in_the_prompt(connect):
  def respond(request):
    if request.body['response_format']['type'] == 'json_schema':
      return Answer(status=400, message="'response_format.type' must be 'json_object' or 'text'")
    return Answer(json={'name': 'a'})

  with ModelServer(respond) as server:
    model, waits = connect(server, 'openai')
    first, second = (model.complete(PROMPT, SCHEMA) for _ in range(2))
  kinds = [request.body['response_format']['type'] for request in server.requests]
  assert kinds == ['json_schema', 'json_object', 'json_object'] and waits == []
  assert first.attempts == 1 and second.text == '{"name": "a"}'
  assert server.requests[1].text.startswith(PROMPT.text) and json.dumps(SCHEMA) in server.requests[1].text


def test_lengths_that_a_grammar_would_have_to_count_are_not_sent_to_openai_servers(connect):
  schema = {'type': 'object', 'properties': {'source': {'type': 'string', 'minLength': 3, 'maxLength': 60_000}}}
  with ModelServer(answers(Answer(json={'source': 'abc'}))) as server:
    model, _ = connect(server, 'openai')
    model.complete(PROMPT, schema)
    sent = server.requests[0].schema['properties']['source']
  assert sent == {'type': 'string', 'minLength': 3}


def test_a_server_whose_grammar_refuses_a_schema_gets_it_in_the_prompt(connect):
  with ModelServer(
    answers(Answer(status=400, message='failed to parse grammar'), Answer(json={'name': 'x'}))
  ) as server:
    model, _ = connect(server, 'openai')
    assert model.complete(PROMPT, SCHEMA).text == '{"name": "x"}'
    assert server.requests[1].body['response_format'] == {'type': 'json_object'}


def test_a_schema_that_is_wrong_is_no_reason_to_do_without(connect):
  message = "Invalid schema for response_format 'researcher'"
  with ModelServer(answers(Answer(status=400, message=message))) as server:
    with pytest.raises(ValueError, match=message):
      connect(server, 'openai')[0].complete(PROMPT, SCHEMA)
  assert len(server.requests) == 1


def test_a_server_that_knows_only_max_completion_tokens_gets_that(connect):
  def respond(request):
    if 'max_tokens' in request.body:
      return Answer(status=400, message="'max_tokens' is not supported; use 'max_completion_tokens' instead.")
    return Answer(json={})

  with ModelServer(respond) as server:
    model, _ = connect(server, 'openai')
    for _ in range(2):
      model.complete(PROMPT, SCHEMA)
  assert [request.body.get('max_completion_tokens') for request in server.requests] == [None, 32_768, 32_768]


@pytest.fixture
def service_account(tmp_path, monkeypatch):
  """Returns a function that makes a file of a service account's key the application-default credentials."""

  def made(url):
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(65537, 2048).private_bytes(
      serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    account = {
      'type': 'service_account',
      'client_email': 'tests@example.com',
      'private_key': key.decode(),
      'token_uri': f'{url}/token',
    }
    (tmp_path / 'account.json').write_text(json.dumps(account))
    monkeypatch.setenv('GOOGLE_APPLICATION_CREDENTIALS', str(tmp_path / 'account.json'))

  return made


def test_a_project_uses_vertex_with_application_default_credentials(connect, service_account):
  with ModelServer(answers(Answer(json={'name': TOKEN}))) as server:
    service_account(server.url)
    model, _ = connect(server, 'gemini', {}, project='lab', location='europe-west4')
    reply = model.complete(PROMPT, SCHEMA)
    assert model.embed(['a b', 'b c']) == [pytest.approx(vector_of(text)) for text in ('a b', 'b c')]
  assert '/projects/lab/locations/europe-west4/publishers/google/models/model-x:' in server.requests[0].path
  assert server.requests[0].headers['authorization'] == f'Bearer {TOKEN}'
  assert json.loads(reply.text) == {'name': '[key]'}


def test_a_project_that_may_not_is_a_permission_error(connect, service_account):
  with ModelServer(answers(Answer(status=403, message='denied'))) as server:
    service_account(server.url)
    with pytest.raises(PermissionError, match='may use Vertex AI in lab'):
      connect(server, 'gemini', {}, project='lab')[0].complete(PROMPT, SCHEMA)


def test_a_project_without_credentials_names_the_remedy(monkeypatch, tmp_path):
  monkeypatch.setenv('NO_GCE_CHECK', 'true')
  monkeypatch.setenv('CLOUDSDK_CONFIG', str(tmp_path))
  monkeypatch.delenv('GOOGLE_APPLICATION_CREDENTIALS', raising=False)
  with pytest.raises(PermissionError, match='gcloud auth application-default login'):
    llm.Gemini(Llm(project='lab'), {'GEMINI_API_KEY': KEY})


def test_embeddings_come_in_batches_and_in_order(connect):
  texts = [f'text number {number}' for number in range(205)]
  with ModelServer(answers(Answer(status=429), Answer())) as server:
    model, waits = connect(server, 'gemini')
    assert model.embed(texts) == [pytest.approx(vector_of(text)) for text in texts]
    assert model.embed([]) == []
  assert [len(request.texts) for request in server.requests] == [100, 100, 100, 5] and waits == [2.0]
  assert server.requests[0].model == llm.EMBEDDER
  assert server.requests[0].body['requests'][0]['taskType'] == 'SEMANTIC_SIMILARITY'


def test_too_few_vectors_are_refused(connect):
  with ModelServer(answers(Answer(json=[[1.0]]))) as server:
    with pytest.raises(ValueError, match='1 vectors for 2 texts'):
      connect(server, 'gemini')[0].embed(['a', 'b'])


def test_closing_ends_calls_and_waits(protocol):
  with ModelServer(lambda request: Answer(hang=True) if request.text == 'hang' else Answer(status=503)) as server:
    model = llm.PROVIDERS[protocol](Llm(provider=protocol, base_url=server.url, backoff=100.0), ENVIRONMENTS[protocol])
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
      calls = [pool.submit(model.complete, dataclasses.replace(PROMPT, text=text), SCHEMA) for text in ('hang', 'wait')]
      while len(server.requests) < 2:
        time.sleep(0.01)
      began = time.monotonic()
      model.close()
      for call in calls:
        assert 'closed' in str(call.exception(timeout=5))
      assert time.monotonic() - began < 3
    model.close()
    with pytest.raises(RuntimeError, match='closed'):
      model.complete(PROMPT, SCHEMA)


def test_ctrl_c_ends_a_call_at_once_and_the_next_is_answered(protocol):
  script = """
    import signal
    import sys
    from asiarch_jax.config import Llm
    from asiarch_jax.dialogue import Prompt
    from asiarch_jax.shell import calls, llm
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts beside itself ignores it
    protocol, url = sys.argv[1:]
    keys = {'GEMINI_API_KEY': 'a-key-of-tests', 'OPENAI_API_KEY': 'a-key-of-tests'}
    model = llm.PROVIDERS[protocol](Llm(provider=protocol, base_url=url), keys)
    try:
      model.complete(Prompt('judge', '', ''), {})
    except KeyboardInterrupt:
      print('interrupted')
    print(model.complete(Prompt('judge', '', ''), {}).text)
  """
  with ModelServer(answers(Answer(hang=True), Answer(json={}))) as server:
    process = subprocess.Popen(
      [sys.executable, '-c', textwrap.dedent(script), protocol, server.url],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      env=os.environ | {'PYTHONPATH': os.pathsep.join(sys.path)},
      text=True,
    )
    while not server.requests and process.poll() is None:
      time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=10) == ('interrupted\n{}\n', '')
  assert process.returncode == 0, 'it left without closing the model'


def test_a_call_inside_an_event_loop_works(protocol, connect):
  """Notebooks run one."""
  with ModelServer() as server:
    model, _ = connect(server, protocol)

    async def asked():
      return model.complete(PROMPT, SCHEMA)

    assert asyncio.run(asked()).text == '{}'


def test_reachable_says_who_answered(protocol):
  with ModelServer() as server:
    settings = Llm(provider=protocol, model='model-x', base_url=server.url, researcher=Role(model='model-y'))
    line = llm.reachable(settings, ENVIRONMENTS[protocol])
  assert line.startswith(f'{protocol} model-y answered in 0.') and len(server.requests) == 1


def test_reachable_says_what_is_wrong(protocol):
  with ModelServer(lambda request: Answer(status=401)) as server:
    with pytest.raises(PermissionError):
      llm.reachable(Llm(provider=protocol, base_url=server.url), ENVIRONMENTS[protocol])
  with ModelServer(lambda request: Answer(fault='truncated')) as server:
    assert 'token limit' in llm.reachable(Llm(provider=protocol, base_url=server.url), ENVIRONMENTS[protocol])


def test_models_that_are_not_listed_are_named(protocol):
  with ModelServer(models=['model-x']) as server:
    settings = Llm(
      provider=protocol, model='model-x', base_url=server.url, judge=Role(model='none'), novelty=Role(model='model-x')
    )
    problems = llm.models_known(settings, ENVIRONMENTS[protocol])
  assert set(problems) == {'none'} and '--config.llm.judge.model=' in problems['none']
  assert sorted(request.model for request in server.requests) == ['model-x', 'none']


def test_open_model_knows_every_provider_of_the_configuration(tmp_path):
  (tmp_path / 'replies.jsonl').write_text('{"role": "judge", "reply": {}}\n')
  settings = Llm(provider='scripted', exchanges=str(tmp_path / 'replies.jsonl'))
  assert llm.open_model(settings, {}, tmp_path).complete(Prompt('judge', '', ''), {}).model == 'scripted'
  assert '1 replies' in llm.reachable(settings, {}) and llm.models_known(settings, {}) == {}
  with pytest.raises(ValueError, match='workdir of this run'):
    llm.open_model(Llm(provider='recorded', exchanges=f'{tmp_path}/'), {}, tmp_path)
  with pytest.raises(ValueError, match='use gemini, openai, scripted, recorded'):
    llm.open_model(Llm(provider='claude'), {}, tmp_path)
  for name in llm.PROVIDERS:
    experiment = config.Experiment(llm=Llm(provider=name, exchanges='x'), judge=config.Judge(kind='llm'))
    config.validate(experiment)


@pytest.mark.parametrize('protocol, module', [('gemini', 'google'), ('openai', 'openai')])
def test_a_missing_sdk_names_its_extra(monkeypatch, protocol, module):
  monkeypatch.setitem(sys.modules, module, None)
  with pytest.raises(ImportError, match=r"pip install 'asiarch-jax\[(llm|openai)\]'"):
    llm.PROVIDERS[protocol](Llm(provider=protocol), ENVIRONMENTS[protocol])
