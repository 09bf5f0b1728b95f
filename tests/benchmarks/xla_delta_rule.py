"""Times the XLA forms on this machine's CPU: which chunk, and how far from a token scan differentiated by JAX.

    python tests/benchmarks/xla_delta_rule.py                      # the training shape of the search, four replicas
    python tests/benchmarks/xla_delta_rule.py --shape=long --decay=scalar
    python tests/benchmarks/xla_delta_rule.py --conv               # the causal convolution, W = 4 and 64

Each figure is the fastest of several calls in milliseconds (other work on the machine only adds), forward alone and
forward with backward.
"""

import argparse
import time

import jax

import pallas_kernels

SHAPES = {  # R replicas, B, T, H, K, V
  'search': (4, 8, 128, 2, 32, 32),
  'wide': (4, 8, 128, 4, 64, 64),
  'long': (1, 2, 2048, 4, 64, 64),
  'long128': (1, 2, 2048, 4, 128, 128),
}


def fastest_ms(function, *args, seconds=1.5):
  jax.block_until_ready(function(*args))
  best, end = float('inf'), time.perf_counter() + seconds
  while time.perf_counter() < end:
    start = time.perf_counter()
    jax.block_until_ready(function(*args))
    best = min(best, time.perf_counter() - start)
  return 1e3 * best


def report(label, forward, args):
  alone = jax.jit(jax.vmap(forward))
  seed = jax.random.normal(jax.random.key(9), alone(*args).shape)
  both = jax.jit(jax.vmap(lambda seed, *args: jax.vjp(forward, *args)[1](seed)))
  print(f'{label:28} {fastest_ms(alone, *args):9.2f} {fastest_ms(both, seed, *args):9.2f}', flush=True)


def time_delta_rule(shape, decay, chunks, token_scan):
  R, B, T, H, K, V = SHAPES[shape]
  keys = jax.random.split(jax.random.key(0), 5)
  q, k = (pallas_kernels.l2_normalise(jax.random.normal(key, (R, B, T, H, K))) for key in keys[:2])
  args = [q, k, jax.random.normal(keys[2], (R, B, T, H, V)), jax.nn.sigmoid(jax.random.normal(keys[3], (R, B, T, H)))]
  if decay != 'none':
    raw = jax.random.normal(keys[4], (R, B, T, H) if decay == 'scalar' else (R, B, T, H, K))
    args.append(jax.nn.log_sigmoid(raw + 3))
  rows = [(f'xla, chunk {chunk}' if chunk else 'xla, chunk chosen', 'xla', chunk) for chunk in (None, *chunks)]
  rows += [('token scan, autodiff', 'reference', None)] * token_scan
  for label, implementation, chunk in rows:
    report(
      label,
      lambda *x, i=implementation, c=chunk: pallas_kernels.delta_rule(*x, implementation=i, chunk_size=c)[0],
      args,
    )


def time_convolution(shape, taps):
  R, B, T, H, K, _ = SHAPES[shape]
  keys = jax.random.split(jax.random.key(0))
  args = [jax.random.normal(keys[0], (R, B, T, H * K)), jax.random.normal(keys[1], (R, taps, H * K))]
  for name in pallas_kernels.CONVOLUTIONS:
    report(f'W {taps}, {name}', lambda x, w, name=name: pallas_kernels.causal_conv(x, w, implementation=name)[0], args)


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--shape', choices=SHAPES, default='search')
  parser.add_argument('--decay', choices=('none', 'scalar', 'channel'), default='none')
  parser.add_argument('--chunks', default='16,32,64,128')
  parser.add_argument('--conv', action='store_true')
  parser.add_argument('--no-token-scan', action='store_true')
  options = parser.parse_args()
  print(f'{options.shape} {SHAPES[options.shape]}, decay {options.decay}: ms forward, forward + backward')
  if options.conv:
    for taps in (4, 64):
      time_convolution(options.shape, taps)
  else:
    chunks = [int(chunk) for chunk in options.chunks.split(',') if chunk]
    time_delta_rule(options.shape, options.decay, chunks, not options.no_token_scan)


if __name__ == '__main__':
  main()
