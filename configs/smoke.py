"""The smallest search that goes through every stage: for tests and for a first look at a new machine.

Command:  asiarch search --config=configs/smoke.py --workdir=runs/smoke
Hardware: 2 CPU cores, 1 GiB
"""

import dataclasses

from asiarch_jax import config

# Each program runs a few times, so compiling costs more than running; with less of it a search takes two thirds.
QUICK = ('--xla_backend_optimization_level=0', '--xla_llvm_disable_expensive_passes=true')


def get_config():
  """Returns an experiment of two baselines and two proposals, a few steps each."""
  experiment = config.Experiment()
  training = dataclasses.replace(
    experiment.training, steps=8, batch=2, length=32, seeds=2, learning_rates=(5e-3,), steps_per_call=4
  )
  evaluation = config.Evaluation(validation_windows=4, test_windows=4, batch=4)
  tasks = dataclasses.replace(experiment.tasks, steps=4, examples=8, pairs=2, length=16)
  return config.as_config_dict(
    dataclasses.replace(
      experiment,
      name='smoke',
      model=dataclasses.replace(experiment.model, width=16, layers=1, mlp_width=48),
      training=training,
      evaluation=evaluation,
      tasks=tasks,
      search=dataclasses.replace(
        experiment.search, cycles=4, baselines=('delta_net', 'gated_delta_net'), anchors=(), cold_start=1, refresh=1
      ),
      runner=dataclasses.replace(experiment.runner, platform='cpu', xla_flags=QUICK),
      evidence=config.Evidence(floor=2, placebo=0.0),
      claims=config.Claims(windows=8),
      rungs={
        'small': config.Rung(
          model=dataclasses.replace(experiment.model, width=16, layers=2, mlp_width=48),
          training=dataclasses.replace(training, steps=12),
          evaluation=evaluation,
          tasks=tasks,
          share=0.5,
          false_discoveries=0.6,
        )
      },
    )
  )
