"""English prose that is already on the machine: the docstrings of the libraries that this package depends on.

Files are parsed, never imported. What is kept: docstrings of modules, classes and functions, and the texts that numpy
and scipy attach to compiled functions with `add_newdoc`. What is dropped: test modules, paragraphs with interactive
sessions (code and its output), and every paragraph that occurred before, in whatever library. A module is one document,
so that a split by document is one by module. The order is that of LIBRARIES, then of module names: the same installed
versions give the same text.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import pathlib
import re
import warnings
from collections.abc import Iterable, Iterator

from asiarch_jax import syntax
from asiarch_jax.shell.text_sources import Document

LIBRARIES = {  # package -> the distribution that brings it; core dependencies only, so that extras change nothing
  'absl': 'absl-py',
  'chex': 'chex',
  'einops': 'einops',
  'etils': 'etils',
  'flax': 'flax',
  'grain': 'grain',
  'jax': 'jax',
  'jaxtyping': 'jaxtyping',
  'matplotlib': 'matplotlib',
  'ml_collections': 'ml-collections',
  'numpy': 'numpy',
  'optax': 'optax',
  'orbax': 'orbax-checkpoint',
  'rich': 'rich',
  'scipy': 'scipy',
  'tensorstore': 'tensorstore',
}
EXTRACTION = 1  # raised when the text taken from the same files changes
PARAGRAPHS = re.compile(r'\n\s*\n')
SHORTEST = 40  # characters of an argument of add_newdoc that is a text and not a name


def versions() -> dict[str, str]:
  """Returns the installed version of every library that `documents` reads."""
  return {package: importlib.metadata.version(distribution) for package, distribution in LIBRARIES.items()}


def documents(libraries: Iterable[str] = tuple(LIBRARIES)) -> Iterator[Document]:
  """Yields a document for each module that says something new, library by library.

  Raises:
    FileNotFoundError: a library of the core install is missing.
  """
  seen: set[bytes] = set()
  for package in libraries:
    for module, path in _modules(package):
      paragraphs = [
        paragraph
        for docstring in _docstrings(path)
        for paragraph in PARAGRAPHS.split(docstring.strip())
        if '>>>' not in paragraph and _is_new(paragraph, seen)
      ]
      if paragraphs:
        yield Document(module, '\n\n'.join(paragraphs) + '\n', f'{package}: {module}')


def _is_new(paragraph: str, seen: set[bytes]) -> bool:
  words = ' '.join(paragraph.split())
  digest = hashlib.sha256(words.encode('utf-8', 'replace')).digest()[:16]
  new = bool(words) and digest not in seen
  seen.add(digest)
  return new


def _modules(package: str) -> list[tuple[str, pathlib.Path]]:
  """Returns (module name, file) of a package's Python files and stubs by name, tests left out."""
  spec = importlib.util.find_spec(package)  # of a top-level name: finds, does not import
  if spec is None or not spec.submodule_search_locations:
    raise FileNotFoundError(f'{package} is not installed; reinstall asiarch-jax: pip install asiarch-jax')
  found = {}
  for root in map(pathlib.Path, spec.submodule_search_locations):
    for pattern in ('*.py', '*.pyi'):
      for path in root.rglob(pattern):
        parts = path.relative_to(root).with_suffix('').parts
        if not {'tests', 'test', '_vendor'} & set(parts):
          found[package, *parts, path.suffix] = path
  return [('.'.join(parts).removesuffix('.__init__'), path) for (*parts, _), path in sorted(found.items())]


def _docstrings(path: pathlib.Path) -> Iterator[str]:
  """Yields the docstrings of a file in the order in which they stand. A file of another Python version has none."""
  try:
    with warnings.catch_warnings():
      warnings.simplefilter('ignore', SyntaxWarning)
      tree = syntax.parse(path.read_bytes())
  except (SyntaxError, ValueError):
    return
  found = []
  for node in ast.walk(tree):
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
      docstring = ast.get_docstring(node)
      if docstring:
        found.append((getattr(node, 'lineno', 0), docstring))
    elif isinstance(node, ast.Call) and getattr(node.func, 'id', getattr(node.func, 'attr', '')) == 'add_newdoc':
      texts = [text for argument in node.args for text in _strings(argument) if len(text) >= SHORTEST]
      found += [(node.lineno, _cleaned(text)) for text in texts]
  yield from (docstring for _, docstring in sorted(found, key=lambda pair: pair[0]))


def _strings(node: ast.expr) -> Iterator[str]:
  if isinstance(node, ast.Constant) and isinstance(node.value, str):
    yield node.value
  elif isinstance(node, ast.Tuple):
    for element in node.elts:
      yield from _strings(element)


def _cleaned(text: str) -> str:
  return ast.get_docstring(ast.Module([ast.Expr(ast.Constant(text))], [])) or ''
