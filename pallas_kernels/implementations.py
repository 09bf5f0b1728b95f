"""The implementations of the delta rule, fastest first."""

from __future__ import annotations

from pallas_kernels import mosaic_gpu, pallas_tpu, sequence, xla
from pallas_kernels.rows import PORTABLE, Call, Implementation


def _run_tpu(call: Call, q, k, v, beta, log_decay, state, run_BT):
  q, k, v = (x.astype(call.dtype) for x in (q, k, v))
  return pallas_tpu.delta_rule(pallas_tpu.plan(call), q, k, v, beta, log_decay, state, run_BT)


def _run_gpu(call: Call, q, k, v, beta, log_decay, state, run_BT):
  return mosaic_gpu.delta_rule(mosaic_gpu.plan(call), q, k, v, beta, log_decay, state, run_BT)


IMPLEMENTATIONS = {
  'pallas_tpu': Implementation(pallas_tpu.refuses, _run_tpu),
  'mosaic_gpu': Implementation(mosaic_gpu.refuses, _run_gpu),
  **PORTABLE,
}

# The names that residuals carry, of whichever implementation: what a remat policy keeps.
RESIDUALS = tuple(dict.fromkeys((*xla.RESIDUALS, *pallas_tpu.RESIDUALS, *mosaic_gpu.RESIDUALS, *sequence.RESIDUALS)))
