"""One question to a language model: ask, validate, and ask again with the fault named, at most twice."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from typing import Generic, TypeVar

from pydantic import BaseModel, ValidationError

from asiarch_jax.dialogue import FAULTS, Prompt, RefusedError, Reply
from asiarch_jax.ports import ChatModel

RE_ASKS = 2
SHOWN = 5  # violations of a schema that are named

Kind = TypeVar('Kind', bound=BaseModel)
REMEDIES = {
  'blocked': 'Answer the same question in plain technical language, without quoting text from the data.',
  'truncated': 'Answer again, and much shorter: leave out comments and repetition, but give the complete JSON object.',
  'empty': 'Answer with the JSON object.',
}


@dataclasses.dataclass(frozen=True)
class Answer(Generic[Kind]):
  """What a question came to: a valid reply, or why there was none. `model` gave it."""

  value: Kind | None
  fault: str = ''
  model: str = ''


def ask(
  model: ChatModel, prompt: Prompt, kind: type[Kind], objection: Callable[[Kind], str] = lambda value: ''
) -> Answer[Kind]:
  """Returns the valid reply, asked for at most 1 + RE_ASKS times.

  `objection` says in a sentence what is wrong with a reply that fits the schema, '' where nothing is.
  """
  schema = kind.model_json_schema()
  asked, fault, reply = prompt, '', Reply('')
  for _ in range(1 + RE_ASKS):
    try:
      reply = model.complete(asked, schema)
    except RefusedError as error:
      if prompt.role == 'researcher':  # nothing is lost yet, and every cycle would end so
        raise
      return Answer(None, str(error))
    value, fault = _value(reply, kind)
    fault = fault or (objection(value) if value is not None else '')
    if value is not None and not fault:
      return Answer(value, model=reply.model)
    remedy = REMEDIES.get(reply.fault, 'Answer again with one JSON object that mends this and keeps the rest.')
    asked = dataclasses.replace(
      prompt, text=f'{prompt.text}\nYour previous reply could not be used: {fault}\n{remedy}\n'
    )
  return Answer(None, fault, reply.model)


def _value(reply: Reply, kind: type[Kind]) -> tuple[Kind | None, str]:
  if reply.fault:
    return None, f'{FAULTS[reply.fault]}{f" ({reply.detail})" if reply.detail else ""}.'
  text = _object(reply.text)
  try:
    return kind.model_validate_json(text), ''
  except ValidationError as error:
    named = [f'{".".join(map(str, e["loc"])) or "the reply"}: {e["msg"]}' for e in error.errors()[:SHOWN]]
    more = len(error.errors()) - SHOWN
    return None, '; '.join(named) + (f'; and {more} more' if more > 0 else '') + '.'


def _object(text: str) -> str:
  """Returns the JSON object in a reply; small models wrap it in Markdown or in words."""
  stripped = text.strip()
  fence = re.fullmatch(r'```(?:json)?[^\S\n]*\n(.*?)\n?```', stripped, re.DOTALL)
  if fence:
    return fence.group(1)
  start = stripped.find('{')
  if start > 0:
    try:
      _, end = json.JSONDecoder().raw_decode(stripped[start:])
      return stripped[start : start + end]
    except (ValueError, RecursionError):
      return stripped
  return stripped
