"""Who works on a search: the agents of each cycle, and what all cycles share (model, prompts, papers, prices)."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from asiarch_jax import config, cycle
from asiarch_jax.agents import analyst, evolution, genome, given, judge, placebo, reading
from asiarch_jax.cognition.retrieval import Base, nearest_texts
from asiarch_jax.commands import UsageError, baseline_proposal
from asiarch_jax.commands.cognition import base_of
from asiarch_jax.dialogue import Price, price_of, prices, settings_of
from asiarch_jax.evidence.placebo import is_placebo
from asiarch_jax.ports import Analyst, ChatModel, Examiner, Journal, Judge, Neighbours, Researcher, Runner
from asiarch_jax.records import Progress
from asiarch_jax.shell import library, llm
from asiarch_jax.shell.embeddings import EmbeddedNeighbours
from asiarch_jax.shell.exchanges import Traces
from asiarch_jax.shell.metering import Ledger, Metered
from asiarch_jax.shell.patience import Patient


@dataclasses.dataclass(frozen=True)
class Staff:
  """What the cycles of one run share. `model` is None where no agent is a language model."""

  experiment: config.Experiment
  base: Base
  templates: Mapping[str, str]
  prices: Mapping[str, Price]
  ledger: Ledger
  traces: Traces
  model: Patient | None
  neighbours: Neighbours
  kept: dict[int, str] | None  # summaries by entry, where they are cached
  examiner: Examiner | None = None


@contextlib.contextmanager
def staff_of(
  experiment: config.Experiment,
  workdir: str | os.PathLike[str],
  say: Callable[[str], None],
  environment: Mapping[str, str] = os.environ,
  examiner: Examiner | None = None,
) -> Iterator[Staff]:
  """Gives the staff of a run and closes its model afterwards. `say` takes lines for the user.

  With `llm.pause` = 0 an agent's call may raise `Unavailable`.

  Raises:
    UsageError: a limit in dollars on a model without a price; papers that cannot be read.
    ImportError, PermissionError, ValueError, FileNotFoundError: the model cannot be opened, with the remedy.
  """
  table = prices(experiment.llm.prices)
  traces = Traces(workdir)
  model = None
  if config.uses_llm(experiment):
    _priced(experiment, table)
    provider = llm.open_model(experiment.llm, environment, workdir)
    model = Patient(provider, experiment.llm.pause, say)
  try:
    yield Staff(
      experiment,
      base_of(experiment.cognition.papers or None),
      library.prompts(),
      table,
      Ledger(traces.spent()),
      traces,
      model,
      _neighbours(experiment, provider, model, workdir) if model else nearest_texts,
      {} if experiment.researcher.summaries == 'cached' else None,
      examiner,
    )
  finally:
    if model is not None:
      model.close()


def team_of(
  number: int,
  staff: Staff,
  runner: Runner,
  journal: Journal,
  on_progress: Callable[[Progress], None] = lambda progress: None,
) -> cycle.Team:
  """Returns who works on cycle `number`: its researcher gives a baseline at first, then proposes.

  `on_progress` is told whom a language model is asked for.
  """
  experiment, baseline = staff.experiment, staff.experiment.search.baseline
  metered = (
    Metered(staff.model, number, staff.traces, staff.prices, staff.ledger, journal, on_progress)
    if staff.model is not None
    else None
  )
  if metered is not None:
    staff.traces.begin(number)
  own_judge: Judge = judge.MeasuredJudge(experiment.judge, baseline=baseline)
  own_analyst: Analyst = analyst.MeasuredAnalyst(baseline=baseline)
  researcher: Researcher = evolution.Evolution(experiment.researcher)
  if metered is not None:
    own_judge, own_analyst, researcher = _models(staff, metered, own_judge, own_analyst, researcher)
  if number < len(experiment.search.baselines):
    researcher = given.Given(baseline_proposal(experiment.search.baselines[number]))
  elif is_placebo(number, experiment):
    researcher = _placebo(experiment)
  return cycle.Team(
    researcher=researcher,
    judge=own_judge,
    analyst=reading.Reading(own_analyst, staff.base, experiment.analyst.insights, baseline),
    runner=runner,
    journal=journal,
    examiner=staff.examiner,
    **({'spent': metered.spent} if metered is not None else {}),
  )


def _placebo(experiment: config.Experiment) -> Researcher:
  """Returns who proposes copies of the baseline that look like this search's own candidates."""
  offline = experiment.researcher.kind == 'evolution'
  design = genome.GENOMES.get(experiment.search.baseline)
  return placebo.Placebo(
    baseline_proposal(experiment.search.baseline),
    author='evolution' if offline else settings_of(experiment.llm, 'researcher').model,
    genome=design.to_json() if offline and design else None,
  )


