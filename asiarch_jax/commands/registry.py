"""The claims of a workdir as they lie on disk (`commands.claiming` has the layout)."""

from __future__ import annotations

import json
import os

from asiarch_jax import config
from asiarch_jax.evidence import claims
from asiarch_jax.records import from_json
from asiarch_jax.shell import places

FOLDER = 'claims'


def read_claims(workdir: str | os.PathLike[str]) -> list[tuple[claims.Family, tuple[claims.Verdict, ...]]]:
  """Returns the families of a workdir in order, each with its verdicts: empty while it is not finished."""
  found = []
  for path in sorted((places.folder(workdir) / FOLDER).glob('[0-9]*/family.json'), key=str):
    done = path.with_name('verdicts.json')
    try:
      family = from_json(claims.Family, json.loads(path.read_bytes()))
      verdicts = json.loads(done.read_bytes())['verdicts'] if done.exists() else []
      found.append((family, tuple(from_json(claims.Verdict, one) for one in verdicts)))
    except (ValueError, TypeError, KeyError) as error:
      raise ValueError(
        f'{path.parent} is damaged ({error}): restore it from a copy; what was claimed stays so'
      ) from error
  return found


def confirmed(workdir: str | os.PathLike[str], search: config.Search) -> frozenset[int] | None:
  """Returns the candidates that a finished claim has shown to be better at matched parameters; None without a claim.

  Claims at the fidelity of the search and on its rungs count; those against anything but `search.baseline`, or not
  matched by parameters, do not.
  """
  baseline = search.baselines.index(search.baseline)  # outcomes begin with the baselines, in order
  finished = [
    verdicts
    for family, verdicts in read_claims(workdir)
    if verdicts and family.against == baseline and 'parameters' in family.matched
  ]
  if not finished:
    return None
  every = (one for verdicts in finished for one in verdicts if one.id >= len(search.baselines))
  return frozenset(one.id for one in every if one.shown and one.matched == 'parameters')
