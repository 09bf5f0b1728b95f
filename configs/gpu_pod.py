"""The exploration of ASI-ARCH on several GPU machines, all GPUs on one candidate at a time.

Command:  launch/gpu_slurm.sh --name=pod --nodes=2 --gpus=8 --time=24:00:00 --partition=PARTITION --requeue -- \
            asiarch search --config=configs/gpu_pod.py --workdir=gs://BUCKET/runs/pod --config.corpus.path=gs://BUCKET/CORPUS
          launch/gpu_hosts.sh --name=pod --hosts=HOST,HOST -- asiarch search --config=configs/gpu_pod.py ...
Hardware: two machines of eight GPUs of 80 GB; any number of GPUs that divides 2 replicas x 256 rows
Text:     FineWeb-Edu with GPT-2's tokenizer, made by `asiarch prepare` (docs/DATA.md)
Time:     not measured
Result:   not run yet
"""

import dataclasses

from asiarch_jax import config

MICROBATCHES = 4


def get_config():
  """Returns configs/asi_arch.py's search for GPUs of 80 GB: rows in parts, since logits of 50,257 ids are large.

  With two replicas a candidate has half of the GPUs for each; a device's rows go through in MICROBATCHES parts, whose
  gradients are summed. A job is run on all hosts at once, and is run again where one is lost.
  """
  experiment = config.Experiment()
  model = config.Model(
    width=256, layers=8, heads=8, mlp_width=768, vocabulary=50_257, tied=False, dtype='bfloat16', init_stddev=0.02
  )  # fmt: skip
  training = dataclasses.replace(
    experiment.training,
    steps=2000,
    batch=256,
    length=2048,
    seeds=2,
    learning_rates=(3e-4,),
    warmup=0.5,
    decay=0.2,
    weight_decay=0.1,
    microbatches=MICROBATCHES,
    checkpoint_every=500,
  )
  return config.as_config_dict(
    dataclasses.replace(
      experiment,
      name='gpu_pod',
      model=model,
      training=training,
      evaluation=config.Evaluation(validation_windows=256, test_windows=512, batch=32),
      tasks=dataclasses.replace(experiment.tasks, names=('recall_slice',), steps=10),
      checks=dataclasses.replace(experiment.checks, lengths=(1, 37, 64, 129, 512), seconds=600.0),
      runner=dataclasses.replace(
        experiment.runner,
        kind='spmd',
        platform='cuda',
        join_seconds=900.0,
        wall_seconds=6 * 3600.0,
        heartbeat_seconds=1200.0,
        memory_gib=64.0,
        file_mib=4096.0,
      ),
      ladder=(),
      rungs={},
    )
  )
