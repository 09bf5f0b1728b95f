"""One chunk of the delta rule on values, plain jnp: what the chunkwise forms share.

Every function takes any leading axes and works on the last two, C tokens by K or V channels, so that the same lines
serve one chunk inside a kernel and all chunks of a batch at once. With G the cumulative log decay inside the chunk:

    A_ij = beta_i <k_i, k_j exp(G_i - G_j)>, i > j       P_ij = <q_i, k_j exp(G_i - G_j)>, i >= j
    u = (I + A)^-1 (beta v - beta exp(G) k S)            o = exp(G) q S + P u
    S' = exp(G_C) S + (exp(G_C - G) k)^T u

which is the WY representation of arXiv 2406.06484, section 3, with the decay of arXiv 2412.06464, equation 8 onwards.
Two tokens see each other only inside one run (a segment, or the piece of it that lies in the chunk).
"""

from __future__ import annotations

import functools
import string

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array
Precision = lax.PrecisionLike


def dot(a: Array, b: Array, over: str = 'nn', precision: Precision = None) -> Array:
  """Returns the matrix products over the last two axes; 'n' takes a factor as it is, 't' transposed.

  Leading axes of size one meet any size without being repeated in memory.

  >>> dot(jnp.ones((1, 3, 2)), jnp.ones((5, 4, 2)), 'nt').shape
  (5, 3, 4)
  """
  letters = string.ascii_lowercase[: a.ndim - 2]
  a_lead = ''.join(x for x, m, n in zip(letters, a.shape, b.shape, strict=False) if m == n or m > 1)
  b_lead = ''.join(x for x, m, n in zip(letters, a.shape, b.shape, strict=False) if m == n or n > 1)
  a_axes = a_lead + {'n': 'yx', 't': 'xy'}[over[0]]
  b_axes = b_lead + {'n': 'xz', 't': 'zx'}[over[1]]
  shape = jnp.broadcast_shapes(a.shape[:-2], b.shape[:-2])
  kept = ''.join(x for x in letters if x in a_lead or x in b_lead)
  a = a.reshape(*(a.shape[letters.index(x)] for x in a_lead), *a.shape[-2:])
  b = b.reshape(*(b.shape[letters.index(x)] for x in b_lead), *b.shape[-2:])
  product = jnp.einsum(f'{a_axes},{b_axes}->{kept}yz', a, b, precision=precision)
  return product.reshape(*shape, *product.shape[-2:])


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def columns(x_C: Array, size: int) -> Array:
  """Returns x repeated as `size` columns, [..., C, size]. Its gradient is a product with ones, not a reduction.

  XLA on CPU fuses a reduction with the elementwise work before it into a loop that is tens of times slower.
  """
  return jnp.broadcast_to(x_C[..., None], (*x_C.shape, size))


def _columns_backward(size: int, _, dx: Array) -> tuple[Array]:
  return (dot(dx, jnp.ones((*dx.shape[:-2], size, 1), dx.dtype), precision=lax.Precision.HIGHEST)[..., 0],)


columns.defvjp(lambda x_C, size: (columns(x_C, size), None), _columns_backward)


def _grid(size: int) -> tuple[Array, Array]:
  return lax.broadcasted_iota(jnp.int32, (size, size), 0), lax.broadcasted_iota(jnp.int32, (size, size), 1)


def unit_lower_inverse(lower_CC: Array, precision: Precision = None) -> Array:
  """Returns (I + L)^-1 for a strictly lower L, exactly but for rounding, by doubling the inverted diagonal blocks.

  Two inverted blocks X, Y with L between them become one inverse by the corner -Y L X. Powers of L are never formed:
  with beta = 2 and equal keys they grow like binomials while the inverse stays within 2. C is a power of two.
  """
  C = lower_CC.shape[-1]
  block = min(C, 8)  # below 8 rows, products of the whole block with masks beat products of its parts
  inverse = _small_inverse(_diagonal_blocks(lower_CC, block, 0, 0), precision)
  while block < C:
    corner = _diagonal_blocks(lower_CC, 2 * block, block, 0)[..., :block, :block]
    pairs = inverse.reshape(*corner.shape[:-2], 2, block, block)
    corner = dot(dot(pairs[..., 1, :, :], corner, precision=precision), pairs[..., 0, :, :], precision=precision)
    inverse = _joined(inverse, -corner)
    block *= 2
  return inverse[..., 0, :, :]


def _diagonal_blocks(x_CC: Array, block: int, down: int, right: int) -> Array:
  """Returns the blocks along the diagonal, [..., C / block, block - down, block - right], from their row `down`."""
  starts = range(0, x_CC.shape[-1], block)
  return jnp.stack([x_CC[..., s + down : s + block, s + right : s + block] for s in starts], -3)


