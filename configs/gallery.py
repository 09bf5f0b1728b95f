"""The baselines and the published champions side by side, at the parameters of DeltaNet.

Command:  asiarch search --config=configs/gallery.py --workdir=runs/gallery
          asiarch top --workdir=runs/gallery
Hardware: one GPU; on two CPU cores hours
Time:     not measured
Result:   not run to its end yet; docs/EVIDENCE.md has the same at a smaller size
"""

import dataclasses

from asiarch_jax import config

BASELINES = (
  *('delta_net', 'gated_delta_net', 'mamba2', 'content_sharp_router', 'fusion_gated_fir_net', 'path_gate_fusion_net'),
  *('hier_gate_net', 'ada_multi_path_gate_net', 'kda', 'gla', 'retnet', 'softmax_attention'),
  *('content_sharp_router_faithful', 'fusion_gated_fir_net_faithful'),
)


def get_config():
  """Returns a search of baselines alone, at the model and training of the default experiment's rung `small`.

  Four candidates share the device, which each leaves idle while it is compiled; so their seconds a step compare little,
  and no run is stopped for them.
  """
  experiment = config.Experiment()
  small = experiment.rungs['small']
  search = dataclasses.replace(
    experiment.search, cycles=len(BASELINES), baselines=BASELINES, anchors=('softmax_attention',), in_flight=4
  )
  return config.as_config_dict(
    dataclasses.replace(
      experiment,
      name='gallery',
      model=small.model,
      training=small.training,
      evaluation=small.evaluation,
      tasks=small.tasks,
      search=search,
      monitor=dataclasses.replace(experiment.monitor, too_slow=0.0),
      runner=dataclasses.replace(
        experiment.runner, workers=4, wall_seconds=small.wall_seconds, heartbeat_seconds=600.0, memory_gib=16.0
      ),
      ladder=(),
      rungs={},
    )
  )
