"""`asiarch plan`: what a training step would take on a slice of TPUs, compiled here without one."""

from __future__ import annotations

import dataclasses
import importlib.util
import json

from absl import flags
from rich.table import Table

from asiarch_jax import commands, config
from asiarch_jax.commands import UsageError
from asiarch_jax.records import Job, JobResult, Limits, Plan, to_json
from asiarch_jax.shell import runner as runners
from asiarch_jax.shell.display import Display

FULL = 0.9  # share of a device's memory above which a plan is said to be tight
MEMORY_GIB = 16.0  # of the worker, at least: the compiler's own


def plan(values: flags.FlagValues, arguments: list[str]) -> int:
  experiment = commands.experiment_of(values)
  if values.rung:
    experiment = config.at_rung(experiment, values.rung)
  proposal = commands.proposal_of(arguments[0] if arguments else experiment.search.baseline)
  if importlib.util.find_spec('libtpu') is None:
    raise UsageError("plan needs libtpu, the TPU compiler; it needs no TPU: pip install 'asiarch-jax[aot]'")
  wall = values.wall_seconds
  job = Job(
    proposal.name,
    proposal.source,
    config.worker_part(experiment),
    kind='plan',
    limits=Limits(wall),
    topology=values.topology,
  )
  with Display() as display, commands.terminable():
    jail = commands.choose_jail(experiment, display)
    settings = dataclasses.replace(
      experiment.runner, kind='local', jail=jail, platform='cpu', host_devices=1, devices=0, workers=1,
      wall_seconds=wall, heartbeat_seconds=wall, memory_gib=max(experiment.runner.memory_gib, MEMORY_GIB),
    )  # fmt: skip
    display.start_cycle(0, 1, None)
    result = runners.of(commands.jobs_folder(values.workdir), settings).run(job, display.progress)
  return _say(values, result)


def _say(values: flags.FlagValues, result: JobResult) -> int:
  if values.json:
    print(json.dumps(to_json(result)))
    return 0 if result.failure is None else 1
  console = commands.standard_output()
  if result.plan is None:
    assert result.failure is not None
    console.print(f'{result.failure.kind}: {result.failure.reason}\n{result.failure.log}', markup=False, soft_wrap=True)
    if result.failure.kind == 'memory':
      console.print(f'it does not fit on {values.topology}; {REMEDY}', soft_wrap=True)
    return 1
  table = Table.grid(padding=(0, 2, 0, 0))
  for name, text in rows(result.plan):
    table.add_row(name, text)
  console.print(table)
  return 0


REMEDY = (
  'more training.microbatches, model.remat=True, parameters shared out (training.sharded), fewer replicas, or a larger '
  'slice'
)


def rows(found: Plan) -> list[tuple[str, str]]:
  """Returns what a plan says, for people. Seconds are bounds by published speeds, and were not measured."""
  of_memory = f' of {_size(found.memory)}' if found.memory else ''
  told = [
    ('slice', f'{found.topology}, {found.devices} devices of {found.device}'),
    (
      'mesh',
      f'{" x ".join(map(str, found.mesh))} (replica, data, fsdp): {found.replicas} replicas of {found.rows} rows each',
    ),
    ('parameters', f'{found.parameters:,} a replica; with optimiser state {_size(found.state)} a device'),
    ('memory', f'{_size(found.peak)}{of_memory} a device, {_size(found.temporary)} of it temporary'),
    ('FLOPs', f'{found.flops:.4g} a device and step, counted (three times the forward)'),
    ('HBM', f'{_size(found.traffic)} read and written a device and step'),
  ]
  told += [
    ('exchange', f'{one.kind}: {one.times} a step, {_size(one.size)}') for one in found.collectives
  ] or [('exchange', 'none')]  # fmt: skip
  if found.bounds:
    most = max(found.bounds, key=lambda bound: bound.seconds)
    told.append(
      ('static time', f'{1e3 * most.seconds:.4g} ms a step at least, by {most.by}; exchanges come on top, not measured')
    )
  if found.memory and found.peak > FULL * found.memory:
    told.append(('tight', f'more than {FULL:.0%} of the memory; {REMEDY}'))
  return [*told, ('compiled in', f'{found.compile_seconds:.0f} s')]


def _size(count: float) -> str:
  """Returns bytes for people.

  >>> _size(16 << 30), _size(23_628_800), _size(300)
  ('16.00 GiB', '22.53 MiB', '300 bytes')
  """
  for unit, size in (('GiB', 1 << 30), ('MiB', 1 << 20), ('KiB', 1 << 10)):
    if count >= size:
      return f'{count / size:.2f} {unit}'
  return f'{count:.0f} bytes'
