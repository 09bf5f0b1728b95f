"""The implementations of the delta rule, fastest first."""

from __future__ import annotations

from pallas_kernels import pallas_tpu
from pallas_kernels.rows import PORTABLE, Call, Implementation


def _run_tpu(call: Call, q, k, v, beta, log_decay, state, run_BT):
  q, k, v = (x.astype(call.dtype) for x in (q, k, v))
  return pallas_tpu.delta_rule(pallas_tpu.plan(call), q, k, v, beta, log_decay, state, run_BT)


IMPLEMENTATIONS = {'pallas_tpu': Implementation(pallas_tpu.refuses, _run_tpu), **PORTABLE}
