"""Papers and prompts on disk: those that come with the package, and a folder of the user's own papers."""

from __future__ import annotations

import importlib.resources
import os
import pathlib

FILE_BYTES = 1 << 20  # a paper is a few kilobytes


def packaged() -> dict[str, str]:
  """Returns the text of each file of papers that the package brings, by file name."""
  folder = importlib.resources.files('asiarch_jax.cognition') / 'papers'
  return {path.name: path.read_text('utf-8') for path in folder.iterdir() if path.name.endswith('.json')}


def prompts() -> dict[str, str]:
  """Returns the text of each prompt template, by file name without its ending."""
  place = importlib.resources.files('asiarch_jax.agents') / 'prompts'
  return {path.name[:-4]: path.read_text('utf-8') for path in place.iterdir() if path.name.endswith('.txt')}


def folder(path: str | os.PathLike[str]) -> dict[str, str]:
  """Returns the text of each JSON file in a folder.

  Raises:
    FileNotFoundError: there is no such folder.
    ValueError: a file is too large or not UTF-8.
  """
  place = pathlib.Path(path)
  if not place.is_dir():
    raise FileNotFoundError(f'{place} is not a folder; name one that holds a JSON file a paper')
  return {file.name: text(file) for file in sorted(place.glob('*.json'))}


def text(path: str | os.PathLike[str]) -> str:
  """Returns the text of one file.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is too large or not UTF-8.
  """
  file = pathlib.Path(path)
  if not file.is_file():
    raise FileNotFoundError(f'{file}: no such file')
  if file.stat().st_size > FILE_BYTES:
    raise ValueError(f'{file} has {file.stat().st_size:,} bytes; a paper has at most {FILE_BYTES:,}')
  try:
    return file.read_text('utf-8')
  except UnicodeDecodeError as error:
    raise ValueError(f'{file}: not UTF-8 at byte {error.start}; a paper is a JSON text file') from error


def add(content: str, name: str, path: str | os.PathLike[str]) -> pathlib.Path:
  """Writes a paper into a folder, whole or not at all, and returns the file.

  Raises:
    FileExistsError: a file of that name is there.
    OSError: the folder cannot be written.
  """
  place = pathlib.Path(path)
  place.mkdir(parents=True, exist_ok=True)
  target, beside = place / name, place / f'.{name}.{os.getpid()}'
  try:
    beside.write_text(content, 'utf-8')
    os.link(beside, target)  # unlike a rename, refuses a name that is taken
  except FileExistsError as error:
    raise FileExistsError(f'{target} is there already; remove it first to replace it') from error
  finally:
    beside.unlink(missing_ok=True)
  return target
