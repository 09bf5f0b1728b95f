"""Solves and factors as workers compile them: the same numbers, and no thread that waits for another."""

import jax
import jax.numpy as jnp
import jaxlib.version
import numpy as np
import pytest

from asiarch_jax.shell import factorisations

A = np.tril(np.random.default_rng(0).normal(size=(3, 9, 9))).astype(np.float32) * 0.3 + np.eye(9, dtype=np.float32)
B = np.random.default_rng(1).normal(size=(3, 9, 4)).astype(np.float32)


@pytest.mark.parametrize('unit_diagonal', [False, True])
@pytest.mark.parametrize('transposed', [False, True])
@pytest.mark.parametrize('lower', [False, True])
def test_triangular_solves_are_those_of_numpy(lower, transposed, unit_diagonal):
  a = A if lower else A.swapaxes(-1, -2)
  triangle = a.copy()
  if unit_diagonal:
    triangle[:, range(9), range(9)] = 1.0
  want = np.linalg.solve(triangle.swapaxes(-1, -2) if transposed else triangle, B)
  found = jax.scipy.linalg.solve_triangular(a, B, trans=int(transposed), lower=lower, unit_diagonal=unit_diagonal)
  np.testing.assert_allclose(found, want, atol=1e-4)


def test_a_cholesky_factor_is_that_of_numpy():
  square = A @ A.swapaxes(-1, -2)
  np.testing.assert_allclose(jnp.linalg.cholesky(square), np.linalg.cholesky(square), atol=1e-4)


@pytest.mark.skipif(jaxlib.version.__version_info__ >= factorisations.MENDED, reason='that jaxlib waits for nothing')
def test_no_program_asks_lapack():
  for program in (lambda a: jax.scipy.linalg.solve_triangular(a, B, lower=True), jnp.linalg.cholesky):
    assert 'lapack' not in jax.jit(program).lower(A).as_text()
