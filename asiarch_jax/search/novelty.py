"""What is in the archive already: the same function by fingerprint, the nearest design by distance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from asiarch_jax.records import Entry, Outcome, entries_of

TURNED_DOWN = ('non_finite', 'suspiciously_low', 'hopeless')  # stages of a rejection that would come again

Distance = Callable[[dict[str, Any], dict[str, Any]], float]


def known(outcomes: Sequence[Outcome]) -> dict[str, int]:
  """Returns the id that first brought each fingerprint, entries before rejections.

  A fingerprint stands for the function, whatever the source looks like. A function that training itself turned down is
  known too: under the same settings it would end the same way. One that a check refused may come again, since the gate
  costs little and its findings are what a researcher answers; so may one that the machine stopped (killed, too slow).
  """
  ids: dict[str, int] = {}
  for outcome in sorted(outcomes, key=lambda outcome: (not isinstance(outcome, Entry), outcome.id)):
    if outcome.fingerprint and (isinstance(outcome, Entry) or outcome.stage in TURNED_DOWN):
      ids.setdefault(outcome.fingerprint, outcome.id)
  return ids


def nearest(
  genome: dict[str, Any], outcomes: Sequence[Outcome], distance: Distance, count: int = 1
) -> tuple[tuple[Entry, float], ...]:
  """Returns up to `count` entries with a genome and their distances, nearest first, the older of equals first."""
  apart = [(entry, distance(genome, entry.proposal.genome)) for entry in entries_of(outcomes) if entry.proposal.genome]
  return tuple(sorted(apart, key=lambda pair: (pair[1], pair[0].id))[:count])
