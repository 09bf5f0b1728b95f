"""What libtpu wrote down about a program: the schedules of its kernels, and its optimised HLO. Pure readers of text."""

from __future__ import annotations

import dataclasses
import functools
import math
import pathlib
import re
from collections.abc import Iterator
from typing import NamedTuple


@dataclasses.dataclass(frozen=True)
class Kernel:
  """One kernel of a schedule dump."""

  name: str
  bundles: int
  steps: int
  slots: dict[str, int]
  places: dict[str, int]  # of each slot in a bundle


def dumped_kernels(folder: pathlib.Path) -> Iterator[Kernel]:
  """Yields the custom kernels of a schedule dump: their bundles, grid steps and slots used."""
  for path in sorted(folder.glob('*-final_bundles.txt')):
    found = re.match(r'\d+-(.+?)-\d+-final_bundles', path.name)
    if not found or 'schedule-analysis' in path.name or found[1] == 'TLP' or found[1].startswith('<'):
      continue
    name = found[1]
    summary, slots = (
      next(iter(folder.glob(f'{path.name.split("-")[0]}-{name}-*{kind}')), None)
      for kind in ('schedule-analysis_final_bundles.txt', 'final_hlo-static-per-bundle-utilization.txt')
    )
    if summary is None or slots is None or 'tpu_custom_call' not in (report := summary.read_text()):
      continue
    bounds = re.search(r'iteration_bounds: \(([\d, ]+)\)', path.read_text())
    steps = math.prod(int(size) for size in bounds[1].split(',') if size.strip()) if bounds else 1
    total = re.search(r'total scheduled bundles:\s+(\d+)', report)
    if total:
      yield Kernel(name, int(total[1]), steps, *_slots(slots.read_text()))


def _slots(text: str) -> tuple[dict[str, int], dict[str, int]]:
  """Returns how many of each slot a schedule uses, from its utilisation table, and how many a bundle has."""
  head, _, table = text.partition('== UTILIZATION:')
  _, titles, capacities = head.strip().splitlines()[:3]
  names = [name.strip() for name in titles.split(',')]
  rows = [[int(count) for count in line.split()] for line in table.strip().splitlines()]
  places = dict(zip(names, map(int, capacities.split()), strict=False))
  return dict(zip(names, map(sum, zip(*rows, strict=True)), strict=False)), places


KERNEL = 'custom_call_target="tpu_custom_call"'
BYTES = {'f32': 4, 's32': 4, 'u32': 4, 'bf16': 2, 'f16': 2, 'pred': 1, 's8': 1, 'u8': 1}
FREE = {'parameter', 'constant', 'get-tuple-element', 'tuple', 'bitcast', 'copy-done', 'while', 'after-all'}


class Traffic(NamedTuple):
  """What a program does, loops counted as often as they turn."""

  xla_cycles: int  # the compiler's estimates for operations outside kernels
  kernel_bytes: int  # of HBM that kernels read and write
  xla_bytes: int  # the same of operations outside kernels: what they keep in VMEM does not count


class _Instruction(NamedTuple):
  name: str
  kind: str  # the type of the result, with layouts
  opcode: str
  operands: tuple[str, ...]
  rest: str  # attributes


class _Computation(NamedTuple):
  instructions: dict[str, _Instruction]
  root: str


def traffic(text: str) -> Traffic:
  """Returns the traffic of optimised HLO.

  A loop's body counts as often as its condition says: the largest integer constant it compares with.
  """
  computations, entry = _computations(text)

  @functools.cache
  def of(name: str) -> Traffic:
    total = Traffic(0, 0, 0)
    here = computations[name].instructions if name in computations else {}
    for x in here.values():
      if KERNEL in x.rest:
        mine = Traffic(0, _bytes(x.kind) + _bytes(_operand_layouts(x.rest)), 0)
      elif x.opcode == 'while':
        condition, body = (_called(x, key) for key in ('condition', 'body'))
        trips = max(_integers(computations.get(condition)), default=1)
        mine = Traffic(*(trips * count for count in of(body)))
      else:
        estimate = re.search(r'"estimated_cycles":"?(\d+)', x.rest)
        mine = Traffic(int(estimate[1]) if estimate else 0, 0, _moved(x, here, computations))
      total = Traffic(*map(sum, zip(total, mine, strict=True)))
    return total

  return of(entry)


