"""The exploration of ASI-ARCH on one slice of TPUs, all chips on one candidate at a time.

Command:  launch/tpu_vm.sh --name=pod --zone=ZONE --type=v5litepod-16 --spot --service-account=ACCOUNT -- \
            asiarch search --config=configs/tpu_pod.py --workdir=gs://BUCKET/runs/pod --config.corpus.path=gs://BUCKET/CORPUS
          asiarch plan --config=configs/tpu_pod.py --topology=v5e:4x4      (here, without a TPU; extra [aot])
Hardware: v5litepod-16: four hosts of four chips; any slice whose chips divide 2 replicas x 256 rows
Text:     FineWeb-Edu with GPT-2's tokenizer, made by `asiarch prepare` (docs/DATA.md)
Time:     not measured
Result:   not run yet. Compiled ahead of time for DeltaNet: 4.9 of 16 GiB a chip, 286 ms a step at least (static)
"""

import dataclasses

from asiarch_jax import config

MICROBATCHES = 4


def get_config():
  """Returns configs/asi_arch.py's search for chips of 16 GiB: rows in parts, since logits of 50,257 ids are large.

  With two replicas a candidate has half of the chips for each; a device's rows go through in MICROBATCHES parts, whose
  gradients are summed. A job is run on all hosts at once, and is run again where one is lost.
  """
  experiment = config.Experiment()
  model = config.Model(
    width=256, layers=8, heads=8, mlp_width=768, vocabulary=50_257, tied=False, dtype='bfloat16', init_stddev=0.02,
    remat=True, remat_saves='both',
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
      name='tpu_pod',
      model=model,
      training=training,
      evaluation=config.Evaluation(validation_windows=256, test_windows=512, batch=32),
      tasks=dataclasses.replace(experiment.tasks, names=('recall_slice',), steps=10),
      checks=dataclasses.replace(experiment.checks, lengths=(1, 37, 64, 129, 512), seconds=600.0),
      runner=dataclasses.replace(
        experiment.runner,
        kind='spmd',
        platform='tpu',
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
