"""The offline search, on two CPU cores and no key.

Command:  asiarch search --config=configs/default.py --workdir=runs/default      (make search)
Hardware: 2 CPU cores, 2 GiB
"""

import dataclasses

from asiarch_jax import config


def get_config():
  """Returns the default experiment, with a pool that breeds from its first proposals on."""
  experiment = config.Experiment()
  search = dataclasses.replace(experiment.search, cold_start=3, refresh=1)
  return config.as_config_dict(dataclasses.replace(experiment, search=search))
