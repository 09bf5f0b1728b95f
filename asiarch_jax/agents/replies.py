"""What each agent must answer, as pydantic models: their JSON schema goes to the provider, their validation is ours.

Field descriptions are read by the model: they are part of the prompt.
"""

from __future__ import annotations

import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

LONGEST_NAME = 60


class _Reply(BaseModel):
  model_config = ConfigDict(extra='ignore', str_strip_whitespace=True)


class Idea(_Reply):
  component: str = Field(description='the component in a few words, such as: per-channel decay', max_length=120)
  origin: Literal['cognition', 'analysis', 'original'] = Field(
    description='cognition: a paper shown above; analysis: a result or lesson of this archive; original: neither'
  )
  reference: str = Field(
    default='', description='key of the paper as shown, or id of the entry; empty if original', max_length=80
  )


def _unfenced(text: str) -> str:
  """Returns code without the Markdown fence that models like to put around it."""
  match = re.fullmatch(r'\s*```[\w-]*\n(.*?)\n?```\s*', text, re.DOTALL)
  return match.group(1) if match else text


class ProposalReply(_Reply):
  name: str = Field(description='snake_case name of the mixer, at most 60 characters', min_length=3, max_length=200)
  motivation: str = Field(
    description='which measured weakness it answers, the mechanism, what should improve and what it risks',
    min_length=40,
    max_length=6000,
  )
  source: str = Field(description='the complete Python source of the file', min_length=80, max_length=60_000)
  ideas: list[Idea] = Field(
    default_factory=list, max_length=12, description='one to six: where each new component comes from'
  )

  @field_validator('source')
  @classmethod
  def _code(cls, source: str) -> str:
    return _unfenced(source).strip() + '\n'

  @field_validator('name')
  @classmethod
  def _snake(cls, name: str) -> str:
    spaced = re.sub(r'(?<=[a-z0-9])(?=[A-Z])', '_', name)
    snake = re.sub(r'[^a-z0-9]+', '_', spaced.lower()).strip('_')[:LONGEST_NAME].rstrip('_')
    if not re.match(r'[a-z]', snake):
      raise ValueError(f'{name!r} is no snake_case name')
    return snake


class RepairReply(_Reply):
  diagnosis: str = Field(
    description='what was wrong and what was changed, in two sentences', min_length=5, max_length=2000
  )
  source: str = Field(description='the complete repaired source of the file', min_length=80, max_length=60_000)

  @field_validator('source')
  @classmethod
  def _code(cls, source: str) -> str:
    return _unfenced(source).strip() + '\n'


class Comparison(_Reply):
  id: int = Field(description='id of the archived entry')
  same_problem: bool = Field(description='it answers the same core problem')
  same_approach: bool = Field(description='by the same fundamental mechanism')
  same_scope: bool = Field(description='and its scope overlaps completely')
  same_contribution: bool = Field(description='and its contribution is equivalent')


class RepeatReply(_Reply):
  comparisons: list[Comparison] = Field(description='one for each archived entry that was shown')
  reason: str = Field(description='one or two sentences', min_length=3)


class JudgeReply(_Reply):
  reason: str = Field(description='the measurements and mechanisms behind the three marks', min_length=10)
  performance: float = Field(ge=1, le=10)
  innovation: float = Field(ge=1, le=10)
  complexity: float = Field(ge=1, le=10)


class Lesson(_Reply):
  kind: Literal['helps', 'hurts', 'costs', 'unclear']
  text: str = Field(description='one short sentence that a later author can act on', min_length=8, max_length=300)


class AnalysisReply(_Reply):
  design: str = Field(description='what the design does and how sound it is', min_length=20)
  results: str = Field(description='what was measured against baseline, parent and siblings', min_length=20)
  expectation: str = Field(description='what the author expected against what happened', min_length=20)
  explanation: str = Field(description='why, by mechanism, with the evidence for it', min_length=20)
  synthesis: str = Field(description='what to keep, what to undo, what to try next', min_length=20)
  lessons: list[Lesson] = Field(description='one to six', min_length=1, max_length=6)
  weaknesses: str = Field(
    description='what the measurements show to be lacking, in the terms of the field: a query for papers',
    min_length=10,
    max_length=1200,
  )


class SummaryReply(_Reply):
  summary: str = Field(description='the experience of this entry, at most 150 words', min_length=20, max_length=2500)
