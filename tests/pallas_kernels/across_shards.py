"""Prints, as JSON, how far sequences over eight forced CPU devices are from float64 on one; run with XLA_FLAGS set.

Also what their compiled programs send. `sequence_test` asks the questions; all cases share one process, since a start
costs more than a case.
"""

import functools
import json
import math
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, PartitionSpec

from pallas_kernels import causal_conv, delta_rule, sequence, specs
from tests.pallas_kernels import draws

P = 8
BY_TOKENS = PartitionSpec(None, 'tokens')
EVERYWHERE = PartitionSpec()
SPEC = specs.Spec(1, P * 5, 1, 3, 8, 12)


def mesh_of(**axes):
  return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=(AxisType.Auto,) * len(axes))


def layouts(T, L):
  """Returns ids [6, T] for shards of L tokens: boundaries at borders and beside them, ids that come back."""
  marks = (
    [3 * L],  # exactly where a shard begins
    [3 * L - 1, 3 * L + 1],  # the last token of a shard, and one of two tokens over a border
    [2 * L, 4 * L, 5 * L - 1, 6 * L],  # two whole shards, one whole shard but for a token
    [L + 2, 7 * L - 1],  # a document over seven shards
    list(range(1, T)),  # one token each
    [2, 7 * L + 1],
  )
  runs = np.array([[sum(t >= mark for mark in row) for t in range(T)] for row in marks])
  return np.where(np.arange(6)[:, None] % 2 == 0, runs % 2, runs)  # in every other row ids come back


def sharded(mesh, batch=None, check_vma=True, **options):
  """Returns f(operands, ids) -> (o, final state) of `delta_rule` with T over 'tokens' and B over `batch`."""
  by_tokens, by_batch = PartitionSpec(batch, 'tokens'), PartitionSpec(batch)

  def call(drawn, ids):
    where = {name: by_batch if name == 'initial_state' else by_tokens for name in drawn}
    return jax.shard_map(
      lambda drawn, ids: delta_rule(**drawn, segment_ids=ids, axis_name='tokens', **options),
      mesh=mesh, in_specs=(where, by_tokens), out_specs=(by_tokens, by_batch), check_vma=check_vma,
    )(drawn, ids)  # fmt: skip

  return call


def with_gradients(call):
  def outputs_and_gradients(drawn, ids, seed_o, seed_state):
    (o, state), pull = jax.vjp(lambda drawn: call(drawn, ids), drawn)
    return {'o': o, 'state': state, **pull((seed_o, seed_state))[0]}

  return outputs_and_gradients


def measured(spec, call, ids=None, dtype='float32'):
  """Returns {output or gradient: relative RMS error of `call` against float64} and what the program sends.

  `dtype` is that of all but the initial state and its cotangent; what it rounds away is not counted as an error.
  """
  drawn, _ = draws.operands(spec)
  cotangents = draws.seeds(spec)
  kept = drawn.pop('initial_state')
  drawn, seed_o = jax.tree.map(lambda x: np.asarray(jnp.asarray(x, dtype), np.float64), (drawn, cotangents[0]))
  narrow = draws.narrowed(drawn, dtype) | {'initial_state': jnp.asarray(kept, jnp.float32)}
  operands = narrow, ids, jnp.asarray(seed_o, dtype), jnp.asarray(cotangents[1], jnp.float32)
  drawn, cotangents = drawn | {'initial_state': kept}, (seed_o, cotangents[1])
  program = jax.jit(with_gradients(call)).lower(*operands).compile()
  got, want = program(*operands), draws.truth(drawn, ids, cotangents)
  assert got.keys() == want.keys()
  return {
    'errors': {name: draws.error(got[name], want[name], specs.FLOAT32.floor) for name in want},
    'sent': sent(program),
  }


