"""From the runs of a suite's settings to its score: pure functions of records."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from asiarch_jax.records import Accuracy, SuiteResult, SuiteRun


@dataclasses.dataclass(frozen=True)
class Value:
  """A mean over seeds with its standard error, nan for one seed. `seeds` holds the value of each seed."""

  mean: float
  stderr: float
  seeds: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Row:
  """A test of a setting: what the runs that validation chose reach on it, and what MAD would report."""

  task: str
  name: str
  macro: Value
  micro: Value
  as_mad: Value  # by the suite's metric, chosen and stopped on the test sequences themselves
  learning_rate: float
  weight_decay: float
  steps: float  # mean over the chosen runs, up to an early end


@dataclasses.dataclass(frozen=True)
class Score:
  """A suite's score: `by_task` in the order of the tasks, `total` their plain mean. By the metric of the suite."""

  rows: tuple[Row, ...]
  by_task: dict[str, tuple[Value, Value]]  # (chosen on validation, as MAD)
  total: Value
  as_mad: Value


def value_of(seeds: Sequence[float]) -> Value:
  """Returns the mean over seeds and its standard error.

  >>> value_of([0.5, 0.7])
  Value(mean=0.6, stderr=0.09999999999999998, seeds=(0.5, 0.7))
  """
  stderr = float(np.std(seeds, ddof=1) / np.sqrt(len(seeds))) if len(seeds) > 1 else float('nan')
  return Value(float(np.mean(seeds)), stderr, tuple(seeds))


def chosen_pair(result: SuiteResult) -> tuple[float, float]:
  """Returns the (learning rate, weight decay) whose mean validation accuracy over seeds and tests is best.

  Of equals the first in the order of the grid: the smallest learning rate.
  """
  pairs = list(dict.fromkeys((run.learning_rate, run.weight_decay) for run in result.runs))
  return max(pairs, key=lambda pair: np.mean([_mean(run.validation, result.metric) for run in _of(result, pair)]))


def rows_of(result: SuiteResult) -> tuple[Row, ...]:
  """Returns a row for each test of a setting.

  Hyper-parameters are chosen once for all seeds, on validation. MAD's own number takes, for each seed and test, the
  best test accuracy of any pair.
  """
  pair = chosen_pair(result)
  chosen = _of(result, pair)
  seeds = sorted({run.seed for run in result.runs})
  rows = []
  for index, test in enumerate(chosen[0].test):
    best = [
      max(getattr(run.test_stopped[index], result.metric) for run in result.runs if run.seed == seed) for seed in seeds
    ]
    rows.append(
      Row(
        result.task,
        f'{result.setting} {test.test}'.strip(),
        value_of([run.test[index].macro for run in chosen]),
        value_of([run.test[index].micro for run in chosen]),
        value_of(best),
        *pair,
        steps=float(np.mean([run.steps for run in chosen])),
      )
    )
  return tuple(rows)


def score(results: Sequence[SuiteResult]) -> Score:
  """Returns the score over results of settings with the same seeds: mean over tasks of the mean over rows."""
  rows = tuple(row for result in results for row in rows_of(result))
  metric = {result.task: result.metric for result in results}
  by_task = {
    task: (
      _over([getattr(row, metric[task]) for row in rows if row.task == task]),
      _over([row.as_mad for row in rows if row.task == task]),
    )
    for task in metric
  }
  return Score(
    rows, by_task, _over([ours for ours, _ in by_task.values()]), _over([mad for _, mad in by_task.values()])
  )


def _over(values: Sequence[Value]) -> Value:
  """Returns the mean of values seed by seed, so that its error knows that they share their seeds."""
  return value_of([float(np.mean(seed)) for seed in zip(*(value.seeds for value in values), strict=True)])


def _of(result: SuiteResult, pair: tuple[float, float]) -> list[SuiteRun]:
  mine = (run for run in result.runs if (run.learning_rate, run.weight_decay) == pair)
  return sorted(mine, key=lambda run: run.seed)


def _mean(accuracies: Sequence[Accuracy], metric: str) -> float:
  return float(np.mean([getattr(accuracy, metric) for accuracy in accuracies]))
