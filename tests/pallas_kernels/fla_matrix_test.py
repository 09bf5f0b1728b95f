"""The shapes, gates, masks and boundaries that flash-linear-attention tests its kernels on, and what it does not: every
length up to three chunks, 32,768 tokens, documents of one token, several writes a token, decoding.

Every chunked row of IMPLEMENTATIONS joins by itself: the XLA form in the default run, the others in sweeps, where a
case that a row refuses is skipped and says why. Sizes and limits: flash-linear-attention, tests/ops.
"""

import contextlib
import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import IMPLEMENTATIONS, delta_rule, delta_rule_step, reference, specs
from tests.pallas_kernels import draws

sweep = pytest.mark.sweep
ROWS = [pytest.param(name, marks=() if name == 'xla' else sweep) for name in IMPLEMENTATIONS if name != 'reference']
each_row = pytest.mark.parametrize('implementation', ROWS)
TOLERANCES = {'float32': specs.FLOAT32, 'bfloat16': specs.BFLOAT16}


def rounded(tree, dtype):
  return jax.tree.map(lambda x: np.asarray(jnp.asarray(x, dtype), np.float64), tree)


@contextlib.contextmanager
def skipped_where_refused():
  """Skips the test where a row refuses the call."""
  try:
    yield
  except NotImplementedError as refused:
    pytest.skip(str(refused))


def answered(*operands, **options):
  """Returns outputs and gradients of a row; skips where it refuses the call."""
  with skipped_where_refused():
    return draws.outputs_and_gradients(*operands, **options)


def truth_row_by_row(drawn, ids, cotangents):
  """Returns `draws.truth`, one row of the batch at a time: it keeps each state of every token for its gradients."""
  rows = [
    draws.truth(*jax.tree.map(lambda x, b=b: x[b : b + 1], (drawn, ids, cotangents))) for b in range(len(drawn['q']))
  ]
  return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def cosine(a, b):
  a, b = np.asarray(a, np.float64).ravel(), np.asarray(b, np.float64).ravel()
  return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def check(spec, implementation, *dtypes, ids=None, chunk_size=None):
  """Asserts that a row gives what the recurrence in float64 gives on operands of each type, and that gate gradients
  point where its do: their sums nearly cancel, and products that are too coarse turn them (cosine 0.3 was seen)."""
  drawn, drawn_ids = draws.operands(spec)
  ids = drawn_ids if ids is None else ids
  for dtype in dtypes:
    operands, cotangents = rounded((drawn, draws.seeds(spec)), dtype)
    operands['initial_state'], seed_state = drawn['initial_state'], draws.seeds(spec)[1]
    narrow, seed_o = draws.narrowed((operands, cotangents[0]), dtype)
    narrow['initial_state'] = jnp.asarray(operands['initial_state'], jnp.float32)
    got = answered(
      narrow, ids, seed_o, jnp.asarray(seed_state, jnp.float32), implementation=implementation, chunk_size=chunk_size
    )
    want = truth_row_by_row(operands, ids, (cotangents[0], seed_state))
    assert got['o'].dtype == dtype and got['state'].dtype == jnp.float32
    draws.assert_close(got, want, TOLERANCES[dtype])
    for gate in {'beta', 'log_decay'} & want.keys():
      if np.sqrt(np.mean(np.square(want[gate]))) > specs.BFLOAT16.floor:
        assert cosine(got[gate], want[gate]) > 0.999, f'the gradient of {gate} points elsewhere'
  return operands, got


def boundaries(T, *starts):
  """Returns ids [1, T] of documents that begin at `starts`."""
  return np.searchsorted(starts, np.arange(T), 'right')[None].astype(np.int32)


# B, T, H, HV and the size of a head.
SHAPES = [
  (2, 75, 4, 4, 64), (2, 500, 3, 3, 60), (2, 1000, 3, 3, 64), (3, 1024, 4, 4, 100), (4, 1024, 4, 4, 128),
  (2, 1500, 4, 4, 128), (4, 2048, 8, 8, 64), (2, 256, 2, 4, 64), (2, 512, 2, 8, 64), (2, 1024, 4, 8, 128),
]  # fmt: skip
CHANNEL_SHAPES = [*SHAPES, (1, 63, 1, 1, 64), (2, 160, 2, 2, 64), (1, 8192, 2, 2, 128)]  # the last with 96 heads there
STARTS = {
  15: (), 1000: (256, 500), 2000: (15, 100, 300, 1200), 160: (31, 96), 4096: (100, 300, 1200, 3000), 8192: (),
}  # fmt: skip


