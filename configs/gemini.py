"""A search in which Gemini writes, repairs, compares, judges and analyses, on two CPU cores.

Command:  GEMINI_API_KEY=... asiarch search --config=configs/gemini.py --workdir=runs/gemini
Hardware: 2 CPU cores; a key of the Gemini API, or --config.llm.project=PROJECT for Vertex AI
Time:     not measured; three cycles are in flight, so that training need not wait for the model
Cost:     about $0.13 a candidate by the guess that the search prints first; it stops at $5
Result:   not run against the service itself yet; tests run it against a local server of the same protocol
"""

import dataclasses

from asiarch_jax import config


def get_config():
  """Returns the experiment of configs/default.py with a language model in every place.

  The judge is asked three times an entry; researchers think as hard as the provider lets them, the others briefly.
  """
  experiment = config.Experiment()
  quick = {'thinking': 'low'}
  llm = experiment.llm
  return config.as_config_dict(
    dataclasses.replace(
      experiment,
      name='gemini',
      search=dataclasses.replace(experiment.search, cycles=30, cold_start=3, refresh=1, in_flight=3),
      fitness=dataclasses.replace(experiment.fitness, band=0.3, leak=0.35, worse_tasks=0.2),
      tasks=dataclasses.replace(experiment.tasks, names=('recall_slice',)),
      monitor=dataclasses.replace(experiment.monitor, too_slow=6.0),
      researcher=dataclasses.replace(experiment.researcher, kind='llm'),
      judge=dataclasses.replace(experiment.judge, kind='llm'),
      analyst=dataclasses.replace(experiment.analyst, kind='llm'),
      llm=dataclasses.replace(
        llm,
        researcher=dataclasses.replace(llm.researcher, thinking='high'),
        novelty=dataclasses.replace(llm.novelty, **quick),
        summariser=dataclasses.replace(llm.summariser, **quick),
        judge=dataclasses.replace(llm.judge, **quick),
      ),
      budget=config.Budget(dollars=5.0),
      runner=dataclasses.replace(experiment.runner, platform='cpu', host_devices=2),
    )
  )
