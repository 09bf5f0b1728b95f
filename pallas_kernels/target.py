"""Which devices a call is traced for."""

from __future__ import annotations

from typing import Any

import jax


def device() -> tuple[str, str]:
  """Returns (platform: cpu, gpu or tpu; kind) of the devices of the surrounding mesh, else of the default ones."""
  found: Any = getattr(jax.sharding.get_abstract_mesh(), 'abstract_device', None)
  if getattr(found, 'platform', None) is None:  # asked of one only where the mesh does not say: it starts the backend
    found = jax.devices()[0]
  platform = found.platform
  return 'gpu' if platform in ('cuda', 'rocm') else platform, found.device_kind
