"""`asiarch tabulate` freezes a search and the rung above it; `asiarch replay` compares policies on what it froze."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import pathlib
import shlex
import sys

from absl import flags

from asiarch_jax import commands, config
from asiarch_jax.commands import UsageError, searching, verifying
from asiarch_jax.records import to_json
from asiarch_jax.replay import comparing, playing, table
from asiarch_jax.report import replay as told
from asiarch_jax.shell import archive as archives
from asiarch_jax.shell import machine, places, table_file
from asiarch_jax.shell.display import Display

PARTS = ('search', 'promotion', 'belief', 'stopping')


def tabulate(values: flags.FlagValues, _: list[str]) -> int:
  """Searches, lets everybody climb that may, and writes both rungs into one file. Run again, it continues."""
  place = commands.new_place(values.out)
  if not place.name.endswith(table_file.SUFFIX):
    raise UsageError(f'--out={values.out}; give it a name that ends in {table_file.SUFFIX}')
  wanted = commands.experiment_of(values) if values.config is not None else None
  if wanted and values.rung and values.rung not in wanted.ladder:
    raise UsageError(f'--rung={values.rung} is not on the ladder {", ".join(wanted.ladder) or "of no rung"}')
  if place.exists():
    raise UsageError(f'--out={values.out} is there already; remove it, or give another name')
  with contextlib.redirect_stdout(sys.stderr):
    for step in (searching.search, verifying.verify):
      status = step(values, [])
      if status:
        print(f'the table is not made yet. To go on: {shlex.join(["asiarch", "tabulate", *sys.argv[2:]])}')
        return status
  workdir = places.folder(values.workdir)
  header = archives.read_header(workdir)
  experiment = wanted or header.experiment  # as verify has it
  rung = values.rung or experiment.ladder[-1]
  folder = workdir / verifying.FOLDER / rung
  at_rung = config.at_rung(experiment, rung)
  with (
    archives.OrbaxArchive.open(workdir, experiment, header.corpus, read_only=True) as lower,
    archives.OrbaxArchive.open(folder, at_rung, header.corpus, read_only=True) as upper,
  ):
    versions = machine.installed(('asiarch-jax', 'jax', 'jaxlib', 'flax'))
    made = {'date': f'{datetime.date.today()}', 'corpus': header.corpus[:12], **versions}
    try:
      frozen = table.frozen(lower.outcomes(), upper.outcomes(), experiment, rung, made)
    except ValueError as error:
      raise UsageError(str(error)) from error
  size = table_file.write(place, table.as_json(frozen))
  commands.standard_output().print(
    f'{place}: {len(frozen.measured)} designs on both rungs, {size / 1024:,.0f} KiB. '
    f'Compare policies on it: asiarch replay --table={place}',
    soft_wrap=True,
  )
  return 0


def replay(values: flags.FlagValues, _: list[str]) -> int:
  """Compares policies on a table, in the parts that are named."""
  parts = PARTS if values.parts is None else tuple(dict.fromkeys(values.parts))
  if not parts or not set(parts) <= set(PARTS):
    raise UsageError(f'--parts={",".join(values.parts)}; name some of {", ".join(PARTS)}')
  experiment = commands.experiment_of(values)
  source = pathlib.Path(values.table) if values.table else table_file.packaged()
  if values.table and not source.is_file():
    raise UsageError(f'--table={values.table}: no such file; asiarch tabulate writes one')
  try:
    bench = table.of_json(table_file.read(source))
  except (OSError, ValueError) as error:
    raise UsageError(str(error)) from error
  first, most = len(bench.experiment.search.baselines), len(bench.candidates)
  designs = min(values.designs, most)  # no more than there are
  if 'search' in parts and values.draws > most:
    raise UsageError(f'--draws={values.draws}; the table has {most} designs to draw')
  experiment = dataclasses.replace(
    experiment,
    search=dataclasses.replace(experiment.search, cycles=first + values.draws),
    training=dataclasses.replace(experiment.training, seeds=values.seeds),
  )
  known = len(playing.seeds_of(bench))
  if values.seeds > known:
    raise UsageError(f'--seeds={values.seeds}; designs of the table have {known}')
  counts = {'replays': values.replays, 'seed': values.seed}
  with Display() as display:
    page = told.ReplayPage(
      str(source) if values.table else 'of the package', dict(bench.made), bench.experiment.name, bench.rung,
      len(bench.measured), known, values.replays, designs,
    )  # fmt: skip
    for part in parts:
      display.line(f'{part}: {values.replays} replays')
      if part == 'search':
        page = dataclasses.replace(page, samplers=comparing.samplers(bench, experiment, **counts))
      elif part == 'promotion':
        rows = comparing.promotions(bench, experiment, designs=designs, seeds=values.seeds, **counts)
        page = dataclasses.replace(page, promotions=rows)
      elif part == 'belief':
        page = dataclasses.replace(page, estimators=comparing.estimators(bench, designs=designs, **counts))
      else:
        page = dataclasses.replace(page, stoppings=comparing.stoppings(bench))
  print(json.dumps(to_json(page))) if values.json else commands.standard_output().print(told.replay_page(page))
  return 0