def cases(tokens):
  """Returns {name: (spec, call, ids)}; the last ones are for sweeps."""
  batch_and_tokens = mesh_of(batch=2, tokens=4)
  slow = {'decay_rate': 10.0}  # what a shard passes on reaches the end
  return {
    # Chunks longer than a shard, and chunks that do not divide one; K and V apart; three value heads a key head.
    'none': (SPEC, sharded(tokens, chunk_size=8)),
    'packed_channel': (
      specs.Spec(6, P * 6, 1, 2, 8, 12, 'channel', **slow),
      sharded(tokens, chunk_size=4),
      layouts(P * 6, 6),
    ),
    'two_axes_recomputed': (
      specs.Spec(6, 4 * 7, 1, 1, 8, 8, 'scalar', **slow),
      sharded(batch_and_tokens, 'batch', check_vma=False, recompute=True),
      layouts(4 * 7, 7),
    ),
    'scalar': (specs.Spec(1, P * 13, 2, 4, 16, 8, 'scalar', **slow), sharded(tokens, chunk_size=8)),
    'packed': (specs.Spec(6, P * 6, 1, 2, 8, 8), sharded(tokens, chunk_size=4), layouts(P * 6, 6)),
    'channel': (specs.Spec(1, P * 9, 2, 2, 16, 8, 'channel', **slow), sharded(tokens, chunk_size=16)),
    'long': (specs.Spec(1, P * 512, 1, 1, 64, 64, 'scalar', **slow), sharded(tokens)),
    'bfloat16': (specs.Spec(2, P * 80, 1, 2, 64, 32, 'scalar', **slow), sharded(tokens), None, 'bfloat16'),
    # By interpretation, whose scratch does not vary over the mesh as the check would have it.
    'kernels': (
      specs.Spec(6, P * 6, 1, 2, 8, 8, 'scalar', **slow),
      sharded(tokens, check_vma=False, implementation='pallas_tpu'),
      layouts(P * 6, 6),
    ),
    'kernels_channel_bfloat16': (
      specs.Spec(1, P * 70, 1, 1, 32, 32, 'channel', **slow),
      sharded(tokens, check_vma=False, implementation='pallas_tpu', chunk_size=64),
      None,
      'bfloat16',
    ),
  }


def sent(compiled):
  """Returns the collectives of a compiled program as [kind, bytes of its result], sorted."""
  sizes = {'f32': 4, 's32': 4}
  kinds = 'all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter|collective-broadcast'
  found = []
  for results, kind in re.findall(rf'= (.*?) ({kinds})(?:-start)?\(', compiled.as_text()):
    arrays = re.findall(r'([a-z]+\d*)\[([\d,]*)\]', results)
    found.append([kind, sum(sizes[t] * math.prod(int(n) for n in shape.split(',') if n) for t, shape in arrays)])
  return sorted(found)


def partial_programs(tokens):
  """Returns what programs send that want outputs only, and gradients of the operands; and whether a NaN goes back."""
  drawn, _ = draws.operands(SPEC)
  x, seed_o = draws.narrowed(drawn), draws.narrowed(draws.seeds(SPEC)[0])
  del x['initial_state']
  call = sharded(tokens, chunk_size=8)
  forward = jax.jit(lambda x: call(x, None)[0]).lower(x).compile()
  gradients = jax.jit(lambda x, seed_o: jax.vjp(lambda x: call(x, None)[0], x)[1](seed_o))
  third = 3 * SPEC.T // P
  poisoned = {name: value.at[:, third:].set(jnp.nan) for name, value in x.items()}
  before, after = np.asarray(forward(x)), np.asarray(forward(poisoned))
  return {
    'forward': sent(forward),
    'gradients': sent(gradients.lower(x, seed_o).compile()),
    'poison_stays_behind': bool((before[:, :third] == after[:, :third]).all() and np.isnan(after[:, third:]).all()),
  }


