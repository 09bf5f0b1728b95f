"""Depthwise causal convolution in plain JAX, with the backward pass that is fast on CPU.

Forward and the gradient of the input are sums of shifted products, which XLA fuses into one loop. The gradient of the
weights is a long sum for each of W taps; left to JAX it takes a hundred times the forward pass at W = 64, so it is made
by matrix products: pieces of C tokens against the C + W - 1 inputs that they saw, summed along diagonals.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array
PIECE = 16  # tokens a matrix product of the weights' gradient takes at once; 16 and 32 were equal, 64 slower


def shifted_products(x_BTD: Array, weight_WD: Array, state_BWD: Array, run_BT: Array | None) -> Array:
  """Returns y_BTD, y_t = sum over w of weight_w x_(t - W + 1 + w), with `state_BWD` before the first token.

  `run_BT` numbers the segments from 0, the run that the state belongs to; None for one segment.
  """
  return _convolve(jnp.concatenate([state_BWD, x_BTD], 1), weight_WD, run_BT)


@jax.custom_vjp
def _convolve(seen_BSD: Array, weight_WD: Array, run_BT: Array | None) -> Array:
  """Returns y_BTD from all inputs seen, the state and then the tokens: S = W - 1 + T."""
  W = weight_WD.shape[0]
  T = seen_BSD.shape[1] - W + 1
  inside = _inside(run_BT, W)
  terms = (_kept(seen_BSD[:, w : w + T], inside, w) * weight_WD[w] for w in range(W))
  return _total(terms)


def _inside(run_BT: Array | None, W: int):
  """Returns w -> whether tap w of each token lies in the token's own run, [B, T]; None where there is one run."""
  if run_BT is None:
    return None
  T = run_BT.shape[1]
  seen_BS = jnp.pad(run_BT, [(0, 0), (W - 1, 0)])
  return lambda w: lax.dynamic_slice_in_dim(seen_BS, w, T, 1) == run_BT


def _kept(x_BTD: Array, inside, w) -> Array:
  return x_BTD if inside is None else jnp.where(inside(w)[..., None], x_BTD, 0)


def _total(terms) -> Array:
  first, *rest = terms
  for term in rest:
    first = first + term
  return first


def _convolve_forward(seen_BSD, weight_WD, run_BT):
  return _convolve(seen_BSD, weight_WD, run_BT), (seen_BSD, weight_WD, run_BT)


def _convolve_backward(residuals, dy_BTD):
  seen_BSD, weight_WD, run_BT = residuals
  W = weight_WD.shape[0]
  T, S = dy_BTD.shape[1], seen_BSD.shape[1]
  inside = _inside(run_BT, W)
  if inside is None:
    later_BTD = jnp.pad(dy_BTD, [(0, 0), (W - 1, W - 1), (0, 0)])
    dseen_BSD = _total(later_BTD[:, W - 1 - w : W - 1 - w + S] * weight_WD[w] for w in range(W))
  else:
    dseen_BSD = _total(
      jnp.pad(_kept(dy_BTD, inside, w) * weight_WD[w], [(0, 0), (w, S - T - w), (0, 0)]) for w in range(W)
    )
  return dseen_BSD, _weight_gradient(seen_BSD, dy_BTD, W, inside), None


_convolve.defvjp(_convolve_forward, _convolve_backward)


def _weight_gradient(seen_BSD: Array, dy_BTD: Array, W: int, inside) -> Array:
  """Returns dweight_WD, the sum over batch and tokens of what each tap saw times dy."""
  T = dy_BTD.shape[1]
  if W <= 4:
    return jnp.stack([(_kept(seen_BSD[:, w : w + T], inside, w) * dy_BTD).sum((0, 1)) for w in range(W)])
  if inside is None:
    return _weight_gradient_by_products(seen_BSD, dy_BTD, W)

  def tap(w):
    return (_kept(lax.dynamic_slice_in_dim(seen_BSD, w, T, 1), inside, w) * dy_BTD).sum((0, 1))

  return lax.map(tap, jnp.arange(W))


def _weight_gradient_by_products(seen_BSD: Array, dy_BTD: Array, W: int) -> Array:
  """Returns dweight_WD as the sums along W diagonals of one matrix product a channel.

  Token c of a piece met input c + w by tap w, so row c of the product holds tap w at column c + w. Rows of L + 1
  entries, laid end to end and cut again after L + 2, bring each tap into one column.
  """
  B, T, D = dy_BTD.shape
  C = PIECE
  N, L = -(-T // C), C + W - 1
  dy_BTD = jnp.pad(dy_BTD, [(0, 0), (0, N * C - T), (0, 0)])
  seen_BSD = jnp.pad(seen_BSD, [(0, 0), (0, N * C - T), (0, 0)])
  seen_MLD = jnp.stack([seen_BSD[:, n * C : n * C + L] for n in range(N)], 1).reshape(B * N, L, D)
  product_DCL = jnp.einsum('mcd,mld->dcl', dy_BTD.reshape(B * N, C, D), seen_MLD, precision=lax.Precision.HIGHEST)
  flat_D = jnp.pad(product_DCL, [(0, 0), (0, 0), (0, 1)]).reshape(D, C * (L + 1))
  sheared_DCL = jnp.pad(flat_D, [(0, 0), (0, C)]).reshape(D, C, L + 2)
  return sheared_DCL[:, :, :W].sum(1).T