# A TPU begins a collective in one fusion, moves it on in others beside their own work, and ends it in a last one.
GOES_ON = re.compile(r'async-collective-done|async_collective_fusion')
COLLECTIVES = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-permute')


def collectives(text: str) -> dict[str, tuple[int, int]]:
  """Returns (times, bytes of the results) of each kind of collective in optimised HLO, loops counted as turns."""
  computations, entry = _computations(text)

  @functools.cache
  def of(name: str) -> dict[str, tuple[int, int]]:
    total: dict[str, tuple[int, int]] = {}
    here = computations[name].instructions if name in computations else {}
    for x in here.values():
      times, kind = 1, x.opcode.removesuffix('-start')
      if kind in COLLECTIVES:
        # What starts one may name its operand beside its result.
        sizes = [_bytes(leaf, anywhere=True) for leaf in _leaves(x.kind)]
        within = {kind: (1, max(sizes, default=0) if x.opcode != kind else sum(sizes))}
      elif x.opcode == 'while':
        times = max(_integers(computations.get(_called(x, 'condition'))), default=1)
        within = of(_called(x, 'body'))
      elif GOES_ON.match(x.name) or GOES_ON.match(_called(x, 'calls')):
        within = {}
      else:
        within = of(_called(x, 'calls'))
      for one, (count, size) in within.items():
        before = total.get(one, (0, 0))
        total[one] = (before[0] + times * count, before[1] + times * size)
    return total

  return of(entry)


def _computations(text: str) -> tuple[dict[str, _Computation], str]:
  """Returns the computations of a module by name, and the name of its entry."""
  found: dict[str, _Computation] = {}
  entry = name = ''
  for line in text.splitlines():
    if header := re.match(r'(ENTRY )?%?([\w.\-]+) \(.*\{$', line):
      name = header[2]
      entry = name if header[1] else entry
      found[name] = _Computation({}, '')
    elif name and (x := _instruction(line)):
      root = x.name if line.lstrip().startswith('ROOT') else found[name].root
      found[name].instructions[x.name] = x
      found[name] = _Computation(found[name].instructions, root)
  return found, entry


def _instruction(line: str) -> _Instruction | None:
  start = re.match(r'\s+(?:ROOT )?%?([\w.\-]+) = ', line)
  if not start:
    return None
  kind, rest = _balanced(line[start.end() :]) if line[start.end()] == '(' else line[start.end() :].split(' ', 1)
  opcode, _, rest = rest.strip().partition('(')
  operands, rest = _balanced('(' + rest)
  return _Instruction(start[1], kind, opcode, tuple(re.findall(r'%?([\w.\-]+)(?=[,)])', operands)), rest)


def _balanced(text: str) -> tuple[str, str]:
  """Returns the parenthesis that `text` begins with, and what follows it."""
  depth = 0
  for n, character in enumerate(text):
    depth += (character == '(') - (character == ')')
    if not depth:
      return text[: n + 1], text[n + 1 :]
  return text, ''


def _integers(computation: _Computation | None) -> list[int]:
  """Returns the integer constants of a computation."""
  every = computation.instructions.values() if computation else ()
  return [int(x.operands[0]) for x in every if x.opcode == 'constant' and x.kind.startswith('s32[]')]


def _called(x: _Instruction, key: str) -> str:
  found = re.search(rf'{key}=%?([\w.\-]+)', x.rest)
  return found[1] if found else ''


