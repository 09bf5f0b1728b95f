"""Two hundred copies of the baseline and nothing else, at a reduced size: whatever is found here is false.

Command:  asiarch search --config=configs/placebo.py --workdir=runs/placebo
          asiarch verify --workdir=runs/placebo
Hardware: 2 CPU cores, 4 GiB
"""

import dataclasses

from asiarch_jax import config


def get_config():
  """Returns a search whose every cycle is a placebo, with a rung of twice the length above it."""
  experiment = config.Experiment()
  training = dataclasses.replace(
    experiment.training, steps=60, batch=4, length=64, seeds=4, learning_rates=(1e-2,), steps_per_call=20
  )
  model = dataclasses.replace(experiment.model, width=32, layers=1, mlp_width=96)
  tasks = dataclasses.replace(experiment.tasks, names=(), steps=20)
  checks = dataclasses.replace(experiment.checks, lengths=(1, 37, 64))
  return config.as_config_dict(
    dataclasses.replace(
      experiment,
      name='placebo',
      model=model,
      training=training,
      tasks=tasks,
      checks=checks,
      search=dataclasses.replace(experiment.search, cycles=201, baselines=('delta_net',), anchors=(), in_flight=2),
      monitor=dataclasses.replace(experiment.monitor, too_slow=0.0),
      evidence=config.Evidence(floor=16, placebo=1.0),
      runner=dataclasses.replace(experiment.runner, platform='cpu', workers=2),
      rungs={
        'small': config.Rung(
          model=model, training=dataclasses.replace(training, steps=120), tasks=tasks, false_discoveries=0.05, audit=0
        )
      },
    )
  )
