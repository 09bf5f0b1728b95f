"""A paper of the cognition base and the insights drawn from it: one JSON file a paper, written in our own words."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable

from asiarch_jax.records import from_json

TOPICS = (
  'linear attention',
  'delta rule',
  'gated recurrence',
  'state space',
  'long convolution',
  'softmax attention',
  'sparse attention',
  'hybrid',
  'test-time training',
  'position',
  'gating',
  'normalisation',
  'optimisation',
  'recall theory',
  'scaling and evaluation',
)
MOST_INSIGHTS = 3
# Characters of each text: shorter says too little to act on, longer crowds a prompt.
LENGTHS = {
  'idea': (20, 160),
  'trigger': (200, 900),
  'algorithm': (200, 1800),
  'guidance': (200, 1500),
  'history': (60, 700),
  'fails': (60, 700),
}


@dataclasses.dataclass(frozen=True)
class Insight:
  """One idea of a paper.

  `trigger` says what measurements look like when the idea may help: it is what retrieval compares with. `algorithm`
  holds the equations, `guidance` how to write it as a mixer, `history` what it comes from, `fails` when it is no help.
  """

  idea: str
  trigger: str
  algorithm: str
  guidance: str
  history: str
  fails: str


@dataclasses.dataclass(frozen=True)
class Paper:
  """A paper and one to three insights. Where `checked` is false, `note` says which facts could not be confirmed."""

  title: str
  authors: tuple[str, ...]
  year: int
  arxiv: str | None
  url: str
  topic: str
  checked: bool
  note: str
  entries: tuple[Insight, ...]

  @property
  def key(self) -> str:
    """How the paper is named in files and records: its arXiv id, else the title in short."""
    return self.arxiv or re.sub(r'[^a-z0-9]+', '-', self.title.lower()).strip('-')[:60]

  @property
  def citation(self) -> str:
    first = self.authors[0] if self.authors else 'unknown'
    return f'{first}{" et al." if len(self.authors) > 1 else ""} ({self.year}), {self.title}'


def parsed(text: str, name: str) -> Paper:
  """Returns the paper that a file holds.

  Raises:
    ValueError: naming the file, and the field or place that is wrong.
  """
  try:
    return from_json(Paper, json.loads(text))
  except json.JSONDecodeError as error:
    raise ValueError(f'{name}: not JSON at line {error.lineno}, column {error.colno}: {error.msg}') from error
  except RecursionError as error:
    raise ValueError(f'{name}: brackets in brackets without end') from error
  except ValueError as error:
    raise ValueError(f'{name}: {error}') from error


def faults(paper: Paper) -> list[str]:
  """Returns what is wrong with one paper, a sentence each."""
  found = []
  if paper.topic not in TOPICS:
    found.append(f'topic {paper.topic!r} is none of {", ".join(TOPICS)}')
  if not 1 <= len(paper.entries) <= MOST_INSIGHTS:
    found.append(f'{len(paper.entries)} entries; a paper has 1 to {MOST_INSIGHTS}')
  if not paper.title.strip() or not paper.authors or not all(author.strip() for author in paper.authors):
    found.append('title and authors are needed')
  if not 1940 <= paper.year <= 2100:
    found.append(f'year {paper.year} is not one')
  if paper.arxiv is not None and not re.fullmatch(r'\d{4}\.\d{4,5}', paper.arxiv):
    found.append(f'arxiv {paper.arxiv!r} is not an id such as 2412.06464; write null where there is none')
  if not paper.url.startswith('https://'):
    found.append(f'url {paper.url!r} does not begin with https://')
  if not paper.checked and not paper.note.strip():
    found.append('it is not checked and does not say what could not be confirmed; write it in note')
  for n, insight in enumerate(paper.entries):
    for field, (least, most) in LENGTHS.items():
      length = len(getattr(insight, field).strip())
      if not least <= length <= most:
        found.append(f'entries[{n}].{field} has {length} characters; it takes {least} to {most}')
  triggers = [' '.join(insight.trigger.split()) for insight in paper.entries]
  if len(set(triggers)) < len(triggers):
    found.append('two entries share a trigger; retrieval could not tell them apart')
  return found


def lint(papers: Iterable[tuple[str, Paper]]) -> list[str]:
  """Returns what is wrong with (file name, paper) pairs and between them, a line each."""
  lines: list[str] = []
  keys: dict[str, str] = {}
  titles: dict[str, str] = {}
  for name, paper in papers:
    lines += [f'{name}: {fault}' for fault in faults(paper)]
    title = re.sub(r'\W+', ' ', paper.title.lower()).strip()
    for kind, seen, value in (('id', keys, paper.key), ('title', titles, title)):
      if value in seen:
        lines.append(f'{name}: the {kind} {value!r} is that of {seen[value]} too')
      seen.setdefault(value, name)
  return lines
