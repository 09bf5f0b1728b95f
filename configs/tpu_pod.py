"""The exploration of ASI-ARCH on one slice of TPUs, all chips on one candidate at a time.

Command:  launch/tpu_vm.sh --name=pod --zone=ZONE --type=v5litepod-16 --spot --service-account=ACCOUNT -- \
            asiarch search --config=configs/tpu_pod.py --workdir=gs://BUCKET/runs/pod --config.corpus.path=gs://BUCKET/CORPUS
          asiarch plan delta_net --config=configs/tpu_pod.py --topology=v5e:4x4    (here, without a TPU; extra [aot])
          asiarch plan delta_net --config=configs/tpu_pod.py --topology=v5e:4x4 --rung=verification
Hardware: v5litepod-16: four hosts of four chips; any slice whose chips divide 2 replicas x 256 rows
Text:     FineWeb-Edu with GPT-2's tokenizer, made by `asiarch prepare` (docs/DATA.md)
Time:     not measured
Result:   not run yet. Compiled ahead of time for DeltaNet: 4.7 of 16 GiB a chip, 283 ms a step at least (static); on
          the rung `verification` 6.6 GiB, 1.4 s (10.3 GiB with nothing shared out)
"""

import dataclasses
import pathlib
import runpy

from asiarch_jax import config

MICROBATCHES = 4
# What any candidate has, along axes of the model's width: a matched feed-forward's own width need not divide.
SHARDED = (
  '^layers/mlp/(gate|up)/kernel$ -,fsdp,-',
  '^layers/mlp/down/kernel$ -,-,fsdp',
  '^(embedding|head)$ -,fsdp',
)
FSDP = 4  # chips of one host


def get_config():
  """Returns the search of configs/asi_arch.py, and the rungs above it, for chips of 16 GiB.

  Rows go through in MICROBATCHES parts, whose gradients are summed, since logits of 50,257 ids are large. With two
  replicas a candidate has half of the chips for each. A job is run on all hosts at once, and is run again where one is
  lost. On the rungs above, the chips of a host share out the large matrices, of which each host has a copy.
  """
  paper = runpy.run_path(str(pathlib.Path(__file__).with_name('asi_arch.py')))
  experiment = config.from_dict(paper['get_config']())
  above = {
    name: dataclasses.replace(
      rung,
      training=dataclasses.replace(rung.training, microbatches=2 * MICROBATCHES, sharded=SHARDED, fsdp=FSDP),
    )
    for name, rung in experiment.rungs.items()
  }
  return config.as_config_dict(
    dataclasses.replace(
      experiment,
      name='tpu_pod',
      model=dataclasses.replace(experiment.model, remat=True, remat_saves='both'),
      training=dataclasses.replace(experiment.training, microbatches=MICROBATCHES),
      runner=dataclasses.replace(experiment.runner, kind='spmd', platform='tpu', join_seconds=900.0, file_mib=4096.0),
      rungs=above,
    )
  )
