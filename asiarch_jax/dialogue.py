"""What is said to a language model, what comes back, and what it costs.

A call is `Prompt` and a JSON schema in, `Reply` out (`ports.ChatModel`). A reply that cannot be used says so in its
`fault`; it is never an exception, since the answer to it is to ask again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from asiarch_jax import config
from asiarch_jax.records import Spend

FAULTS = {
  'blocked': "the provider's safety filter withheld the reply",
  'truncated': 'the reply hit its token limit before it was complete',
  'empty': 'the reply holds no text',
}


class RefusedError(ValueError):
  """The provider refuses this one request, such as a prompt longer than the model reads."""


@dataclasses.dataclass(frozen=True)
class Prompt:
  """One message to a model. `role` names the agent that asks: it picks model and limits (`config.ROLES`)."""

  role: str
  system: str
  text: str


@dataclasses.dataclass(frozen=True)
class Usage:
  """Tokens of one call as the provider counted them. `prompt` includes `cached`; `thoughts` are beside `reply`."""

  prompt: int = 0
  cached: int = 0
  reply: int = 0
  thoughts: int = 0

  @property
  def total(self) -> int:
    return self.prompt + self.reply + self.thoughts


@dataclasses.dataclass(frozen=True)
class Reply:
  """What came back. `text` is JSON after the schema unless `fault` (a key of FAULTS) says why it is not.

  `detail` is the provider's own word on a fault. `seconds` covers all `attempts`, which retries count too.
  """

  text: str
  fault: str = ''
  detail: str = ''
  usage: Usage = Usage()
  model: str = ''
  seconds: float = 0.0
  attempts: int = 1


@dataclasses.dataclass(frozen=True)
class Price:
  """Dollars for a million tokens, as of `date`. Thoughts are priced as reply."""

  model: str
  prompt: float
  cached: float
  reply: float
  date: str


def prices(table: Iterable[str]) -> dict[str, Price]:
  """Returns the price of each model from rows `MODEL PROMPT CACHED REPLY DATE` (`config.Llm.prices`).

  >>> prices(['gemini-x 0.5 0.05 3 2026-11-25'])['gemini-x'].reply
  3.0

  Raises:
    ValueError: a row has another form (named).
  """
  found = {}
  for row in table:
    words = row.split()
    try:
      model, date = words[0], words[4]
      prompt, cached, reply = map(float, words[1:4])
    except (IndexError, ValueError) as error:
      raise ValueError(
        f'llm.prices has the row {row!r}; write MODEL PROMPT CACHED REPLY DATE, dollars for a million tokens'
      ) from error
    found[model] = Price(model, prompt, cached, reply, date)
  return found


def dollars(usage: Usage, price: Price) -> float:
  """Returns what a call cost.

  >>> dollars(Usage(prompt=2_000_000, cached=1_000_000, reply=500_000, thoughts=500_000), Price('m', 1, 0.1, 4, ''))
  5.1
  """
  fresh = usage.prompt - usage.cached
  return (fresh * price.prompt + usage.cached * price.cached + (usage.reply + usage.thoughts) * price.reply) / 1_000_000


def price_of(table: Mapping[str, Price], model: str) -> Price | None:
  """Returns the price of a model or of the family that its full name begins with; None where the table has neither.

  >>> price_of(prices(['gemini-x 1 0.1 4 2026-11-25']), 'models/gemini-x-001').model
  'gemini-x'
  """
  name = model.removeprefix('models/')
  family = max((known for known in table if name.startswith(known)), key=len, default=None)
  return table[family] if family is not None else None


def spend_of(reply: Reply, table: Mapping[str, Price]) -> Spend:
  """Returns the spend of one call; a model without a price costs no dollars that anyone knows of."""
  price = price_of(table, reply.model)
  return Spend(1, reply.usage.total, dollars(reply.usage, price) if price else 0.0, reply.seconds)


def total(spends: Iterable[Spend]) -> Spend:
  """Returns the sum of spends.

  >>> total([Spend(1, 10, 0.5, 2.0), Spend(2, 5, 0.25, 1.0)])
  Spend(calls=3, tokens=15, dollars=0.75, seconds=3.0)
  """
  every = list(spends)
  return Spend(
    sum(s.calls for s in every),
    sum(s.tokens for s in every),
    sum(s.dollars for s in every),
    sum(s.seconds for s in every),
  )


def settings_of(llm: config.Llm, role: str) -> config.Role:
  """Returns the settings of a role with what it leaves open filled in.

  Raises:
    ValueError: there is no such role.
  """
  if role not in config.ROLES:
    raise ValueError(f'{role!r} is not a role; there are {", ".join(config.ROLES)}')
  own: config.Role = getattr(llm, role)
  return dataclasses.replace(own, model=own.model or llm.model)


def key_of(prompt: Prompt, schema: Mapping[str, Any]) -> str:
  """Names an exchange by its content, so that a recording can be found again (sha256, 16 hex digits)."""
  content = json.dumps([prompt.role, prompt.system, prompt.text, schema], sort_keys=True)
  return hashlib.sha256(content.encode()).hexdigest()[:16]
