"""Delta-rule attention and causal convolution for JAX: one function each on TPU, GPU and CPU.

from pallas_kernels import delta_rule, l2_normalise
o_BTHV, state_BHKV = delta_rule(l2_normalise(q_BTHK), l2_normalise(k_BTHK), v_BTHV, beta_BTH, log_decay_BTH)
"""

from pallas_kernels.api import (
  causal_conv,
  causal_conv_step,
  delta_rule,
  delta_rule_step,
)
from pallas_kernels.gates import bounded_log_decay, l2_normalise, softplus_log_decay
from pallas_kernels.implementations import IMPLEMENTATIONS
from pallas_kernels.rows import CONVOLUTIONS

__all__ = [
  'CONVOLUTIONS',
  'IMPLEMENTATIONS',
  'bounded_log_decay',
  'causal_conv',
  'causal_conv_step',
  'delta_rule',
  'delta_rule_step',
  'l2_normalise',
  'softplus_log_decay',
]
