"""Control arms: the same search with one thing taken away, so that what that thing brings can be measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from asiarch_jax import config


def _with(experiment: config.Experiment, part: str, **changes: object) -> config.Experiment:
  return dataclasses.replace(experiment, **{part: dataclasses.replace(getattr(experiment, part), **changes)})  # type: ignore[arg-type]


def _evolution(experiment: config.Experiment) -> config.Experiment:
  return _with(_with(experiment, 'researcher', kind='evolution'), 'search', parents='pool')


def _llm(experiment: config.Experiment) -> config.Experiment:
  return _with(_with(experiment, 'researcher', kind='llm'), 'search', parents='pool')


def _no_search(experiment: config.Experiment) -> config.Experiment:
  return _with(experiment, 'search', parents='baseline')


def _random(experiment: config.Experiment) -> config.Experiment:
  return _with(_with(experiment, 'researcher', kind='evolution'), 'search', parents='none')


def _placebo(experiment: config.Experiment) -> config.Experiment:
  return _with(experiment, 'evidence', placebo=1.0)


def _same(experiment: config.Experiment) -> config.Experiment:
  return experiment


ARMS: Mapping[str, tuple[Callable[[config.Experiment], config.Experiment], str]] = {
  'search': (_same, 'the search as it is configured'),
  'evolution': (_evolution, 'the offline researcher, which changes what was best so far'),
  'llm': (_llm, 'a language model, which is shown what was best so far'),
  'no_search': (_no_search, 'the same researcher, which always starts from the baseline: nothing is learned'),
  'random': (_random, 'independent designs of the offline researcher, without a parent'),
  'placebo': (_placebo, 'copies of the baseline: nothing is there to be found'),
}


def arm(experiment: config.Experiment, name: str) -> config.Experiment:
  """Returns the experiment of an arm, under a name that says so.

  Raises:
    ValueError: there is no arm of that name.
  """
  if name not in ARMS:
    raise ValueError(f'{name!r} is not an arm; there are {", ".join(ARMS)}')
  return dataclasses.replace(ARMS[name][0](experiment), name=f'{experiment.name}, arm {name}')