def _moved(x: _Instruction, here: dict[str, _Instruction], computations: dict[str, _Computation]) -> int:
  """Returns the bytes of HBM that an operation reads and writes; of slices and updates, only the part they touch."""
  if x.opcode in FREE or x.opcode.endswith('-done') or 'AllocateBuffer' in x.rest:
    return 0
  if x.opcode == 'copy-start':  # its result names both places
    return _bytes(x.kind)
  given = [here[name] for name in x.operands if name in here]
  if x.opcode == 'slice-start':  # ((whole), slice, flag)
    part = _leaves(x.kind)[1]
    return _bytes(part) + (_bytes(part, anywhere=True) if _bytes(given[0].kind) else 0)
  if x.opcode == 'fusion' and (inner := computations.get(_called(x, 'calls'))):
    return _written(x, inner) + sum(
      min(_bytes(operand.kind), _read(n, inner, computations)) for n, operand in enumerate(given)
    )
  if x.opcode == 'dynamic-slice':
    return _bytes(x.kind) + (_bytes(x.kind, anywhere=True) if _bytes(given[0].kind) else 0)
  if x.opcode == 'dynamic-update-slice':
    return _bytes(given[1].kind) + min(_bytes(x.kind), _bytes(given[1].kind, anywhere=True))
  return _bytes(x.kind) + sum(_bytes(operand.kind) for operand in given)


def _read(number: int, inner: _Computation, computations: dict[str, _Computation]) -> int:
  """Returns what a fusion reads of operand `number`: the sum of its slices, nothing of what it updates in place, else
  all of it. A fusion inside takes it further."""
  parameters = [x for x in inner.instructions.values() if x.opcode == 'parameter' and x.operands == (str(number),)]
  if not parameters:
    return 0
  whole, names, total = _bytes(parameters[0].kind, anywhere=True), {parameters[0].name}, 0
  for x in inner.instructions.values():
    at = next((n for n, name in enumerate(x.operands) if name in names), None)
    if at is None:
      continue
    if _relabels(x, computations):
      names.add(x.name)
    elif x.opcode == 'dynamic-slice' and at == 0:
      total += _bytes(x.kind, anywhere=True)
    elif x.opcode == 'fusion' and _called(x, 'calls') in computations:
      total += _read(at, computations[_called(x, 'calls')], computations)
    elif x.opcode != 'dynamic-update-slice' or at:
      return whole
  return min(total, whole)


def _relabels(x: _Instruction, computations: dict[str, _Computation]) -> bool:
  """Returns whether an operation inside a fusion is the same array under another name, layout or type: what reads it
  decides how much is read."""
  if x.opcode in ('bitcast', 'copy', 'convert'):
    return True
  inner = computations.get(_called(x, 'calls')) if x.opcode == 'fusion' else None
  return inner is not None and all(
    y.opcode == 'parameter' or _relabels(y, computations) for y in inner.instructions.values()
  )


def _written(x: _Instruction, inner: _Computation) -> int:
  """Returns what a fusion writes: where it updates an operand, the update."""

  def update(name: str) -> _Instruction | None:
    found = inner.instructions.get(name)
    while found and found.opcode in ('bitcast', 'copy', 'convert'):
      found = inner.instructions.get(found.operands[0])
    return inner.instructions.get(found.operands[1]) if found and found.opcode == 'dynamic-update-slice' else None

  root = inner.instructions[inner.root]
  names = root.operands if root.opcode == 'tuple' else (root.name,)
  kinds = _leaves(x.kind)
  if len(kinds) != len(names):
    return _bytes(x.kind)
  updates = [update(name) for name in names]
  return sum(
    min(_bytes(kind), _bytes(found.kind, anywhere=True)) if found else _bytes(kind)
    for kind, found in zip(kinds, updates, strict=True)
  )


def _operand_layouts(rest: str) -> str:
  found = re.search(r'operand_layout_constraints=\{(.*?)\}, (?:\w+=|\w+_)', rest)
  return found[1] if found else ''


def _leaves(kind: str) -> list[str]:
  return re.findall(r'\b\w+\[[\d,]*\](?:\{[^}]*\})?', kind)


def _bytes(kind: str, anywhere: bool = False) -> int:
  """Returns the bytes of a type's arrays, of those that lie in HBM: memory space 1 is VMEM, 2 and more are flags."""
  total = 0
  for leaf in _leaves(kind):
    name, sizes = leaf.split(']')[0].split('[')
    if name in BYTES and (anywhere or not re.search(r'S\(\d+\)', leaf)):
      total += BYTES[name] * math.prod(int(n) for n in sizes.split(',') if n)
  return total
