"""The backward pass of the delta rule on Hopper GPUs: a sweep back over the states, then gradients chunk by chunk."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pallas_kernels import gpu_channels, gpu_gradient, gpu_reverse, tiling
from pallas_kernels.gpu_layout import Channels, Gates, Kept, Layout, Operands

Array = jax.Array


def backward(
  layout: Layout, operands: Operands, kept: Kept, gates: Gates | Channels, do: Array, dlast: Array
) -> Operands:
  """Returns the cotangents of `operands` (None of `run`).

  Args:
    layout, operands: as the forward kernels took them.
    kept: what those kept.
    gates: what they made of the decay, `Channels` of a decay a channel.
    do: the cotangent of the output, [B, T, HV, V].
    dlast: that of the final state, transposed, [B, HV, V, K].
  """
  do = do.astype(jnp.bfloat16)
  tiles = tiling.gpu_tiles(layout.B * layout.HV, layout.K, layout.V)
  back = gpu_reverse.reverse(layout, operands, gates, kept, do, dlast, tiles=tiles)
  if isinstance(gates, Channels):
    return gpu_channels.gradients(layout, operands, gates, kept, back, do)
  return gpu_gradient.gradients(layout, operands, gates, kept, back, do)
