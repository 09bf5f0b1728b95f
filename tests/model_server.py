"""A model server on this machine: enough of Gemini's and OpenAI's protocols for their real SDKs to talk to.

    with ModelServer(lambda request: Answer(json={'name': 'gated_mean'})) as server:
      model = llm.Gemini(config.Llm(base_url=server.url), {'GEMINI_API_KEY': 'a-key-of-tests'})

`url` serves both protocols. A responder is asked about every request but those for access tokens; it may look at
`request.kind` ('complete', 'embed', 'model'), and several threads call it at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import http.server
import json
import math
import re
import socket
import threading
import time
import urllib.parse
from collections.abc import Callable, Collection, Mapping
from typing import Any

from asiarch_jax.dialogue import Usage

USAGE = Usage(prompt=100, cached=10, reply=20, thoughts=5)
CATEGORY = 'HARM_CATEGORY_DANGEROUS_CONTENT'  # of what Gemini blocks after it began
TOKEN = 'ya29.an-access-token-of-tests'
_STATUS = {
  400: 'INVALID_ARGUMENT',
  401: 'UNAUTHENTICATED',
  403: 'PERMISSION_DENIED',
  404: 'NOT_FOUND',
  429: 'RESOURCE_EXHAUSTED',
  500: 'INTERNAL',
  503: 'UNAVAILABLE',
  504: 'DEADLINE_EXCEEDED',
}
_GEMINI_CALL = re.compile(r'/models/(?P<model>[^/:]+):(?P<method>\w+)$')
_MODEL = re.compile(r'/models/(?P<model>.+)$')


@dataclasses.dataclass(frozen=True)
class Request:
  """What a client asked. `schema` is None where it sent none; `texts` are those to embed; `number` counts from 0."""

  number: int
  kind: str
  protocol: str
  path: str
  headers: Mapping[str, str]
  body: dict[str, Any]
  model: str = ''
  system: str = ''
  text: str = ''
  schema: dict[str, Any] | None = None
  texts: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Answer:
  """What the server says. The first of these that is set counts: drop, hang, status, raw, fault, json, text.

  `message`, `details` (Gemini) and `code` (OpenAI) describe an error; `json` of an embed request is a list of vectors.
  """

  text: str = ''
  json: Any = None
  fault: str = ''  # blocked, truncated or empty
  reason: str = ''  # instead of the protocol's usual reason for the fault
  status: int = 200
  message: str = ''
  details: tuple[Mapping[str, Any], ...] = ()
  code: str = ''
  headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
  usage: Usage = USAGE
  delay: float = 0.0  # seconds before the answer
  drop: bool = False  # closes the connection without an answer
  cut: bool = False  # closes it in the middle of the answer
  hang: bool = False  # says nothing until the server closes
  raw: str | None = None  # this body instead of one of the protocol


class ModelServer:
  """Serves until its `with` block ends. `models` are the names that it knows; None knows every name.

  `requests` holds all requests in order, `most_at_once` the largest number that were answered at the same time.
  """

  def __init__(self, responder: Callable[[Request], Answer] | None = None, models: Collection[str] | None = None):
    self.requests: list[Request] = []
    self.most_at_once = 0
    self._respond = responder or (lambda request: Answer(json={}))
    self._models = models
    self._at_once = 0
    self._lock = threading.Lock()
    self._closing = threading.Event()
    self._server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), self._handler())
    self._server.daemon_threads = True
    self._server.block_on_close = False
    self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
    self.url = f'http://127.0.0.1:{self._server.server_port}'

  def __enter__(self) -> ModelServer:
    self._thread.start()
    return self

  def __exit__(self, *_: object) -> None:
    self._closing.set()
    self._server.shutdown()
    self._server.server_close()

  def _handler(self) -> type[http.server.BaseHTTPRequestHandler]:
    server = self

    class Handler(http.server.BaseHTTPRequestHandler):
      protocol_version = 'HTTP/1.1'
      disable_nagle_algorithm = True

      def do_POST(self) -> None:
        server._serve(self, self.rfile.read(int(self.headers.get('content-length', 0))))

      def do_GET(self) -> None:
        server._serve(self, b'')

      def log_message(self, *_: Any) -> None:
        pass

    return Handler

  def _serve(self, handler: http.server.BaseHTTPRequestHandler, content: bytes) -> None:
    path = urllib.parse.unquote(urllib.parse.urlsplit(handler.path).path)
    if path == '/token':  # where service accounts get their access tokens
      _send(handler, 200, {'access_token': TOKEN, 'expires_in': 3600, 'token_type': 'Bearer'}, {})
      return
    headers = {name.lower(): value for name, value in handler.headers.items()}
    body = json.loads(content) if content else {}
    with self._lock:
      request = request_of(len(self.requests), path, headers, body)
      self.requests.append(request)
      self._at_once += 1
      self.most_at_once = max(self.most_at_once, self._at_once)
    try:
      answer = self._respond(request)
      self._closing.wait(answer.delay)
      if answer.hang:
        self._closing.wait()
      if answer.hang or answer.drop:
        _disconnect(handler)
      elif answer.raw is not None:
        _send(handler, answer.status, answer.raw, answer.headers)
      else:
        _send(handler, *self._body(request, answer), answer.headers, cut=answer.cut)
    finally:
      with self._lock:
        self._at_once -= 1

  def _body(self, request: Request, answer: Answer) -> tuple[int, dict[str, Any]]:
    known = self._models is None or request.model in self._models
    if answer.status == 200 and not known:
      answer = dataclasses.replace(answer, status=404, message=f'model {request.model} is not found')
    if answer.status != 200:
      return answer.status, ERRORS[request.protocol](answer)
    return 200, BODIES[request.protocol, request.kind](request, answer)


def request_of(number: int, path: str, headers: Mapping[str, str], body: dict[str, Any]) -> Request:
  """Returns a request as responders see it."""
  call = _GEMINI_CALL.search(path)
  if call:
    many = body.get('requests', [body])
    embed = 'mbed' in call['method']
    contents = [part for content in body.get('contents', ()) for part in content['parts']]
    return Request(
      number=number,
      kind='embed' if embed else 'complete',
      protocol='gemini',
      path=path,
      headers=headers,
      body=body,
      model=call['model'],
      system=_text(body.get('systemInstruction', {}).get('parts', ())),
      text=_text(contents),
      schema=body.get('generationConfig', {}).get('responseJsonSchema'),
      texts=tuple(_text(one['content']['parts']) for one in many) if embed else (),
    )
  if path.endswith('/chat/completions'):
    said = {message['role']: message['content'] for message in body['messages']}
    return Request(
      number=number,
      kind='complete',
      protocol='openai',
      path=path,
      headers=headers,
      body=body,
      model=body['model'],
      system=said.get('system', ''),
      text=said.get('user', ''),
      schema=body.get('response_format', {}).get('json_schema', {}).get('schema'),
    )
  model = _MODEL.search(path)
  protocol = 'gemini' if {'x-goog-api-key', 'x-goog-api-client'} & set(headers) else 'openai'
  return Request(number, 'model', protocol, path, headers, body, model=model['model'] if model else '')


def vector_of(text: str, size: int = 64) -> list[float]:
  """Returns an embedding: the words of the text in hashed places, so that texts with words in common lie near."""
  places = [0.0] * size
  for word in text.lower().split():
    places[int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], 'big') % size] += 1.0
  norm = math.sqrt(sum(place * place for place in places)) or 1.0
  return [place / norm for place in places]


def _text(parts: Any) -> str:
  return ''.join(part.get('text', '') for part in parts)


def _said(answer: Answer) -> str:
  return json.dumps(answer.json) if answer.json is not None else answer.text


def _gemini_completion(request: Request, answer: Answer) -> dict[str, Any]:
  usage = {
    'promptTokenCount': answer.usage.prompt,
    'cachedContentTokenCount': answer.usage.cached,
    'candidatesTokenCount': answer.usage.reply,
    'thoughtsTokenCount': answer.usage.thoughts,
    'totalTokenCount': answer.usage.total,
  }
  body: dict[str, Any] = {'usageMetadata': usage, 'modelVersion': f'{request.model}-001'}
  if answer.fault == 'blocked' and not answer.reason:
    return body | {'promptFeedback': {'blockReason': 'SAFETY', 'blockReasonMessage': answer.message}}
  usual = {'blocked': 'SAFETY', 'truncated': 'MAX_TOKENS'}.get(answer.fault, 'STOP')
  candidate: dict[str, Any] = {'index': 0, 'finishReason': answer.reason or usual}
  if answer.fault not in ('blocked', 'empty'):
    candidate['content'] = {'role': 'model', 'parts': [{'text': 'a thought', 'thought': True}, {'text': _said(answer)}]}
  if answer.fault == 'blocked':
    candidate['safetyRatings'] = [{'category': CATEGORY, 'probability': 'HIGH', 'blocked': True}]
  if answer.message:
    candidate['finishMessage'] = answer.message
  return body | {'candidates': [candidate]}


def _gemini_vectors(request: Request, answer: Answer) -> dict[str, Any]:
  vectors = answer.json if isinstance(answer.json, list) else [vector_of(text) for text in request.texts]
  if 'requests' in request.body:
    return {'embeddings': [{'values': vector} for vector in vectors]}
  return {'embedding': {'values': vectors[0]}}


def _openai_completion(request: Request, answer: Answer) -> dict[str, Any]:
  reasons = {'blocked': 'content_filter', 'truncated': 'length'}
  message: dict[str, Any] = {'role': 'assistant', 'content': None if answer.fault == 'empty' else _said(answer)}
  if answer.fault == 'blocked':
    message |= {'content': None, 'refusal': answer.message or None}
  usage = {
    'prompt_tokens': answer.usage.prompt,
    'completion_tokens': answer.usage.reply + answer.usage.thoughts,
    'total_tokens': answer.usage.total,
    'prompt_tokens_details': {'cached_tokens': answer.usage.cached},
    'completion_tokens_details': {'reasoning_tokens': answer.usage.thoughts},
  }
  choice = {'index': 0, 'message': message, 'finish_reason': answer.reason or reasons.get(answer.fault, 'stop')}
  return {
    'id': f'chatcmpl-{request.number}',
    'object': 'chat.completion',
    'created': int(time.time()),
    'model': request.model,
    'choices': [choice],
    'usage': usage,
  }


def _gemini_error(answer: Answer) -> dict[str, Any]:
  status = _STATUS.get(answer.status, 'UNKNOWN')
  body = {'code': answer.status, 'message': answer.message or status, 'status': status}
  return {'error': body | ({'details': list(answer.details)} if answer.details else {})}


def _openai_error(answer: Answer) -> dict[str, Any]:
  status = _STATUS.get(answer.status, 'UNKNOWN')
  return {
    'error': {
      'message': answer.message or status,
      'type': status.lower(),
      'param': None,
      'code': answer.code or None,
    }
  }


ERRORS = {'gemini': _gemini_error, 'openai': _openai_error}
BODIES: dict[tuple[str, str], Callable[[Request, Answer], dict[str, Any]]] = {
  ('gemini', 'complete'): _gemini_completion,
  ('gemini', 'embed'): _gemini_vectors,
  ('gemini', 'model'): lambda request, answer: {'name': f'models/{request.model}'},
  ('openai', 'complete'): _openai_completion,
  ('openai', 'model'): lambda request, answer: {
    'id': request.model,
    'object': 'model',
    'created': 0,
    'owned_by': 'tests',
  },
}


def _send(
  handler: http.server.BaseHTTPRequestHandler,
  status: int,
  body: Any,
  headers: Mapping[str, str],
  *,
  cut: bool = False,
) -> None:
  raw = isinstance(body, str)
  content = body.encode() if raw else json.dumps(body).encode()
  try:
    handler.send_response(status)
    kind = {'content-type': 'text/html' if raw else 'application/json'}
    for name, value in {**kind, **headers, 'content-length': str(len(content))}.items():
      handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(content[: len(content) // 2] if cut else content)
    handler.wfile.flush()
  except OSError:  # the client went away, as one does that times out
    handler.close_connection = True
  if cut:
    _disconnect(handler)


def _disconnect(handler: http.server.BaseHTTPRequestHandler) -> None:
  handler.close_connection = True
  with contextlib.suppress(OSError):  # the client was first
    handler.connection.shutdown(socket.SHUT_RDWR)
