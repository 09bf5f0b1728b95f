"""The table of the replay bench: two hundred offline mixers on two rungs, each with all its replicas and full curves.

Command:  asiarch tabulate --config=configs/replay.py --workdir=runs/replay --out=table.json.xz
Hardware: 2 CPU cores, 4 GiB
Time:     about 2 hours (not timed whole: the packaged table was made in several sittings)
"""

import dataclasses

from asiarch_jax import config


def get_config():
  """Returns a search that spreads out rather than climbs, and a rung of twice the depth and length for everybody.

  Two designs in five are independent and parents come from the best forty, so that the table holds the poor, too: a
  policy can only be compared where it may go wrong. No run is ended early: a rule that stops runs is tried on the
  curves.
  """
  experiment = config.Experiment()
  training = dataclasses.replace(experiment.training, steps=150, batch=4, length=64, seeds=4)
  model = dataclasses.replace(experiment.model, width=32, layers=1, mlp_width=96)
  tasks = dataclasses.replace(experiment.tasks, names=('recall_slice',))
  return config.as_config_dict(
    dataclasses.replace(
      experiment,
      name='replay',
      model=model,
      training=training,
      tasks=tasks,
      checks=dataclasses.replace(experiment.checks, lengths=(1, 37, 64)),
      search=dataclasses.replace(
        experiment.search,
        cycles=216,
        cold_start=10,
        refresh=5,
        pool=80,
        parent_ranks=(1, 40),
        reference_ranks=(1, 80),
        in_flight=2,
      ),
      researcher=dataclasses.replace(experiment.researcher, fresh=0.4),
      fitness=dataclasses.replace(experiment.fitness, band=0.3, leak=0.35, worse_loss=0.5, worse_tasks=0.5),
      monitor=config.Monitor(too_slow=0.0, suspicious=0.25, hopeless=0.0),
      runner=dataclasses.replace(experiment.runner, platform='cpu', workers=2),
      ladder=('upper',),
      rungs={
        'upper': config.Rung(
          model=dataclasses.replace(model, layers=2),
          training=dataclasses.replace(training, steps=250, seeds=3),
          tasks=tasks,
          share=1.0,
          false_discoveries=0.999,
          audit=0,
          rounds=1,
        )
      },
    )
  )
