"""`asiarch dump`, `load`, `merge`: archives as files, and several archives of one experiment as one."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator

from absl import flags
from etils import epath

from asiarch_jax import config
from asiarch_jax.commands import UsageError, new_place, registry, standard_output
from asiarch_jax.evidence import noise
from asiarch_jax.records import Entry, Outcome, to_json
from asiarch_jax.search import merging
from asiarch_jax.shell import archive as archives
from asiarch_jax.shell import dump_file, places


def dump(values: flags.FlagValues, _: list[str]) -> int:
  """Writes an archive as JSON lines."""
  place = new_place(values.out)
  if place.exists():
    raise UsageError(f'--out={values.out} is there already; remove it, or give another name')
  header = archives.read_header(values.workdir)
  with archives.OrbaxArchive.open_read_only(values.workdir) as archive:
    outcomes = archive.outcomes()
    rows = ((one, archive.arrays(one.id) if values.arrays else {}) for one in outcomes)
    size = dump_file.write(place, header, len(outcomes), rows)
  if values.json:
    print(json.dumps({'out': values.out, 'outcomes': len(outcomes), 'bytes': size}))
  else:
    standard_output().print(f'{place}: {len(outcomes)} outcomes, {size / 2**20:,.1f} MiB', soft_wrap=True)
  return 0


def load(values: flags.FlagValues, arguments: list[str]) -> int:
  """Makes an archive of what `dump` wrote; run again after an interruption, it goes on."""
  added = bare = 0
  with dump_file.reading(arguments[0]) as (_, _, rows):
    for _ in rows:  # whole, before anything of it is archived
      pass
  with dump_file.reading(arguments[0]) as (header, count, rows):
    with archives.OrbaxArchive.open(values.workdir, header.experiment, header.corpus) as archive:
      present = {outcome.id: outcome for outcome in archive.outcomes()}
      for outcome, arrays in rows:
        if outcome.id not in present:
          archive.append(outcome, arrays)
          added += 1
        elif to_json(present[outcome.id]) != to_json(outcome):  # nan is nan there
          raise UsageError(
            f'outcome {outcome.id} of {arguments[0]} is another one in {values.workdir}; load into a new workdir and '
            'unite both with asiarch merge'
          )
        elif arrays and not archive.arrays(outcome.id):
          bare += 1
  if bare:
    standard_output().print(
      f'{bare} outcomes of {values.workdir} have parameters in {arguments[0]} and none there: what is archived is not '
      'changed; load into a new workdir to have them',
      soft_wrap=True,
    )
  _tell(values, f'{values.workdir}: {added} of {count} outcomes added', added=added, outcomes=count)
  return 0


def merge(values: flags.FlagValues, arguments: list[str]) -> int:
  """Unites archives in a new workdir; those that are read stay as they are."""
  target = places.folder(values.workdir)
  if (target / archives.FOLDER).exists():
    raise UsageError(
      f'--workdir={target} holds an archive already; name a new folder for the union, or remove what an interrupted '
      'merge left there'
    )
  headers = [archives.read_header(argument) for argument in arguments]
  for argument, header in zip(arguments[1:], headers[1:], strict=True):
    differences = config.differences(headers[0].experiment, header.experiment)
    named = '; '.join(f'{key}: {mine!r} and {other!r}' for key, (mine, other) in differences.items())
    if named or header.corpus != headers[0].corpus:
      raise UsageError(
        f'{arguments[0]} and {argument} hold other experiments ({named or "another corpus"}): what was measured '
        'there cannot be compared'
      )
  claimed = [argument for argument in arguments if registry.read_claims(argument)]
  if claimed and claimed != arguments[:1]:
    raise UsageError(
      f'{", ".join(claimed)}: claims were made there, and a vault that was read stays read. One archive with claims '
      f'can be merged, as the first: asiarch merge {claimed[0]} ...'
    )
  ours = False  # what is in the folder; another process may have begun a union there
  try:
    with archives.OrbaxArchive.open(target, headers[0].experiment, headers[0].corpus) as union:
      if union.outcomes():
        raise UsageError(f'--workdir={target} holds what another merge has just written; name another folder')
      ours = True
      notes, counts = _united(union, arguments)
  except BaseException:
    if ours:  # half a union is none
      epath.Path(target / archives.FOLDER).rmtree()
    raise
  if claimed:
    places.copied(places.folder(arguments[0]) / registry.FOLDER, target / registry.FOLDER)
  for note in notes:
    standard_output().print(note, soft_wrap=True)
  _tell(
    values, f'{target}: {counts["outcomes"]} outcomes, {counts["twins"]} of the others were there already', **counts
  )
  return 0


def _united(union: archives.OrbaxArchive, arguments: list[str]) -> tuple[list[str], dict[str, int]]:
  """Appends what archives hold and returns what to say of what differs, and how many outcomes there are."""
  notes: list[str] = []
  counts = {'outcomes': 0, 'twins': 0}
  kept: list[Outcome] = []
  bare: set[int] = set()  # entries of the union without parameters
  for place, argument in enumerate(arguments):
    with archives.OrbaxArchive.open_read_only(argument) as archive:
      outcomes = archive.outcomes()
      if place == 0:
        rows: Iterator[tuple[Outcome, int]] = ((one, one.id) for one in outcomes)
      else:
        try:
          found = merging.merged(kept, outcomes, union.experiment)
        except ValueError as error:
          raise UsageError(str(error)) from error
        rows, counts['twins'] = iter(found.added), counts['twins'] + len(found.twins)
        notes += _apart(kept, outcomes, argument)
        fuller = sum(1 for twin, id in found.twins.items() if id in bare and archive.arrays(twin))
        if fuller:
          notes.append(
            f'{argument}: {fuller} of what was there already have parameters here and none in the union, which keeps '
            'what came first; name this archive first to have them'
          )
      for outcome, before in rows:
        arrays = archive.arrays(before)
        if isinstance(outcome, Entry) and not arrays:
          bare.add(outcome.id)
        union.append(outcome, arrays)
        kept.append(outcome)
  counts['outcomes'] = len(kept)
  return notes, counts


def _apart(ours: list[Outcome], theirs: tuple[Outcome, ...], argument: str) -> list[str]:
  """Returns what to say where two archives measured their baseline differently."""
  apart = merging.disagreement(ours, theirs)
  base, other = (next((o for o in one if isinstance(o, Entry) and o.id == 0), None) for one in (ours, theirs))
  if base is None or other is None:
    return []
  floor = noise.floor(base.training)
  if not apart or (math.isfinite(apart) and floor is not None and apart < 0.01 * floor.sd):
    return []
  size = f'by {apart:.4f} bits/byte a replica' if math.isfinite(apart) else 'on no common seed'
  spread = f', the noise of a replica is {floor.sd:.4f}' if floor else ''
  return [
    f'{argument}: its baseline differs {size}{spread}: other hardware or versions. Its entries are compared with the '
    'baseline of the first archive, which adds that noise'
  ]


def _tell(values: flags.FlagValues, said: str, **counts: int) -> None:
  if values.json:
    print(json.dumps({'workdir': values.workdir, **counts}))
  else:
    standard_output().print(said, soft_wrap=True)
