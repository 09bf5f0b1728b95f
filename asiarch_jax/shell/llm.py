"""Language models over the network, as `ports.ChatModel` says: Gemini, and every endpoint of OpenAI's protocol.

Both SDKs run on an event loop in a thread of their own, so that `complete` may be called from any thread, ends with
Ctrl-C at once, and no attempt outlives `llm.timeout`. What an SDK raises becomes a `Refusal`; one rule (`Calls`) says
for both which refusals are asked again and after how long. The SDKs' own retries are off. Keys are taken out of every
text that leaves.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import re
import urllib.parse
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from asiarch_jax import config, dialogue, ports
from asiarch_jax.dialogue import Prompt, Reply, Usage
from asiarch_jax.shell.calls import (
  Calls,
  Refusal,
  asked_by_headers,
  dropped,
  errors_of_transport,
  malformed,
  redacted,
  seconds_asked,
)
from asiarch_jax.shell.exchanges import Recorded, Scripted

EMBEDDER = 'gemini-embedding-001'
TEXTS_PER_CALL = 100  # Gemini's limit on one batch of embeddings; Vertex AI takes one text a call
SHORTEST_SECRET = 8  # shorter keys are the words that local servers take, like 'none' or 'EMPTY'
GEMINI_KEYS = ('GEMINI_API_KEY', 'GOOGLE_API_KEY')
BLOCKED = {  # finish reasons of Gemini that withhold a reply
  *('SAFETY', 'RECITATION', 'LANGUAGE', 'BLOCKLIST', 'PROHIBITED_CONTENT', 'SPII', 'ESCALATION', 'MODEL_ARMOR'),
  *('PUP_LIMITED_DISABLED', 'IMAGE_SAFETY', 'IMAGE_PROHIBITED_CONTENT', 'IMAGE_RECITATION'),
}
FILTERED = (
  'content_filter',
  'invalid_prompt',
  'content_policy_violation',
)  # codes of OpenAI's 400s that block a prompt
_QUOTA_OF_THE_DAY = re.compile(r'per[ _-]?day|daily|limit: 0\b', re.IGNORECASE)

T = TypeVar('T')


class Closable(ports.ChatModel, Protocol):
  """A model that holds connections until it is closed."""

  def close(self) -> None: ...


class Gemini:
  """Gemini by key, or on Vertex AI where `llm.project` is set. Close it to end its thread and connections.

  `sleep` and `jitter` are what waiting between attempts is made of; without `sleep` a wait ends when the model closes.

  Raises:
    ImportError: google-genai is missing.
    PermissionError: there is no key, or there are no application-default credentials.
    ValueError: `llm.base_url` is no address.
  """

  def __init__(
    self,
    llm: config.Llm,
    environment: Mapping[str, str],
    *,
    sleep: Callable[[float], object] | None = None,
    jitter: Callable[[], float] = random.random,
  ):
    try:
      from google import genai
      from google.genai import types
    except ImportError as error:
      raise ImportError("llm.provider = 'gemini' needs google-genai: pip install 'asiarch-jax[llm]'") from error
    self._llm, self._types = llm, types
    self._credentials = _application_default(llm.project) if llm.project else None
    name, key = ('', '') if llm.project else _key(environment, GEMINI_KEYS)
    if not llm.project and not key:
      raise PermissionError(
        f'llm.provider = {llm.provider!r} finds no key: put one from https://aistudio.google.com/apikey into '
        f'GEMINI_API_KEY, or name a Google Cloud project with --config.llm.project='
      )
    self._keys = tuple(environment.get(name, '').strip() for name in GEMINI_KEYS)
    self._client = genai.Client(
      vertexai=bool(llm.project),
      api_key=key or None,
      project=llm.project or None,
      location=llm.location if llm.project else None,
      credentials=self._credentials,
      http_options=types.HttpOptions(
        base_url=_address(
          llm.base_url or environment.get('GOOGLE_VERTEX_BASE_URL' if llm.project else 'GOOGLE_GEMINI_BASE_URL', '')
        )
        or None,
        timeout=round(1000 * llm.timeout),  # milliseconds
        retry_options=types.HttpRetryOptions(attempts=1),  # left out, the SDK asks again after 1-10 s where aiohttp is
      ),
    )
    self._calls = Calls(
      llm,
      f'the key is in {name}' if name else f'check that these credentials may use Vertex AI in {llm.project}',
      _gemini_errors(),
      lambda: self.secrets,
      sleep,
      jitter,
    )

  @property
  def secrets(self) -> tuple[str, ...]:
    """The keys and the access token in use."""
    token = getattr(self._credentials, 'token', None)
    return _secret((*self._keys, token or ''))

  def complete(self, prompt: Prompt, schema: Mapping[str, Any]) -> Reply:
    settings = dialogue.settings_of(self._llm, prompt.role)
    generation = self._generation(settings, prompt.system, schema)
    reply, attempts, seconds = self._calls.answer(
      lambda: self._reply(settings.model, prompt.text, generation),
      settings.model,
      _model_setting(self._llm, prompt.role),
    )
    return _said(reply, self.secrets, settings.model, attempts, seconds)

  def embed(self, texts: Sequence[str]) -> list[list[float]]:
    """Returns a vector for each text, for cosine similarity.

    Raises:
      Unavailable, PermissionError, ValueError: as `complete`.
    """
    most = 1 if self._llm.project else TEXTS_PER_CALL
    return [
      vector for first in range(0, len(texts), most) for vector in self._embedded(list(texts[first : first + most]))
    ]

  def describe(self, model: str, setting: str) -> None:
    """Asks whether the provider has a model.

    Raises:
      ValueError: it does not list it.
      Unavailable, PermissionError: as `complete`.
    """
    self._calls.answer(lambda: self._client.aio.models.get(model=model), model, setting)

  def close(self) -> None:
    self._calls.close(self._client.aio.aclose)

  def _generation(self, settings: config.Role, system: str, schema: Mapping[str, Any]) -> Any:
    types = self._types
    thinking = None
    if settings.thinking.isdigit():
      thinking = types.ThinkingConfig(thinking_budget=int(settings.thinking))
    elif settings.thinking:
      thinking = types.ThinkingConfig(thinking_level=types.ThinkingLevel(settings.thinking.upper()))
    return types.GenerateContentConfig(
      system_instruction=system or None,
      response_mime_type='application/json',
      response_json_schema=dict(schema),
      max_output_tokens=settings.reply_tokens,
      temperature=settings.temperature if settings.temperature >= 0 else None,
      thinking_config=thinking,
      automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True),
    )

  async def _reply(self, model: str, text: str, generation: Any) -> Reply:
    return _gemini_reply(await self._client.aio.models.generate_content(model=model, contents=text, config=generation))

  def _embedded(self, texts: list[Any]) -> list[list[float]]:
    response, _, _ = self._calls.answer(
      lambda: self._client.aio.models.embed_content(
        model=EMBEDDER, contents=texts, config=self._types.EmbedContentConfig(task_type='SEMANTIC_SIMILARITY')
      ),
      EMBEDDER,
      'do without embeddings: --config.researcher.embedder=lexical',
    )
    vectors = [list(embedding.values or ()) for embedding in response.embeddings or ()]
    if len(vectors) != len(texts):
      raise ValueError(f'{self._llm.provider} {EMBEDDER} gave {len(vectors)} vectors for {len(texts)} texts')
    return vectors


class OpenAI:
  """Any endpoint of OpenAI's chat completions: OpenAI itself, or a local server at `llm.base_url`. Close it at the end.

  A server that refuses a JSON schema as the format of a reply is given the schema in the prompt instead, for the rest
  of the run.

  Raises:
    ImportError: openai is missing.
    PermissionError: there is no key, and no base_url that may do without.
    ValueError: `llm.base_url` is no address, or a role's thinking is a number of tokens.
  """

  def __init__(
    self,
    llm: config.Llm,
    environment: Mapping[str, str],
    *,
    sleep: Callable[[float], object] | None = None,
    jitter: Callable[[], float] = random.random,
  ):
    try:
      import openai
    except ImportError as error:
      raise ImportError("llm.provider = 'openai' needs openai: pip install 'asiarch-jax[openai]'") from error
    for role in config.ROLES:
      if getattr(llm, role).thinking.isdigit():
        raise ValueError(
          f"llm.{role}.thinking = {getattr(llm, role).thinking!r} is a number of tokens, which OpenAI's protocol "
          'cannot say; use minimal, low, medium or high'
        )
    self._llm, self._refused = llm, (openai.BadRequestError, openai.UnprocessableEntityError)
    base_url = _address(llm.base_url or environment.get('OPENAI_BASE_URL', ''))
    _, key = _key(environment, ('OPENAI_API_KEY',))
    if not key and not base_url:
      raise PermissionError(
        f'llm.provider = {llm.provider!r} finds no key: put one into OPENAI_API_KEY, or name a server that needs none '
        'with --config.llm.base_url='
      )
    self.secrets = _secret((key,))
    self._schemas = True  # the server takes a JSON schema as response_format
    # Local servers know max_tokens, some of them nothing else; OpenAI's newer models refuse it.
    self._limit = 'max_tokens' if base_url else 'max_completion_tokens'
    self._client = openai.AsyncOpenAI(
      api_key=key or 'none', base_url=base_url or 'https://api.openai.com/v1', max_retries=0, timeout=llm.timeout
    )
    self._calls = Calls(
      llm,
      'the key is in OPENAI_API_KEY' if key else 'no key was sent; put one into OPENAI_API_KEY',
      _openai_errors(),
      lambda: self.secrets,
      sleep,
      jitter,
    )

  def complete(self, prompt: Prompt, schema: Mapping[str, Any]) -> Reply:
    settings = dialogue.settings_of(self._llm, prompt.role)
    reply, attempts, seconds = self._calls.answer(
      lambda: self._reply(prompt, schema, settings), settings.model, _model_setting(self._llm, prompt.role)
    )
    return _said(reply, self.secrets, settings.model, attempts, seconds)

  def describe(self, model: str, setting: str) -> None:
    """As `Gemini.describe`."""
    self._calls.answer(lambda: self._client.models.retrieve(model), model, setting)

  def close(self) -> None:
    self._calls.close(self._client.close)

  async def _reply(self, prompt: Prompt, schema: Mapping[str, Any], settings: config.Role) -> Reply:
    while True:
      request = self._request(prompt, schema, settings)
      try:
        return _openai_reply(await self._client.chat.completions.create(**request))
      except self._refused as error:
        if error.code in FILTERED:
          return Reply('', 'blocked', _joined(error.code, _openai_message(error)))
        if not self._learnt(request, _openai_message(error)):
          raise

  def _request(self, prompt: Prompt, schema: Mapping[str, Any], settings: config.Role) -> dict[str, Any]:
    text = prompt.text
    response_format: dict[str, Any] = {
      'type': 'json_schema',
      'json_schema': {'name': prompt.role, 'schema': _without_longest(schema), 'strict': False},
    }
    if not self._schemas:
      response_format = {'type': 'json_object'}
      text = f'{text}\n\nAnswer with one JSON object, and nothing else, after this JSON schema:\n{json.dumps(schema)}'
    system = [{'role': 'system', 'content': prompt.system}] if prompt.system else []
    request: dict[str, Any] = {
      'model': settings.model,
      'messages': [*system, {'role': 'user', 'content': text}],
      'response_format': response_format,
      self._limit: settings.reply_tokens,
    }
    if settings.temperature >= 0:
      request['temperature'] = settings.temperature
    if settings.thinking:
      request['reasoning_effort'] = settings.thinking
    return request

  def _learnt(self, request: Mapping[str, Any], message: str) -> bool:
    """Says whether a refused request would now be written in another way, which the server may take."""
    if (
      request['response_format']['type'] == 'json_schema'
      and ('response_format' in message or 'grammar' in message)
      and 'invalid schema' not in message.lower()
    ):
      self._schemas = False
      return True
    if 'max_tokens' in request and 'max_completion_tokens' in message:
      self._limit = 'max_completion_tokens'
      return True
    return False


def reachable(llm: config.Llm, environment: Mapping[str, str]) -> str:
  """Returns a line on one tiny call of the researcher's model: who answered, and how fast.

  Raises:
    Unavailable, PermissionError, ValueError, ImportError: as the models.
  """
  # A few hundred tokens, since thoughts count too; a person waits for this.
  tiny = dataclasses.replace(llm.researcher, reply_tokens=512, temperature=-1.0)
  quick = dataclasses.replace(llm, researcher=tiny, attempts=min(llm.attempts, 2), timeout=min(llm.timeout, 60.0))
  schema = {'type': 'object', 'properties': {'ready': {'type': 'boolean'}}, 'required': ['ready']}
  with contextlib.closing(open_model(quick, environment, '')) as model:
    if isinstance(model, Scripted | Recorded):
      return f'{llm.provider}: {len(model):,} replies in {llm.exchanges}'
    reply = model.complete(Prompt('researcher', '', 'Say that you are ready.'), schema)
  fault = f', with a reply that cannot be used: {dialogue.FAULTS[reply.fault]}' if reply.fault else ''
  return f'{llm.provider} {reply.model} answered in {reply.seconds:.1f} s{fault}'


def models_known(
  llm: config.Llm, environment: Mapping[str, str], roles: Iterable[str] = config.ROLES
) -> dict[str, str]:
  """Returns the models of `roles` that the provider does not list, each with the problem.

  Raises:
    Unavailable, PermissionError, ValueError, ImportError: as the models.
  """
  problems: dict[str, str] = {}
  with contextlib.closing(open_model(llm, environment, '')) as model:
    if isinstance(model, Gemini | OpenAI):
      for name, role in {dialogue.settings_of(llm, role).model: role for role in roles}.items():
        try:
          model.describe(name, _model_setting(llm, role))
        except ValueError as error:
          problems[name] = str(error)
  return problems


def open_model(llm: config.Llm, environment: Mapping[str, str], workdir: str | os.PathLike[str]) -> Closable:
  """Returns the model of `llm.provider`, to be closed by the caller. `workdir` is the run's own.

  Raises:
    ImportError, PermissionError, FileNotFoundError, ValueError: as the models; or a run is to replay itself.
  """
  if llm.provider not in PROVIDERS:
    raise ValueError(f'llm.provider = {llm.provider!r}; use {", ".join(PROVIDERS)}')
  own = llm.provider == 'recorded' and os.fspath(workdir) and _place(workdir) == _place(llm.exchanges)
  if own:
    raise ValueError(f'llm.exchanges = {llm.exchanges!r} is the workdir of this run; replay it in another')
  return PROVIDERS[llm.provider](llm, environment)


PROVIDERS: dict[str, Callable[[config.Llm, Mapping[str, str]], Closable]] = {
  'gemini': Gemini,
  'openai': OpenAI,
  'scripted': lambda llm, environment: Scripted(llm.exchanges),
  'recorded': lambda llm, environment: Recorded(llm.exchanges),
}


def _gemini_reply(response: Any) -> Reply:
  counts = response.usage_metadata
  usage = Usage()
  if counts:
    usage = Usage(
      prompt=counts.prompt_token_count or 0,
      cached=counts.cached_content_token_count or 0,
      reply=counts.candidates_token_count or 0,
      thoughts=counts.thoughts_token_count or 0,
    )
  feedback = response.prompt_feedback
  if feedback and feedback.block_reason:
    detail = _joined('prompt', feedback.block_reason.value, feedback.block_reason_message)
    return Reply('', 'blocked', detail, usage)
  if not response.candidates:
    return Reply('', 'empty', 'no candidate', usage)
  candidate = response.candidates[0]
  parts = (candidate.content.parts if candidate.content else None) or ()
  text = ''.join(part.text for part in parts if part.text and not part.thought)
  reason = candidate.finish_reason.value if candidate.finish_reason else ''
  flagged = [rating.category.value for rating in candidate.safety_ratings or () if rating.blocked and rating.category]
  detail = _joined(reason, ', '.join(flagged), candidate.finish_message)  # a message only from Vertex AI
  if reason in BLOCKED:
    return Reply(text, 'blocked', detail, usage)
  if reason in ('MAX_TOKENS', 'CONTINUATION'):
    return Reply(text, 'truncated', detail, usage)
  return Reply(text, '', '', usage) if text else Reply('', 'empty', detail, usage)


def _openai_reply(response: Any) -> Reply:
  counts = response.usage
  usage = Usage()
  if counts:
    cached = counts.prompt_tokens_details and counts.prompt_tokens_details.cached_tokens
    thoughts = (counts.completion_tokens_details and counts.completion_tokens_details.reasoning_tokens) or 0
    usage = Usage(
      prompt=counts.prompt_tokens or 0,
      cached=cached or 0,
      reply=max(0, (counts.completion_tokens or 0) - thoughts),  # completion_tokens count reasoning too
      thoughts=thoughts,
    )
  if not response.choices:
    return Reply('', 'empty', _joined('no choice', (response.model_extra or {}).get('error')), usage)
  choice = response.choices[0]
  text = choice.message.content or ''
  if choice.finish_reason == 'content_filter' or choice.message.refusal:
    return Reply(text, 'blocked', _joined(choice.finish_reason, choice.message.refusal), usage)
  if choice.finish_reason == 'length':
    return Reply(text, 'truncated', 'length', usage)
  return Reply(text, '', '', usage) if text else Reply('', 'empty', str(choice.finish_reason), usage)


def _said(reply: Reply, secrets: Iterable[str], model: str, attempts: int, seconds: float) -> Reply:
  return dataclasses.replace(
    reply,
    text=redacted(reply.text, secrets),
    detail=redacted(reply.detail, secrets),
    model=model,
    attempts=attempts,
    seconds=seconds,
  )


def _gemini_errors() -> dict[type[Exception], Callable[[Any], Refusal]]:
  from google.auth import exceptions
  from google.genai import errors

  return {
    errors.APIError: _gemini_refusal,
    errors.UnknownApiResponseError: malformed,
    exceptions.TransportError: dropped,
    exceptions.RefreshError: lambda error: Refusal(0, str(error), denied=not error.retryable),
    **errors_of_transport(),
  }


def _gemini_refusal(error: Any) -> Refusal:
  body = error.details if isinstance(error.details, dict) else {}
  inner = body['error'] if isinstance(body.get('error'), dict) else body
  listed = inner.get('details')
  details = [detail for detail in listed if isinstance(detail, dict)] if isinstance(listed, list) else []
  delays = [str(detail['retryDelay']) for detail in details if 'retryDelay' in detail]
  reasons = {detail.get('reason') for detail in details}
  message = str(error.message or error.details)
  return Refusal(
    error.code,
    message,
    wait=max([asked_by_headers(error), *(seconds_asked(delay.removesuffix('s'), 0.0) for delay in delays)]),
    lasting=error.code == 429 and bool(_QUOTA_OF_THE_DAY.search(message + json.dumps(details))),
    denied='API_KEY_INVALID' in reasons or 'API key not valid' in message,  # comes as a 400
  )


def _openai_errors() -> dict[type[Exception], Callable[[Any], Refusal]]:
  import openai

  return {
    openai.APIStatusError: _openai_refusal,
    openai.APIConnectionError: lambda error: Refusal(0, f'{error.message} ({error.__cause__})'),
    openai.APIResponseValidationError: malformed,
    **errors_of_transport(),
  }


def _openai_refusal(error: Any) -> Refusal:
  message = _openai_message(error)
  spent = error.code == 'insufficient_quota' or bool(_QUOTA_OF_THE_DAY.search(message))
  return Refusal(
    error.status_code,
    message,
    wait=asked_by_headers(error),
    lasting=error.status_code == 402 or (error.status_code == 429 and spent),
  )


def _without_longest(schema: Any) -> Any:
  """Returns a schema without the largest lengths of its texts: llama.cpp repeats a rule that often, and refuses.

  Replies are validated where they are read in any case.

  >>> _without_longest({'type': 'string', 'minLength': 3, 'maxLength': 60000})
  {'type': 'string', 'minLength': 3}
  """
  if isinstance(schema, Mapping):
    return {name: _without_longest(part) for name, part in schema.items() if name != 'maxLength'}
  return [_without_longest(part) for part in schema] if isinstance(schema, list) else schema


def _openai_message(error: Any) -> str:
  body = error.body
  return str(body.get('message') or body) if isinstance(body, dict) else str(body or error.message)


def _application_default(project: str) -> Any:
  import google.auth
  from google.auth import exceptions

  try:
    credentials, _ = google.auth.default(scopes=['https://www.googleapis.com/auth/cloud-platform'])
  except exceptions.DefaultCredentialsError:
    raise PermissionError(
      f'llm.project = {project!r} needs application-default credentials: run gcloud auth application-default login, or '
      'point GOOGLE_APPLICATION_CREDENTIALS at the key of a service account'
    ) from None
  return credentials


def _key(environment: Mapping[str, str], names: Iterable[str]) -> tuple[str, str]:
  """Returns the first variable that holds a key, and the key."""
  for name in names:
    key = environment.get(name, '').strip()
    if key and not (key.isascii() and key.isprintable() and ' ' not in key):
      raise PermissionError(f'{name} holds a character that no key has, such as a blank or a line break; copy it anew')
    if key:
      return name, key
  return '', ''


def _secret(keys: Iterable[str]) -> tuple[str, ...]:
  return tuple(dict.fromkeys(key for key in keys if len(key) >= SHORTEST_SECRET))


def _address(base_url: str) -> str:
  """Returns an address that can be one, or none.

  >>> _address('http://localhost:8000/v1')
  'http://localhost:8000/v1'
  """
  parts = urllib.parse.urlsplit(base_url)
  try:
    port = parts.port is None or parts.port > 0
  except ValueError:
    port = False
  if base_url and not (
    port and parts.scheme in ('http', 'https') and parts.hostname and not re.search(r'\s', base_url)
  ):
    raise ValueError(f'llm.base_url = {base_url!r} is no address; write http://HOST:PORT/v1 or the like')
  if parts.username or parts.password:
    raise ValueError(
      'llm.base_url holds a user or a password, which would be written down; put the key into OPENAI_API_KEY instead'
    )
  return base_url


def _model_setting(llm: config.Llm, role: str) -> str:
  own: config.Role = getattr(llm, role)
  return f'name another: --config.llm.{f"{role}." if own.model else ""}model='


def _joined(*parts: Any) -> str:
  return ': '.join(str(part) for part in parts if part)


def _place(workdir: str | os.PathLike[str]) -> str:
  path = os.fspath(workdir)
  return path.rstrip('/') if '://' in path else os.path.realpath(path)
