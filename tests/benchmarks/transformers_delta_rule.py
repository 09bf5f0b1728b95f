"""Times the XLA form on CPU, forward + backward, beside Hugging Face transformers and the token scan, in one run.

    make peers  # builds an environment with torch and transformers
    build/environments/peers-torch/bin/python -m tests.benchmarks.transformers_delta_rule
    ... -m tests.benchmarks.transformers_delta_rule --shape=long128 --rounds=15 --no-token-scan

Gated delta rule in float32 from the same operands: o, final state and the gradient of <o, seed> by q, k, v, beta and
log decay. Each contender lives in a process of its own, pinned to the same processors with as many threads, and is
asked for one call after another in turn, so that what else the machine does falls on all of them. Before timing, each
must agree with the first on the outputs and on every gradient.

Figures: fastest call in milliseconds, median and quartiles; the ratio to the first row of the fastest calls, and the
median and spread over rounds of the ratio of neighbouring calls (where other work keeps the processors busy, torch's
threads wait for each other and this one flatters us); and the peak of resident memory of the process (`ru_maxrss`),
whole, and what it rose by from before the first call, compilation included.
"""

import argparse
import functools
import multiprocessing
import os
import resource
import statistics
import time

import numpy as np

SHAPES = {'long': (2, 2048, 4, 64, 64), 'long128': (2, 2048, 4, 128, 128), 'short': (2, 256, 2, 32, 32)}
NAMES = ('q', 'k', 'v', 'beta', 'log_decay')


def operands(B, T, H, K, V):
  """Returns ({name: float32 array}, the seed of o): unit keys, values in [-1, 1] or so, decays near one."""
  rng = np.random.default_rng(0)
  drawn = {name: rng.standard_normal((B, T, H, K)) for name in ('q', 'k')}
  drawn = {name: x / np.linalg.norm(x, axis=-1, keepdims=True) for name, x in drawn.items()}
  drawn['v'] = rng.standard_normal((B, T, H, V))
  drawn['beta'] = 1 / (1 + np.exp(-rng.standard_normal((B, T, H))))
  drawn['log_decay'] = -np.log1p(np.exp(-3 - rng.standard_normal((B, T, H))))
  seed = rng.standard_normal((B, T, H, V))
  return {name: x.astype(np.float32) for name, x in drawn.items()}, seed.astype(np.float32)


def ours(drawn, seed, threads, implementation):
  """Returns a function that runs one step of `delta_rule` and returns (o, state, gradients)."""
  import jax

  import pallas_kernels

  call = functools.partial(pallas_kernels.delta_rule, implementation=implementation)

  @jax.jit
  def step(seed, *args):
    (o, state), pull = jax.vjp(call, *args)
    return o, state, pull((seed, jax.numpy.zeros_like(state)))

  args = jax.device_put([seed, *(drawn[name] for name in NAMES)])
  return lambda: jax.block_until_ready(step(*args))


def transformers_form(drawn, seed, threads):
  """Returns a function that runs one step of `torch_chunk_gated_delta_rule` and returns (o, state, gradients)."""
  import torch
  from transformers.models.qwen3_next import modeling_qwen3_next

  torch.set_num_threads(threads)
  q, k, v, beta, g = (torch.from_numpy(drawn[name]).requires_grad_() for name in NAMES)
  seed = torch.from_numpy(seed)

  def step():
    o, state = modeling_qwen3_next.torch_chunk_gated_delta_rule(q, k, v, g=g, beta=beta, output_final_state=True)
    gradients = torch.autograd.grad(o, (q, k, v, beta, g), seed)
    return o.detach(), state.detach(), gradients

  return step


CONTENDERS = {
  'pallas_kernels, xla': functools.partial(ours, implementation='xla'),
  'transformers, torch': transformers_form,
  'token scan, autodiff': functools.partial(ours, implementation='reference'),
}


def serve(name, shape, threads, pipe):
  """Answers 'result' with a step's arrays, 'step' with its seconds, 'memory' with (peak, rise) in MiB; None ends."""
  os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
  step = CONTENDERS[name](*operands(*SHAPES[shape]), threads)
  with open('/proc/self/statm') as statm:
    before = int(statm.read().split()[1]) * resource.getpagesize() / 2**20
  while (order := pipe.recv()) is not None:
    start = time.perf_counter()
    result = step() if order != 'memory' else None
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if order == 'result':
      o, state, gradients = result
      pipe.send([np.asarray(x) for x in (o, state, *gradients)])
    else:
      pipe.send(seconds if order == 'step' else (peak, peak - before))


def asked(pipe, order):
  pipe.send(order)
  return pipe.recv()


def disagreement(results, wanted):
  """Returns the largest relative RMS difference of two lists of arrays."""
  return max(np.sqrt(np.mean((a - b) ** 2) / np.mean(b**2)) for a, b in zip(results, wanted, strict=True))


def compare(shape, names, rounds, threads):
  """Prints a row a contender."""
  context = multiprocessing.get_context('spawn')
  pipes, processes = {}, []
  for name in names:
    pipes[name], theirs = context.Pipe()
    processes.append(context.Process(target=serve, args=(name, shape, threads, theirs), daemon=True))
    processes[-1].start()
  results = {name: asked(pipe, 'result') for name, pipe in pipes.items()}
  for name in names[1:]:
    off = disagreement(results[name], results[names[0]])
    if off > 1e-3:
      raise SystemExit(f'{name} and {names[0]} compute different things: relative RMS difference {off:.1e}')
  seconds = {name: [] for name in names}
  for _ in range(rounds):
    for name, pipe in pipes.items():
      seconds[name].append(asked(pipe, 'step'))
      time.sleep(0.2)  # thread pools go on spinning for a while: not into the neighbour's call
  for name, pipe in pipes.items():
    peak, rise = asked(pipe, 'memory')
    low, median, high = (1e3 * x for x in statistics.quantiles(seconds[name], n=4))
    ratios = [a / b for a, b in zip(seconds[name], seconds[names[0]], strict=True)]
    ratio = f'{statistics.median(ratios):6.2f} [{min(ratios):5.2f}, {max(ratios):5.2f}]'
    fastest = min(seconds[name])
    ratio = f'{fastest / min(seconds[names[0]]):5.2f} {ratio}'
    print(
      f'{name:22} {1e3 * fastest:9.1f} {median:9.1f} [{low:8.1f}, {high:8.1f}]  {ratio}  {peak:7.0f} {rise:7.0f}',
      flush=True,
    )
    pipe.send(None)
  for process in processes:
    process.join()


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--shape', choices=SHAPES, action='append')
  parser.add_argument('--rounds', type=int, default=11)
  parser.add_argument('--threads', type=int, default=2)
  parser.add_argument('--no-token-scan', action='store_true')
  options = parser.parse_args()
  names = [name for name in CONTENDERS if not (options.no_token_scan and 'scan' in name)]
  for shape in options.shape or ('long', 'long128'):
    print(f'{shape} B, T, H, K, V = {SHAPES[shape]}, {options.threads} threads, {options.rounds} rounds')
    heads = f'{"fastest":>9} {"median":>9} [quartiles]          ratio: fastest, median [min, max]  peak MiB    rise'
    print(f'{"ms":22} {heads}')
    compare(shape, names, options.rounds, options.threads)


if __name__ == '__main__':
  main()