@each_row
@pytest.mark.parametrize('decay', ['scalar', 'channel'])
@pytest.mark.parametrize('decay_rate, masked_decay', [(0.01, 0.0), (0.1, 0.5), (1.0, 0.0), (10.0, 0.5)])
def test_gates_from_fast_to_slow_with_and_without_masks(implementation, decay, decay_rate, masked_decay):
  spec = specs.Spec(1, 75, 1, 1, 64, 64, decay, decay_rate=decay_rate, masked_decay=masked_decay)
  check(spec, implementation, 'bfloat16', chunk_size=32)


@sweep
@each_row
def test_grouped_heads_and_packed_documents(implementation):
  check(specs.Spec(1, 160, 1, 4, 64, 64, 'scalar'), implementation, *TOLERANCES, ids=boundaries(160, 31, 96))


@sweep
@each_row
@pytest.mark.parametrize('dtype', TOLERANCES)
@pytest.mark.parametrize('decay, shape', [
  *itertools.product(['none', 'scalar'], SHAPES), *itertools.product(['channel'], CHANNEL_SHAPES),
])  # fmt: skip
def test_every_shape(implementation, decay, shape, dtype):
  B, T, H, HV, D = shape
  check(specs.Spec(B, T, H, HV, D, D, decay), implementation, dtype)


@sweep
@each_row
@pytest.mark.parametrize('dtype', TOLERANCES)
@pytest.mark.parametrize('decay', ['none', 'scalar', 'channel'])
@pytest.mark.parametrize('T', STARTS)
def test_every_packing(implementation, decay, T, dtype):
  check(specs.Spec(1, T, 2, 2, 64, 64, decay), implementation, dtype, ids=boundaries(T, *STARTS[T]))


@sweep
@each_row
@pytest.mark.parametrize('decay', ['none', 'scalar', 'channel'])
@pytest.mark.parametrize('rate, mask', itertools.product([0.01, 0.1, 1.0, 10.0], [0.0, 0.5]))
def test_every_gate_with_grouped_heads(implementation, decay, rate, mask):
  spec = specs.Spec(2, 256, 2, 4, 64, 64, decay, decay_rate=rate, masked_decay=mask)
  check(spec, implementation, 'float32', 'bfloat16')


@sweep
@each_row
@pytest.mark.parametrize('decay', ['none', 'scalar', 'channel'])
def test_boundaries_at_every_offset_of_a_chunk(implementation, decay):
  C = 32
  ids = (np.arange(2 * C + 1)[None] > np.arange(2 * C)[:, None]).astype(np.int32)
  check(specs.Spec(2 * C, 2 * C + 1, 1, 1, 32, 32, decay), implementation, 'float32', ids=ids, chunk_size=C)


@each_row
def test_documents_of_one_token_read_what_they_wrote(implementation):
  spec = specs.Spec(2, 37, 1, 2, 16, 16)
  ids = np.broadcast_to(np.arange(spec.T), (spec.B, spec.T))
  x, got = check(spec, implementation, 'float32', ids=ids, chunk_size=16)
  wrote = np.einsum('bthk,bthk->bth', x['q'], x['k'])[..., None] * x['beta'][..., None] * x['v'] * spec.K**-0.5
  assert draws.error(got['o'][:, 1:], wrote[:, 1:]) < 1e-5


@each_row
@pytest.mark.parametrize('C', [2, pytest.param(8, marks=sweep)])
def test_every_length_up_to_three_chunks_is_the_recurrence(implementation, C):
  spec = specs.Spec(1, 3 * C + 1, 1, 2, 8, 8, 'scalar')
  drawn, _ = draws.operands(spec)
  x = draws.narrowed(drawn)
  state = x.pop('initial_state')
  wanted = token_by_token(drawn)
  for T in range(1, spec.T + 1):
    part = {name: value[:, :T] for name, value in x.items()}
    o, last = refusable(part, initial_state=state, implementation=implementation, chunk_size=C)
    want_o, want_last = wanted[T - 1]
    assert draws.error(o[:, -1], want_o) < 1e-5, f'{T} tokens'
    assert draws.error(last, want_last) < 1e-5, f'{T} tokens'


