"""A command on several hosts: the first one runs it, the others follow (`shell.spmd`)."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import sys
from collections.abc import Callable

from absl import flags

from asiarch_jax import commands, config
from asiarch_jax.commands import UsageError
from asiarch_jax.shell import archive as archives
from asiarch_jax.shell import corpus as corpora
from asiarch_jax.shell import follower, hosts, hub, places, runner
from asiarch_jax.shell.display import Display

Run = Callable[[flags.FlagValues, list[str]], int]


def run(command: Run, values: flags.FlagValues, positional: list[str]) -> int:
  """Returns the exit status of a command, which is the same on every host.

  Raises:
    UsageError: nothing says which of the hosts this is.
    OSError: the first host cannot listen.
  """
  experiment = _experiment(values)
  if experiment is None or experiment.runner.kind != 'spmd':
    return command(values, positional)
  try:
    place = hosts.place(experiment.runner, os.environ)
  except ValueError as error:
    if getattr(values, 'config', None) is None:  # as it is archived: the search ran on more hosts than this
      return command(values, positional)
    raise UsageError(str(error)) from error
  if place.hosts == 1:
    return command(values, positional)
  if not place.leads:
    with Display() as display:
      return _followed(experiment, place, display)
  with hub.leading(place, experiment.runner.join_seconds, _said) as ended:
    status = command(values, positional)
    ended(status)
    return status


def _said(text: str) -> None:
  print(runner.clean(text), file=sys.stderr, flush=True)


def _experiment(values: flags.FlagValues) -> config.Experiment | None:
  """Returns the experiment of a command: what --config says, else what is archived in its workdir, else None."""
  if 'config' in values and (values['config'].present or values.config is not None):
    return commands.experiment_of(values)
  if 'workdir' not in values or not values.workdir:
    return None
  with contextlib.suppress(OSError, ValueError):
    with archives.OrbaxArchive.open_read_only(values.workdir) as archive:
      return archive.experiment
  return None


def _followed(experiment: config.Experiment, place: hosts.Place, display: Display) -> int:
  with commands.terminable():
    try:
      jail = commands.choose_jail(experiment, display)
      settings = dataclasses.replace(experiment.runner, jail=jail)
      find = _finder(experiment.corpus)
      return follower.Follower(place, settings, commands.cache_folder(), find, display.line).follow()
    except KeyboardInterrupt:
      return commands.INTERRUPTED


def _finder(settings: config.Corpus) -> Callable[[str], pathlib.Path | None]:
  """Returns what finds a corpus on this host: the one of the settings, if it has the content that is asked for."""

  def find(content: str) -> pathlib.Path | None:
    with contextlib.suppress(OSError, ValueError):
      if places.is_address(settings.path):
        if corpora.read_card(settings.path).content_hash == content:
          return places.fetched(settings.path, commands.cache_folder(), content)
        return None
      docs = settings.path == 'docs'
      folder = corpora.docs_folder(commands.cache_folder()) if docs else pathlib.Path(settings.path)
      if corpora.read_card(folder).content_hash == content:
        return folder
    return None

  return find