def _models(
  staff: Staff, model: ChatModel, own_judge: Judge, own_analyst: Analyst, researcher: Researcher
) -> tuple[Judge, Analyst, Researcher]:
  """Returns the agents with language models in the places that the experiment gives them."""
  from asiarch_jax.agents import model_analyst, model_judge, repairer, summariser  # pydantic: in the extras only
  from asiarch_jax.agents import researcher as researchers

  experiment, templates = staff.experiment, staff.templates
  baseline = experiment.search.baseline
  if experiment.judge.kind == 'llm':
    own_judge = model_judge.ModelJudge(model, experiment.judge, templates, baseline)
  if experiment.analyst.kind == 'llm':
    own_analyst = model_analyst.ModelAnalyst(model, own_analyst, templates, baseline)
  if experiment.researcher.kind == 'llm':
    researcher = researchers.ModelResearcher(
      model,
      experiment,
      templates,
      staff.base,
      summariser.Summariser(model, templates, staff.base, staff.kept),
      repairer.Repairer(model, templates),
      staff.neighbours,
    )
  return own_judge, own_analyst, researcher


def _neighbours(
  experiment: config.Experiment, provider: Any, model: Patient, workdir: str | os.PathLike[str]
) -> Neighbours:
  """Returns what compares motivations: the provider's embeddings, or shared words.

  Raises:
    UsageError: embeddings are asked of a provider that is not Gemini.
  """
  kind = experiment.researcher.embedder
  recorded = epath.Path(experiment.llm.exchanges) / 'embeddings.jsonl'
  if kind != 'lexical' and experiment.llm.provider == 'recorded' and recorded.exists():
    return EmbeddedNeighbours(_not_recorded, recorded)
  if kind == 'lexical' or (kind == 'auto' and not isinstance(provider, llm.Gemini)):
    return nearest_texts
  if not isinstance(provider, llm.Gemini):
    raise UsageError(
      f"researcher.embedder = 'gemini' needs llm.provider = 'gemini', not {experiment.llm.provider!r}; use lexical"
    )
  embed = provider.embed
  return EmbeddedNeighbours(lambda texts: model.ask(lambda: embed(texts)), os.path.join(workdir, 'embeddings.jsonl'))


def _not_recorded(texts: Sequence[str]) -> Sequence[Sequence[float]]:
  raise ValueError(f'the recorded run embedded no text that begins {texts[0][:80]!r}; replay it with its own settings')


def _priced(experiment: config.Experiment, table: Mapping[str, Price]) -> None:
  if not experiment.budget.dollars:
    return
  models = {settings_of(experiment.llm, role).model for role in config.ROLES}
  unknown = sorted(model for model in models if price_of(table, model) is None)
  if unknown:
    raise UsageError(
      f'budget.dollars = {experiment.budget.dollars:g} needs a price for {", ".join(unknown)}; add a row to llm.prices '
      '(MODEL PROMPT CACHED REPLY DATE, dollars for a million tokens), or set budget.tokens instead'
    )
