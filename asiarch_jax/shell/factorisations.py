"""Triangular solves and Cholesky factors on a processor, by XLA's own loops instead of LAPACK's.

Until jaxlib 0.12 those of a batch wait on a thread of the pool for parts that need a thread, too: two programs at once,
or one with several, now and then wait for ever. What XLA writes out itself waits for nothing.
"""

from __future__ import annotations

from typing import Any

import jaxlib.version
from jax.extend.core import primitives
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import stablehlo
from jax.interpreters import mlir

MENDED = (0, 12)  # the first jaxlib without the fault


def without_threads() -> None:
  """Lets programs that are compiled from now on solve and factor so; in a jaxlib without the fault nothing changes."""
  if jaxlib.version.__version_info__ < MENDED:
    mlir.register_lowering(primitives.triangular_solve_p, _solve, platform='cpu')
    mlir.register_lowering(primitives.cholesky_p, _cholesky, platform='cpu')


def _solve(
  context: Any, a: Any, b: Any, *, left_side: bool, lower: bool, transpose_a: bool, conjugate_a: bool,
  unit_diagonal: bool,
) -> list[Any]:  # fmt: skip
  del context
  transposed = ('ADJOINT' if conjugate_a else 'TRANSPOSE') if transpose_a else 'NO_TRANSPOSE'
  return [
    stablehlo.triangular_solve(
      a,
      b,
      ir.BoolAttr.get(bool(left_side)),
      ir.BoolAttr.get(bool(lower)),
      ir.BoolAttr.get(bool(unit_diagonal)),
      stablehlo.TransposeAttr.get(transposed),
    )
  ]


def _cholesky(context: Any, x: Any, **_: Any) -> list[Any]:
  del context
  return [stablehlo.cholesky(x, lower=ir.BoolAttr.get(True))]
