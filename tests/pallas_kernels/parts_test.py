"""The parts of a chunk, the gates and the tile choice, each by itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import bounded_log_decay, chunk_math, l2_normalise, softplus_log_decay, tiling


@pytest.mark.parametrize('C', [1, 2, 4, 8, 16, 64])
def test_the_inverse_is_exact_where_powers_of_the_matrix_explode(C):
  lower = 2.0 * np.tril(np.ones((C, C)), -1)  # beta = 2, equal keys: the inverse stays within 2
  found = chunk_math.unit_lower_inverse(jnp.asarray(lower, jnp.float32))
  want = np.linalg.inv(np.eye(C) + lower)
  np.testing.assert_allclose(found, want, atol=1e-5)
  if C == 64:
    series, power = np.eye(C, dtype=np.float32), np.eye(C, dtype=np.float32)
    for _ in range(C - 1):
      power = (power @ -lower).astype(np.float32)
      series = series + power
    assert np.abs(series - want).max() > 1, 'the guilty form, a sum of powers, was to fail here'


@pytest.mark.parametrize('fastest', [0.05, 5.0, 100.0])
def test_anchored_grams_hold_for_any_decay(fastest):
  rng = np.random.default_rng(0)
  q, k = rng.standard_normal((2, 32, 8))
  total = np.cumsum(-fastest * rng.random((32, 8)), 0)
  pair = np.exp(np.minimum(total[:, None] - total[None], 0))
  want_qk = np.tril(np.einsum('ik,jk,ijk->ij', q, k, pair))
  want_kk = np.tril(np.einsum('ik,jk,ijk->ij', k, k, pair), -1)
  kk, qk = chunk_math.decayed_grams(*(jnp.asarray(x, jnp.float32) for x in (q, k, total)), None)
  np.testing.assert_allclose(kk, want_kk, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(qk, want_qk, rtol=1e-4, atol=1e-5)


def test_products_meet_axes_of_one_as_broadcasting_does():
  rng = np.random.default_rng(0)
  a, b = rng.standard_normal((3, 1, 4, 5)), rng.standard_normal((3, 2, 6, 5))
  np.testing.assert_allclose(chunk_math.dot(a, b, 'nt'), a @ b.swapaxes(-1, -2), rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(chunk_math.dot(a.swapaxes(-1, -2), b, 'tt'), a @ b.swapaxes(-1, -2), rtol=1e-5, atol=1e-5)


def test_normalised_vectors_have_length_one_and_zero_stays_zero_with_a_finite_gradient():
  x = jnp.array([[3.0, 4.0], [0.0, 0.0]])
  np.testing.assert_allclose(l2_normalise(x), [[0.6, 0.8], [0.0, 0.0]], rtol=1e-6)
  assert np.isfinite(jax.grad(lambda x: l2_normalise(x).sum())(x)).all()
  assert l2_normalise(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_log_decays_lie_where_they_say():
  raw = jnp.linspace(-20, 20, 12).reshape(6, 2)
  zeros = jnp.zeros(2)
  free, bounded = softplus_log_decay(raw, zeros, zeros), bounded_log_decay(raw, zeros, zeros, lower_bound=-3.0)
  assert (free < 0).all() and free.min() < -19
  assert (bounded <= 0).all() and (bounded >= -3).all()
  with pytest.raises(ValueError, match='lower_bound is 0'):
    bounded_log_decay(raw, zeros, zeros, lower_bound=0)


@pytest.mark.parametrize('T', [1, 2, 5, 31, 128, 5000])
def test_chunks_are_powers_of_two_no_longer_than_twice_the_text(T):
  for size in (16, 128):
    chunk = tiling.chunk_size(T, size, size)
    assert chunk & (chunk - 1) == 0
    assert 1 <= chunk < max(2, 2 * T)
