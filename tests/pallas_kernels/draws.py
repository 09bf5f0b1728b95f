"""Operands for tests, drawn in float64 from a spec, and the one metric: relative RMS error."""

import jax
import jax.numpy as jnp
import numpy as np

import pallas_kernels


def operands(spec, seed=0):
  """Returns ({name: float64 array}, segment_ids or None)."""
  rng = np.random.default_rng([seed, spec.T, spec.K])

  def unit(*shape):
    x = rng.standard_normal(shape)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)

  B, T, H, HV, K, V = spec.B, spec.T, spec.H, spec.HV, spec.K, spec.V
  drawn = {
    'q': unit(B, T, H, K),
    'k': unit(B, T, H, K),
    'v': rng.standard_normal((B, T, HV, V)),
    'beta': rng.uniform(0, 1, (B, T, HV)),
  }
  if spec.decay != 'none':
    shape = (B, T, HV) if spec.decay == 'scalar' else (B, T, HV, K)
    log_decay = -np.log1p(np.exp(-rng.standard_normal(shape))) / spec.decay_rate
    drawn['log_decay'] = np.where(rng.random(shape) < spec.masked_decay, 0.0, log_decay)
  drawn['initial_state'] = rng.standard_normal((B, HV, K, V))
  segment_ids = np.cumsum(rng.random((B, T)) < spec.boundary, 1) if spec.boundary else None
  return drawn, segment_ids


def _outputs_and_gradients(drawn, segment_ids, seed_o, seed_state, **options):
  """Returns {'o', 'state', then the gradient of <o, seed_o> + <state, seed_state> by each operand}."""

  def outputs(drawn):
    return pallas_kernels.delta_rule(**drawn, segment_ids=segment_ids, **options)

  (o, state), pull = jax.vjp(outputs, drawn)
  (gradients,) = pull((seed_o, seed_state))
  return {'o': o, 'state': state, **gradients}


STATIC = ('implementation', 'chunk_size', 'recompute')
_compiled = jax.jit(_outputs_and_gradients, static_argnames=STATIC)
# An interpreted kernel is a long program that runs once: to optimise it takes twice as long as to run it as it is.
_compiled_plainly = jax.jit(
  _outputs_and_gradients, static_argnames=STATIC, compiler_options={'xla_backend_optimization_level': 0}
)


def outputs_and_gradients(*operands, implementation=None, **options):
  """Returns what `_outputs_and_gradients` does, as one program."""
  call = _compiled_plainly if implementation == 'pallas_tpu' else _compiled
  return call(*operands, implementation=implementation, **options)


def seeds(spec, seed=1):
  rng = np.random.default_rng([seed, spec.T, spec.V])
  return rng.standard_normal((spec.B, spec.T, spec.HV, spec.V)), rng.standard_normal((spec.B, spec.HV, spec.K, spec.V))


def narrowed(tree, dtype=np.float32):
  return jax.tree.map(lambda x: jnp.asarray(x, dtype) if np.issubdtype(x.dtype, np.floating) else x, tree)


def truth(drawn, segment_ids, cotangents):
  """Returns outputs and gradients of the token-by-token reference in float64."""
  with jax.enable_x64(True):
    wide = jax.tree.map(jnp.asarray, drawn)
    got = outputs_and_gradients(wide, segment_ids, *map(jnp.asarray, cotangents), implementation='reference')
    return jax.tree.map(np.asarray, got)


def error(got, want, floor=1e-2):
  """Returns rms(got - want) / max(rms(want), floor)."""
  got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
  return float(np.sqrt(np.mean((got - want) ** 2)) / max(np.sqrt(np.mean(want**2)), floor))


def assert_close(got, want, tolerance):
  assert got.keys() == want.keys()
  for name in want:
    limit = tolerance.output if name in ('o', 'state') else tolerance.gradient
    limit = tolerance.gate_gradient if name in ('beta', 'log_decay') else limit
    assert np.isfinite(np.asarray(got[name])).all(), f'{name} is not finite'
    found = error(got[name], want[name], tolerance.floor)
    assert found < limit, f'{name}: {found:.1e}, limit {limit}'