def token_by_token(drawn):
  """Returns [(o, state) after each token] in float64."""
  with jax.enable_x64(True):
    step = jax.jit(functools.partial(reference.delta_rule_step, scale=drawn['q'].shape[-1] ** -0.5))
    state, found = drawn['initial_state'], []
    for t in range(drawn['q'].shape[1]):
      o, state = step(*(drawn[name][:, t] for name in ('q', 'k', 'v', 'beta', 'log_decay')), state)
      found.append((np.asarray(o), np.asarray(state)))
  return found


@functools.partial(jax.jit, static_argnames=('implementation', 'chunk_size'))
def called(x, **options):
  return delta_rule(**x, **options)


def refusable(x, **options):
  with skipped_where_refused():
    return called(x, **options)


@sweep
@each_row
@pytest.mark.parametrize('decay', ['none', 'scalar', 'channel'])
def test_gradients_of_every_length_up_to_three_chunks(implementation, decay):
  C = 16
  spec = specs.Spec(1, 3 * C + 1, 1, 2, 16, 16, decay)
  drawn, _ = draws.operands(spec)
  seed_o, seed_state = draws.seeds(spec)
  for T in range(1, spec.T + 1):

    def cut(x, T=T):
      return x[:, :T]

    # Beyond T the truth is given tokens that change nothing, so that it is compiled once.
    alive = np.arange(spec.T) < T
    idle = {name: x * alive.reshape(1, -1, *[1] * (x.ndim - 2)) for name, x in drawn.items() if name != 'initial_state'}
    want = draws.truth(
      {**idle, 'initial_state': drawn['initial_state']}, None, (seed_o * alive[:, None, None], seed_state)
    )
    x = {name: value if name == 'initial_state' else cut(value) for name, value in draws.narrowed(drawn).items()}
    got = answered(x, None, *draws.narrowed((cut(seed_o), seed_state)), implementation=implementation, chunk_size=C)
    want = {name: value if name in ('state', 'initial_state') else cut(value) for name, value in want.items()}
    draws.assert_close(got, want, specs.FLOAT32)


@pytest.mark.slow
@each_row
@pytest.mark.parametrize(
  'decay, D',
  [('scalar', 16), *(pytest.param(*case, marks=sweep) for case in [('none', 32), ('scalar', 64), ('channel', 32)])],
)
def test_errors_do_not_grow_over_32768_tokens(implementation, decay, D):
  spec = specs.Spec(1, 32768, 1, 1, D, D, decay, decay_rate=100.0)
  drawn, _ = draws.operands(spec)
  cotangents = draws.seeds(spec)
  got = answered(draws.narrowed(drawn), None, *draws.narrowed(cotangents), implementation=implementation)
  want = draws.truth(drawn, None, cotangents)
  draws.assert_close(got, want, specs.FLOAT32)
  parts = [draws.error(got['o'][:, t : t + 2048], want['o'][:, t : t + 2048]) for t in range(0, spec.T, 2048)]
  assert max(parts[1:]) < 2 * parts[0], f'relative errors of each 2,048 tokens: {parts}'


@each_row
@pytest.mark.parametrize(
  'dtype, decay',
  [('bfloat16', 'scalar'), *(pytest.param(*case, marks=sweep) for case in itertools.product(TOLERANCES, ['channel']))],
)
def test_decoding_after_a_prefill_is_one_call(implementation, dtype, decay):
  spec = specs.Spec(2, 90, 2, 4, 32, 32, decay)
  x = {name: jnp.asarray(value, dtype) for name, value in draws.operands(spec)[0].items()}
  state = x.pop('initial_state').astype(jnp.float32)
  options = {'implementation': implementation, 'chunk_size': 16}
  whole, last = refusable(x, initial_state=state, **options)
  _, state = refusable({name: value[:, :26] for name, value in x.items()}, initial_state=state, **options)

  def step(state, token):
    o, state = delta_rule_step(*(token[name] for name in ('q', 'k', 'v', 'beta', 'log_decay')), state)
    return state, o

  state, steps = jax.jit(lambda *a: jax.lax.scan(step, *a))(
    state, {name: jnp.moveaxis(value[:, 26:], 1, 0) for name, value in x.items()}
  )
  tolerance = TOLERANCES[dtype]
  assert draws.error(jnp.moveaxis(steps, 0, 1), whole[:, 26:]) < tolerance.output
  assert draws.error(state, last) < tolerance.output


