"""`asiarch export`: an entry as a small package for other people's JAX code."""

from __future__ import annotations

import ast
import dataclasses
import datetime
import importlib.resources
import json
import pathlib
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence

import numpy as np
from absl import flags

from asiarch_jax import commands, syntax
from asiarch_jax.commands import UsageError, registry
from asiarch_jax.commands.asked import asked, trained
from asiarch_jax.evidence import claims, posterior
from asiarch_jax.export import package
from asiarch_jax.records import Entry, Outcome
from asiarch_jax.report import card
from asiarch_jax.shell import archive as archives
from asiarch_jax.shell import jobfolder, machine, questions, text_encoding
from asiarch_jax.shell.display import Display

ROWS, TOKENS = 2, 24  # of the text whose logits are kept for the package's own tests
STACKED = 'layers/'


def export(values: flags.FlagValues, arguments: list[str]) -> int:
  """Writes the package. Its own tests are the reader's to run: the source of a proposal runs in the jail only here."""
  out = commands.new_place(values.out)
  if out.exists():
    raise UsageError(f'--out={out} is there already; remove it, or name another folder')
  header = archives.read_header(values.workdir)
  with archives.OrbaxArchive.open_read_only(values.workdir) as archive:
    outcomes = archive.outcomes()
    entry = trained(commands.named(arguments[0], outcomes))
    stored = archive.arrays(entry.id)
  if not stored:
    raise UsageError(f'entry {entry.id} ({entry.proposal.name}) has no parameters in the archive; nothing to export')
  experiment = header.experiment
  model = dataclasses.replace(experiment.model, mlp_width=entry.training.mlp_width)
  with Display() as display, commands.terminable():
    jail = commands.choose_jail(experiment, display)
    display.start_cycle(0, 1, None)
    rng = np.random.default_rng(experiment.seed)
    requests = [
      questions.Request(tuple(int(one) for one in rng.integers(0, model.vocabulary, TOKENS))) for _ in range(ROWS)
    ]
    terms = questions.Terms(TOKENS, ROWS * TOKENS, model.vocabulary, 0)
    encoding = text_encoding.encoding(text_encoding.BYTES)
    result, arrays = asked(
      values.workdir, entry, experiment, 'decode', (requests, terms, encoding, stored), jail, display
    )
  steps = next(finding for finding in result.findings if finding.check == 'steps')
  made = machine.installed(('asiarch-jax', 'jax', 'flax'))
  facts = card.Facts(
    entry=entry,
    model=model,
    training=experiment.training,
    lineage=lineage(entry, outcomes),
    believed=posterior.believed(outcomes, experiment.search.baseline).get(entry.id),
    baseline=experiment.search.baseline,
    verdicts=verdicts(values.workdir, entry.id),
    candidates=sum(isinstance(one, Entry) and one.role == 'candidate' for one in outcomes),
    steps=steps,
    made=made | {'date': f'{datetime.date.today()}', 'corpus': header.corpus[:12]},
    vendored=values.vendor,
    package=package.package_name(entry.proposal.name),
  )
  parameters = one_by_one(stored)
  content = package.Content(
    name=facts.package,
    title=re.sub(r'[^\w .-]', '_', entry.proposal.name),
    source=formatted(entry.proposal.source),
    model=model,
    training=experiment.training,
    learning_rate=entry.training.learning_rate,
    parameters=parameters,
    tree=jobfolder.nested(parameters),
    archived=arrays,
    steps=steps.passed,
    card=card.written(facts),
    provenance={'entry': entry.id, 'experiment': experiment.name, 'job': entry.job_key, **facts.made},
    licence=_licence(),
  )
  try:
    written = package.write(out, content, vendor=values.vendor)
  except ModuleNotFoundError as error:
    raise UsageError(f"{error.name} is not installed; pip install 'asiarch-jax[export]'") from error
  if values.json:
    print(json.dumps({'out': str(out), 'package': facts.package, 'steps': steps.passed, 'files': written}))
  else:
    decode = 'decodes token by token' if steps.passed else 'generates by reading the whole text for each token'
    commands.standard_output().print(
      f'{out}: package {facts.package}, {len(written)} files; it {decode}.\n'
      f'Prove it: cd {out} && python -m pytest tests    Read: {out / "README.md"}',
      soft_wrap=True, markup=False,
    )  # fmt: skip
  return 0


def lineage(entry: Entry, outcomes: Sequence[Outcome]) -> tuple[Outcome, ...]:
  """Returns the ancestors of an entry, parent first."""
  by_id = {outcome.id: outcome for outcome in outcomes}
  found: list[Outcome] = []
  at = entry.proposal.parent_id
  while at in by_id and len(found) < len(by_id):
    found.append(by_id[at])
    at = by_id[at].proposal.parent_id
  return tuple(found)


def verdicts(workdir: str, id: int) -> tuple[claims.Verdict, ...]:
  """Returns what was claimed of an entry."""
  return tuple(one for _, found in registry.read_claims(workdir) for one in found if one.id == id)


def one_by_one(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Returns parameters by path with a layer's under `layer_0/`, however the host held them."""
  found: dict[str, np.ndarray] = {}
  for path, array in arrays.items():
    if path.startswith(STACKED):
      found |= {f'layer_{at}/{path.removeprefix(STACKED)}': layer for at, layer in enumerate(np.asarray(array))}
    else:
      found[path] = np.asarray(array)
  return found


def formatted(source: str) -> str:
  """Returns a source laid out by ruff, where that is installed and changes no word of it; else the source itself."""
  ruff = pathlib.Path(sys.executable).with_name('ruff')
  program = str(ruff) if ruff.exists() else shutil.which('ruff')
  if not program:
    return source
  done = subprocess.run(
    [program, 'format', '--isolated', '--line-length=120', '-'],
    input=source,
    capture_output=True,
    text=True,
    check=False,
  )
  same = done.returncode == 0 and ast.dump(syntax.parse(done.stdout)) == ast.dump(syntax.parse(source))
  return done.stdout if same else source


def _licence() -> str:
  return (importlib.resources.files('asiarch_jax.export') / 'templates/licence.txt').read_text()
