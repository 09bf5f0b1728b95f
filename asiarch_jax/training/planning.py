"""One training step compiled for a slice that need not be there, and what the compiler says of it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax

from asiarch_jax import config
from asiarch_jax.records import Bound, Collective, Plan
from asiarch_jax.training import sharding, train
from pallas_kernels import schedules
from pallas_kernels.chips import CHIPS


def plan(
  host: Any,
  settings: config.Training,
  devices: list[Any],
  topology: str,
  flops_per_token: float,
  clock: Callable[[], float],
) -> Plan:
  """Returns the plan of a training step over all replicas on these devices.

  `flops_per_token` are the forward's.

  Raises:
    ValueError: the devices cannot share the replicas and batches.
    jax.errors.JaxRuntimeError: the compiler refuses, such as for want of memory.
  """
  # One step a call: the program is a step, and all that is read out of it is of one.
  training = dataclasses.replace(settings, steps_per_call=1)
  replicas = training.seeds * len(training.learning_rates)
  mesh = sharding.mesh_of(devices, training)
  trainer = train.Trainer(host, training, mesh, 0, clock=clock)
  program = trainer.compiled_step
  laid_out, text = program.memory_analysis(), program.as_text()
  moved, rows = schedules.traffic(text), training.batch // sharding.batch_devices(mesh)
  side_by_side, data, parts = mesh.devices.shape
  here = replicas // side_by_side
  flops = 3 * flops_per_token * rows * training.length * here
  chip = CHIPS.get(topology.partition(':')[0])
  bounds: tuple[Bound, ...] = ()
  if chip is not None:
    bounds = (
      Bound('FLOPs at the peak', flops / chip.peak_flops),
      Bound('memory traffic at the peak', (moved.xla_bytes + moved.kernel_bytes) / (1e9 * chip.hbm_gb_s * chip.cores)),
      Bound("the compiler's cycles outside kernels", moved.xla_cycles / (1e9 * chip.clock_ghz)),
    )
  return Plan(
    topology=topology,
    device=devices[0].device_kind,
    devices=len(devices),
    mesh=(side_by_side, data, parts),
    replicas=here,
    rows=rows,
    parameters=sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(trainer.one.parameters)),
    state=here * trainer.state_bytes,
    arguments=laid_out.argument_size_in_bytes,
    temporary=laid_out.temp_size_in_bytes,
    peak=train.planned_bytes(laid_out),
    memory=chip.memory_gib << 30 if chip else 0,
    flops=flops,
    cycles=moved.xla_cycles,
    traffic=moved.xla_bytes + moved.kernel_bytes,
    collectives=tuple(
      Collective(kind, times, size) for kind, (times, size) in sorted(schedules.collectives(text).items())
    ),
    bounds=bounds,
    compile_seconds=trainer.compile_seconds,
  )
