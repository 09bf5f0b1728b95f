"""`asiarch cognition`: look into the base of papers, check it, add to it."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable
from typing import Any

from absl import flags

from asiarch_jax.cognition import paper, retrieval
from asiarch_jax.commands import UsageError
from asiarch_jax.records import to_json
from asiarch_jax.shell import library


def base_of(folder: str | None = None) -> retrieval.Base:
  """Returns the papers of the package and, where a folder is named, those in it.

  Raises:
    ValueError: a file is no paper; says which and why.
    FileNotFoundError: there is no such folder.
  """
  logging.getLogger('bm25s').setLevel(logging.WARNING)  # it reports each index that it builds
  return retrieval.Base(tuple(read for _, read in _papers(folder)))


def cognition(values: flags.FlagValues, arguments: list[str]) -> int:
  """Runs the action that the first argument names."""
  action, *rest = arguments
  if action not in ACTIONS:
    raise UsageError(f'{action!r} is not something cognition does; it does {", ".join(ACTIONS)}')
  wanted = ACTIONS[action].argument
  if len(rest) != bool(wanted):
    raise UsageError(f'cognition {action} takes {wanted or "no argument"}, got {rest}')
  return ACTIONS[action].run(values, *rest)


def _papers(folder: str | None) -> list[tuple[str, paper.Paper]]:
  texts = library.packaged()
  if folder:
    texts |= {f'{folder}/{name}': text for name, text in library.folder(folder).items()}
  return [(name, paper.parsed(text, name)) for name, text in sorted(texts.items())]


def _search(values: flags.FlagValues, query: str) -> int:
  hits = base_of(values.papers).search(query, values.limit)
  if values.json:
    print(json.dumps({'hits': [_as_json(hit) for hit in hits]}))
  elif not hits:
    print('nothing in the base shares a word with that')
  for hit in () if values.json else hits:
    print(f'{hit.key}  {hit.score:.1f}  {hit.insight.idea}\n    {hit.paper.citation} {hit.paper.url}')
    if not hit.paper.checked:
      print(f'    not confirmed: {hit.paper.note}')
    for label, text in (('when', hit.insight.trigger), ('how', hit.insight.guidance), ('fails', hit.insight.fails)):
      print(f'    {label}: {" ".join(text.split())}')
  return 0


def _as_json(hit: retrieval.Hit) -> dict[str, Any]:
  about = {name: getattr(hit.paper, name) for name in ('title', 'authors', 'year', 'url', 'checked', 'note')}
  return {'key': hit.key, 'score': hit.score, **about, **to_json(hit.insight)}


def _list(values: flags.FlagValues) -> int:
  papers = base_of(values.papers).papers
  if values.json:
    print(json.dumps({'papers': [to_json(each) for each in papers]}))
    return 0
  for each in papers:
    print(f'{each.key:12}  {each.topic:22}  {each.citation}{"" if each.checked else "  (not confirmed)"}')
  entries = sum(len(each.entries) for each in papers)
  print(f'{len(papers)} papers, {entries} entries, {sum(not each.checked for each in papers)} papers not confirmed')
  return 0


def _lint(values: flags.FlagValues) -> int:
  found = paper.lint(_papers(values.papers))
  if values.json:
    print(json.dumps({'faults': found}))
  else:
    print('\n'.join(found) or 'no faults')
  return 1 if found else 0


def _add(values: flags.FlagValues, file: str) -> int:
  content = library.text(file)
  new = paper.parsed(content, file)
  folder = values.papers or 'papers'
  try:
    before = _papers(folder)
  except FileNotFoundError:
    before = _papers(None)
  found = [line for line in paper.lint([*before, (file, new)]) if line.startswith(f'{file}: ')]
  if found:
    raise UsageError('it was not added:\n' + '\n'.join(found))
  written = library.add(content, f'{new.key}.json', folder)
  print(json.dumps({'added': str(written)}) if values.json else f'added {written}; --papers={folder} reads it')
  return 0


@dataclasses.dataclass(frozen=True)
class Action:
  run: Callable[..., int]
  argument: str = ''


ACTIONS = {
  'search': Action(_search, 'a QUERY'),
  'list': Action(_list),
  'lint': Action(_lint),
  'add': Action(_add, 'a FILE'),
}
