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
import pathlib
import runpy

from asiarch_jax import config

MICROBATCHES = 4


def get_config():
  """Returns the search of configs/asi_arch.py for chips of 16 GiB, without the rungs above it.

  Rows go through in MICROBATCHES parts, whose gradients are summed, since logits of 50,257 ids are large. With two
  replicas a candidate has half of the chips for each. A job is run on all hosts at once, and is run again where one is
  lost.
  """
  paper = runpy.run_path(str(pathlib.Path(__file__).with_name('asi_arch.py')))
  experiment = config.from_dict(paper['get_config']())
  return config.as_config_dict(
    dataclasses.replace(
      experiment,
      name='tpu_pod',
      model=dataclasses.replace(experiment.model, remat=True, remat_saves='both'),
      training=dataclasses.replace(experiment.training, microbatches=MICROBATCHES),
      runner=dataclasses.replace(experiment.runner, kind='spmd', platform='tpu', join_seconds=900.0, file_mib=4096.0),
      ladder=(),
      rungs={},
    )
  )
