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
import pathlib
import runpy

from asiarch_jax import config


def get_config():
  """Returns configs/tpu_pod.py's search for GPUs of 80 GB, which hold what a block leaves for its backward pass."""
  pod = runpy.run_path(str(pathlib.Path(__file__).with_name('tpu_pod.py')))
  experiment = config.from_dict(pod['get_config']())
  return config.as_config_dict(
    dataclasses.replace(
      experiment,
      name='gpu_pod',
      model=dataclasses.replace(experiment.model, remat=False, remat_saves='nothing'),
      runner=dataclasses.replace(experiment.runner, platform='cuda'),
    )
  )
