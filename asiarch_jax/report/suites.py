"""Scores on suites of synthetic tasks in words: pure functions from scores to renderables."""

from __future__ import annotations

import math
from collections.abc import Iterable

from rich import box
from rich.table import Table

from asiarch_jax.report.text import plain
from asiarch_jax.suites import Suite
from asiarch_jax.suites.score import Row, Score, Value


def known(suites: Iterable[Suite]) -> Table:
  """Returns the table of the suites: how many settings, and how many training runs each would be."""
  table = _table('suite', 'settings', 'grid', 'seeds', 'runs', 'what')
  for suite in suites:
    recipe = suite.settings[0].recipe
    table.add_row(
      suite.name, str(len(suite.settings)), str(len(recipe.pairs)), str(recipe.seeds), f'{suite.runs:,}', suite.summary
    )
  return table


def rows(measured: Iterable[Row]) -> Table:
  """Returns a line for each test of a setting."""
  table = _table('setting', 'macro', 'micro', 'as MAD', 'rate', 'decay', 'steps')
  for row in measured:
    table.add_row(
      plain(row.name),
      said(row.macro),
      said(row.micro),
      said(row.as_mad),
      f'{row.learning_rate:.3g}',
      f'{row.weight_decay:g}',
      f'{row.steps:.0f}',
    )
  return table


def score(measured: Score, metric: str) -> Table:
  """Returns the score by task and in all: hyper-parameters chosen on validation, and beside it as MAD reports."""
  table = _table('task', f'{metric} accuracy', 'as MAD')
  for task, (ours, theirs) in measured.by_task.items():
    table.add_row(plain(task), said(ours), said(theirs))
  table.add_section()
  table.add_row('mean', said(measured.total), said(measured.as_mad))
  return table


def said(value: Value) -> str:
  """Returns a mean with its standard error over seeds, where there are several."""
  return f'{value.mean:.3f}' + ('' if math.isnan(value.stderr) else f' ± {value.stderr:.3f}')


def _table(*columns: str) -> Table:
  table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
  for number, column in enumerate(columns):
    table.add_column(column, justify='left' if number == 0 or column == 'what' else 'right', no_wrap=True)
  return table
