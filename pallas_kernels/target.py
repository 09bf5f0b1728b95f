"""Which devices a call is traced for."""

from __future__ import annotations

import contextlib
from typing import Any

import jax
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh


def device() -> tuple[str, str]:
  """Returns (platform: cpu, gpu or tpu; kind) of the devices of the surrounding mesh, else of the default one."""
  found: Any = getattr(jax.sharding.get_abstract_mesh(), 'abstract_device', None)
  if getattr(found, 'platform', None) is None:  # asked of one only where the mesh does not say: it starts the backend
    found = jax.config.jax_default_device  # type: ignore[attr-defined]
    if found is None or isinstance(found, str):
      found = jax.devices(found)[0]
  platform = found.platform
  return 'gpu' if platform in ('cuda', 'rocm') else platform, found.device_kind


def processor() -> contextlib.AbstractContextManager[Any]:
  """Returns a context in which calls are traced for a processor, whatever devices there are: without kernels."""
  return use_abstract_mesh(AbstractMesh((), (), abstract_device=AbstractDevice('cpu', None, 'cpu')))
