"""Named shapes and tolerances: what every implementation of the delta rule is tested, tuned and timed on."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Spec:
  """One shape of a call; `decay` is 'none', 'scalar' or 'channel', `boundary` how often a token begins a segment."""

  B: int
  T: int
  H: int
  HV: int
  K: int
  V: int
  decay: str = 'none'
  boundary: float = 0.0
  decay_rate: float = 1.0  # divides how fast a state is forgotten: 0.01 forgets at once, 10 hardly at all
  masked_decay: float = 0.0  # the share of tokens without decay


@dataclasses.dataclass(frozen=True)
class Tolerance:
  """Largest relative RMS error, rms(got - want) / max(rms(want), floor), of outputs and of gradients.

  The floor keeps what is nearly zero from being compared with rounding: the gradient of a decay that forgets at once.
  """

  output: float
  gradient: float
  gate_gradient: float
  floor: float = 1e-2


FLOAT32 = Tolerance(output=1e-5, gradient=1e-4, gate_gradient=1e-4)
BFLOAT16 = Tolerance(output=5e-3, gradient=8e-3, gate_gradient=2e-2)

SMALL = {
  'plain': Spec(2, 37, 2, 2, 16, 8),
  'scalar': Spec(1, 75, 2, 2, 16, 24, 'scalar'),
  'channel': Spec(1, 75, 2, 2, 16, 16, 'channel'),
  'grouped': Spec(2, 33, 2, 6, 8, 16, 'scalar'),
  'grouped_channel': Spec(1, 40, 1, 3, 8, 8, 'channel'),
  'packed': Spec(2, 70, 2, 2, 16, 16, 'none', boundary=0.1),
  'packed_scalar': Spec(2, 70, 1, 2, 16, 16, 'scalar', boundary=0.1),
  'packed_channel': Spec(2, 70, 2, 2, 8, 8, 'channel', boundary=0.1),
  'odd_sizes': Spec(2, 50, 3, 3, 15, 7, 'scalar'),
  'forgets_at_once': Spec(1, 64, 2, 2, 16, 16, 'scalar', decay_rate=0.01),
  'forgets_channels_at_once': Spec(1, 64, 2, 2, 16, 16, 'channel', decay_rate=0.01),
  'half_masked': Spec(1, 64, 2, 2, 16, 16, 'scalar', decay_rate=0.1, masked_decay=0.5),
}

# The shapes of the Triton suite in flash-linear-attention, for sweeps and for machines with an accelerator.
FULL = {
  'search': Spec(8, 128, 2, 2, 32, 32),
  'search_scalar': Spec(8, 128, 2, 2, 32, 32, 'scalar'),
  'b2_t500_d60': Spec(2, 500, 3, 3, 60, 60, 'scalar'),
  'b2_t1000_d64': Spec(2, 1000, 3, 3, 64, 64, 'scalar', decay_rate=0.1),
  'b3_t1024_d100': Spec(3, 1024, 4, 4, 100, 100, 'scalar'),
  'b2_t1500_d128': Spec(2, 1500, 4, 4, 128, 128, 'scalar', decay_rate=10.0),
  'b2_t1024_grouped': Spec(2, 1024, 4, 8, 128, 128, 'scalar'),
  'b1_t2000_packed': Spec(1, 2000, 4, 4, 64, 64, 'scalar', boundary=0.005),
  'b2_t1024_channel': Spec(2, 1024, 4, 4, 64, 64, 'channel'),
}
