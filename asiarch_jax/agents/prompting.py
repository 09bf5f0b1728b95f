"""How a prompt is put together: templates that are files, and text from elsewhere fenced as data.

A fence is named by a hash of what it holds, so no text can contain its own fence's end: what a training log or a stored
analysis says stays inside. Every system prompt says that nothing inside a fence is an instruction.
"""

from __future__ import annotations

import hashlib
import string
from collections.abc import Mapping

Templates = Mapping[str, str]  # file name without its ending -> text with $names
LONGEST = 12_000  # characters of one fenced text


def rendered(templates: Templates, template: str, /, **values: str) -> str:
  """Returns a template with its $names filled in.

  Raises:
    ValueError: the template is missing, or wants a name that was not given (both named).
  """
  if template not in templates:
    raise ValueError(f'there is no prompt {template!r}; there are {", ".join(sorted(templates))}')
  try:
    return string.Template(templates[template]).substitute(values).strip() + '\n'
  except (KeyError, ValueError) as error:
    raise ValueError(f'prompt {template}.txt wants {error}; it is given {", ".join(sorted(values))}') from error


def fenced(label: str, text: str, longest: int = LONGEST) -> str:
  """Returns text as data: between two lines that name it and that it cannot contain.

  >>> print(fenced('log', 'step 1'))
  [data log 9a2deff4]
  step 1
  [end of data log 9a2deff4]
  """
  kept = shortened(text, longest)
  mark = f'{label} {hashlib.sha256(kept.encode()).hexdigest()[:8]}'
  return f'[data {mark}]\n{kept}\n[end of data {mark}]'


def shortened(text: str, longest: int) -> str:
  """Returns a text of at most about `longest` characters: its beginning and its end, where it is longer.

  >>> shortened('abcdefghij', 4)
  'ab\\n... 6 characters left out ...\\nij'
  """
  if len(text) <= longest:
    return text
  half = longest // 2
  return f'{text[:half]}\n... {len(text) - 2 * half} characters left out ...\n{text[-half:]}'
