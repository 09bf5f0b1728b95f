"""The gradients of the operands of a delta rule with a decay a channel, on Hopper GPUs, once both sweeps are done.

XLA makes them, for all chunks at once: products of what the sweeps left are the cotangents of the factors of a chunk
(`xla.Factors`), and those of the operands follow by the derivative of the factors.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels import xla
from pallas_kernels.gpu_gradient import Kept, Reversed
from pallas_kernels.gpu_layout import CHUNK, Layout, Operands

Array = jax.Array


def gradients(layout: Layout, operands: Operands, kept: Kept, back: Reversed, do: Array) -> Operands:
  """Returns the cotangents of `operands` (None of `run`), the sums in the type of beta."""
  B, N, T, H, HV = layout.B, layout.N, layout.tokens, layout.H, layout.HV
  wide = operands.beta.dtype

  def chunks(x_BTHD):
    """Returns [B, HV, N, 1, C, D]; key heads are repeated."""
    x = jnp.repeat(x_BTHD, HV // x_BTHD.shape[2], 2).reshape(B, N, CHUNK, HV, 1, -1)
    return x.transpose(0, 3, 1, 4, 2, 5)

  def tokens(x_BHNC):
    return x_BHNC.transpose(0, 2, 4, 1, 3, 5).reshape(B, T, HV, -1)

  def grouped(x_BHNC, like):
    x = tokens(x_BHNC)
    return x.reshape(B, T, H, HV // H, -1).sum(3).astype(like.dtype) if H < HV else x.astype(like.dtype)

  def dot(axes, a, b):
    return jnp.einsum(axes, a, b, preferred_element_type=wide)[:, :, :, None]

  do_BHNCV = chunks(do)[:, :, :, 0]
  # As the fields of `xla.Factors`, and each as its field is: u = (I + lower)^-1 (v_in - k_in S), ...
  cotangents = xla.Factors(
    lower=-dot('bhnvi,bhnvj->bhnij', back.dr, kept.update),
    read=dot('bhniv,bhnvj->bhnij', do_BHNCV, kept.update),
    k_in=-dot('bhnvi,bhnvk->bhnik', back.dr, kept.states),
    v_in=back.dr.swapaxes(3, 4).astype(wide)[:, :, :, None],
    q_in=dot('bhniv,bhnvk->bhnik', do_BHNCV, kept.states),
    k_out=dot('bhnvi,bhnvk->bhnik', kept.update, back.after),
    keep=(kept.states.astype(wide) * back.after.astype(wide)).sum(3)[:, :, :, None, :, None],
  )
  # One run, where there is none: so sums over tokens are products; as sums, XLA makes them ten times slower here.
  run = (jnp.zeros((B, T), jnp.int32) if operands.run is None else operands.run).reshape(B, 1, N, 1, CHUNK)
  runs = run, jnp.pad(run[:, :, :-1, :, -1:], [(0, 0), (0, 0), (1, 0), (0, 0), (0, 0)])
  plan = xla.Plan(layout.scale, CHUNK, lax.Precision.DEFAULT if wide == jnp.float32 else lax.Precision.HIGHEST)
  beta = operands.beta.reshape(B, HV, N, 1, CHUNK)
  chunked = [chunks(x).astype(wide) for x in operands[:3]]
  _, pull = jax.vjp(functools.partial(xla.factors_of, plan, runs), *chunked, beta, chunks(operands.log_decay))
  # What is transposed while it is made is made an order of magnitude slower.
  dq, dk, dv, dbeta, dlog_decay = lax.optimization_barrier(pull(cotangents))
  return Operands(
    grouped(dq, operands.q),
    grouped(dk, operands.k),
    tokens(dv).astype(operands.v.dtype),
    dbeta.reshape(B, HV, T),
    tokens(dlog_decay),
    back.dstate,
    None,
  )