def _small_inverse(lower_CC: Array, precision: Precision) -> Array:
  """Returns (I + L)^-1 by X <- X - X L X with L masked to what lies between blocks of 1, 2, 4 ... rows."""
  C = lower_CC.shape[-1]
  i, j = _grid(C)
  inverse_CC = jnp.where(i == j, 1.0, 0.0).astype(lower_CC.dtype)
  inverse_CC = inverse_CC - jnp.where(i // 2 == j // 2, lower_CC, 0.0)
  block = 2
  while block < C:
    between = (i // (2 * block) == j // (2 * block)) & (i // block != j // block)
    step_CC = dot(inverse_CC, jnp.where(between, lower_CC, 0.0), precision=precision)
    inverse_CC = inverse_CC - dot(step_CC, inverse_CC, precision=precision)
    block *= 2
  return inverse_CC


def running_sum(x: Array, run_C: Array | None, axis: int) -> Array:
  """Returns the inclusive sums of `x` over the tokens of a chunk, begun anew with each run.

  One sum over the whole chunk would do as well, but its rounding would carry traces of one document into the next.
  """
  if run_C is None:
    return jnp.cumsum(x, axis)
  C = x.shape[axis]
  i, j = _grid(C)
  counted_CC = ((i >= j) & (run_C[..., :, None] == run_C[..., None, :])).astype(x.dtype)
  wide = x if x.ndim > axis + 1 else x[..., None]
  return dot(counted_CC, wide, precision=lax.Precision.HIGHEST).reshape(x.shape)


def decayed_grams(
  q_CK: Array, k_CK: Array, total: Array | None, run_C: Array | None, precision: Precision = None
) -> tuple[Array, Array]:
  """Returns (<k_i, k_j e^(G_i - G_j)> below the diagonal, <q_i, k_j e^(G_i - G_j)> on it and below), zero elsewhere.

  `total` is G, the inclusive sum of log decay inside the chunk: None, [C] or [C, K]. Masks come before exponentials,
  so no exponent is above zero and neither values nor gradients overflow, whatever the decay.
  """
  C = k_CK.shape[-2]
  i, j = _grid(C)
  seen_CC = i >= j
  if run_C is not None:
    seen_CC = seen_CC & (run_C[..., :, None] == run_C[..., None, :])
  if total is not None and total.ndim == k_CK.ndim:
    kk_CC, qk_CC = _anchored_grams(q_CK, k_CK, total, precision)
    return jnp.where(seen_CC & (i > j), kk_CC, 0.0), jnp.where(seen_CC, qk_CC, 0.0)
  kk_CC, qk_CC = dot(k_CK, k_CK, 'nt', precision), dot(q_CK, k_CK, 'nt', precision)
  if total is None:
    return jnp.where(seen_CC & (i > j), kk_CC, 0.0), jnp.where(seen_CC, qk_CC, 0.0)
  # The diagonal is one whatever G: written so, no gradient reaches G from it and returns with the other sign.
  below_CC = seen_CC & (i > j)
  gap_CC = jnp.where(below_CC, columns(total, C) - columns(total, C).mT, jnp.where(i == j, 0.0, -jnp.inf))
  decay_CC = jnp.exp(gap_CC)
  return jnp.where(i > j, kk_CC * decay_CC, 0.0), qk_CC * decay_CC


def _anchored_grams(q_CK: Array, k_CK: Array, total_CK: Array, precision: Precision) -> tuple[Array, Array]:
  """Returns both Gram matrices for a decay a channel, by dyadic anchors; what lies above the diagonal is zero.

  A later half block meets the earlier half beside it through the last row m of the earlier one: e^(G_i - G_m) and
  e^(G_m - G_j) are both at most one for any decay, so each half block is one product. Halves of 1, 2, 4 ... C / 2.
  """
  shape = jnp.broadcast_shapes(k_CK.shape, total_CK.shape)
  C, K = shape[-2:]
  lead = shape[:-2]
  q_CK, k_CK = jnp.broadcast_to(q_CK, shape), jnp.broadcast_to(k_CK, shape)
  kk = jnp.zeros((*lead, C, 1, 1), k_CK.dtype)
  qk = (q_CK * k_CK).sum(-1)[..., None, None]
  half = 1
  while half < C:

    def halves(x_CK, half=half):
      pairs = x_CK.reshape(*lead, C // (2 * half), 2, half, K)
      return pairs[..., 0, :, :], pairs[..., 1, :, :]

    (total_early, total_late), (k_early, k_late), (_, q_late) = halves(total_CK), halves(k_CK), halves(q_CK)
    anchor = total_early[..., -1:, :]
    fall = jnp.exp(total_late - anchor)
    k_early = k_early * jnp.exp(anchor - total_early)
    across = dot(jnp.concatenate([k_late * fall, q_late * fall], -2), k_early, 'nt', precision)
    kk, qk = _joined(kk, across[..., :half, :]), _joined(qk, across[..., half:, :])
    half *= 2
  return kk[..., 0, :, :], qk[..., 0, :, :]


def _joined(blocks: Array, across: Array) -> Array:
  """Returns [[first, 0], [across, second]] for each pair of neighbours in `blocks` [..., n, b, b]."""
  *lead, n, size, _ = blocks.shape
  pairs = blocks.reshape(*lead, n // 2, 2, size, size)
  above = jnp.concatenate([pairs[..., 0, :, :], jnp.zeros_like(across)], -1)
  return jnp.concatenate([above, jnp.concatenate([across, pairs[..., 1, :, :]], -1)], -2)