def delta_product(q_BTHK, k_BTRHK, v_BTRHV, beta_BTRH, log_decay_BTH=None, **options):
  """Returns (o, state) of DeltaProduct (arXiv 2502.10297), R writes a token, by one call of the delta rule.

  The R writes of a token are R tokens. The decay comes with the first, the read with the last.
  """
  B, T, R = k_BTRHK.shape[:3]

  def alone(x_BT, r):
    return jnp.stack([x_BT if step == r else jnp.zeros_like(x_BT) for step in range(R)], 2)

  def interleaved(x_BTR):
    return x_BTR.reshape(B, T * R, *x_BTR.shape[3:])

  o, state = delta_rule(
    *map(interleaved, (alone(q_BTHK, R - 1), k_BTRHK, v_BTRHV, beta_BTRH)),
    None if log_decay_BTH is None else interleaved(alone(log_decay_BTH, 0)),
    **options,
  )
  return o[:, R - 1 :: R], state


@each_row
def test_several_householder_steps_a_token_are_interleaved_tokens(implementation):
  B, T, R, H, K, V = 1, 9, 3, 2, 8, 8
  rng = np.random.default_rng(0)
  q, k = rng.standard_normal((B, T, H, K)), rng.standard_normal((B, T, R, H, K))
  k = k / np.linalg.norm(k, axis=-1, keepdims=True)
  v, beta = rng.standard_normal((B, T, R, H, V)), rng.uniform(0, 2, (B, T, R, H))
  log_decay = -rng.random((B, T, H))
  call = jax.jit(functools.partial(delta_product, implementation=implementation))
  with skipped_where_refused():
    o, state = call(*draws.narrowed((q, k, v, beta, log_decay)))
  want = np.zeros((B, T, H, V))
  for h in range(H):
    S = np.zeros((K, V))
    for t in range(T):
      S = np.exp(log_decay[0, t, h]) * S
      for r in range(R):
        S = S + np.outer(k[0, t, r, h], beta[0, t, r, h] * (v[0, t, r, h] - k[0, t, r, h] @ S))
      want[0, t, h] = K**-0.5 * q[0, t, h] @ S
    assert draws.error(state[0, h], S) < 1e-5
  assert draws.error(o, want) < 1e-5


@each_row
def test_writes_of_strength_two_keep_track_of_a_shuffle(implementation):
  """With beta 2 a key of (e_i - e_j) / sqrt 2 exchanges rows i and j of the state: an eigenvalue of -1. With beta 1,
  eigenvalues within [0, 1], it can only mix them."""
  K, T = 8, 65
  rng = np.random.default_rng(0)
  order, keys = np.arange(K), np.zeros((1, T, 1, K), np.float32)
  for t in range(T):
    i, j = rng.choice(K, 2, replace=False)
    keys[0, t, 0, i], keys[0, t, 0, j] = 0.5**0.5, -(0.5**0.5)
    order[[i, j]] = order[[j, i]]
  state = np.eye(K, dtype=np.float32)[None, None]
  nothing, strength = np.zeros((1, T, 1, K), np.float32), np.full((1, T, 1), 2, np.float32)
  x = {'q': jnp.asarray(keys), 'k': jnp.asarray(keys), 'v': jnp.asarray(nothing), 'initial_state': jnp.asarray(state)}
  _, shuffled = refusable(x | {'beta': jnp.asarray(strength)}, implementation=implementation, chunk_size=16)
  np.testing.assert_allclose(shuffled[0, 0], np.eye(K)[order], atol=1e-5)
  _, mixed = refusable(x | {'beta': jnp.asarray(strength / 2)}, implementation=implementation, chunk_size=16)
  assert np.abs(mixed).max() < 0.5


def test_a_row_that_refuses_is_skipped_with_its_reason():
  with pytest.raises(pytest.skip.Exception, match='no chunks'):
    check(dataclasses.replace(specs.SMALL['plain']), 'reference', 'float32', chunk_size=16)
