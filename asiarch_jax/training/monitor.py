"""When a run ends early, and why: pure rules over the history of a run.

Each rule takes the losses at every logged step [logs, R] and returns a sentence, or None. Losses are cross entropies in
nats a token, logged every `training.steps_per_call` steps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from asiarch_jax import config, records

PATIENCE = 3  # calls in a row that must be slow: one may meet another process
REACHED = 'reached'  # what the run was for: no failure


@dataclasses.dataclass(frozen=True)
class Stop:
  """Why a run ended: `kind` is a key of `records.FAILURES`, or REACHED; `reason` a sentence with both numbers."""

  kind: str
  reason: str

  def __post_init__(self) -> None:
    if self.kind not in (*records.FAILURES, REACHED):
      raise ValueError(f'{self.kind!r} is none of {sorted(records.FAILURES)}')


def diverged(losses_LR: np.ndarray) -> np.ndarray:
  """Returns [R]: which replicas ever had a loss that is not finite."""
  return ~np.isfinite(losses_LR).all(axis=0)


def non_finite(losses_LR: np.ndarray, log_every: int) -> str | None:
  """All replicas have diverged; while one lives, the run goes on."""
  if not diverged(losses_LR).all():
    return None
  last = int((~np.isfinite(losses_LR)).argmax(axis=0).max())
  return (
    f'{losses_LR.shape[1]} of {losses_LR.shape[1]} replicas have losses that are not finite, the last to fail since '
    f'step {(last + 1) * log_every}; '
    'bound what grows: normalise, clamp or decay'
  )


def too_slow(seconds_L: Sequence[float], limit: float | None) -> str | None:
  """The last calls were all slower a step than `limit`; the first call is never counted: it warms up."""
  recent = list(seconds_L)[1:][-PATIENCE:]
  if not limit or len(recent) < PATIENCE or min(recent) <= limit:
    return None
  return f'{min(recent):.4g} s a step in the last {PATIENCE} calls, {limit:.4g} s allowed; make the mixer cheaper'


def suspiciously_low(losses_LR: np.ndarray, baseline_L: Sequence[float], share: float, log_every: int) -> str | None:
  """The mean loss of the living replicas is below `share` of the baseline's at the same step."""
  log = len(losses_LR) - 1
  loss = _mean_alive(losses_LR)
  if not share or log >= len(baseline_L) or loss is None or loss >= share * baseline_L[log]:
    return None
  return (
    f"loss {loss:.4f} at step {(log + 1) * log_every} is below {share:g} of the baseline's {baseline_L[log]:.4f}: "
    'the future must be leaking into the past'
  )


def hopeless(
  losses_LR: np.ndarray, baseline_L: Sequence[float], share: float, at: float, steps: int, log_every: int
) -> str | None:
  """At the checkpoint, the first log at or after `at` of the steps, the best replica is more than `share` above the
  baseline. Asked at the checkpoint only."""
  log = len(losses_LR) - 1
  checkpoint = max(1, int(np.ceil(at * steps / log_every))) - 1
  if not share or log != checkpoint or log >= len(baseline_L) or diverged(losses_LR).all():
    return None
  best = float(losses_LR[-1][~diverged(losses_LR)].min())
  if best <= (1 + share) * baseline_L[log]:
    return None
  return (
    f"best loss {best:.4f} at step {(log + 1) * log_every} is more than {share:.0%} above the baseline's "
    f'{baseline_L[log]:.4f}'
  )


@dataclasses.dataclass(frozen=True)
class Watch:
  """All rules of one run, asked after every logged step. Pure: it is given the whole history each time."""

  rules: config.Monitor
  baseline_losses: Sequence[float]
  seconds_per_step: float | None
  training: config.Training

  def __call__(self, losses_LR: np.ndarray, seconds_L: Sequence[float]) -> Stop | None:
    """Returns the first reason to stop, or None. `losses_LR` [logs, R]; `seconds_L` seconds a step of each call."""
    rules, every = self.rules, self.training.steps_per_call
    verdicts = {
      'non_finite': non_finite(losses_LR, every),
      'too_slow': too_slow(seconds_L, self.seconds_per_step if rules.too_slow else None),
      'suspiciously_low': suspiciously_low(losses_LR, self.baseline_losses, rules.suspicious, every),
      'hopeless': hopeless(
        losses_LR, self.baseline_losses, rules.hopeless, rules.hopeless_at, self.training.steps, every
      ),
    }
    return next((Stop(kind, reason) for kind, reason in verdicts.items() if reason), None)


def _mean_alive(losses_LR: np.ndarray) -> float | None:
  alive = ~diverged(losses_LR)
  return float(losses_LR[-1][alive].mean()) if alive.any() else None