def convolution(tokens, L, W, packed):
  """Returns the errors and what the forward pass sends, with shards of L tokens and a kernel of W."""
  B, T, D = 6, P * L, 3
  rng = np.random.default_rng([L, W])
  operands = rng.standard_normal((B, T, D)), rng.standard_normal((W, D)), rng.standard_normal((B, W - 1, D))
  seeds = rng.standard_normal((B, T, D)), rng.standard_normal((B, W - 1, D))
  ids = layouts(T, L) if packed else None

  def plain(x, weight, state, ids, **options):
    return causal_conv(x, weight, initial_state=state, segment_ids=ids, **options)

  def spread(x, weight, state, ids):
    return jax.shard_map(
      functools.partial(plain, axis_name='tokens'), mesh=tokens,
      in_specs=(BY_TOKENS, EVERYWHERE, EVERYWHERE, BY_TOKENS), out_specs=(BY_TOKENS, EVERYWHERE),
    )(x, weight, state, ids)  # fmt: skip

  def run(call, operands, seeds):
    outputs, pull = jax.vjp(lambda *operands: call(*operands, ids), *operands)
    return dict(zip(('y', 'state', 'dx', 'dweight', 'dstate'), (*outputs, *pull(seeds)), strict=True))

  got = jax.jit(functools.partial(run, spread))(draws.narrowed(operands), draws.narrowed(seeds))
  with jax.enable_x64(True):
    wide = jax.tree.map(jnp.asarray, (operands, seeds))
    reference = functools.partial(run, functools.partial(plain, implementation='reference'))
    want = jax.tree.map(np.asarray, jax.jit(reference)(*wide))
  forward = jax.jit(lambda *x: spread(*x, ids)[0]).lower(*draws.narrowed(operands)).compile()
  return {
    'errors': {name: draws.error(got[name], want[name]) for name in want if want[name].size},
    'sent': sent(forward),
    'shape': [B, D],
  }


def remat(tokens, *names):
  """Returns the errors and the gathers of the gradient of three rematerialised layers in a `scan`; `names` are kept."""
  spec = specs.Spec(1, P * 6, 1, 1, 8, 8, 'scalar', decay_rate=10.0)
  x = draws.narrowed(draws.operands(spec)[0])

  def layers(x, axis_name=None, wrap=lambda layer: layer):
    def layer(v, _):
      return delta_rule(**x | {'v': v}, chunk_size=4, axis_name=axis_name)[0], None

    return jax.lax.scan(wrap(layer), x['v'], None, length=3)[0]

  def spread(x):
    wrap = functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.save_only_these_names(*names))
    where = {name: EVERYWHERE if name == 'initial_state' else BY_TOKENS for name in x}
    local = functools.partial(layers, axis_name='tokens', wrap=wrap)
    return jax.shard_map(local, mesh=tokens, in_specs=(where,), out_specs=BY_TOKENS)(x)

  def gradient(call):
    return jax.jit(jax.grad(lambda x: jnp.square(call(x)).sum()))

  program = gradient(spread).lower(x).compile()
  got, want = program(x), gradient(layers)(x)
  gathers = sum(kind == 'all-gather' for kind, _ in sent(program))
  return {'errors': {name: draws.error(got[name], want[name]) for name in want}, 'gathers': gathers}


CONVOLUTIONS = {  # tokens of a shard, taps, packed; the last ones are for sweeps
  'packed_beyond_a_shard': (3, 9, True),
  'packed': (4, 4, True),
  'beyond_all_shards': (2, 40, False),
  'short': (5, 4, False),
}

if __name__ == '__main__':
  tokens = mesh_of(tokens=P)
  some, few = (slice(3), slice(1)) if 'sweep' not in sys.argv else (slice(3, None), slice(1, None))
  print(
    json.dumps(
      {
        'delta_rule': {name: measured(*case) for name, case in list(cases(tokens).items())[some]},
        'partial_programs': partial_programs(tokens),
        'remat': [remat(tokens), remat(tokens, *sequence.RESIDUALS)] if 'sweep' in sys.argv else [],
        'causal_conv': {name: convolution(tokens, *case) for name, case in list(CONVOLUTIONS.items())[few]},
      }
    )
  )
